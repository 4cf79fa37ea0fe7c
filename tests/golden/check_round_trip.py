"""Hugging Face in, Hugging Face out: random models of each architecture, saved by transformers in shards of bfloat16, go through
train_sft with a learning rate of next to nothing, and come back to transformers.

    pip install torch transformers safetensors
    make build && python tests/golden/check_round_trip.py

Prints a line for each model, and fails unless every tensor comes back byte for byte and the logits are the same.
"""

import json
import pathlib
import shutil
import subprocess
import tempfile

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMON = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=240, max_position_embeddings=256, eos_token_id=[0, 1], dtype="bfloat16")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32, rope_theta=500.0)
MODELS = {
    "qwen2": Qwen2Config(tie_word_embeddings=True, **COMMON),
    "qwen3": Qwen3Config(tie_word_embeddings=False, head_dim=16, **COMMON),
    "llama": LlamaConfig(tie_word_embeddings=False, **COMMON),
    "llama3": LlamaConfig(tie_word_embeddings=True, rope_parameters=LLAMA3, **COMMON),
}


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}
    return found


def check(name, config, work):
    before, after = work / name, work / f"{name}-out"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for p in model.parameters():  # no zeros, which even the smallest update would move
            p.copy_(torch.rand_like(p) * 0.1 + 0.01)
    model.save_pretrained(before, max_shard_size="40KB")
    for file in ("tokenizer.json", "prompt_template.txt"):
        shutil.copy(ROOT / "data/world/base" / file, before)
    shards = len(list(before.glob("*.safetensors")))
    (work / "data.jsonl").write_text(json.dumps({"prompt": "1", "completion": "2"}) + "\n")
    subprocess.run([ROOT / "build/train_sft", "--model", before, "--data", work / "data.jsonl", "--out", after, "--steps", "1",
                    "--lr", "1e-30", "--batch-tokens", "1"], check=True, stdout=subprocess.DEVNULL)

    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys(), old.keys() ^ new.keys()
    for key, tensor in old.items():
        assert tensor.dtype == new[key].dtype and torch.equal(tensor.view(torch.int16), new[key].view(torch.int16)), key
    ids = torch.randint(0, 160, (2, 50))
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (before, after)]
    a, b = (model(ids).logits for model in models)
    assert models[1].dtype == torch.bfloat16 and torch.equal(a, b)
    assert AutoTokenizer.from_pretrained(after)("The number 12").input_ids
    print(f"{name:8} {len(new):3} tensors in {shards} shards: byte for byte; logits equal; tokenizer loads")


with tempfile.TemporaryDirectory() as folder:
    for name, config in MODELS.items():
        check(name, config, pathlib.Path(folder))
