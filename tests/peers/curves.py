#!/usr/bin/env python3
"""The same GRPO run by this program and by TRL: the same weights, questions, rewards, hyperparameters and batch.

    build-peers/bin/python tests/peers/curves.py --model DIR --data train.jsonl --out DIR [--steps 25] [--seeds 1 2] [--record]

The model is one that has learnt to state its answer in <answer> tags (data/r1/smollm2.sh, stage dev1), the data are problems whose
answers are whole numbers (data/r1/make_stories.py). Runs that OUT holds are not made again. A table and a plot compare the curves of
accuracy and length; --record puts them into tests/peers/RESULTS.md and tests/peers/curves.svg.
"""

import argparse
import importlib.metadata
import json
import pathlib
import re
import statistics
import subprocess
import sys

from peers import BUILD, GROUP, NEW, PROMPTS, ROOT, run, trl_run

RATE, FORMAT = 2e-5, 0.2  # learning rate, weight of the format's reward; both train in float32
TEXT = r"(?:(?!</?think>|</?answer>).)*"
FORM = re.compile(rf"\s*<think>{TEXT}</think>\s*<answer>({TEXT})</answer>\s*", re.S)


def judge(response, gold):
    """Accuracy and format, 0 or 1, written anew: what the program's own verdicts are checked against."""
    form = FORM.fullmatch(response)
    found = form or re.search(rf"<answer>({TEXT})</answer>", response, re.S)
    number = re.fullmatch(r"\s*\$?(-?\d+)(\.0*)?\s*", found[1].replace(",", "")) if found else None
    return float(number is not None and int(number[1]) == int(gold)), float(form is not None)


def ours(args, seed):
    out = args.out / f"run-{seed}"
    run(BUILD / "train_grpo", "--model", args.model, "--train", args.data, "--prompts", PROMPTS, "--group", GROUP,
        "--max-new-tokens", NEW, "--token-budget", 2048, "--steps", args.steps, "--lr", RATE, "--warmup", 0, "--reward",
        f"accuracy=1,format={FORMAT}", "--dtype", "float32", "--save-every", 1000, "--show-every", 1, "--seed", seed, "--out", out,
        "--overwrite")  # fmt: skip
    steps = [json.loads(line) for line in open(out / "log.jsonl")][1:]
    gold = {p["question"]: p["answer"] for p in map(json.loads, open(args.data))}
    for sample in map(json.loads, open(out / "samples.jsonl")):
        answer = next(a for q, a in gold.items() if q in sample["prompt"])
        if judge(sample["response"], answer) != (sample["accuracy"], sample["format"]):
            sys.exit(f"the two judges disagree about {sample}, whose answer is {answer}")
    return [dict(accuracy=s["accuracy"], format=s["format"], length=s["length"], seconds=s["seconds"]["step"]) for s in steps if "accuracy" in s]


def theirs(model, prompts, answers, steps, seed):
    def accuracy(completions, answer, **_):
        return [judge(c, a)[0] for c, a in zip(completions, answer)]

    def form(completions, answer, **_):
        return [judge(c, a)[1] for c, a in zip(completions, answer)]

    rows = [dict(prompt=p, answer=a) for p, a in zip(prompts, answers)]
    log, seconds = trl_run(
        model, "float32", rows, [accuracy, form], steps, learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0,
        adam_beta2=0.95, max_grad_norm=1.0, weight_decay=0.0, seed=seed, top_k=0, epsilon=0.2, loss_type="grpo",
        reward_weights=[1.0, FORMAT])  # fmt: skip
    return [dict(accuracy=e["rewards/accuracy/mean"], format=e["rewards/form/mean"], length=e["completions/mean_length"], seconds=s)
            for e, s in zip(log, seconds)]  # fmt: skip


def peer(args, seed):
    prompts = args.out / "prompts.jsonl"
    if not prompts.exists():
        run(BUILD / "infer", "--model", args.model, "--sample", args.data, "--max-new-tokens", 1, "--out", prompts)
    texts = [json.loads(line)["prompt"] for line in open(prompts)]
    answers = [json.loads(line)["answer"] for line in open(args.data)]
    ask = json.dumps([str(args.model), texts, answers, args.steps, seed])
    done = subprocess.run([sys.executable, __file__, "worker"], input=ask, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def plot(runs, steps):
    """Accuracy and length of every run, each point the mean of five steps."""
    wide, high, panels = 380, 200, []
    for k, what in enumerate(("accuracy", "length")):
        curves = {name: [statistics.mean(s[what] for s in run[max(0, i - 4) : i + 1]) for i in range(len(run))] for name, run in runs.items()}
        top = 1.1 * max(max(c) for c in curves.values()) or 1
        x0, y0 = 50 + k * (wide + 60), 40
        panels.append(f'<text x="{x0}" y="{y0 - 12}">{what}</text><path stroke="#888" d="M{x0},{y0}v{high}h{wide}"/>')
        for i in range(5):
            y, value = y0 + high * (1 - i / 4), top * i / 4
            panels.append(f'<text x="{x0 - 6}" y="{y + 4}" font-size="11" text-anchor="end">{value:.0%}</text>' if what == "accuracy" else
                          f'<text x="{x0 - 6}" y="{y + 4}" font-size="11" text-anchor="end">{value:.0f}</text>')  # fmt: skip
        panels.append(f'<text x="{x0 + wide}" y="{y0 + high + 18}" font-size="11" text-anchor="end">step {steps}</text>')
        for name, curve in curves.items():
            points = " ".join(f"{x0 + wide * i / max(1, steps - 1):.1f},{y0 + high * (1 - v / top):.1f}" for i, v in enumerate(curve))
            panels.append(f'<polyline stroke="{"#1565c0" if name.startswith("ours") else "#e65100"}" points="{points}"/>')
    key = '<text x="200" y="28" fill="#1565c0">this program</text><text x="310" y="28" fill="#e65100">TRL</text>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * wide + 130} {high + 75}" font-family="sans-serif" font-size="14">'
            f'<style>path,polyline{{fill:none;stroke-width:2}}</style><rect width="100%" height="100%" fill="#fff"/>{key}{"".join(panels)}</svg>\n')  # fmt: skip


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=pathlib.Path, required=True)
    arguments.add_argument("--data", type=pathlib.Path, required=True)
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    arguments.add_argument("--steps", type=int, default=25)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1])
    arguments.add_argument("--record", action="store_true")
    args = arguments.parse_args()
    for name in ("model", "data", "out"):
        setattr(args, name, getattr(args, name).expanduser().resolve())
    args.out.mkdir(parents=True, exist_ok=True)

    runs = {}
    for seed in args.seeds:
        for name, make in ((f"ours, seed {seed}", ours), (f"TRL, seed {seed}", peer)):
            kept = args.out / f"{make.__name__}-{seed}.json"
            if not kept.exists():
                kept.write_text(json.dumps(make(args, seed)))
            runs[name] = json.loads(kept.read_text())[: args.steps]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    table = [f"{args.steps} steps of {PROMPTS} x {GROUP} responses, learning rate {RATE:g}, float32, {versions}:", "",
             "| run | accuracy, first 5 steps | last 10 steps | length, first 5 steps | last 10 steps | s a step, median |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, steps in runs.items():
        mean = lambda what, part: statistics.mean(s[what] for s in part)
        table.append(f"| {name} | {mean('accuracy', steps[:5]):.1%} | {mean('accuracy', steps[-10:]):.1%} | {mean('length', steps[:5]):.1f} | "
                     f"{mean('length', steps[-10:]):.1f} | {statistics.median(s['seconds'] for s in steps[1:]):.1f} |")  # fmt: skip
    print("\n".join(table))
    if args.record:
        results = ROOT / "tests/peers/RESULTS.md"
        text = results.read_text()
        results.write_text(re.sub("(<!-- curves -->\n).*(<!-- curves -->)", lambda m: m[1] + "\n".join(table) + "\n" + m[2], text, flags=re.S))
        (ROOT / "tests/peers/curves.svg").write_text(plot(runs, args.steps))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(theirs(*json.loads(sys.stdin.read()))))
    else:
        main()
