#!/usr/bin/env python3
"""Sets this program beside PyTorch, transformers, TRL and llama.cpp: the same machine, weights, prompts and options.

    make peers MODEL=~/SmolLM2-135M-Instruct DATA=gsm8k/test.jsonl        # needs pip, 7 GB of disk, an hour
    build-peers/bin/python tests/peers/peers.py --model DIR --data FILE [--only train] [--rounds 3] [--record]

Every pair is measured in turn, ours and theirs, so that what else the machine does hits both; the table has medians of the
rounds and their ratio. Each measurement is a process of its own. --record puts the table into tests/peers/RESULTS.md.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD, WORK = ROOT / "build", pathlib.Path(tempfile.mkdtemp(prefix="r1_peers_"))
PROMPTS, GROUP, NEW = 8, 8, 128  # a step: 64 responses of at most 128 tokens


# ---- ours ----


def run(*command):
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def our_training(model, dtype, sequences, length):
    """Tokens a second of a forward and backward pass, and the share of the GEMM peak of the same run."""
    out = run(BUILD / "r1_bench", "--model", model, "--dtype", dtype, "--sequences", sequences, "--length", length,
              "--rows", 1, "--group", 1)  # fmt: skip
    speed, share = re.search(r"train .* (\d+) tokens/s .*= *([\d.]+)% of the GEMM", out).groups()
    return float(speed), f"{share}% of GEMM peak"


def our_decoding(model, dtype):
    """Tokens a second of one sequence, and the share of the read bandwidth."""
    out = run(BUILD / "r1_bench", "--model", model, "--dtype", dtype, "--sequences", 1, "--length", 8, "--rows", 1)
    speed, share = re.search(r"decode B = 1 +(\d+) tokens/s .*= *([\d.]+)% of the bandwidth", out).groups()
    return float(speed), f"{share}% of bandwidth"


def our_sampling(model, data, dtype, options):
    """Tokens a second of `infer --sample`, with all that the process does, loading the model too."""
    out = WORK / "samples.jsonl"
    begin = time.perf_counter()
    run(BUILD / "infer", "--model", model, "--sample", data, "--samples", GROUP, "--max-new-tokens", NEW, "--slots",
        PROMPTS * GROUP, "--dtype", dtype, "--out", out, *sum(([f"--{k.replace('_', '-')}", v] for k, v in options.items()), []))  # fmt: skip
    seconds = time.perf_counter() - begin
    tokens = sum(json.loads(line)["length"] for line in open(out))
    return tokens / seconds, f"{tokens:.0f} tokens"


def our_step(model, data, dtype):
    """Seconds of a GRPO step, the median of those after the first; micro-batches are about as large as TRL's below."""
    out = WORK / "run"
    run(BUILD / "train_grpo", "--model", model, "--train", data, "--prompts", PROMPTS, "--group", GROUP, "--max-new-tokens",
        NEW, "--token-budget", 2048, "--steps", 3, "--lr", 1e-6, "--dtype", dtype, "--save-every", 1000, "--out", out,
        "--overwrite")  # fmt: skip
    steps = [json.loads(line) for line in open(out / "log.jsonl")][2:]
    tokens = statistics.median(s["sampled_tokens"] for s in steps)
    memory = max(s["memory"]["peak"] for s in steps) / 2**30
    return statistics.median(s["seconds"]["step"] for s in steps), f"{tokens:.0f} tokens, {memory:.1f} GiB"


# ---- theirs, each in a process of its own: `peers.py worker NAME ARGUMENTS` prints a figure and a remark ----


def torch_training(model, dtype, sequences, length, compiled):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    net = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    net.train()
    step = torch.compile(lambda ids: net(ids, labels=ids).loss) if compiled else lambda ids: net(ids, labels=ids).loss
    ids = torch.arange(sequences * length).reshape(sequences, length) * 7919 % config.vocab_size
    seconds = []
    for i in range(5):
        begin = time.perf_counter()
        step(ids).backward()
        net.zero_grad()
        if i > 1:
            seconds.append(time.perf_counter() - begin)
    return sequences * length / statistics.median(seconds), "compile" if compiled else "eager"


def torch_sampling(model, prompts, dtype, options):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    net = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    batch = tokenizer([p for p in prompts for _ in range(GROUP)], return_tensors="pt", padding=True, add_special_tokens=False)
    begin = time.perf_counter()
    out = net.generate(**batch, do_sample=True, top_k=0, max_new_tokens=NEW, pad_token_id=tokenizer.pad_token_id, **options)
    seconds = time.perf_counter() - begin
    tokens = 0
    for row in out[:, batch["input_ids"].shape[1] :].tolist():
        tokens += row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
    return tokens / seconds, f"{tokens} tokens"


def trl_run(model, dtype, rows, rewards, steps, **options):
    """TRL's GRPO on the CPU over the table's batch: its log, an entry a step, and the seconds of each."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        begin, seconds = 0.0, []

        def on_step_begin(self, *args, **kwargs):
            self.begin = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            self.seconds.append(time.perf_counter() - self.begin)
            print("TRL, step", len(self.seconds), f"{self.seconds[-1]:.1f} s", file=sys.stderr, flush=True)

    config = GRPOConfig(
        output_dir=str(WORK / "trl"), use_cpu=True, bf16=False, max_steps=steps, save_strategy="no", report_to="none",
        per_device_train_batch_size=GROUP, gradient_accumulation_steps=PROMPTS, num_generations=GROUP,
        max_completion_length=NEW, temperature=1.0, top_p=1.0, beta=0.0, gradient_checkpointing=False, disable_tqdm=True,
        logging_steps=1, **options)  # fmt: skip
    net = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    clock = Clock()
    trainer = GRPOTrainer(model=net, args=config, train_dataset=Dataset.from_list(rows), reward_funcs=rewards, callbacks=[clock])
    trainer.train()
    return [e for e in trainer.state.log_history if "completions/mean_length" in e], clock.seconds


def trl_step(model, prompts, dtype):
    import resource

    rewards = lambda completions, **_: [len(c) / 1000 for c in completions]
    log, seconds = trl_run(model, dtype, [{"prompt": p} for p in prompts], rewards, 3, learning_rate=1e-6)
    tokens = statistics.median(PROMPTS * GROUP * e["completions/mean_length"] for e in log)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return statistics.median(seconds[1:]), f"{tokens:.0f} tokens, {memory:.1f} GiB"


def llama_decoding(gguf):
    import numpy
    from llama_cpp import Llama

    net = Llama(model_path=gguf, n_ctx=512, n_threads=os.cpu_count(), verbose=False)
    net.eval([i * 7919 % 1000 for i in range(256)])
    begin = time.perf_counter()
    for i in range(64):
        net.eval([int(numpy.argmax(net.scores[net.n_tokens - 1]) if net.scores.size else i)])
    return 64 / (time.perf_counter() - begin), "greedy"


def gguf(model, dtype):
    """llama.cpp's file of a Llama model with tied embeddings, without a vocabulary, which decoding ids does not need."""
    import gguf as format
    import torch
    from safetensors.torch import load_file

    config = json.load(open(pathlib.Path(model) / "config.json"))
    out = format.GGUFWriter(path := str(WORK / f"{dtype}.gguf"), "llama")
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("none")
    places = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
              "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
              "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
    for name, tensor in load_file(pathlib.Path(model) / "model.safetensors").items():
        at = name.removesuffix(".weight")
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", at)
        if layer and layer[2] in ("self_attn.q_proj", "self_attn.k_proj"):  # GGUF keeps a rotary pair side by side
            n = heads if "q_proj" in at else kv
            tensor = tensor.reshape(n, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        to = f"blk.{layer[1]}.{places[layer[2]]}.weight" if layer else places[at] + ".weight"
        if dtype == "bfloat16" and tensor.ndim == 2:
            raw = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            out.add_tensor(to, raw, raw_dtype=format.GGMLQuantizationType.BF16)
        else:
            out.add_tensor(to, tensor.float().contiguous().numpy())
    out.add_file_type(format.LlamaFileType.MOSTLY_BF16 if dtype == "bfloat16" else format.LlamaFileType.ALL_F32)
    for write in (out.write_header_to_file, out.write_kv_data_to_file, out.write_tensors_to_file, out.close):
        write()
    return path


def peer(function, *arguments):
    done = subprocess.run([sys.executable, __file__, "worker", function.__name__, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1][:80]
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- the table ----


def shape(name, **sizes):
    path = WORK / f"{name}.json"
    fixed = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", rms_norm_eps=1e-6, rope_theta=1e4, hidden_act="silu",
                 tie_word_embeddings=True, eos_token_id=0, max_position_embeddings=32768)  # fmt: skip
    path.write_text(json.dumps(fixed | sizes))
    return str(path)


def pairs(model, data):
    """(what, unit, ours, theirs...): functions that measure once."""
    prompts = [json.loads(line)["prompt"] for line in open(WORK / "prompts.jsonl")]
    shapes = [
        ("tiny, 80 x 100", str(ROOT / "data/world/base/config.json"), ["float32"], 80, 100),
        ("20M, 8 x 256", shape("20M", hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
                               num_key_value_heads=2, head_dim=64, vocab_size=16384), ["float32", "bfloat16"], 8, 256),
        ("Qwen2.5-0.5B, 2 x 512", shape("half", hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                                        num_attention_heads=14, num_key_value_heads=2, head_dim=64, vocab_size=151936), ["float32", "bfloat16"], 2, 512),
    ]  # fmt: skip
    for name, config, dtypes, sequences, length in shapes:
        for dtype in dtypes:
            yield (f"train {name}, {dtype}", "tokens/s", lambda c=config, d=dtype, s=sequences, n=length: our_training(c, d, s, n),
                   *(lambda c=config, d=dtype, s=sequences, n=length, k=compiled: peer(torch_training, c, d, s, n, k) for compiled in (False, True)))  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        for options in (dict(temperature=0.6, top_p=0.95), dict(temperature=1.0, top_p=1.0)):
            yield (f"sample {PROMPTS} x {GROUP}, T {options['temperature']}, top-p {options['top_p']}, {dtype}", "tokens/s",
                   lambda d=dtype, o=options: our_sampling(model, data, d, o), lambda d=dtype, o=options: peer(torch_sampling, model, prompts, d, o))  # fmt: skip
        yield (f"decode B = 1, {dtype}", "tokens/s", lambda d=dtype: our_decoding(model, d),
               lambda d=dtype: peer(llama_decoding, gguf(model, d)))  # fmt: skip
        yield (f"GRPO step {PROMPTS} x {GROUP}, {NEW} new tokens, {dtype}", "s", lambda d=dtype: our_step(model, data, d),
               lambda d=dtype: peer(trl_step, model, prompts, d))  # fmt: skip


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", required=True, help="folder of a Llama model with tied embeddings, such as SmolLM2-135M-Instruct")
    arguments.add_argument("--data", required=True, help="problems, JSONL, such as GSM8K's")
    arguments.add_argument("--only", default="", help="pairs whose name matches this")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--record", action="store_true")
    args = arguments.parse_args()
    model, data = str(pathlib.Path(args.model).expanduser().resolve()), WORK / "problems.jsonl"
    data.write_text("".join(open(pathlib.Path(args.data).expanduser()).readlines()[:PROMPTS]))
    run(BUILD / "infer", "--model", model, "--sample", data, "--max-new-tokens", 1, "--out", WORK / "prompts.jsonl")

    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())[1]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "trl", "llama_cpp_python"))
    commit = run("git", "describe", "--always", "--dirty", "--abbrev=12").strip()
    table = [f"{datetime.date.today()}, commit {commit}, {os.cpu_count()} cores of {cpu}, {versions}; medians of {args.rounds} rounds:", "",
             "| what | unit | ours | | theirs | | ratio |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for what, unit, ours, *theirs in pairs(model, str(data)):
        if not re.search(args.only, what):
            continue
        rounds = []
        for _ in range(args.rounds):
            mine, others = ours(), [measure() for measure in theirs]
            others = [o for o in others if o[0] is not None] or others[:1]
            rounds.append((mine, (min if unit == "s" else max)(others, key=lambda o: o[0] or 0)))
            print(what, rounds[-1], file=sys.stderr, flush=True)
        if any(their[0] is None for _, their in rounds):
            table.append(f"| {what} | {unit} | {rounds[0][0][0]:.4g} | {rounds[0][0][1]} | failed | {rounds[0][1][1]} | |")
        else:
            middle = sorted(rounds, key=lambda r: r[0][0] / r[1][0])[len(rounds) // 2]
            medians = [statistics.median(r[k][0] for r in rounds) for k in (0, 1)]
            ratio = statistics.median(r[0][0] / r[1][0] for r in rounds)
            table.append(f"| {what} | {unit} | {medians[0]:.4g} | {middle[0][1]} | {medians[1]:.4g} | {middle[1][1]} "
                         f"| **{1 / ratio if unit == 's' else ratio:.2f}** |")  # fmt: skip
        print(table[-1], flush=True)
    print("\n".join(table))
    if args.record:
        results = ROOT / "tests/peers/RESULTS.md"
        text = results.read_text()
        results.write_text(re.sub("(<!-- peers -->\n).*(<!-- peers -->)", lambda m: m[1] + "\n".join(table) + "\n" + m[2], text, flags=re.S))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(globals()[sys.argv[2]](*json.loads(sys.argv[3]))))
    else:
        main()
