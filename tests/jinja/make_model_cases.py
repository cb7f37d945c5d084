"""Write tests/data/jinja_models.json: what jinja2 makes of the test models' own chat templates (read from the GGUF files,
not stored) for the conversations of jinja_cases.json. Give the folder of the models.

    v/bin/python tests/jinja/make_model_cases.py ~/.cache/pipedec/models >tests/data/jinja_models.json
"""
import json
import mmap
import os
import struct
import sys

import make_cases

MODELS = ["smollm2-135m.gguf", "qwen2.5-coder-0.5b.gguf", "qwen2.5-coder-1.5b.gguf"]
KEY = b"tokenizer.chat_template"


def template_of(path):
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(struct.pack("<Q", len(KEY)) + KEY) + 8 + len(KEY)
        kind, size = struct.unpack_from("<IQ", data, at)
        assert kind == 8
        return data[at + 12 : at + 12 + size].decode()


def main():
    contexts = [make_cases.C] + list(make_cases.conversations())
    out = {}
    for name in MODELS:
        template = template_of(os.path.join(sys.argv[1], name))
        cases = [[i, make_cases.render(template, {"tools": None, **c})] for i, c in enumerate(contexts) if i]
        out[name] = [[i, r[0]] for i, r in cases if isinstance(r, list)]
    lines = (json.dumps(n) + ": [\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in cs) + "]" for n, cs in out.items())
    print("{" + ",\n".join(lines) + "}")


main()
