"""A trained folder says the same in transformers: greedy answers to problems by `infer` and by transformers' generate, in float32.

    pip install torch transformers
    python tests/golden/check_greedy.py FOLDER PROBLEMS [COUNT]

Prints how many of the texts are equal, and every one that is not; fails unless all are.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

INFER = pathlib.Path(__file__).resolve().parents[2] / "build/infer"
folder, problems, count = (*sys.argv[1:], "50")[:3]

with tempfile.TemporaryDirectory() as work:
    out = f"{work}/greedy.jsonl"
    subprocess.run([INFER, "--model", folder, "--eval", problems, "--limit", count, "--temperature", "0", "--max-new-tokens", "128",
                    "--dtype", "float32", "--device", "cpu", "--out", out], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    ours = [line for line in map(json.loads, open(out)) if "prompt" in line]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
same = 0
for line in ours:
    prompt = tokenizer(line["prompt"], return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**prompt, do_sample=False, max_new_tokens=128)[0, prompt.input_ids.shape[1] :]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    same += text == line["response"]
    if text != line["response"]:
        print(f"ours:   {line['response']!r}\ntheirs: {text!r}")
print(f"{same} of {len(ours)} greedy texts are the same")
sys.exit(same != len(ours))
