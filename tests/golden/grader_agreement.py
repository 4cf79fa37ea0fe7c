#!/usr/bin/env python3
"""Pairs of answers with Math-Verify's verdicts, as JSON lines, for tests/test_math_answer.cpp.

    pip install "math-verify[antlr4_13_2]"
    python tests/golden/grader_agreement.py --misses 2000 --pairs graded.jsonl "$R1_FIXTURES" > cases.jsonl
    R1_GRADER_CASES=cases.jsonl build/r1_tests -tc="*Math-Verify*"

A near miss is a gold answer of the data sets in which one digit, sign, bracket, variable or exponent is changed; the
test pays none that Math-Verify refuses. The lines of --pairs, such as real outputs, hold "gold" and "answer"; an
"equal" in them stands for Math-Verify's verdict.
"""

import argparse
import json
import logging
import pathlib
import random
import re
import sys

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

SWAPPED = {"+": "-", "<": ">", ">": "<", r"\le": "<", r"\leq": "<", r"\ge": ">", r"\geq": ">", "(": "[", "[": "(",
           ")": "]", "]": ")", r"\sin": r"\cos", r"\cos": r"\sin", r"\pi": "x", r"\pm": "+", r"\sqrt": ""}  # fmt: skip


def gold_answers(fixtures):
    for name in ("math500/test", "aime24/test", "gsm8k/test"):
        for line in (fixtures / "datasets" / f"{name}.jsonl").read_text().splitlines():
            yield str(json.loads(line)["answer"]).split("####")[-1].strip()


def near_misses(gold, rng):
    """All the texts that are one change away from `gold`, or a few of a kind of which there are many."""
    if gold[0] != "-":
        yield "-" + gold
    for match in re.finditer(r"\\[a-zA-Z]+|.", gold):
        token, before, behind = match.group(), gold[: match.start()], gold[match.end() :]
        in_text = re.search(r"\\(text|mbox|mathrm)\{[^}]*$", before)
        inside_number = before[-1:].isdigit() or behind[:1].isdigit()
        if token.isdigit():
            yield from (before + d + behind for d in "123456789" if d != token)
            if before[-1:].isdigit() and before[-1] != token:
                yield before[:-1] + token + before[-1] + behind
        if (token.isdigit() and not inside_number or token.isalpha()) and not in_text and behind[:1] not in ("^", "_"):
            yield before + token + "^2" + behind
        if token.isalpha() and len(token) == 1 and not in_text:
            yield from (before + v + behind for v in rng.sample("abcdkmnpqtuvwxyz", 3) if v != token)
        if token == "-":
            yield before + "+" + behind
            yield before + behind
        if token in SWAPPED:
            yield before + SWAPPED[token] + behind
        power = re.match(r"(\d|[a-z])|\{([^{}]*)\}", behind)
        if token == "^" and power:
            yield before + behind[power.end() :]
            yield before + "^{" + (power[1] or power[2]) + "+1}" + behind[power.end() :]
        moved = re.match(r"[+-] *\d+", behind)
        if token == "}" and moved:
            yield before + moved.group() + "}" + behind[moved.end() :]


def verdict(gold, answer):
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    left, right = (parse(r"\boxed{" + text + "}", configs, parsing_timeout=5) for text in (gold, answer))
    return bool(left and right and verify(left, right, timeout_seconds=5))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixtures", type=pathlib.Path)
    parser.add_argument("--misses", type=int, default=2000)
    parser.add_argument("--pairs", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rng = random.Random(options.seed)

    pairs = [json.loads(line) for file in options.pairs for line in file.read_text().splitlines()]
    golds = [gold for gold in dict.fromkeys(gold_answers(options.fixtures)) if gold]
    structured = [gold for gold in golds if not re.fullmatch(r"[\d,. -]+", gold)]
    misses = set()
    while len(misses) < options.misses:
        gold = rng.choice(structured if rng.random() < 0.85 else golds)
        misses.add((gold, rng.choice(list(near_misses(gold, rng)))))
    pairs += [{"gold": gold, "answer": answer, "miss": True} for gold, answer in sorted(misses)]
    for pair in pairs:
        if "equal" not in pair:
            pair["equal"] = verdict(pair["gold"], pair["answer"])
        json.dump(pair, sys.stdout)
        print()


if __name__ == "__main__":
    main()
