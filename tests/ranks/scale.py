#!/usr/bin/env python3
"""What a GRPO step should take on many GPUs, before they have been asked: 8 to 1,024 H100s in nodes of eight, Qwen2.5 0.5B to 7B.

    tests/ranks/scale.py                                      lognormal lengths, which are an assumption
    tests/ranks/scale.py --lengths samples.jsonl --mean 2000  lengths that train_grpo or infer --sample wrote, stretched to a mean
    tests/ranks/scale.py --questions 512 --updates 16         DeepSeek-R1's whole rollout: 8,192 responses, 16 updates

Kernels cost what tests/gpu/predict.py says and collectives what published bandwidths say; lengths are drawn, and the slowest rank of
each phase found: all wait for the last response, as every reward is needed, and at the sum of the gradients. All is a prediction."""

import argparse
import heapq
import json
import math
import pathlib
import random
import sys
from functools import lru_cache
from statistics import NormalDist, fmean

sys.dont_write_bytecode, sys.path[:0] = True, [str(pathlib.Path(__file__).resolve().parent.parent / "gpu")]
import predict

MODELS = {"0.5B": predict.MODELS["Qwen2.5-0.5B"], "1.5B": predict.MODELS["Qwen2.5-1.5B"],  # from Qwen's config.json files
          "3B": predict.Model(2048, 11008, 36, 16, 2, 128, 151936, True, True, False),
          "7B": predict.Model(3584, 18944, 28, 28, 4, 128, 152064, False, True, False)}  # fmt: skip
CARD, CARD_GIB, NODE = predict.CARDS["H100"], 79.6, 8  # nvidia-smi shows 81,559 MiB of an H100 with 80 GB
# GB/s in one direction. NVLink 4 has 450 (H100 data sheet: 900 both ways), of which NCCL's ring keeps 370 after its protocol
# (github.com/NVIDIA/nccl-tests/issues/212). 400 Gb/s InfiniBand, a network card for each GPU, has 50, of which 46 to 48 are to be
# expected (issues/290). The two together have shown 366 GB/s of bus bandwidth on four nodes (issues/309). PCIe 5: an assumption.
NVLINK, NETWORK, PCIE = 370, 47, 50
# Microseconds before a collective and for each of its steps: NCCL's own model of large messages (src/graph/tuning.cc: hwLat, baseLat),
# where a tree keeps 0.92 of the bandwidth and a long ring's steps take 1.4 times as long. SMALL_SUM: a few rows in a node, protocol LL.
BEGIN, NVLINK_STEP, NETWORK_STEP, TREE, LONG_RING, SMALL_SUM = 8.4, 3.4, 14, 0.92, 1.4, 6.6 + 2 * (NODE - 1) * 0.6
# Given up until ZeRO-1 on eight GPUs fits a card: whether to recompute, to hold the reference; what divides a pass, and the slots.
LADDER = {"nothing": (0, 1, 1, 1), "activations": (1, 1, 1, 1), "activations, reference": (1, 0, 1, 1),
          "activations, reference, half a pass": (1, 0, 2, 1), "activations, reference, half a pass, 1/2 of the slots": (1, 0, 2, 2),
          **{f"activations, reference, half a pass, {n - 1}/{n} of the slots": (1, 0, 2, n) for n in (4, 8)}}  # fmt: skip
NUMBERS = dict(rho=0.5, mean=0, p99=4000, limit=0, prompt=128, questions=32, group=16, updates=1, slots=256, budget=16384, seed=1)
seconds = lambda kernels: predict.total(CARD, kernels) / 1e6


def collective(n, ranks, bytes_, ways, tree_too=False):
    """Seconds, and how, for 8 bytes of each of n parameters both ways (all-reduce), or fewer bytes one way: a ring in each node, whose
    members meet their likes on other nodes. The slower of the two decides, since NCCL sends chunk behind chunk."""
    nodes, local = max(1, ranks // NODE), min(ranks, NODE)
    inside, outside = bytes_ * n * (local - 1) / local / NVLINK / 1e9, bytes_ * n / local / NETWORK / 1e9
    begin, step = (BEGIN + ways * (local - 1) * NVLINK_STEP) / 1e6, ways * NETWORK_STEP / 1e6
    ring = max(inside, outside * (nodes - 1) / nodes) + begin + step * (nodes - 1) * LONG_RING, "ring"
    tree = max(inside, outside / TREE) + begin + step * math.log2(nodes), "tree"
    return min(ring, tree) if tree_too and nodes > 1 else ring  # NCCL has no tree for reduce-scatter and all-gather


def gib(m, o, ranks, plan, slots, zero, states=12):
    """Memory by src/model/memory_plan.h. A parameter has a bfloat16 copy, a float32 gradient, 12 bytes of states: ZeRO-1 deals those."""
    (q, qkv, _, n), (recompute, reference, budget, _) = predict.shape(m), plan
    layer, shared = 12 * m.C + 2 * (q + qkv) + 6 * m.F, 22 * m.C + 2 * (q + qkv) + 6 * m.F  # bytes a token
    token = shared + (layer + 4 * m.C * m.L if recompute else layer * m.L)
    cache, weights = slots * (o.prompt + o.limit) * m.L * 4 * m.K * m.D, n * (6 + 2 * reference + states / (ranks if zero else 1))
    return (weights + 128 * budget * token + 4 * m.V * (2048 + slots) + cache) / 2**30 + 1  # CUDA's context, NCCL's buffers


class Rank:
    """Seconds of a rank's phases by predict.py, where attention is linear in pairs of tokens; passes are in blocks of 128 tokens."""

    def __init__(self, m, o, plan, responses):
        recompute, reference, self.budget, slots = plan
        both = predict.forward, lambda *a: predict.backward(*a, recompute)
        slope = lambda f, *rest: (seconds(f(m, 1024, 1000, *rest)) - seconds(f(m, 1024, 0, *rest))) / 1024000
        self.o, self.slots, self.key, self.pair = o, min(slots, responses), slope(predict.decode), [slope(f, 0) for f in both]
        self.decode = [0.0] + [seconds(predict.decode(m, rows, 0)) for rows in range(1, self.slots + 1)]
        self.passes = [lru_cache(None)(lambda n, f=f: seconds(f(m, 128 * n, 0, 128 * n)) if n else 0.0) for f in both]
        self.update, self.exchange = seconds(predict.update(m, False)), 0 if reference else 4 * predict.shape(m)[3] / PCIE / 1e9

    def rollout(self, lengths, questions):
        """A free slot takes the next response. When none is left, fewer and fewer rows share the reading of the weights."""
        ends, before, prompt = lengths[: self.slots], 0, self.o.prompt
        heapq.heapify(ends)
        for length in lengths[self.slots :]:
            heapq.heapreplace(ends, ends[0] + length)
        time = self.passes[0](-(-questions * prompt // 128)) + self.key * sum(n * (prompt + n / 2) for n in lengths)
        for left, end in zip(range(len(ends), 0, -1), sorted(ends)):
            time, before = time + (end - before) * self.decode[left], end
        return time

    def train(self, lengths, questions):
        """Reference, policy and gradient, pass by pass; and how much of that is the last pass going backwards."""
        tokens, pairs = questions * self.o.prompt + sum(lengths), sum(n * (n + 2 * self.o.prompt) for n in lengths)
        full, rest = divmod(-(-tokens // 128), self.budget)
        forward, backward = (full * f(self.budget) + f(rest) + pairs * pair for f, pair in zip(self.passes, self.pair))
        last, forwards = rest or min(full, 1) * self.budget, 2 + (self.o.updates > 1)  # with several updates pi_old is not the policy
        return forwards * forward + backward, self.passes[1](last) + pairs * self.pair[1] * 128 * last / max(1, tokens)


def rollouts(o, ranks, questions, rng):
    """One step's responses, dealt in turn; by what is expected, where rho of log length's variance is known; and anew by true length."""
    own, other, size = math.sqrt(o.rho), math.sqrt(1 - o.rho), len(o.table)
    length = lambda z: o.table[min(size - 1, int(0.5 * math.erfc(-z / math.sqrt(2)) * size))]
    drawn = [(z := rng.gauss(0, 1), [(length(own * z + other * rng.gauss(0, 1)), q) for _ in range(o.group)]) for q in range(questions)]
    levels, groups = zip(*drawn)
    units = groups  # more ranks than questions tear groups apart
    if ranks > questions:
        units = [[response] for group in groups for response in group]
    expected = [sum(length(own * z + other * NormalDist().inv_cdf((i + 0.5) / 9)) for i in range(9)) for z in levels]
    known, exact = [expected[unit[0][1]] for unit in units], [sum(length for length, _ in unit) for unit in units]
    for weights in ([1] * len(units), known, exact):
        dealt, load = [[] for _ in range(ranks)], [(0, rank) for rank in range(ranks)]
        for i in sorted(range(len(units)), key=lambda i: -weights[i]):  # the heaviest that is left goes to whoever has least
            dealt[load[0][1]] += units[i]
            heapq.heapreplace(load, (load[0][0] + weights[i], load[0][1]))
        yield [([length for length, _ in rank], len({question for _, question in rank})) for rank in dealt]


def simulate(o, weak):
    """A row for each model and number of GPUs. Steps: plain, dealt by length, dealt anew for training, ZeRO-1, overlap."""
    rows, updates = {}, o.updates
    for ranks in o.gpus:
        questions = max(1, o.questions * ranks // o.gpus[0]) if weak else o.questions
        responses, count = -(-questions * o.group // ranks), max(6, min(32, 2048 // ranks)) if weak else 16
        trials = [[*rollouts(o, ranks, questions, random.Random(1000 * o.seed + trial))] for trial in range(count)]
        for name, m in MODELS.items():
            rank, shares, n = Rank(m, o, o.plans[name], responses), ([], [], []), predict.shape(m)[3]
            for trial in trials:
                sampled = [[rank.rollout(*own) for own in dealt] for dealt in trial[:2]]
                for share, before, after in zip(shares, (sampled[0], sampled[1], sampled[1]), trial):
                    trained = [[rank.train(lengths[k::updates], -(-own // updates)) for lengths, own in after] for k in range(updates)]
                    mean, slowest = sum(fmean(time for time, _ in part) for part in trained), [max(part) for part in trained]
                    share.append((fmean(before), max(before), mean, sum(time for time, _ in slowest), fmean(last for _, last in slowest)))
            means, (all_reduce, how) = [[fmean(x) for x in zip(*share)] for share in shares], collective(n, ranks, 8, 2, True)
            scatter, *buckets = (collective(part, ranks, 4, 1)[0] for part in (n, m.V * m.C, (n - m.V * m.C) / m.L))
            # A bucket is a layer. The backward pass hides all but the last, and the embedding, whose gradient ends with it.
            shown = buckets[0] + max(buckets[1], m.L * buckets[1] - means[2][4] * (m.L - 1) / m.L)
            shard = collective(n, ranks, 2, 1)[0] + rank.update / ranks
            ends = [all_reduce + rank.update] * 3 + [scatter + shard, min(scatter, shown) + shard]
            steps = [means[way][1] + means[way][3] + rank.exchange + updates * end for way, end in zip((0, 1, 2, 2, 2), ends)]
            rows[name, ranks] = dict(
                responses=questions * o.group / ranks, rollout=means[0][0], training=means[0][2] + rank.exchange + updates * rank.update,
                sum=updates * all_reduce, how=how, waiting=means[0][1] - means[0][0] + means[0][3] - means[0][2], steps=steps,
                gains=[round(100 * (a - b) / steps[0], 1) + 0 for a, b in zip(steps, steps[1:])],
                gib=[gib(m, o, ranks, o.plans[name], rank.slots, zero) for zero in (False, True)])  # fmt: skip
            base = [step if weak else step * o.gpus[0] / ranks for step in rows[name, o.gpus[0]]["steps"]]
            rows[name, ranks]["efficiency"] = [100 * base[way] / steps[way] for way in (0, 4)]
    return rows


def show(o, title, weak):
    def below(name, way, percent):
        for p, q in zip(o.gpus, o.gpus[1:]):
            a, b = (rows[name, ranks]["efficiency"][way] for ranks in (p, q))
            if b < percent <= a:  # between the two that were simulated
                return f"below {percent}% at about {float(f'{p * (q / p) ** (math.log(a / percent) / math.log(a / b)):.2g}'):,.0f} GPUs"
        return f"not below {percent}% up to {o.gpus[-1]:,}"

    print(f"\nPREDICTED: {title}\n\n| model | GPUs | responses a GPU | rollout s | training s | all-reduce ms | waiting s | step s "
          "| efficiency | by length saves | dealt anew | ZeRO-1 | overlap | step with all s | efficiency | GiB | GiB, ZeRO-1 |\n|"
          + "---|" * 17)  # fmt: skip
    rows = simulate(o, weak)
    for (name, ranks), r in sorted(rows.items()):
        cells = [f"{r['responses']:g}", f"{r['rollout']:.2f}", f"{r['training']:.2f}", f"{1e3 * r['sum']:.1f} {r['how']}",
                 f"{r['waiting']:.2f}", f"{r['steps'][0]:.2f}", f"{r['efficiency'][0]:.0f}%", *(f"{x:.1f}%" for x in r["gains"]),
                 f"{r['steps'][4]:.2f}", f"{r['efficiency'][1]:.0f}%", *(f"{x:.0f}{'*' * (x > CARD_GIB)}" for x in r["gib"])]  # fmt: skip
        print(f"| {name} | {ranks:,} | " + " | ".join(cells) + " |")
    for name in MODELS:
        falls = [", ".join(below(name, way, percent) for percent in (80, 50)) for way in (0, 1)]
        best = min(rows[name, ranks]["steps"][4] for ranks in o.gpus)
        enough = next(ranks for ranks in o.gpus if rows[name, ranks]["steps"][4] * 0.9 <= best)
        print(f"\n{name}: efficiency {falls[0]}; with all four measures {falls[1]}."
              + f" No step is a tenth shorter than on {enough:,} GPUs; the shortest takes {best:.1f} s." * (not weak))  # fmt: skip
    wait, summed = (sorted(100 * r[key] / r["steps"][0] for r in rows.values()) for key in ("waiting", "sum"))
    print(f"\nWaiting is {wait[0]:.0f} to {wait[-1]:.0f}% of a plain step, the all-reduce {summed[0]:.1f} to {summed[-1]:.1f}%.")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lengths", metavar="samples.jsonl")
    p.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 128, 512, 1024])
    for flag, value in NUMBERS.items():
        p.add_argument(f"--{flag}", type=type(value), default=value)
    o = p.parse_args()
    if o.lengths:
        found = sorted(json.loads(line)["length"] for line in open(o.lengths) if line.strip())
        table, said = [n * (o.mean or fmean(found)) / fmean(found) for n in found], f"the shape of {len(found)} measured ones, {o.lengths}"
    else:  # mean = exp(mu + sigma^2 / 2), p99 = exp(mu + z sigma)
        mean, z = o.mean or 1000, NormalDist().inv_cdf(0.99)
        sigma = z - math.sqrt(max(0, z * z - 2 * math.log(max(1, o.p99 / mean))))
        table = [mean * math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / 2**14) - sigma**2 / 2) for i in range(2**14)]
        said = f"an ASSUMPTION, not measured: lognormal, mean {mean}, one of a hundred over {o.p99}, sigma {sigma:.2f}"
    o.limit = o.limit or (math.ceil(table[-1]) if o.lengths else 8192)
    o.table, most = [max(1, min(o.limit, round(n))) for n in table], [*LADDER][-1]
    own, longest = -(-o.questions * o.group // o.gpus[0]), o.prompt + o.limit
    plan = lambda a, b, part, few: (a, b, -(-max(o.budget // part, longest) // 128), max(1, min(o.slots, own) // few))
    need = lambda m, words, zero, states=12: gib(m, o, NODE, plan(*LADDER[words]), plan(*LADDER[words])[3], zero, states)
    given = {name: next((words for words in LADDER if need(m, words, True) <= CARD_GIB), most) for name, m in MODELS.items()}
    o.plans = {name: plan(*LADDER[words]) for name, words in given.items()}
    print(f"""PREDICTED, all that follows: none of it has run on such machines. Assumptions:
- H100 SXM, kernels by tests/gpu/predict.py, nodes of {NODE}. A GPU sends {NVLINK} GB/s over NVLink and {NETWORK} over InfiniBand, however
  many do; {NVLINK_STEP} and {NETWORK_STEP} us a step of a ring. All are equally fast, none fails, and rewards take no time.
- Lengths: {said}; cut at {o.limit}: mean {fmean(o.table):.0f}.
- A step: {o.group} responses a question, prompts of {o.prompt} tokens, a reference; updates: {o.updates}. Waiting: the slowest less mean.
- Saved, each on top of the one before, in % of the plain step: questions dealt by expected length, longest first, where {o.rho} of the
  variance of log length is known; groups dealt anew for training, by what they came to (train_grpo does this one); ZeRO-1, 6 bytes a
  parameter for 8; overlap with the last backward pass, which is not slowed. Efficiency: against {o.gpus[0]} GPUs with the same measures.
- Memory: float32 states; *: more than the {CARD_GIB} GiB of a card. Given up so that ZeRO-1 on {NODE} GPUs fits (activations are
  then recomputed, and the reference stays on the host): {'; '.join(f'{name}: {words}' for name, words in given.items())}.""")
    show(o, f"weak scaling, {own} responses a GPU", True)
    show(o, f"strong scaling, {o.questions * o.group} responses; over {o.questions} GPUs groups are torn, which train_grpo refuses", False)
    alone, sharded = (", ".join(k for k, m in MODELS.items() if need(m, most, zero) <= CARD_GIB) or "none" for zero in (False, True))
    print(f"""
PREDICTED: tensor parallelism is left out. Memory does not ask for it where a replica fits a card. With all of the above given up,
float32 states do so alone: {alone}; with ZeRO-1 on {NODE} GPUs: {sharded}. It would bring something: the last
response of a rollout decodes alone, and {NODE} GPUs would read its weights faster, at two sums of {SMALL_SUM:.0f} us a layer. But it puts
collectives into each layer, forward, backward and at each token, where more responses a rollout dilute the wait without any code.""")
    for name, m in MODELS.items():
        one, split = (1e3 * seconds([k._replace(bytes=k.bytes / by) for k in predict.decode(m, 1, longest // 2)]) for by in (1, NODE))
        memory = [f"{need(m, most, zero, states):.0f} GiB" for zero, states in ((False, 12), (False, 4), (True, 12))]
        print(f"- {name}: {memory[0]} alone, {memory[1]} alone with bfloat16 states, {memory[2]} with ZeRO-1; a token of the last response "
              f"takes {one:.2f} ms on one GPU and {split + m.L * SMALL_SUM / 500:.2f} ms on {NODE}.")  # fmt: skip


if __name__ == "__main__":
    main()
