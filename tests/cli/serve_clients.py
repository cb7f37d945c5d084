"""The official Python clients against a running server: serve_clients.py URL KEY TEXT, TEXT being what `pipedec run` makes of
the first question. Ends with 1 and a line for each thing that is wrong."""

import json
import sys
import threading
import time
import urllib.request
from typing import Literal, Optional

import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

url, key, expected = sys.argv[1:4]
client = openai.OpenAI(base_url=url + "/v1", api_key=key, timeout=60, max_retries=0)
failures = 0
question = [{"role": "user", "content": "Why is the sky blue?"}]


def check(holds, what):
    global failures
    if not holds:
        failures += 1
        print("FAIL:", what, file=sys.stderr)


def refused(kind, words, **fields):
    try:
        client.chat.completions.create(model="any", messages=question, **fields)
        check(False, f"not refused: {fields}")
    except kind as e:
        check(words in str(e), f"{fields}: no '{words}' in {e}")


def chat():
    r = client.chat.completions.create(model="any", messages=question, max_tokens=24, temperature=0)
    check(r.choices[0].message.content == expected, f"chat: {r.choices[0].message.content!r}, not {expected!r}")
    check(r.choices[0].message.role == "assistant" and r.choices[0].finish_reason == "length", "chat: end")
    check(r.usage.completion_tokens == 24 and r.usage.total_tokens == r.usage.prompt_tokens + 24, f"usage: {r.usage}")
    check(r.usage.prompt_tokens_details.cached_tokens >= 0, "usage: cached_tokens")
    parts = [{"role": "user", "content": [{"type": "text", "text": "Why is the sky"}, {"type": "text", "text": " blue?"}]}]
    r = client.chat.completions.create(model="any", messages=parts, max_completion_tokens=24, temperature=0)
    check(r.choices[0].message.content == expected, "chat: text in parts")


def streaming():
    stream = client.chat.completions.create(model="any", messages=question, max_tokens=24, temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check(text == expected, f"stream: {text!r}")
    check(chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content is None, "stream: begin")
    check(sum(1 for c in chunks if c.choices and c.choices[0].delta.role) == 1, "stream: the role once")
    check(len({c.id for c in chunks}) == 1, "stream: one id")
    check(chunks[-2].choices[0].finish_reason == "length", "stream: finish_reason")
    check(not chunks[-1].choices and chunks[-1].usage.completion_tokens == 24, "stream: usage")


def completions():
    r = client.completions.create(model="any", prompt=["Once upon", "The end"], max_tokens=4, n=2, temperature=0.8, seed=3, echo=True)
    check(len(r.choices) == 4 and r.choices[3].text.startswith("The end"), "completions: prompts times n")
    again = client.completions.create(model="any", prompt="The end", max_tokens=4, n=2, temperature=0.8, seed=3, echo=True)
    check(r.choices[3].text == again.choices[1].text, "completions: a prompt in company and alone")
    text = "".join(c.choices[0].text for c in client.completions.create(model="any", prompt="Once upon", max_tokens=6, stream=True))
    check(text == client.completions.create(model="any", prompt="Once upon", max_tokens=6).choices[0].text, "completions: stream")


def logprobs():
    r = client.chat.completions.create(model="any", messages=question, max_tokens=5, logprobs=True, top_logprobs=3)
    content = r.choices[0].logprobs.content
    check(len(content) == 5 and all(len(t.top_logprobs) == 3 for t in content), "logprobs: how many")
    check("".join(t.token for t in content) == r.choices[0].message.content, "logprobs: tokens make the text")
    check(all(t.logprob == t.top_logprobs[0].logprob <= 0 for t in content), "logprobs: greedy takes the best")
    check(all(bytes(t.bytes).decode() == t.token for t in content), "logprobs: bytes")
    streamed = [t for c in client.chat.completions.create(model="any", messages=question, max_tokens=5, logprobs=True, top_logprobs=3, stream=True)
                if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    check([t.logprob for t in streamed] == [t.logprob for t in content], "logprobs: the same in a stream")
    r = client.completions.create(model="any", prompt="Once upon", max_tokens=3, logprobs=2)
    check(len(r.choices[0].logprobs.token_logprobs) == 3 and len(r.choices[0].logprobs.top_logprobs[0]) == 2, "logprobs: completions")


def choices_and_stop():
    r = client.chat.completions.create(model="any", messages=question, max_tokens=8, n=3, temperature=1, seed=5)
    check(sorted(c.index for c in r.choices) == [0, 1, 2], "n: indices")
    check(len({c.message.content for c in r.choices}) > 1, "n: different seeds")
    alone = client.chat.completions.create(model="any", messages=question, max_tokens=8, temperature=1, seed=6)
    check(alone.choices[0].message.content == r.choices[1].message.content, "n: reply i has seed + i")
    stop = expected.split()[3]
    r = client.chat.completions.create(model="any", messages=question, max_tokens=24, stop=[stop, "never said"])
    check(r.choices[0].finish_reason == "stop" and r.choices[0].message.content == expected.split(stop)[0], "stop")
    a = client.chat.completions.create(model="any", messages=question, max_tokens=24, logit_bias={"504": -100})
    check(a.choices[0].finish_reason == "length", "logit_bias")
    b = client.chat.completions.create(model="any", messages=question, max_tokens=24, presence_penalty=1.5, frequency_penalty=0.5)
    check(b.choices[0].message.content != "", "penalties")


def errors():
    refused(openai.BadRequestError, "temperature", temperature=-1)
    refused(openai.BadRequestError, "response_format", response_format={"type": "xml"})
    refused(openai.BadRequestError, "tool_choice", tool_choice={"type": "function", "function": {"name": "g"}}, tools=[weather])
    odd = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}
    refused(openai.BadRequestError, "tools", tool_choice="required", tools=[odd])
    r = client.chat.completions.create(model="any", messages=question, max_tokens=2, tool_choice="none",
                                       tools=[{"type": "function", "function": {"name": "f"}}])
    check(r.choices[0].finish_reason == "length", "tools with tool_choice none")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    try:
        client.chat.completions.create(model="any", messages=image)
        check(False, "an image is not refused")
    except openai.BadRequestError as e:
        check("image_url" in str(e), f"image: {e}")
    try:
        openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0).completions.create(model="any", prompt="x")
        check(False, "a wrong key opens")
    except openai.AuthenticationError:
        pass
    try:
        client.embeddings.create(model="any", input="x")
        check(False, "embeddings are not refused")
    except openai.APIStatusError as e:
        check(e.status_code == 501, f"embeddings: {e}")
    check([m.id for m in client.models.list()] == ["smollm2-135m"], "models")


def pipeline():
    request = urllib.request.Request(url + "/pipeline", headers={"X-Api-Key": key})
    with urllib.request.urlopen(request, timeout=10) as r:
        return r.read().decode()


def cancel():
    stream = client.completions.create(model="any", prompt="Once", stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    check('"running":1' in pipeline(), "cancel: it runs")
    stream.close()
    for _ in range(100):
        if '"running":0,"waiting":0' in pipeline():
            return
        time.sleep(0.1)
    check(False, "cancel: it runs on")


def several():
    texts = [None] * 4

    def one(i):
        texts[i] = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(
            model="any", messages=question, max_tokens=24, temperature=0, stream=True))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    check(texts == [expected] * 4, f"several at once: {texts}")


def langchain():
    model = ChatOpenAI(base_url=url + "/v1", api_key=key, model="any", temperature=0, max_tokens=24, max_retries=0)
    check(model.invoke("Why is the sky blue?").content == expected, "langchain: invoke")
    check("".join(c.content for c in model.stream("Why is the sky blue?")) == expected, "langchain: stream")
    check(len(model.batch(["One", "Two", "Three"])) == 3, "langchain: batch")


weather = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


def tools():
    """The small model calls nothing by itself, but it can repeat a call."""
    words = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    messages = [{"role": "user", "content": "Repeat exactly:\n" + words}]
    common = dict(model="any", temperature=0, max_tokens=60, tools=[weather])
    r = client.chat.completions.create(messages=messages, **common)
    m = r.choices[0].message
    check(r.choices[0].finish_reason == "tool_calls" and m.content is None and len(m.tool_calls) == 1, f"tools: {r}")
    check(m.tool_calls[0].function.name == "get_weather", "tools: name")
    check(json.loads(m.tool_calls[0].function.arguments) == {"city": "Paris"}, "tools: arguments")
    name, arguments, ends, ids = "", "", [], set()
    for c in client.chat.completions.create(messages=messages, stream=True, **common):
        d = c.choices[0].delta
        check(not d.content, f"tools: text in the stream: {d.content}")
        for call in d.tool_calls or []:
            check(call.index == 0, "tools: index")
            ids |= {call.id} if call.id else set()
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        ends += [c.choices[0].finish_reason] if c.choices[0].finish_reason else []
    check(name == "get_weather" and json.loads(arguments) == {"city": "Paris"}, f"tools: stream: {name} {arguments}")
    check(ends == ["tool_calls"] and len(ids) == 1, f"tools: stream: {ends} {ids}")
    messages += [m, {"role": "tool", "tool_call_id": m.tool_calls[0].id, "content": "20 degrees, and sunny"}]
    r = client.chat.completions.create(messages=messages, **common)
    check(r.choices[0].message.content, f"tools: after the result: {r}")
    r = client.chat.completions.create(messages=messages[:1], **{**common, "tool_choice": "none"})
    check(r.choices[0].message.content and not r.choices[0].message.tool_calls, f"tools: none: {r}")
    model = ChatOpenAI(base_url=url + "/v1", api_key=key, model="any", temperature=0, max_tokens=60, max_retries=0)
    calls = model.bind_tools([weather]).invoke(messages[0]["content"]).tool_calls
    check([(c["name"], c["args"]) for c in calls] == [("get_weather", {"city": "Paris"})], f"tools: langchain: {calls}")


class Fruit(BaseModel):
    name: str = Field(max_length=12)
    colour: Literal["red", "green", "yellow"]
    weight: int = Field(ge=1, le=5000)
    organic: Optional[bool]


def structured():
    ask = [{"role": "user", "content": "Describe a fruit."}]
    for temperature in (0, 1.3):
        r = client.chat.completions.parse(model="any", messages=ask, max_tokens=80, temperature=temperature, seed=5,
                                          response_format=Fruit)
        fruit = r.choices[0].message.parsed
        check(isinstance(fruit, Fruit) and r.choices[0].finish_reason == "stop", f"parse: {r.choices[0]}")
    with client.chat.completions.stream(model="any", messages=ask, max_tokens=80, temperature=0, response_format=Fruit) as stream:
        last = None
        for event in stream:
            last = event
    check(isinstance(stream.get_final_completion().choices[0].message.parsed, Fruit), f"parse, streamed: {last}")
    try:
        client.chat.completions.parse(model="any", messages=ask, max_tokens=5, temperature=0, response_format=Fruit)
        check(False, "parse: cut by its length, and not said so")
    except openai.LengthFinishReasonError:
        pass
    r = client.chat.completions.create(model="any", messages=ask, max_tokens=60, temperature=1.3, seed=2,
                                       response_format={"type": "json_object"})
    if r.choices[0].finish_reason == "stop":
        check(isinstance(json.loads(r.choices[0].message.content), dict), "json_object")
    refused(openai.BadRequestError, "/properties/a/not", response_format={
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"not": {}}}}}})


def langchain_structured():
    model = ChatOpenAI(base_url=url + "/v1", api_key=key, model="any", temperature=0.9, seed=1, max_tokens=80, max_retries=0)
    fruit = model.with_structured_output(Fruit, method="json_schema").invoke("Describe a fruit.")
    check(isinstance(fruit, Fruit), f"langchain: with_structured_output: {fruit}")


def forced():
    """Whatever the model would say: a call of a tool, by its schema."""
    city = {"type": "function", "function": {"name": "city", "parameters": {
        "type": "object", "properties": {"name": {"enum": ["Paris", "Rome"]}, "day": {"type": "integer", "minimum": 1, "maximum": 31}},
        "required": ["name", "day"], "additionalProperties": False}}}
    yes = {"type": "function", "function": {"name": "yes", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
    common = dict(model="any", messages=question, max_tokens=100, tools=[city, yes])
    for choice, parallel in (("required", False), ({"type": "function", "function": {"name": "city"}}, True)):
        for temperature in (0, 1.5):
            r = client.chat.completions.create(tool_choice=choice, parallel_tool_calls=parallel, temperature=temperature, seed=5, **common)
            m = r.choices[0].message
            check(r.choices[0].finish_reason == "tool_calls" and len(m.tool_calls or []) == 1, f"forced: {r}")
            call = m.tool_calls[0].function
            arguments = json.loads(call.arguments)
            if call.name == "city":
                check(arguments["name"] in ("Paris", "Rome") and 1 <= arguments["day"] <= 31 and len(arguments) == 2, f"forced: {call}")
            else:
                check(choice == "required" and call.name == "yes" and arguments == {}, f"forced: {call}")
    text = ""
    for c in client.chat.completions.create(tool_choice={"type": "function", "function": {"name": "city"}}, stream=True, temperature=0, **common):
        text += "".join(call.function.arguments or "" for call in c.choices[0].delta.tool_calls or [])
    check(json.loads(text)["name"] in ("Paris", "Rome"), f"forced: stream: {text}")


for part in (chat, streaming, completions, logprobs, choices_and_stop, errors, cancel, several, langchain, tools, structured,
             langchain_structured, forced):
    try:
        part()
    except Exception as e:  # whatever a client says is a failure of that part
        check(False, f"{part.__name__}: {type(e).__name__}: {e}")
sys.exit(1 if failures else 0)
