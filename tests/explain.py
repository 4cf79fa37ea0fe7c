#!/usr/bin/env python3
"""Recomputes every number that `train_grpo --explain` prints from the numbers above it: the reader
with a pocket calculator. Only what the model alone can say is taken as it is: log-probabilities,
entropies and products of gradients.

    build/train_grpo --explain ... | python3 tests/explain.py

says how many numbers follow. With --corrupt, it changes one number after another instead, and fails
if a change goes unnoticed.

A printed number stands for all numbers that round to it. What follows from such numbers is an
interval too, and the number printed for it must lie in there. The standard library is enough.
"""
import json
import math
import re
import sys

FLOAT32 = 4e-7  # relative: advantages, weights and coefficients are in single precision
GRADIENT = 2e-5  # relative: the parts of a gradient come from backward passes of their own


class Wrong(Exception):
    pass


class Range:
    """All numbers from low to high."""

    def __init__(self, low, high=None):
        self.low, self.high = low, low if high is None else high

    def each(self, other, operation):
        other = other if isinstance(other, Range) else Range(other)
        ends = [operation(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        return Range(min(ends), max(ends))

    def __add__(self, other):
        return self.each(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self.each(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self.each(other, lambda a, b: a * b)

    def __truediv__(self, other):  # by positive numbers alone
        return self.each(other, lambda a, b: a / b)

    def __neg__(self):
        return Range(-self.high, -self.low)

    __radd__, __rmul__ = __add__, __mul__

    def map(self, rising):
        return Range(rising(self.low), rising(self.high))

    def square(self):
        ends = self.low**2, self.high**2
        return Range(0 if self.low < 0 < self.high else min(ends), max(ends))

    def wider(self, relative):
        slack = relative * max(abs(self.low), abs(self.high))
        return Range(self.low - slack, self.high + slack)

    def bounded(self):
        return self.map(lambda x: max(-60.0, min(60.0, x)))

    def inside(self):
        return -60 < self.low and self.high < 60


def minimum(a, b):
    return a.each(b, min)


def kl(difference):
    """exp(d) - d - 1 falls up to d = 0 and rises from there."""
    d = difference.bounded()
    ends = [math.exp(x) - x - 1 for x in (d.low, d.high)]
    return Range(0 if d.low < 0 < d.high else min(ends), max(ends))


class Explanation:
    def __init__(self, lines):
        self.lines, self.at, self.checked = lines, 0, 0
        self.places = []  # (line, column) of every number whose first digit cannot change unnoticed

    def fail(self, sentence):
        raise Wrong(f"line {self.at}: {sentence}")

    def peek(self):
        return self.lines[self.at] if self.at < len(self.lines) else ""

    def take(self, pattern):
        """The next line, as the groups of the pattern that it must match: (text, column)."""
        line = self.peek()
        self.at += 1
        match = re.fullmatch(pattern, line)
        if not match:
            self.fail(f'"{line}" is not what is expected here: {pattern}')
        return [(text, match.start(i + 1)) for i, text in enumerate(match.groups())]

    def number(self, word, watched=True):
        """What a printed number may have been: six significant digits, or six decimals."""
        text, column = word
        if watched:
            self.places.append((self.at - 1, column))
        try:
            value = float(text)
        except ValueError:
            self.fail(f'"{text}" is not a number')
        if not math.isfinite(value):
            self.fail(f'"{text}" is not finite')
        digits = re.fullmatch(r"[-+]?\d\.(\d+)e[-+]\d+", text)
        if re.fullmatch(r"[-+]?\d+\.\d{6}", text):
            half = 5e-7
        elif value == 0:
            half = 0
        else:
            half = 0.5 * 10.0 ** (math.floor(math.log10(abs(value))) - (4 if digits and len(digits[1]) == 4 else 5))
        return Range(value - half, value + half)

    def check(self, word, follows, what, slack=FLOAT32):
        follows = follows.wider(slack)
        size = max(abs(follows.low), abs(follows.high))
        first_digit_follows = size == 0 or follows.high - follows.low < 0.1 * size
        printed = self.number(word, first_digit_follows)
        if printed.high < follows.low or printed.low > follows.high:
            middle = (follows.low + follows.high) / 2
            self.fail(f"{what} is printed as {word[0]}, but {middle:.7g} follows from what is printed above")
        self.checked += 1
        return printed

    def check_same(self, word, value, what):
        """A setting or a count that was printed before."""
        self.places.append((self.at - 1, word[1]))
        if float(word[0]) != value:
            self.fail(f"{what} is printed as {word[0]}, but was {value:g} above")
        self.checked += 1

    def skip_quoted(self):
        while re.match(r" *\d*  +\| ", self.peek()):
            self.at += 1

    def run(self):
        while self.at < len(self.lines) and self.peek() != "The question, as the model sees it:":
            self.at += 1
        if self.at == len(self.lines):
            self.fail("no explanation is here; give me what train_grpo --explain prints")
        self.at += 1
        self.skip_quoted()
        self.take("")
        self.rewards()
        if not self.advantages():
            return
        self.formulas()
        unmasked = [i for i in range(self.count) if not self.masked[i]]
        self.tokens = sum(self.length[i] for i in unmasked)
        self.loss = {i: self.response(i) for i in unmasked}
        self.gradient()

    def rewards(self):
        (count, _), (mix, _) = self.take(r"(\d+) responses, sampled at temperature \S+; reward = (.*)")
        self.count = int(count)
        mix = [part.split(" x ") for part in mix.split(" + ")]
        self.reward, self.length, self.masked = [], [], []
        for i in range(self.count):
            self.skip_quoted()
            words = self.take(
                "     " + "".join(rf"{name} (\S+), " for _, name in mix) +
                r"reward (\S+); (\d+) tokens(?:, cut off)?( and masked: no part of the loss)?")
            parts = [self.number(word, float(weight) != 0) * float(weight) for word, (weight, _) in zip(words, mix)]
            self.reward.append(self.check(words[-3], sum(parts), f"the reward of response {i + 1}"))
            self.length.append(int(words[-2][0]))
            self.masked.append(words[-1][0] is not None)
        self.take("")

    def advantages(self):
        words = self.take(r"mean reward (\S+), standard deviation (\S+) \(with n - 1 = (\d+)\)")
        mean = sum(self.reward) / self.count
        squares = sum((reward - mean).square() for reward in self.reward)
        deviation = (squares / (self.count - 1)).map(math.sqrt)
        if all(r.low == self.reward[0].low for r in self.reward):
            deviation = Range(0)
        self.check(words[0], mean, "the mean reward")
        self.check(words[1], deviation, "the standard deviation")
        self.check_same(words[2], self.count - 1, "n - 1")
        scaled = self.take(r"advantage = \(reward - mean\)( / \(standard deviation \+ 0.0001\))?")[0][0] is not None
        self.advantage = []
        for i in range(self.count):
            words = self.take(r" *(\d+)  \((\S+) - (\S+)\)" + (r" / (\S+)" if scaled else "()") + r" = (\S+)")
            self.check_same(words[0], i + 1, "the response's number")
            self.check(words[1], self.reward[i], "the reward")
            self.check(words[2], mean, "the mean")
            follows = self.reward[i] - mean
            if scaled:
                divisor = deviation + 1e-4
                self.check(words[3], divisor, "the divisor")
                follows = follows / divisor
            self.advantage.append(self.check(words[4], follows, "the advantage"))
        if "there is nothing to learn" in self.peek():
            self.at += 1
            equal = all(a.low == a.high == 0 for a in self.advantage)
            if self.lines[self.at - 1].startswith("All rewards are equal") != equal or not (equal or all(self.masked)):
                self.fail("there is something to learn, or another reason why there is not")
            return False
        self.take("")
        return True

    def formulas(self):
        self.take(r"Each token of a response, before and after one update with learning rate \S+:")
        mean = self.take(r"  ratio = exp\((mean over the response's tokens of \(new - old\)|new - old)\); .*")
        self.sequence_ratio = mean[0][0] != "new - old"
        self.cap = None
        if self.peek().startswith("  w = "):
            self.cap = float(self.take(r"  w = min\((\S+), exp\(old - sampled\)\)")[0][0])
        w = "" if self.cap is None else "w "
        self.beta = None
        if self.peek().startswith("  KL = "):
            self.take(r"  KL = exp\(reference - new\) - \(reference - new\) - 1")
            self.beta = float(re.search(r"\+ (\S+) KL", self.peek() + "+ nan KL")[1])
        with_kl = self.beta is not None
        words = self.take(rf"  loss = -{w}min\(ratio A, clipped A\)" + (r" \+ (\S+) KL" if with_kl else "()") +
                          r", with the ratio clipped to \[1 - (\S+), 1 \+ (\S+)\]")
        self.clip_low, self.clip_high = float(words[1][0]), float(words[2][0])
        words = self.take(rf"  coefficient = weight x d loss / d new = weight x \(-{w}ratio A" +
                          (r" \+ (\S+) \(1 - exp\(reference - new\)\)" if with_kl else "()") + r"\),")
        if with_kl:
            self.check_same(words[0], self.beta, "the weight of the KL")
        words = self.take(r"      without ratio A where the clip is in force: low is A < 0 and ratio < 1 - (\S+),")
        self.check_same(words[0], self.clip_low, "the lower clip")
        words = self.take(r"      high is A > 0 and ratio > 1 \+ (\S+)")
        self.check_same(words[0], self.clip_high, "the upper clip")
        self.aggregation = self.take(r"  weight = 1 / (\(sequences x tokens of the response\)|tokens of all responses|"
                                     r"\(sequences x --max-new-tokens\))")[0][0]
        self.take(r"  exponents are kept between -60 and 60")
        self.take("")

    def weight(self, i, words):
        """Of a token of response i; words: the factors of its denominator."""
        if self.aggregation == "tokens of all responses":
            self.check_same(words[0], self.tokens, "the number of tokens")
            return 1 / self.tokens
        self.check_same(words[0], self.count, "the number of sequences")
        if "tokens of the response" in self.aggregation:
            self.check_same(words[1], self.length[i], "the number of tokens")
        return 1 / (self.count * float(words[1][0]))

    def response(self, i):
        """Checks one table of tokens, and returns the response's losses before and after the update."""
        words = self.take(r"response (\d+), advantage A = (\S+), weight of a token 1 / (?:\((\d+) x (\d+)\)|(\d+)) = (\S+)")
        self.check_same(words[0], i + 1, "the response's number")
        self.check(words[1], self.advantage[i], "the advantage")
        weight = self.weight(i, words[4:5] if words[2][0] is None else words[2:4])
        self.check(words[5], Range(weight), "the weight")
        self.take(r" *\| before the update *\| after the update")
        self.take(r"token +(?:sampled +)?old +reference \| +KL +loss +coefficient \| "
                  r"+new +ratio +clip +KL +loss +coefficient")
        first, rows = self.at, []
        for line in self.lines[first:first + self.length[i]]:
            try:
                end = json.JSONDecoder().raw_decode(line)[1]
            except ValueError:
                self.at = first + len(rows) + 1
                self.fail(f"a token of response {i + 1} is expected here")
            row = [(m[0], m.start()) for m in re.finditer(r"[^\s|]+", line) if m.start() >= end]
            if len(row) != 11 + (self.cap is not None):
                self.at = first + len(rows) + 1
                self.fail(f"this line has {len(row)} columns behind the token")
            rows.append(row if self.cap is not None else [None] + row)

        log_ratios = []
        for t, (_, old, _, _, _, _, new, *_) in enumerate(rows):
            self.at = first + t + 1
            log_ratios.append(self.number(new) - self.number(old))
        mean = sum(log_ratios) / len(rows)
        sums = [Range(0), Range(0)]
        for t, (sampled, old, reference, *columns) in enumerate(rows):
            self.at = first + t + 1
            log_ratio = mean if self.sequence_ratio else log_ratios[t]
            w = Range(1)
            if self.cap is not None:
                told = self.number(sampled, self.advantage[i].low > 0 or self.advantage[i].high < 0)
                w = minimum((self.number(old) - told).bounded().map(math.exp), Range(self.cap))
            reference = None if reference[0] == "-" else self.number(reference)
            if (reference is None) != (self.beta is None):
                self.fail("a reference is there without KL, or KL without a reference")
            sums[0] += self.token(i, Range(0), "-", w, reference, self.number(old), weight, columns[0:3])
            ratio, clip = columns[4:6]
            self.check(ratio, log_ratio.bounded().map(math.exp), "the ratio")
            sums[1] += self.token(i, log_ratio, clip[0], w, reference, self.number(columns[3]), weight, columns[6:9])
        self.at = first + len(rows)
        losses = [self.response_loss(when, weight, s) for when, s in zip(("before", "after"), sums)]
        self.take("")
        return losses

    def token(self, i, log_ratio, clip, w, reference, policy, weight, columns):
        """Checks KL, loss and coefficient of a token before or after the update, and returns its loss."""
        ratio, a = log_ratio.bounded().map(math.exp), self.advantage[i]
        low, high = 1 - self.clip_low, 1 + self.clip_high
        possible = {"low": a.low < 0 and ratio.low < low, "high": a.high > 0 and ratio.high > high,
                    "-": not (a.high < 0 and ratio.high < low or a.low > 0 and ratio.low > high)}
        if not possible.get(clip, False):
            self.fail(f'the clip is printed as "{clip}", but the ratio is {ratio.low:.6f}')
        self.checked += 1
        clipped = ratio.map(lambda x: max(low, min(high, x)))
        loss = -(w * minimum(ratio * a, clipped * a))
        slope = -(w * ratio * a) if clip == "-" and log_ratio.inside() else Range(0)
        if reference is None:
            if columns[0][0] != "-":
                self.fail("KL is printed without a reference")
        else:
            from_reference = reference - policy
            divergence = kl(from_reference)
            self.check(columns[0], divergence, "the KL")
            loss = loss + divergence * self.beta
            if from_reference.inside():
                slope = slope + (-from_reference.map(math.exp) + 1) * self.beta
        self.check(columns[2], slope * weight, "the coefficient")
        return self.check(columns[1], loss, "the loss")

    def response_loss(self, when, weight, total):
        bonus = self.peek().count("entropy") == 1
        words = self.take(rf"loss {when} the update: (\S+) x (\S+)" +
                          (r" - (\S+) / (\S+) x entropy (\S+)" if bonus else "()()()") + r" = (\S+)")
        self.check(words[0], Range(weight), "the weight")
        self.check(words[1], total, "the sum of the tokens' losses")
        loss = total * weight
        self.bonus = float(words[2][0]) if bonus else None
        if bonus:
            self.check_same(words[3], self.tokens, "the number of tokens")
            loss = loss - self.number(words[4]) * self.number(words[2]) / self.tokens
        return self.check(words[5], loss, f"the loss {when} the update")

    def gradient(self):
        while not self.peek().startswith("response "):
            if self.peek() == "" and self.at >= len(self.lines):
                self.fail("the gradient is missing")
            self.at += 1
            line = self.lines[self.at - 1]
            for pattern, value, what in ((r"-A / (\d+)", self.count, "the number of responses"),
                                         (r"- (\S+) / \d+ x grad", self.bonus, "the entropy bonus"),
                                         (r"- \S+ / (\d+) x grad", self.tokens, "the number of tokens")):
                match = re.search(pattern, line)
                if match:
                    self.check_same((match[1], match.start(1)), value, what)
        self.take(r"response +loss before +g_i \. g +loss after")
        sums = [Range(0)] * 3
        for i, losses in self.loss.items():
            words = self.take(r" *(\d+) +(\S+) +(\S+) +(\S+)")
            self.check_same(words[0], i + 1, "the response's number")
            self.check(words[1], losses[0], "the loss before the update")
            self.check(words[3], losses[1], "the loss after the update")
            sums = [s + x for s, x in zip(sums, (losses[0], self.number(words[2]), losses[1]))]
        words = self.take(r" *sum +(\S+) +(\S+) +(\S+)")
        self.check(words[0], sums[0], "the loss before the update")
        product = self.check(words[1], sums[1], "the sum of the products")
        self.check(words[2], sums[2], "the loss after the update")
        self.take("")
        words = self.take(r"gradient norm = sqrt\((\S+)\) = (\S+)")
        self.check(words[0], product, "the sum of the products")
        norm = self.check(words[1], product.map(lambda x: math.sqrt(max(0, x))), "the gradient norm", GRADIENT)
        if self.peek().startswith("--clip-norm 0:"):
            self.take("--clip-norm 0: AdamW gets the gradient as it is")
        else:
            words = self.take(r"--clip-norm (\S+): AdamW gets the gradient x min\(1, (\S+) / (\S+)\) = (\S+), "
                              r"whose norm is (\S+)")
            limit = float(words[0][0])
            self.check_same(words[1], limit, "--clip-norm")
            self.check(words[2], norm, "the gradient norm")
            factor = Range(1) if norm.high <= 0 else minimum(Range(1), Range(limit) / norm)
            self.check(words[4], norm * self.check(words[3], factor, "the factor"), "the norm after clipping")


def explain(lines):
    explanation = Explanation(lines)
    explanation.run()
    return explanation


def corrupt(lines, places):
    """Changes the first digit of each number in turn, and returns those whose change goes unnoticed."""
    unnoticed = []
    for row, column in places:
        line = lines[row]
        at = column + re.search(r"\d", line[column:]).start()
        wrong = line[:at] + str(int(line[at]) % 9 + 1) + line[at + 1:]
        try:
            explain(lines[:row] + [wrong] + lines[row + 1:])
            unnoticed.append(wrong)
        except Wrong:
            pass
    return unnoticed


def main():
    lines = sys.stdin.buffer.read().decode("utf-8", "replace").split("\n")
    try:
        explanation = explain(lines)
    except Wrong as wrong:
        sys.exit(f"explain.py: {wrong}")
    if sys.argv[1:] == ["--corrupt"]:
        places = sorted(set(explanation.places))
        places = places[:: 1 + len(places) // 400]
        unnoticed = corrupt(lines, places)
        if unnoticed:
            sys.exit(f"explain.py: {len(unnoticed)} of {len(places)} wrong numbers go unnoticed; the first is in\n"
                     + unnoticed[0])
        print(f"{len(places)} wrong numbers, one at a time, and each is noticed")
    else:
        print(f"{explanation.checked} numbers follow from those printed above them")


if __name__ == "__main__":
    main()
