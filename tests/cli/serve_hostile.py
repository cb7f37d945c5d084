"""Hostile and honest clients at once: serve_hostile.py URL PID CLIENTS SECONDS. PID is the server's: its descriptors and memory are
looked at before and after. Honest clients must all get the right text. Ends with 1 and a line for each thing that is wrong; the
last line of output sums up."""

import asyncio
import json
import os
import random
import resource
import socket
import struct
import sys
import time

url, pid, clients, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
host, port = url.split("//")[1].split(":")
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
counts, wrong, waits = {}, [], []
seed = int(os.environ.get("PIPEDEC_HOSTILE_SEED", "1"))
rubbish = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n\x00\x01\x02 rubbish behind a request\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-Header: y\r\n" * 5000 + b"\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n\xff\xfe{{{{{{" * 20,
]


def descriptors():
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_mb():
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) // 1024 for line in f if line.startswith("VmRSS"))


def count(what):
    counts[what] = counts.get(what, 0) + 1


def request(body, path="/v1/completions"):
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def reset(writer):
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def whole(body):
    """Code and text of a reply, streamed or not."""
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request(body))
    data = (await reader.read()).decode()
    writer.close()
    if not data.startswith("HTTP/1.1 200"):
        return int(data.split()[1]) if data else 0, data
    if "data: [DONE]" not in data and body.get("stream"):
        return 200, "cut off: " + data[-300:]
    if not body.get("stream"):
        return 200, json.loads(data[data.index("\r\n\r\n"):])["choices"][0]["text"]
    events = [json.loads(line[6:]) for line in data.split("\n") if line.startswith("data: {")]
    return 200, "".join(e["choices"][0]["text"] for e in events if e["choices"])


async def honest(rng, expected):
    body = {"prompt": "Once upon a time", "max_tokens": 8, "seed": 0, "stream": rng.random() < 0.7}
    began = time.monotonic()
    code, text = await whole(body)
    if code == 429:
        count("told to come again")
        await asyncio.sleep(0.2 + rng.random() / 2)
    elif code == 200 and text == expected:
        count("served")
        waits.append(time.monotonic() - began)
    else:
        wrong.append(f"an honest client got {code} {text[:300]!r}")


async def slow_reader(rng, until):
    reader, writer = await asyncio.open_connection(host, int(port), limit=64)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    writer.write(request({"prompt": "Once", "max_tokens": 16, "stream": True, "logprobs": 5}))
    while time.monotonic() < until and await reader.read(1):
        await asyncio.sleep(0.05)
    reset(writer)
    count("slow readers")


async def half_request(rng, until):
    reader, writer = await asyncio.open_connection(host, int(port))
    data = request({"prompt": "Once upon a time", "max_tokens": 8, "seed": 0})
    writer.write(data[:rng.randrange(1, len(data) - 1)])
    await asyncio.sleep(rng.random() * max(0, until - time.monotonic()))
    (reset if rng.random() < 0.5 else lambda w: w.close())(writer)
    count("half requests")


async def leaver(rng, until):
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request({"prompt": "Once", "max_tokens": 200, "stream": rng.random() < 0.5, "ignore_eos": True, "n": rng.randrange(1, 3)}))
    await asyncio.sleep(rng.random() * 0.5)
    (reset if rng.random() < 0.5 else lambda w: w.close())(writer)
    count("left in the middle")


async def scribbler(rng, until):
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(rng.choice(rubbish))
    try:
        await asyncio.wait_for(reader.read(4096), rng.random())
    except asyncio.TimeoutError:
        pass
    writer.close()
    count("wrote rubbish")


async def client(number, until, expected):
    rng = random.Random(seed * 100003 + number)
    while time.monotonic() < until:
        try:
            if number % 5 == 0:
                await honest(rng, expected)
            else:
                await rng.choice([slow_reader, half_request, leaver, scribbler])(rng, until)
        except (ConnectionError, asyncio.IncompleteReadError) as e:
            if number % 5 == 0:
                wrong.append(f"an honest client: {e!r}")


async def settle(fds):
    for _ in range(200):
        _, text = await asyncio.wait_for(get("/pipeline"), 30)
        if '"running":0,"waiting":0' in text and descriptors() <= fds:
            return
        await asyncio.sleep(0.1)
    wrong.append(f"left behind: {descriptors()} descriptors, {fds} before; {text[:400]}")


async def get(path):
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    data = (await reader.read()).decode()
    writer.close()
    return data.split()[1], data


async def main():
    _, expected = await whole({"prompt": "Once upon a time", "max_tokens": 8, "seed": 0})
    await whole({"prompt": "Once upon a time", "max_tokens": 8, "seed": 0, "stream": True})
    await asyncio.sleep(0.3)
    fds, mb = descriptors() + 2, memory_mb()
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(i, until, expected) for i in range(clients)))
    peak = memory_mb()
    await settle(fds)
    if peak > mb + int(os.environ.get("PIPEDEC_HOSTILE_MB", "300")):
        wrong.append(f"memory went from {mb} to {peak} MB")
    if not counts.get("served"):
        wrong.append("no honest client was served")
    code, text = await whole({"prompt": "Once upon a time", "max_tokens": 8, "seed": 0})
    if (code, text) != (200, expected):
        wrong.append(f"afterwards: {code} {text[:300]!r}")
    for line in wrong[:20]:
        print("FAIL:", line, file=sys.stderr)
    waits.sort()
    print(f"{clients} clients, {seconds:g} s: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}; "
          f"memory {mb} -> {peak} MB, descriptors {fds - 2} -> {descriptors()}; honest clients' wait: median "
          f"{waits[len(waits) // 2] if waits else 0:.2f} s, longest {waits[-1] if waits else 0:.2f} s")
    return 1 if wrong else 0


sys.exit(asyncio.run(main()))
