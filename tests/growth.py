#!/usr/bin/env python3
"""How speed and memory grow with each size: what grows faster than the mathematics does loses its share of the machine's peak.

    tests/growth.py [--build build] [--only length] [--record]      # an hour; 12 GB of memory for the largest model

Each line is one run of r1_bench on random weights, in float32, of a model that differs from the first in one size. FLOPs are
counted by formula, so a share of the GEMM peak that falls from line to line is a term that grows too fast; where it is low at
the start, matrices are too small. --record writes the table into tests/RESULTS.md and the plot beside it, tests/growth.svg.
"""

import argparse
import json
import math
import pathlib
import re
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
arguments = argparse.ArgumentParser()
arguments.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
arguments.add_argument("--only", default="", help="sizes whose name matches this")
arguments.add_argument("--record", action="store_true")
args = arguments.parse_args()

MODEL = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
             vocab_size=8192, architectures=["Qwen2ForCausalLM"], model_type="qwen2", rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu",
             tie_word_embeddings=True, eos_token_id=0, max_position_embeddings=65536)  # fmt: skip
MODELS = {  # parameters: hidden, intermediate, layers, heads, vocabulary
    "1M": (128, 384, 3, 2, 4096), "5M": (256, 768, 4, 4, 8192), "20M": (384, 1024, 8, 6, 16384),
    "135M": (576, 1536, 30, 9, 49152), "494M": (896, 4864, 24, 14, 151936)}  # fmt: skip
SWEEPS = {  # a size, by the flag of r1_bench that sets it where there is one, and its values
    "length": [128, 512, 2048, 8192, 32768],
    "sequences": [1, 4, 16, 64],
    "rows": [1, 8, 64, 256],
    "context": [128, 1024, 8192],
    "group": [2, 8, 32],
    "vocabulary": [1024, 16384, 65536, 262144],
    "model": list(MODELS),
}


def measure(name, value):
    config, flags = dict(MODEL), dict(sequences=4, length=512, rows=8, context=256, group=8)
    if name == "vocabulary":
        config["vocab_size"] = value
    elif name == "model":
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        config |= dict(zip(sizes, MODELS[value]))
        config["num_key_value_heads"] = config["num_attention_heads"] if config["num_attention_heads"] % 2 else 2
    else:
        flags[name] = value
    if name == "length":
        flags["sequences"] = max(1, 2048 // value)
    if name == "sequences":
        flags["length"] = 128
    if name == "group":
        flags["length"] = 140 + 128 * value
        flags["sequences"] = 1
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        command = [args.build / "r1_bench", "--model", file.name] + [str(x) for k, v in flags.items() for x in (f"--{k}", v)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    train = re.search(r"train .* (\d+) tokens/s .*= *([\d.]+)% of the GEMM.* ([\d.]+) GiB", out)
    decode = re.search(r"decode .* (\d+) tokens/s .*= *([\d.]+)% of the bandwidth; .*: ([\d.]+) times", out)
    shared = re.search(r"step .* for each response ([\d.]+) times", out)
    return [*map(float, train.groups()), *map(float, decode.groups()), float(shared[1]) if shared else math.nan]


def plot(results):
    """A panel a size: the share of the peak in training and of the bandwidth in decoding, against the size."""
    wide, high, panels = 210, 150, []
    for k, (name, points) in enumerate(results.items()):
        x0, y0 = 45 + k % 4 * (wide + 30), 35 + k // 4 * (high + 65)
        panels.append(f'<text x="{x0}" y="{y0 - 8}">{name}</text><path class="axis" d="M{x0},{y0}v{high}h{wide}"/>')
        for share in (0, 50, 100):
            panels.append(f'<text class="small" x="{x0 - 5}" y="{y0 + high * (1 - share / 100) + 3}" text-anchor="end">{share}%</text>')
        for column, kind in ((1, "train"), (4, "decode")):
            at = [(x0 + wide * (i + 0.5) / len(points), y0 + high * (1 - min(row[column], 100) / 100)) for i, (_, row) in enumerate(points)]
            panels.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
        for i, (value, _) in enumerate(points):
            panels.append(f'<text class="small" x="{x0 + wide * (i + 0.5) / len(points):.1f}" y="{y0 + high + 14}" text-anchor="middle">{value}</text>')
    rows = (len(results) + 3) // 4
    style = ("text{font:13px sans-serif}.small{font-size:10px}path,polyline{fill:none;stroke-width:2}.axis{stroke:#888;stroke-width:1}"
             ".train{stroke:#1565c0}.decode{stroke:#e65100}")  # fmt: skip
    key = '<text x="45" y="15" fill="#1565c0">training, share of the GEMM peak</text><text x="300" y="15" fill="#e65100">decoding, share of the read bandwidth</text>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {4 * (wide + 30) + 30} {rows * (high + 65) + 30}"><style>{style}</style>'
            f'<rect width="100%" height="100%" fill="#fff"/>{key}{"".join(panels)}</svg>\n')  # fmt: skip


results = {}
table = ["| size | | train, tokens/s | of GEMM peak | GiB | decode, tokens/s | of bandwidth | top-p 0.95 costs | prompt shared |",
         "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
print("\n".join(table), flush=True)
for name, values in SWEEPS.items():
    if not re.search(args.only, name):
        continue
    for value in values:
        row = measure(name, value)
        results.setdefault(name, []).append((value, row))
        speed, share, memory, decode, bandwidth, nucleus, shared = row
        shared = "" if math.isnan(shared) else f"{shared:.2f} x"
        table.append(f"| {name} | {value} | {speed:,.0f} | {share:.0f}% | {memory:.2f} | {decode:,.0f} | {bandwidth:.0f}% | {1 - nucleus:.0%} | {shared} |")
        print(table[-1], flush=True)
if args.record:
    file = ROOT / "tests/RESULTS.md"
    text = file.read_text()
    file.write_text(re.sub("(<!-- growth -->\n).*(<!-- growth -->)", lambda m: m[1] + "\n".join(table) + "\n" + m[2], text, flags=re.S))
    (ROOT / "tests/growth.svg").write_text(plot(results))
