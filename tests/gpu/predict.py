#!/usr/bin/env python3
"""What a GPU should take, before one has been asked: bytes, FLOPs and time of every kernel of a training pass and of a
decoding step, and the phases of a GRPO step: --group responses of --new tokens to each of --prompts, --slots at a time.

    tests/gpu/predict.py [MODEL] [CARD] [--tokens 8192] [--slots 512] [--recompute] ...
    tests/gpu/predict.py --measured bench.log CARD     what r1_bench printed, beside what is predicted

MODEL is a folder or file with a config.json, or a name below; CARD is a name below, or one that nvidia-smi prints.
A kernel takes  max(bytes / (share of the bandwidth), FLOPs / (share of the peak)) + what it takes at least.  Bytes and
FLOPs follow from the code. The shares are estimates for an H100, from the instructions of the compiled kernels and from
what others publish of cuBLAS; totals are expected within 12% there. What is measured goes before: correct the share."""

import argparse
import json
import math
import os
import re
from collections import namedtuple

# Bandwidth in TB/s, dense bfloat16 peak with float32 sums in TF/s: NVIDIA's data sheets. The first that fits counts.
CARDS = {"H100 PCIe": (2.0, 756), "H100": (3.35, 989), "H200": (4.8, 989), "A100-SXM4-40GB": (1.555, 312),
         "A100": (2.04, 312), "L40S": (0.864, 362), "RTX 4090": (1.008, 165)}
Model = namedtuple("Model", "C F L H K D V tied bias norm")  # letters as in src/device/backend.h
MODELS = {"Qwen2.5-0.5B": Model(896, 4864, 24, 14, 2, 64, 151936, True, True, False),
          "Qwen2.5-1.5B": Model(1536, 8960, 28, 12, 2, 128, 151936, True, True, False)}
NUMBERS = dict(tokens=8192, length=512, rows=256, context=512, prompts=64, group=8, prompt=128, new=384, slots=256)

# The share of the bandwidth that a kernel reaches on large tensors.
BANDWIDTH = {"rmsnorm_forward": 0.65, "rmsnorm_backward": 0.70, "head_norm": 0.5, "rope": 0.75, "rope_append": 0.6,
             "bias": 0.58, "bias_backward, delta": 0.44, "swiglu_forward": 0.80, "swiglu_backward": 0.82,
             "round dx": 0.74, "softmax_forward": 0.80, "softmax_backward": 0.80, "optimizer": 0.835, "weights": 0.726,
             "head": 0.85, "decode_attention": 0.80, "merge of the splits": 1, "gaps": 1, "sample": 0.65}
# The share of the matrix peak that cuBLAS reaches: a C / (C + c), since short sums and few tiles cost most.
PEAK = {"forward": (0.760, 208), "backward": (0.803, 344), "head": (0.814, 430), "decode": (0.95, 1344)}
# Attention at D = 64; wider heads do better, by (D / 64)^0.75. A warp issues 663, 645 and 748 instructions for its part of a
# tile that nothing masks, and up to twice as many at the diagonal; shares of 0.17 to 0.21 went with 1,079 for each tile.
ATTENTION = {"attention_forward": 0.25, "attention_backward: dq": 0.30, "attention_backward: dk, dv": 0.27}
# Microseconds between two launches in a stream and in a graph, and that a small kernel of a decoding step takes. Splits are
# merged by the block that is last to end: two fences, an atomic addition, and the parts come from the second cache.
GAP, GRAPH_GAP = 1.4, 0.73
BEGIN = {"rmsnorm_forward": 2.2, "head_norm": 2.2, "bias": 1.8, "rope_append": 2.8, "decode_attention": 4.1,
         "merge of the splits": 1.5, "swiglu_forward": 2.0, "gemm": 3.2, "sample": 45}

Kernel = namedtuple("Kernel", "what times bytes flops bandwidth peak begin")


def stream(what, times, bytes_, begin=0.0):
    return Kernel(what, times, bytes_, 0, BANDWIDTH[what], 1, begin)


def product(what, m, kind, times, bytes_, flops, bandwidth=1.0, begin=0.0):
    a, c = PEAK[kind]
    return Kernel("gemm: " + what, times, bytes_, flops, bandwidth, a * m.C / (m.C + c), begin)


def attention(what, m, products, N, T, L):
    """Tiles of 64 keys, half of them behind the diagonal."""
    return Kernel(what, L, 0, products * N * (T + 64) * m.H * m.D, 1, ATTENTION[what] * (m.D / 64) ** 0.75, 0)


def total(card, kernels, title=""):
    """Microseconds; with a title, every kernel is printed."""
    lines = [f"{'kernel':28} {'MB':>9} of HBM {'GFLOP':>9} of peak {'+ us':>6} {'= us':>9} times {'ms':>8}"]
    all_us = 0.0
    for k in kernels:
        us = max(k.bytes / (card[0] * 1e6 * k.bandwidth), k.flops / (card[1] * 1e6 * k.peak)) + k.begin
        all_us += us * k.times
        if k.times:
            lines.append(f"{k.what:28} {k.bytes / 1e6:9.1f} {k.bandwidth:6.2f} {k.flops / 1e9:9.2f} {k.peak:7.3f} "
                         f"{k.begin:6.1f} {us:9.1f} {k.times:5} {us * k.times / 1e3:8.2f}")
    if title:
        print("", title, *lines, f"{'in all':86} {all_us / 1e3:6.2f}", sep="\n")
    return all_us


def shape(m):
    """Columns of q and of q|k|v, weights of a layer's matrices, and all parameters."""
    q, qkv = m.H * m.D, (m.H + 2 * m.K) * m.D
    layer = m.C * qkv + q * m.C + 3 * m.C * m.F
    return q, qkv, layer, m.L * (layer + 2 * m.C + m.bias * qkv) + m.V * m.C * (1 if m.tied else 2) + m.C


def layers(m, N, T, L):
    q, qkv, layer, _ = shape(m)
    return [product("qkv, o, gate_up, down", m, "forward", L, 2 * layer, 2 * N * layer),
            stream("rmsnorm_forward", 2 * L, 12 * N * m.C), stream("bias", L * m.bias, 4 * N * qkv),
            stream("head_norm", L * m.norm, 4 * N * qkv), stream("rope", L, 4 * N * (m.H + m.K) * m.D),
            attention("attention_forward", m, 2, N, T, L), stream("swiglu_forward", L, 6 * N * m.F),
            stream("gaps", 11 * L, 0, GAP)]


def forward(m, N, T, M):
    """N tokens, T a sequence, M of them scored."""
    return layers(m, N, T, m.L) + [product("logits", m, "head", 1, 4 * M * m.V, 2 * M * m.C * m.V),
                                   stream("softmax_forward", 1, 4 * M * m.V)]


def backward(m, N, T, M, recompute=False, keep_logits=False):
    q, qkv, layer, _ = shape(m)
    return (layers(m, N, T, m.L - 1) if recompute else []) + [
        product("logits, dhidden, dW", m, "head", 2 if keep_logits else 3, 6 * M * m.V, 2 * M * m.C * m.V),
        stream("softmax_backward", 1, 6 * M * m.V),
        product("dx and dW", m, "backward", m.L, 10 * layer, 4 * N * layer),
        stream("swiglu_backward", m.L, 10 * N * m.F), stream("rmsnorm_backward", 2 * m.L, 14 * N * m.C),
        stream("round dx", 2 * m.L, 6 * N * m.C), attention("attention_backward: dq", m, 3, N, T, m.L),
        attention("attention_backward: dk, dv", m, 4, N, T, m.L), stream("rope", m.L, 4 * N * (m.H + m.K) * m.D),
        stream("bias_backward, delta", m.L, 2 * N * qkv * m.bias + 4 * N * q),
        stream("head_norm", m.L * m.norm, 6 * N * qkv), stream("gaps", 20 * m.L + 60, 0, GAP)]


def update(m, bf16_states):
    """Sum of squares; AdamW, which also writes the bfloat16 copy and clears the gradient."""
    return [stream("optimizer", 1, (4 + 20 if bf16_states else 4 + 32 + 2) * shape(m)[3])]


def decode(m, B, S):
    """One token for each of B sequences with S keys each."""
    q, qkv, _, _ = shape(m)
    weights = {"qkv": m.C * qkv, "o": q * m.C, "gate_up": 2 * m.C * m.F, "down": m.C * m.F}
    small = [("rmsnorm_forward", 2 * m.L, 12 * B * m.C), ("bias", m.L * m.bias, 4 * B * qkv),
             ("head_norm", m.L * m.norm, 4 * B * qkv), ("rope_append", m.L, 4 * B * qkv),
             ("decode_attention", m.L, 4 * B * S * m.K * m.D),
             ("merge of the splits", m.L * (512 // (B * m.K) > 1), 0), ("swiglu_forward", m.L, 6 * B * m.F),
             ("sample", 1, 8 * B * m.V)]
    return [product(what, m, "decode", m.L, 2 * size, 2 * B * size, BANDWIDTH["weights"], BEGIN["gemm"])
            for what, size in weights.items()] + [
        product("logits", m, "head", 1, 2 * m.V * m.C + 4 * B * m.V, 2 * B * m.C * m.V, BANDWIDTH["head"]),
        *(stream(*kernel, BEGIN[kernel[0]]) for kernel in small), stream("gaps", 11 * m.L, 0, GRAPH_GAP)]


def compare(log, card):
    """Lines of r1_bench, each with its context of 512, beside what is predicted."""
    for line in open(log):
        name, rows = line.split(" ", 1)[0], []
        m = MODELS.get(name)
        if m and (at := re.search(r"train +(\d+) x (\d+) +(\d+) tokens/s.*update ([\d.]+) ms", line)):
            N, T = int(at[1]) * int(at[2]), int(at[2])
            us = total(card, forward(m, N, T, N) + backward(m, N, T, N))
            rows = [("train, tokens/s", float(at[3]), N / us * 1e6),
                    ("update, ms", float(at[4]), total(card, update(m, False)) / 1e3)]
        elif m and (at := re.search(r"decode B = (\d+) +(\d+) tokens/s", line)):
            us = total(card, decode(m, int(at[1]), 512))
            rows = [(f"decode B = {at[1]}, tokens/s", float(at[2]), int(at[1]) / us * 1e6)]
        for what, measured, expected in rows:
            off = "  OFF by more than a quarter" if abs(measured / expected - 1) > 0.25 else ""
            print(f"{name} {what:24} measured {measured:9.1f} predicted {expected:9.1f} {measured / expected:.2f}{off}")


def everything(name, m, card, o):
    N, T, B, parameters = o.tokens, o.length, o.rows, shape(m)[3]
    print(f"PREDICTED: {name}, {parameters / 1e6:.1f} million parameters; {card[0]} TB/s, {card[1]} TF/s")
    us = total(card, forward(m, N, T, N) + backward(m, N, T, N, o.recompute, o.keep_logits),
               f"a training pass of {N} tokens, {T} a sequence, all of them scored")
    flops = 6 * N * (parameters + m.L * m.H * m.D * T)
    print(f"{N / us * 1e3:.1f}k tokens/s; 6 N (parameters + L H D T) = {flops / 1e12:.1f} TFLOP: "
          f"{flops / us / 1e6:.0f} TF/s, {100 * flops / us / 1e6 / card[1]:.1f}% of the peak")
    total(card, update(m, o.bf16_states), "an update")
    us = total(card, decode(m, B, o.context), f"a decoding step of {B} rows, context {o.context}")
    bytes_ = 2 * (m.L * shape(m)[2] + m.V * m.C) + 4 * m.L * B * (o.context + 1) * m.K * m.D
    print(f"{B / us * 1e6:.0f} tokens/s; weights and cache once, {bytes_ / 1e6:.0f} MB: "
          f"{100 * bytes_ / us / card[0] / 1e6:.1f}% of the bandwidth")

    R, T = o.prompts * o.group, o.prompt + o.new
    N, scored, rows = o.prompts * o.prompt + R * o.new, R * o.new, min(R, o.slots)  # a group shares its prompt's rows
    steps, one = math.ceil(R / rows) * o.new, decode(m, rows, o.prompt + o.new // 2)
    score, back = forward(m, N, T, scored), backward(m, N, T, scored, o.recompute, o.keep_logits)
    print(f"\na GRPO step: {o.prompts} prompts of {o.prompt} tokens, {o.group} responses of {o.new} tokens to each")
    phases = {f"{steps} decoding steps of {rows} rows, {total(card, one) / 1e3:.2f} ms each": steps * total(card, one),
              f"reference: {N} tokens forward": 0 if o.no_reference else total(card, score),
              f"training: {N} tokens": total(card, score + back), "update": total(card, update(m, o.bf16_states))}
    for what, us in [*phases.items(), ("in all", sum(phases.values()))]:
        print(f"{what:50} {us / 1e6:7.2f} s")


def from_config(path):
    c = json.load(open(os.path.join(path, "config.json") if os.path.isdir(path) else path))
    H, C, kind, tied = c["num_attention_heads"], c["hidden_size"], c["model_type"], c.get("tie_word_embeddings")
    return Model(C, c["intermediate_size"], c["num_hidden_layers"], H, c.get("num_key_value_heads", H),
                 c.get("head_dim") or C // H, c["vocab_size"], tied, kind == "qwen2", kind == "qwen3")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", metavar="MODEL CARD")
    p.add_argument("--measured", metavar="bench.log")
    for flag, value in NUMBERS.items():
        p.add_argument(f"--{flag}", type=int, default=value)
    for flag in ("recompute", "keep-logits", "bf16-states", "no-reference"):
        p.add_argument(f"--{flag}", action="store_true")
    o = p.parse_args()
    model, wanted = ([""] + o.names)[-2:] if o.measured else (o.names + ["Qwen2.5-0.5B", "H100"][len(o.names):])[:2]
    card = next((CARDS[name] for name in CARDS if name in wanted), None)
    if not card:
        print(f"no predictions for {wanted or 'a card without a name'}; there are some for {', '.join(CARDS)}")
    elif o.measured:
        compare(o.measured, card)
    else:
        everything(model, MODELS.get(model) or from_config(model), card, o)


if __name__ == "__main__":
    main()
