"""A reward program for the questions of largest.jsonl. They need no "answer", since it works out the largest number.

It reads a JSON line for each response, {"problem": {...}, "prompt": "...", "response": "..."}, and answers each with a
number on a line: 1 if the answer's value is the largest number, and part of 0.5 if it is near it.
"""
import ast
import json
import operator
import re
import sys

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value(node):
    """The value of an expression such as 12-12+12. A response is never executed: eval() would run anything."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](value(node.left), value(node.right))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    raise ValueError("not an expression")


def reward(question, response):
    largest = max(int(number) for number in question.split(","))
    answer = re.search("<answer>(.{1,99})</answer>", response)  # so short that none can keep the program busy
    if not answer:
        return 0
    try:
        distance = abs(value(ast.parse(answer[1], mode="eval").body) - largest)
    except (SyntaxError, ValueError):
        return 0
    return 1 if distance == 0 else 0.5 / (1 + distance)


for line in sys.stdin:
    task = json.loads(line)
    print(reward(task["problem"]["question"], task["response"]), flush=True)  # unflushed, it would never arrive
