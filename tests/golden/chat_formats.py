"""Conversations as Hugging Face's chat templates write them, for tests/test_chat_format.cpp.

    pip install transformers jinja2
    python tests/golden/chat_formats.py MODEL_FOLDER... > tests/golden/chat_formats.jsonl

A model folder needs a tokenizer_config.json with a chat template. Only what the templates write is kept.
"""

import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template


def turn(role, content):
    return {"role": role, "content": content}


SYSTEM, QUESTION, MORE = turn("system", "Be brief.\n"), turn("user", "What is 2 + 2?"), turn("user", " and 3 × 3? 🙂 ")
ANSWER, THOUGHT = turn("assistant", "4"), turn("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4.\n")
CONVERSATIONS = [
    [QUESTION],
    [SYSTEM, QUESTION],
    [turn("user", "")],
    [QUESTION, ANSWER],
    [QUESTION, THOUGHT],
    [SYSTEM, QUESTION, ANSWER, MORE],
    [QUESTION, THOUGHT, MORE],
    [QUESTION, THOUGHT, MORE, ANSWER],
    [QUESTION, ANSWER, MORE, THOUGHT],
    [QUESTION, turn("assistant", "</think></think>\n\n x"), MORE, turn("assistant", "<think></think>")],
    [QUESTION, THOUGHT, ANSWER],
    [turn("assistant", "Hello."), QUESTION],
]

for folder in map(pathlib.Path, sys.argv[1:]):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {k: v["content"] if isinstance(v, dict) else v for k, v in config.items() if k in ("bos_token", "eos_token")}
    for messages in CONVERSATIONS:
        texts, _ = render_jinja_template([messages], chat_template=config["chat_template"], add_generation_prompt=True, **tokens)
        print(json.dumps({"model": folder.name, "messages": messages, "text": texts[0]}))
