#!/usr/bin/env python3
"""make_words.py words.jsonl: cut every line's texts anew by its expressions, with the module `regex` of PyPI, and write the
file again. To add a pre-tokenizer append a line with pre, source, regex and "cases": [] (it gets the first line's texts)."""

import json
import sys

import regex


def cut(text, levels):
    """Each level cuts the pieces of the one before into its matches and what lies between."""
    pieces = [text]
    for level in levels:
        expression, cut_pieces = regex.compile(level), []
        for piece in pieces:
            at = 0
            for match in expression.finditer(piece):
                if match.end() == match.start():
                    continue
                cut_pieces += [piece[at : match.start()], match.group()]
                at = match.end()
            cut_pieces.append(piece[at:])
        pieces = [piece for piece in cut_pieces if piece]
    return pieces


def main(path):
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    texts = ["".join(case) for case in lines[0]["cases"]]
    for line in lines:
        own = ["".join(case) for case in line["cases"]] or texts
        line["cases"] = [cut(text, line["regex"]) for text in own]
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


main(sys.argv[1])
