"""Writes problems in words whose answers take two or three steps, and worked answers to begin with:

    python3 data/r1/make_stories.py OUT [--train 800] [--test 200] [--worked 240] [--seed 1]

OUT/train.jsonl and OUT/test.jsonl hold {"question": ..., "answer": ...} a line, OUT/worked.jsonl {"messages": [...]}.
No two of all of them are the same problem. The numbers are as small as a model of 135M parameters can calculate with now and then.
"""
import argparse, json, operator, pathlib, random

NAMES = ["Ada", "Ben", "Chloe", "Dan", "Ella", "Finn", "Grace", "Hugo", "Ivy", "Jack", "Kate", "Leo", "Mia", "Noah", "Olga", "Paul"]
THINGS = ["apples", "stamps", "marbles", "cards", "shells", "pencils", "stickers", "coins"]
CALCULATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def stories(r):
    """One story after the other: the question, and its solution in steps, each of them a sentence's beginning and a calculation."""
    name, thing = r.choice(NAMES), r.choice(THINGS)
    a, b, c, d = r.randint(3, 12), r.randint(2, 6), r.randint(2, 6), r.randint(2, 6)
    yield (f"{name} has {a} {thing}, buys {b} packs of {c} {thing} and gives {d} {thing} to a friend. How many {thing} does {name} have now?",
           [(f"{b} packs of {c} are", b, "*", c), ("Together with the first ones,", a, "+", b * c), (f"After giving {d} away,", a + b * c, "-", d)])
    yield (f"A train has {b} cars with {a} seats each. {a + d} seats are taken. How many seats are free?",
           [(f"{b} cars with {a} seats have", b, "*", a), ("The free ones are", a * b, "-", a + d)])
    yield (f"A ticket costs {a} dollars and a drink costs {d} dollars. How many dollars do {b} tickets and {c} drinks cost?",
           [("The tickets cost", b, "*", a), ("The drinks cost", c, "*", d), ("Together,", a * b, "+", c * d)])
    yield (f"A book has {5 * a + c} pages. {name} reads {a} pages on Monday and twice as many on Tuesday. How many pages are left?",
           [("On Tuesday,", 2, "*", a), ("On both days,", a, "+", 2 * a), ("Left are", 5 * a + c, "-", 3 * a)])
    yield (f"{name} bakes {b * c} rolls and {b * d} buns. They are packed into {b} equal bags. How many pieces are in each bag?",
           [("In all,", b * c, "+", b * d), ("In each bag,", b * c + b * d, "/", b)])
    yield (f"{name} is {a} years old. A brother is {d} years younger, and their mother is {b} years older than both of them together. How old is the mother?",
           [("The brother is", a, "-", d), ("Both together are", a, "+", a - d), ("The mother is", 2 * a - d, "+", b)])
    yield (f"{name} saves {a} dollars a week for {c} weeks and then spends {a + b} dollars. How many dollars are left?",
           [(f"In {c} weeks,", c, "*", a), ("Left are", a * c, "-", a + b)])
    yield (f"A farm has {a} hens. Each lays {b} eggs a week. {c} eggs break, and the rest go into boxes. How many eggs go into boxes?",
           [("The hens lay", a, "*", b), ("Into boxes go", a * b, "-", c)])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=pathlib.Path)
    for flag, value in dict(train=800, test=200, worked=240, seed=1).items():
        p.add_argument(f"--{flag}", type=int, default=value)
    o = p.parse_args()
    r, solutions = random.Random(o.seed), {}
    while len(solutions) < o.train + o.test + o.worked:
        for question, steps in stories(r):
            results = [CALCULATE[op](x, y) for _, x, op, y in steps]
            if min(results) > 0:  # nobody has fewer than no apples
                solutions[question] = (". ".join(f"{lead} {x} {op} {y} = {z}" for (lead, x, op, y), z in zip(steps, results)), results[-1])
    problems = list(solutions.items())
    r.shuffle(problems)
    o.out.mkdir(parents=True, exist_ok=True)
    template = (pathlib.Path(__file__).parent.parent / "templates/r1-chat.txt").read_text().rstrip("\n")
    problem = lambda question, _, answer: {"question": question, "answer": str(answer)}
    worked = lambda question, thought, answer: {"messages": [
        {"role": "user", "content": template.replace("{question}", question)},
        {"role": "assistant", "content": f"<think> {thought}. </think> <answer> {answer} </answer>"}]}
    begin = 0
    for name, count, form in (("train", o.train, problem), ("test", o.test, problem), ("worked", o.worked, worked)):
        partial = o.out / f"{name}.jsonl.partial"
        partial.write_text("".join(json.dumps(form(question, *solution)) + "\n" for question, solution in problems[begin : begin + count]))
        partial.rename(o.out / f"{name}.jsonl")
        begin += count


main()
