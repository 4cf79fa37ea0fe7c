#!/usr/bin/env python3
"""Random strings and their ids by the `tokenizers` library, as JSON lines, for tests/test_tokenizer.cpp.

    pip install tokenizers
    python tests/golden/tokenizer_random.py --count 2000 qwen2.5/tokenizer.json gpt2/tokenizer.json > cases.jsonl
    R1_TOKENIZER_CASES=cases.jsonl build/tests
"""

import argparse
import json
import os
import random
import unicodedata

from tokenizers import Tokenizer

WORDS = "the of and I'm you'LL don't it's THEY'RE we've 'S 'ſ x=3.14 12345 3/4 \\frac{1}{2} café naïve Straße Москва".split()
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\n\n", "   \n ", "\u00a0", "\u3000", "\u2028", "\u0085", "\u180e", "\u200b"]
RANGES = [  # code points: ASCII, Latin, combining marks, Greek to Thai, Jamo, Hangul, Han, symbols, emoji, everything
    (0x00, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF),
    (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFB4F), (0x1D100, 0x1D7FF), (0x1F300, 0x1FAFF),
    (0x2F800, 0x2FA1D), (0x0, 0x10FFFF),
]  # fmt: skip


def random_char(rng, low, high):
    """An assigned character. Marks younger than Unicode 3.2 are left out: NFC sorts marks, and the tables of
    `tokenizers` do not know the order of the latest."""
    while True:
        char = chr(rng.randint(low, high))
        young = unicodedata.ucd_3_2_0.category(char) == "Cn"
        if unicodedata.category(char) not in ("Cn", "Cs") and not (young and unicodedata.combining(char)):
            return char


def random_text(rng, special):
    text = ""
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.3:
            text += rng.choice(WORDS)
        elif kind < 0.5:
            text += rng.choice(SPACES)
        elif kind < 0.55:
            text += rng.choice(special)
        elif kind < 0.6:
            text += rng.choice(" \n=-a1!") * rng.randint(1, 40)
        else:
            low, high = rng.choice(RANGES)
            text += "".join(random_char(rng, low, high) for _ in range(rng.randint(1, 6)))
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="strings for each tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("tokenizers", nargs="+", help="paths of tokenizer.json files")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    for path in options.tokenizers:
        tokenizer = Tokenizer.from_file(path)
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        for _ in range(options.count):
            text = random_text(rng, special)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=False)
            print(json.dumps({"tokenizer": os.path.abspath(path), "text": text, "ids": ids, "decoded": decoded}))


if __name__ == "__main__":
    main()
