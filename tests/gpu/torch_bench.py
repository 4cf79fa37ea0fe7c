#!/usr/bin/env python3
"""The shapes of `r1_bench --device cuda` in PyTorch and transformers, on the same GPU: a training pass (bfloat16, SDPA,
as it is and with torch.compile) and `generate` with a static cache. Random weights; medians. Names of shapes choose
among them."""

import gc
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

SHAPES = {
    "Qwen2.5-0.5B": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14),
    "Qwen2.5-1.5B": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12),
}
SEQUENCES, LENGTH, CONTEXT, NEW = 32, 512, 512, 64


def median_seconds(repeats, body):
    seconds = []
    for i in range(-2, repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        body()
        torch.cuda.synchronize()
        if i >= 0:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def report(name, what, tokens, seconds, extra=""):
    print(f"{name:13} {what:34} {tokens / seconds:9.0f} tokens/s  {extra}", flush=True)


def main():
    torch.manual_seed(1)
    a = torch.rand(8192, 8192, device="cuda", dtype=torch.bfloat16) - 0.5
    b = torch.rand(8192, 8192, device="cuda", dtype=torch.bfloat16) - 0.5
    peak = 2 * 8192**3 / median_seconds(5, lambda: a @ b)
    print(f"torch {torch.__version__}; GEMM peak {peak / 1e9:.0f} GFLOP/s in bfloat16")
    del a, b
    for name in sys.argv[1:] or SHAPES:
        shape = SHAPES[name]
        config = Qwen2Config(**shape, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
                             max_position_embeddings=32768, rope_theta=1e6, use_cache=True)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").cuda()
        parameters = sum(p.numel() for p in model.parameters())
        flops = 6 * parameters + 6 * config.num_hidden_layers * config.hidden_size * LENGTH
        ids = torch.arange(LENGTH, device="cuda").mul(7919).remainder(config.vocab_size)
        rows = 8  # transformers keeps logits of every token in float32: smaller batches, the same number of tokens
        batch = ids.expand(rows, LENGTH)

        def train(step):
            for _ in range(SEQUENCES // rows):
                step(batch).backward()

        def loss(x):
            return model(input_ids=x, labels=x, use_cache=False).loss

        model.train()
        for what, step in [("train", loss), ("train, torch.compile", torch.compile(loss))]:
            try:
                seconds = median_seconds(5, lambda: train(step))
                tokens = SEQUENCES * LENGTH
                report(name, what, tokens, seconds, f"{100 * tokens * flops / seconds / peak:.1f}% of the GEMM peak")
            except Exception as error:  # torch.compile wants a working compiler
                print(f"{name:13} {what:34} failed: {str(error).splitlines()[0][:80]}")
            model.zero_grad(set_to_none=True)
        model.eval()
        for rows in (256, 32, 1):
            prompt = ids[:CONTEXT].expand(rows, CONTEXT)
            for what, cache in [("generate", None), ("generate, static cache", "static")]:
                def generate(new):
                    with torch.no_grad():
                        model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0,
                                       max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
                                       cache_implementation=cache)
                try:  # the difference of two lengths is decoding without the prefill
                    seconds = median_seconds(1, lambda: generate(NEW)) - median_seconds(1, lambda: generate(8))
                    report(name, f"{what}, B = {rows}", rows * (NEW - 8), seconds)
                except Exception as error:
                    print(f"{name:13} {what}, B = {rows}: failed: {str(error).splitlines()[0][:80]}")
        del model
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
