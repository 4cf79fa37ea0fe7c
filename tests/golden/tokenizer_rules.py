#!/usr/bin/env python3
"""Ids by the `tokenizers` library for small made-up tokenizers, for tests/test_tokenizer.cpp: vocabularies with gaps, split
patterns, marks out of order, and what a post_processor adds.

    pip install tokenizers
    python tests/golden/tokenizer_rules.py > tests/golden/tokenizer_rules.jsonl

The first line is a tokenizer.json; each other line holds a JSON merge patch of it, or a text for the tokenizer so patched, with
its ids without special tokens and with them, and in the last part those of the text where its special tokens are plain text.
"""

import copy
import json
import random

from tokenizers import Tokenizer

rng = random.Random(1)


def spelled(byte):
    visible = [b for b in range(256) if 33 <= b <= 126 or (b >= 161 and b != 173)]
    return chr(byte if byte in visible else 256 + sorted(set(range(256)) - set(visible)).index(byte))


PAIRS = [(a, b) for a in "abest1\u0120.,'\u010a" for b in "abest1\u0120.,'\u010a"]  # also blank and line end
BASE = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None,
    "added_tokens": [{"id": i, "content": c, "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
                     for i, c in [(1000, "<s>"), (1001, "</s>")]],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
              "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
              "vocab": {**{spelled(b): b for b in range(256)}, **{a + b: 256 + i for i, (a, b) in enumerate(PAIRS)}},
              "merges": [f"{a} {b}" for a, b in PAIRS]},
}  # fmt: skip


def merged(value, patch):
    if not isinstance(patch, dict):
        return patch
    value = dict(value) if isinstance(value, dict) else {}
    for key, new in patch.items():
        if new is None:
            value.pop(key, None)
        else:
            value[key] = merged(value.get(key), new)
    return value


def write(patch, texts):
    tokenizer = Tokenizer.from_str(json.dumps(merged(copy.deepcopy(BASE), patch)))
    print(json.dumps({"patch": patch}))
    for text in texts:
        plain, special = (tokenizer.encode(text, add_special_tokens=s).ids for s in (False, True))
        print(json.dumps({"text": text, "ids": plain, "special": special}))


def some_text():
    pieces = ["a", "b", "es", "t1", "1", " ", ".", ",", "'", "\n", "\r\n", "\u00e9", "\u017f", "\u180e", "\u3000", "K", "\u212a", "12345"]
    return "".join(rng.choice(pieces) for _ in range(rng.randint(4, 14)))


print(json.dumps(BASE))

# A vocabulary with gaps: "a", "t", a control character, and both bytes of U+00E9.
gaps = {"a": None, "t": None, spelled(6): None, "\u00c3": None, "\u00a9": None}
gaps |= {x + y: None for x, y in PAIRS if {x, y} & {"a", "t"}}
merges = [f"{x} {y}" for x, y in PAIRS if not {x, y} & {"a", "t"}]
for fallback in ({}, {f"<0x{b:02X}>": 600 + b for b in range(256)}, {"<0xC3>": 600, "<0x83>": 601, "<0x61>": 602}):
    for unk in (None, "<unk>"):
        for fuse in (False, True):
            vocab = gaps | fallback | ({unk: 900, unk + "b": 901} if unk else {})
            extra = ["<unk> b"] if unk and fuse else []
            model = {"vocab": vocab, "merges": merges + extra, "byte_fallback": bool(fallback), "fuse_unk": fuse}
            if unk:
                model["unk_token"] = unk
            write({"model": model}, ["bat", "batb\u0006\u0006b", "\u00e9b\u00e8tab", "aa", "baattb taat\u00e9"])

# Split patterns that mean the same to Oniguruma and PCRE2.
for pattern in [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
    r"\P{Lt}+\P{Ll}{2,}\P{Zs}?|[^a-z-]*+[a-z-]{1,3}", r".+(?!\r{1,3}[^\]\p{C}-]{2})\p{Z}++", r"(?i:k|s)+|[^\S\n]+|\S", r"\d{2}|(?<=\s)\S|(?>a|ab)(?=e|\.)",
    r"[\S]", r"[^\S]", r"\x{17f}|[\x{e9}-\x{ea}]|\ ?1{0,2}?",
]:  # fmt: skip
    steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
             {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]  # fmt: skip
    write({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps, "add_prefix_space": None, "trim_offsets": None,
                             "use_regex": None}},
          [some_text() for _ in range(8)])  # fmt: skip

# Marks out of order, some of which compose.
MARKS = "\u0300\u0301\u0308\u0316\u0323\u0327\u0328\u0334\u0345\u05a1\u0651\u0f71\u3099"
for letter in ("a", "e", "\u01d6", "\u1100\u1161", "\u03b1", ""):
    write({"normalizer": {"type": "NFC"}}, [letter + "".join(rng.choice(MARKS) for _ in range(n)) + "b" for n in (1, 2, 6, 40)])

# What is put around a text.
begin, end, text = ({"SpecialToken": {"id": "<s>", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}})  # fmt: skip
special = {t["content"]: {"id": t["content"], "ids": [t["id"]], "tokens": [t["content"]]} for t in BASE["added_tokens"]}
byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
for single in ([begin, text], [begin, text, end], [text], [text, end]):
    template = {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": special}
    write({"post_processor": template}, ["ab"])
    write({"post_processor": {"type": "Sequence", "processors": [byte_level, template]}}, ["", " ab"])

# Special tokens that a user spells, as plain text: among them one within another, one that takes blanks away, one of one
# character, one that is looked for behind normalization; and added tokens that are not special.
pieces = ["<s>", "</s>", "<s", ">", "<a<s>b>", "<think>", "[x]", "\u4e2d", "\u00e9!", "<", " ", "a", "es", "\u0301", "\n", "K"]
added = [("<a<s>b>", True, {}), ("<think>", False, {}), ("[x]", True, {"lstrip": True, "rstrip": True}), ("\u4e2d", True, {}),
         ("\u00e9!", True, {"normalized": True}), ("Ka", True, {"single_word": True})]  # fmt: skip
tokens = [{**BASE["added_tokens"][0], "id": len(BASE["model"]["vocab"]) + i, "content": c, "special": s, **more}
          for i, (c, s, more) in enumerate([("<s>", True, {}), ("</s>", True, {})] + added)]  # fmt: skip
for normalizer in (None, {"type": "NFC"}):
    patch = {"added_tokens": tokens, "normalizer": normalizer}
    tokenizer = Tokenizer.from_str(json.dumps(merged(copy.deepcopy(BASE), patch)))
    print(json.dumps({"patch": patch}))
    for _ in range(40):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 9)))
        plain, special = (tokenizer.encode(text, add_special_tokens=s).ids for s in (False, True))
        tokenizer.encode_special_tokens = True
        print(json.dumps({"text": text, "ids": plain, "special": special, "as_text": tokenizer.encode(text).ids}))
        tokenizer.encode_special_tokens = False
