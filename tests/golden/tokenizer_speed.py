#!/usr/bin/env python3
"""Encoding speed beside the `tokenizers` library, one thread each, in one run; the ids must agree in number.

    pip install tokenizers
    make build && cmake --build build --target r1_tokenizer_speed
    python tests/golden/tokenizer_speed.py TEXT qwen2.5/tokenizer.json gpt2/tokenizer.json
"""

import os
import statistics
import subprocess
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer  # noqa: E402

program = os.path.join(os.path.dirname(__file__), "../../build/r1_tokenizer_speed")
path, *files = sys.argv[1:]
text = open(path, encoding="utf-8", newline="").read()
print(f"{'tokenizer':40} {'tokens':>9} {'r1 MB/s':>9} {'tokenizers MB/s':>16} {'ratio':>6}")
for file in files:
    tokenizer = Tokenizer.from_file(file)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        seconds.append(time.perf_counter() - start)
    theirs = len(text.encode()) / statistics.median(seconds) / 1e6
    count, ours = subprocess.run([program, file, path], check=True, capture_output=True, text=True).stdout.split()
    assert int(count) == len(ids), f"{file}: {count} tokens here, {len(ids)} there"
    name = os.path.basename(os.path.dirname(os.path.abspath(file)))
    print(f"{name:40} {len(ids):9} {float(ours):9.2f} {theirs:16.2f} {float(ours) / theirs:6.2f}")
