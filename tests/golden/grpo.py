#!/usr/bin/env python3
"""Losses and gradients of GRPO's variants by Hugging Face's TRL, on random ragged batches, for tests/test_grpo.cpp.

    pip install torch trl
    python tests/golden/grpo.py > tests/golden/grpo.jsonl

Calls GRPOTrainer._compute_loss itself, on log-probabilities instead of a model, in float64.
"""

import json
import types
from collections import defaultdict

import torch
from trl import GRPOTrainer

MAX_LENGTH = 9
VARIANTS = [  # loss type, importance sampling level, eps low, eps high, beta, importance cap
    ("grpo", "token", 0.2, 0.2, 0.0, 0.0),
    ("grpo", "token", 0.2, 0.28, 0.04, 0.0),
    ("dapo", "token", 0.2, 0.28, 0.0, 0.0),
    ("dapo", "token", 0.2, 0.28, 0.01, 2.0),
    ("dr_grpo", "token", 0.2, 0.2, 0.0, 0.0),
    ("dr_grpo", "token", 0.1, 0.3, 0.04, 0.0),
    ("grpo", "sequence", 3e-4, 4e-4, 0.0, 0.0),
    ("grpo", "sequence", 0.2, 0.2, 0.04, 0.0),
    ("dapo", "sequence", 0.2, 0.2, 0.0, 0.0),
]


class Anything:
    """Stands in for accelerator and model: gathers nothing, reduces nothing."""

    training = True
    num_processes = 1
    sync_gradients = True

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        return x


def run(variant, lengths, policy, old, ref, sampled, advantages):
    loss_type, level, low, high, beta, cap = variant
    batch, width = policy.shape
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (policy, torch.ones_like(policy).detach(), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level=level, beta=beta, loss_type=loss_type, epsilon_low=low, epsilon_high=high,
        use_vllm=cap > 0, vllm_importance_sampling_correction=cap > 0, model=Anything(), accelerator=Anything(),
        current_gradient_accumulation_steps=1, max_completion_length=MAX_LENGTH, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        args=types.SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1))
    inputs = dict(
        prompt_ids=torch.zeros(batch, 1).long(), prompt_mask=torch.ones(batch, 1).long(),
        completion_ids=torch.zeros(batch, width).long(), completion_mask=mask, advantages=advantages,
        old_per_token_logps=old, ref_per_token_logps=ref, num_items_in_batch=mask.sum(),
        importance_sampling_ratio=torch.clamp(torch.exp(old - sampled), max=cap if cap else 1.0))
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    loss.backward()
    kl = trainer._metrics["train"].get("kl", [0.0])[-1]
    return loss.item(), policy.grad, kl


def main():
    generator = torch.Generator().manual_seed(1)

    def normal(*shape, scale=1.0):
        # float32 values, so that both sides start from the same numbers
        return (torch.randn(*shape, generator=generator) * scale).double()

    for variant in VARIANTS:
        for case in range(6):
            batch, group = 8, 4
            lengths = torch.randint(1, MAX_LENGTH + 1, (batch,), generator=generator).tolist()
            if case == 4:
                lengths[1] = lengths[6] = 0  # truncated samples that are masked
            if case == 5:
                lengths[:4] = [0] * 4  # a whole group of them
            width = max(lengths)
            policy = normal(batch, width) - 2
            spread = [0.0, 0.01, 0.3, 50.0, 0.3, 0.3][case]
            old = (policy + normal(batch, width, scale=spread or 1) * (spread > 0)).float().double()
            if case == 3:  # log-ratios of +-50
                old = (policy + 50 * torch.sign(normal(batch, width))).float().double()
            ref = (policy + normal(batch, width, scale=0.5)).float().double()
            sampled = (old + normal(batch, width, scale=0.5)).float().double()
            rewards = torch.randint(0, 3, (batch,), generator=generator).double() / 2
            if case == 2:
                rewards[:group] = 1.0  # no spread
            mean = rewards.view(-1, group).mean(1).repeat_interleave(group)
            std = rewards.view(-1, group).std(1).repeat_interleave(group)
            scales = {"group": std + 1e-4, "none": torch.ones(batch), "batch": rewards.std() + 1e-4}
            advantages = {name: (rewards - mean) / scale for name, scale in scales.items()}
            policy = policy.float().double().requires_grad_()
            loss, gradient, kl = run(variant, lengths, policy, old, ref, sampled,
                                     advantages["group"].float().double())

            def rows(t):
                return [t[i, :n].tolist() for i, n in enumerate(lengths)]

            print(json.dumps(dict(
                loss_type=variant[0], sequence_ratio=variant[1] == "sequence", clip_low=variant[2],
                clip_high=variant[3], beta=variant[4], importance_cap=variant[5], max_length=MAX_LENGTH, group=group,
                rewards=rewards.tolist(), advantages={k: v.tolist() for k, v in advantages.items()},
                policy=rows(policy.detach()), old=rows(old), reference=rows(ref), sampled=rows(sampled), loss=loss,
                gradient=rows(gradient), kl=kl)))


if __name__ == "__main__":
    main()
