"""Writes largest.jsonl and largest_test.jsonl: which of three numbers is the largest?

One set of numbers in four is held out, so that no training problem is a held-out one in another order.
"""
import itertools, json

with open("largest.jsonl", "w") as train, open("largest_test.jsonl", "w") as test:
    for i, numbers in enumerate(itertools.combinations(range(1, 13), 3)):
        orders = list(itertools.permutations(numbers))
        for order in orders[i % 6], orders[(i + 3) % 6]:
            problem = {"question": ",".join(map(str, order)), "answer": str(max(numbers))}
            print(json.dumps(problem), file=train if i % 4 else test)
