"""What the server costs and gives, as JSON lines (docs/serve.md, "Figures"):

    serve_speed.py overhead BUILD MODEL            the front alone: from a token's birth to the client, and its CPU time
    serve_speed.py load URL STREAMS TOKENS [PATH]  tokens a second and waits of so many streams at once, of any server
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * q))] if values else 0


async def stream(host, port, body, on_text, path="/v1/completions"):
    """Sends the body; on_text(text) for each event. Returns when the first byte and the first text came, in s from the begin."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    data = json.dumps({**body, "stream": True}).encode()
    began = time.monotonic()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    first = text_first = None
    async for line in reader:
        first = first or time.monotonic() - began
        if line.startswith(b"data: {"):
            e = json.loads(line[6:])
            if "error" in e:
                raise RuntimeError(e["error"]["message"])
            text = "".join(c.get("text", "") for c in e["choices"])
            if text:
                text_first = text_first or time.monotonic() - began
                on_text(text)
    writer.close()
    return first, text_first


async def many(host, port, n, body, on_text, path="/v1/completions"):
    began = time.monotonic()
    results = await asyncio.gather(*(stream(host, port, {**body, "prompt": f"{body['prompt']} {i}:"}, on_text, path) for i in range(n)))
    return time.monotonic() - began, results


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def raw_stream(port, tokens, late, first):
    """A client that does nothing but take the time: how late each token is, in ms."""
    body = json.dumps({"prompt": "x", "max_tokens": tokens, "stream": True}).encode()
    sock = socket.create_connection(("127.0.0.1", port))
    began = time.monotonic()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    data = sock.recv(1)
    first.append((time.monotonic() - began) * 1000)
    while data:
        data = sock.recv(65536)
        now = time.monotonic_ns()
        late += [(now - int(m)) / 1e6 for m in re.findall(rb'"text":"([0-9]+) "', data)]


def overhead(build, model):
    for n in (1, 8):
        p = subprocess.Popen([build + "/serve_prog_double", model, "60", "20000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        port, late, first = int(p.stdout.readline()), [], []
        raw_stream(port, 5, [], [])
        before = cpu_s(p.pid)
        threads = [threading.Thread(target=raw_stream, args=(port, 200, late, first)) for _ in range(n)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print(json.dumps({"what": "overhead", "streams": n, "tokens": len(late), "ms_median": round(quantile(late, .5), 3),
                          "ms_90": round(quantile(late, .9), 3), "cpu_ms_a_token": round((cpu_s(p.pid) - before) * 1000 / len(late), 3),
                          "first_byte_ms": round(quantile(first, .5), 2)}))
        p.stdin.close()
        p.wait()


def load(url, n, tokens, path="/v1/completions"):
    host, port = url.split("//")[1].split(":")
    pieces = []
    body = {"prompt": "Write about the number", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    wall, results = asyncio.run(many(host, int(port), n, body, lambda text: pieces.append(time.monotonic()), path))
    print(json.dumps({"what": "load", "url": url, "streams": n, "tokens_a_s": round(n * tokens / wall, 1), "wall_s": round(wall, 2),
                      "first_byte_ms": round(quantile([r[0] for r in results], .5) * 1000, 1),
                      "first_token_ms": round(quantile([r[1] for r in results], .5) * 1000, 1)}), flush=True)


if sys.argv[1] == "overhead":
    overhead(*sys.argv[2:4])
else:
    load(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
