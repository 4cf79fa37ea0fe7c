"""Golden values from Hugging Face transformers: a tiny random Qwen2 and a tiny random Llama in float32, log-probabilities of every
token of three sequences, and the gradient of their weighted sum with respect to every parameter.

    pip install torch transformers safetensors
    python tests/golden/make_transformers.py tests/golden

writes FOLDER/{qwen2,llama}/{config.json,model.safetensors,golden.safetensors}.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SEQUENCES = [[1, 5, 9, 30, 2, 2, 17, 44], [7, 3], [20, 21, 22, 40, 41, 8, 0, 50, 50, 11, 12, 13]]


def make(folder, config, model_class, seed):
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():  # random everywhere, large enough for every part to matter
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if "norm" in name else 0.0))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    tensors = {k: v.detach().clone().contiguous() for k, v in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    logps = []
    loss = 0
    for i, sequence in enumerate(SEQUENCES):
        ids = torch.tensor([sequence])
        logits = model(ids[:, :-1]).logits[0].float()
        logp = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
        logps.append(logp)
        weights = torch.arange(1, len(logp) + 1, dtype=torch.float32) * 0.25 - i
        loss = loss + (weights * logp).sum()
    loss.backward()
    golden = {f"grad.{k}": v.grad.contiguous() for k, v in model.named_parameters()}
    golden["logp"] = torch.cat(logps).detach()
    save_file(golden, folder / "golden.safetensors")
    print(folder, float(loss))


out = pathlib.Path(sys.argv[1])
common = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=51, max_position_embeddings=64, rms_norm_eps=1e-6, attn_implementation="eager")
make(out / "qwen2", Qwen2Config(tie_word_embeddings=True, **common), Qwen2ForCausalLM, 0)
make(out / "llama", LlamaConfig(tie_word_embeddings=False, rope_theta=500.0, **common), LlamaForCausalLM, 1)
