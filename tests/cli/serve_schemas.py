#!/usr/bin/env python3
"""Replies of a running server by JSON schemas, validated by jsonschema: every one is valid, or cut by its length and said to be.

serve_schemas.py URL SCHEMAS.json REPLIES [TOKENS]"""
import concurrent.futures
import json
import sys
import urllib.error
import urllib.request

from jsonschema import Draft202012Validator as Validator


def ask(url, case, seed, tokens):
    body = {
        "messages": [{"role": "user", "content": case["prompt"]}],
        "temperature": 1.3,
        "seed": seed,
        "max_tokens": tokens,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": case["schema"]}},
    }
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            choice = json.load(answer)["choices"][0]
    except urllib.error.HTTPError as e:
        return f"{case['name']}: {e.code} {e.read().decode()}"
    text = choice["message"]["content"]
    if choice["finish_reason"] == "length":
        return None
    if choice["finish_reason"] != "stop":
        return f"{case['name']}: finish_reason {choice['finish_reason']}"
    try:
        value = json.loads(text)
    except ValueError as e:
        return f"{case['name']}: no JSON: {text!r}: {e}"
    wrong = list(Validator(case["schema"], format_checker=Validator.FORMAT_CHECKER).iter_errors(value))
    return f"{case['name']}: {text!r}: {wrong[0].message}" if wrong else text


def main():
    url, cases, n = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8")), int(sys.argv[3])
    tokens = int(sys.argv[4]) if len(sys.argv) > 4 else 100
    valid = cut = bad = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, url, cases[i % len(cases)], i, tokens) for i in range(n)]
        for i, each in enumerate(asked):
            said, case = each.result(), cases[i % len(cases)]
            if said is None:
                cut += 1
            elif said.startswith(case["name"] + ": "):
                bad += 1
                print(said)
            else:
                valid += 1
    print(f"{n} replies to {len(cases)} schemas: {valid} valid, {cut} cut by their length, {bad} bad")
    return bad > 0 or valid == 0


sys.exit(main())
