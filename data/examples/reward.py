"""A reward of one's own for the questions of largest.jsonl. They need no "answer": it works it out.

Reads a JSON line for each response, {"problem": {...}, "prompt": "...", "response": "..."}, and answers each with a
number on a line: 1 for the largest number and nothing else, and for the sake of a first step in the right direction up
to 0.5 for an expression, the more of its numbers are the largest.
"""
import json
import re
import sys

for line in sys.stdin:
    task = json.loads(line)
    largest = max(task["problem"]["question"].split(","), key=int)
    answer = re.search("<answer>(.*)</answer>", task["response"])
    numbers = re.findall("[0-9]+", answer[1]) if answer else []
    if answer and answer[1] == largest:
        reward = 1
    else:
        reward = 0.5 * numbers.count(largest) / max(1, len(numbers))
    print(reward, flush=True)  # without the flush the number waits in a buffer, and the trainer for the number
