"""Writes problems in words whose answers take two or three steps, and worked answers to begin with:

    python3 data/r1/make_stories.py OUT [--train 800] [--test 200] [--worked 120] [--seed 1]

OUT/train.jsonl and OUT/test.jsonl hold {"question": ..., "answer": ...} a line, OUT/worked.jsonl {"prompt": ..., "completion": ...}.
No two of all of them are the same problem.
"""
import argparse, json, pathlib, random

NAMES = ["Ada", "Ben", "Chloe", "Dan", "Ella", "Finn", "Grace", "Hugo", "Ivy", "Jack", "Kate", "Leo", "Mia", "Noah", "Olga", "Paul"]
THINGS = ["apples", "stamps", "marbles", "cards", "shells", "pencils", "stickers", "coins"]


def stories(r):
    """One story after the other: the question, the sentences of its solution and the answer."""
    name, thing = r.choice(NAMES), r.choice(THINGS)
    a, b, c, d = r.randint(11, 60), r.randint(3, 12), r.randint(3, 12), r.randint(2, 10)
    yield (f"{name} has {a} {thing}, buys {b} packs of {c} {thing} and gives {d} {thing} to a friend. How many {thing} does {name} have now?",
           [f"{b} packs of {c} are {b} * {c} = {b * c}", f"Together with the first ones, {a} + {b * c} = {a + b * c}", f"After giving {d} away, {a + b * c} - {d} = {a + b * c - d}"],
           a + b * c - d)
    yield (f"A train has {b} cars with {a} seats each. {a + d} seats are taken. How many seats are free?",
           [f"{b} cars with {a} seats have {b} * {a} = {a * b}", f"The free ones are {a * b} - {a + d} = {a * b - a - d}"], a * b - a - d)
    yield (f"A ticket costs {a} dollars and a drink costs {d} dollars. How many dollars do {b} tickets and {c} drinks cost?",
           [f"The tickets cost {b} * {a} = {a * b}", f"The drinks cost {c} * {d} = {c * d}", f"Together, {a * b} + {c * d} = {a * b + c * d}"], a * b + c * d)
    yield (f"A book has {5 * a + c} pages. {name} reads {a} pages on Monday and twice as many on Tuesday. How many pages are left?",
           [f"On Tuesday, 2 * {a} = {2 * a}", f"On both days, {a} + {2 * a} = {3 * a}", f"Left are {5 * a + c} - {3 * a} = {2 * a + c}"], 2 * a + c)
    yield (f"{name} bakes {b * c} rolls and {b * d} buns. They are packed into {b} equal bags. How many pieces are in each bag?",
           [f"In all, {b * c} + {b * d} = {b * c + b * d}", f"In each bag, {b * c + b * d} / {b} = {c + d}"], c + d)
    yield (f"{name} is {a} years old. A brother is {d} years younger, and their mother is {b} years older than both of them together. How old is the mother?",
           [f"The brother is {a} - {d} = {a - d}", f"Both together are {a} + {a - d} = {2 * a - d}", f"The mother is {2 * a - d} + {b} = {2 * a - d + b}"], 2 * a - d + b)
    yield (f"{name} saves {a} dollars a week for {c} weeks and then spends {a + b} dollars. How many dollars are left?",
           [f"In {c} weeks, {c} * {a} = {a * c}", f"Left are {a * c} - {a + b} = {a * c - a - b}"], a * c - a - b)
    yield (f"A farm has {a} hens. Each lays {b} eggs a week. {c} eggs break, and the rest go into boxes. How many eggs go into boxes?",
           [f"The hens lay {a} * {b} = {a * b}", f"Into boxes go {a * b} - {c} = {a * b - c}"], a * b - c)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=pathlib.Path)
    for flag, value in dict(train=800, test=200, worked=120, seed=1).items():
        p.add_argument(f"--{flag}", type=int, default=value)
    o = p.parse_args()
    r, seen, problems = random.Random(o.seed), set(), []
    while len(problems) < o.train + o.test + o.worked:
        for question, steps, answer in stories(r):
            if question not in seen:
                seen.add(question)
                problems.append((question, steps, answer))
    r.shuffle(problems)
    o.out.mkdir(parents=True, exist_ok=True)
    problem = lambda q, _, a: {"question": q, "answer": str(a)}
    template = (pathlib.Path(__file__).parent.parent / "templates/r1-chat.txt").read_text().rstrip("\n")
    worked = lambda q, steps, a: {"messages": [
        {"role": "user", "content": template.replace("{question}", q)},
        {"role": "assistant", "content": f"<think> {'. '.join(steps)}. </think> <answer> {a} </answer>"}]}
    begin = 0
    for name, count, form in (("train", o.train, problem), ("test", o.test, problem), ("worked", o.worked, worked)):
        partial = o.out / f"{name}.jsonl.partial"
        partial.write_text("".join(json.dumps(form(*p)) + "\n" for p in problems[begin : begin + count]))
        partial.rename(o.out / f"{name}.jsonl")
        begin += count


main()
