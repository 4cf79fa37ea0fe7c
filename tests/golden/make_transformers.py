"""Golden values from Hugging Face transformers: a tiny random model of each architecture in float32, with

  logits    of every token of three sequences
  grad.*    the gradient of a weighted sum of the tokens' log-probabilities, with respect to every parameter
  greedy    the 64 tokens that greedy decoding appends to a prompt
  losses    of 20 steps of fine-tuning on the sequences with PyTorch's AdamW

    pip install torch transformers safetensors
    python tests/golden/make_transformers.py tests/golden

writes FOLDER/NAME/{config.json,model.safetensors,golden.safetensors}.
"""

import copy
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SEQUENCES = [[1, 5, 9, 30, 2, 2, 17, 44], [7, 3], [20, 21, 22, 40, 41, 8, 0, 50, 50, 11, 12, 13]]
PROMPT = [3, 1, 4, 1, 5]


def log_probabilities(model):
    for sequence in SEQUENCES:
        ids = torch.tensor([sequence])
        yield torch.log_softmax(model(ids[:, :-1]).logits[0], -1).gather(1, ids[0, 1:, None])[:, 0]


def fine_tune(model):
    """Cross-entropy, decay on matrices only, the gradient clipped to norm 1: what train_sft does."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}],
                                  lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for _ in range(20):
        loss = -torch.cat(list(log_probabilities(model))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses)


def greedy(model):
    tokens, margin = list(PROMPT), 1e9
    for _ in range(64):
        best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
    return torch.tensor(tokens[len(PROMPT):], dtype=torch.float32), margin


def make(folder, config, model_class, seed):
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():  # random everywhere, large enough for every part to matter
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if "norm" in name else 0.0))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
    tensors = {k: v.detach().clone().contiguous() for k, v in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    golden = {"logits": torch.cat([model(torch.tensor([s])).logits[0] for s in SEQUENCES]).detach()}
    with torch.no_grad():
        golden["greedy"], margin = greedy(model)
    loss = 0
    for i, logp in enumerate(log_probabilities(model)):
        loss = loss + ((torch.arange(1, len(logp) + 1) * 0.25 - i) * logp).sum()
    loss.backward()
    golden |= {f"grad.{k}": v.grad.contiguous() for k, v in model.named_parameters()}
    model.zero_grad()
    golden["losses"] = fine_tune(copy.deepcopy(model))
    save_file(golden, folder / "golden.safetensors")
    print(f"{folder.name:8} smallest greedy margin {margin:.1e}  losses {golden['losses'][0]:.4f} -> {golden['losses'][-1]:.4f}")


out = pathlib.Path(sys.argv[1])
common = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=51, max_position_embeddings=128, rms_norm_eps=1e-6, eos_token_id=0, attn_implementation="eager")
llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32, rope_theta=500.0)
make(out / "qwen2", Qwen2Config(tie_word_embeddings=True, **common), Qwen2ForCausalLM, 0)
make(out / "qwen3", Qwen3Config(tie_word_embeddings=True, head_dim=10, **common), Qwen3ForCausalLM, 1)
make(out / "llama", LlamaConfig(tie_word_embeddings=False, **common), LlamaForCausalLM, 2)
make(out / "llama3", LlamaConfig(tie_word_embeddings=True, head_dim=16, rope_parameters=llama3, **common), LlamaForCausalLM, 3)
