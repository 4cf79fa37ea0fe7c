"""Conversations as Hugging Face's chat templates write them, for tests/test_chat_format.cpp.

    pip install transformers jinja2
    python tests/golden/chat_formats.py MODEL_FOLDER... > tests/golden/chat_formats.jsonl

A model folder needs a tokenizer_config.json with a chat template. Only what the templates write is kept. A line is a
model, one of its variants ("opens": the template opens the thought, as those of Qwen3-Thinking do), messages, whether
thoughts are allowed, and the text.
"""

import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM, QUESTION, MORE = turn("system", "Be brief.\n"), turn("user", "What is 2 + 2?"), turn("user", " and 3 × 3? 🙂 ")
ANSWER, THOUGHT = turn("assistant", "4"), turn("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4.\n")
APART = turn("assistant", "\nIt </think> is 4.", reasoning_content="\nTwo <think> and two.\n")
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
THOUGHTS_APART = [
    [QUESTION, APART],
    [QUESTION, APART, MORE],
    [QUESTION, APART, MORE, APART],
    [QUESTION, APART, turn("assistant", "x", reasoning_content="\n"), turn("assistant", "y", reasoning_content="")],
    [QUESTION, turn("assistant", "<think>\nt\n</think>\n\nx", reasoning_content=None)],
]

for folder in map(pathlib.Path, sys.argv[1:]):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {k: v["content"] if isinstance(v, dict) else v for k, v in config.items() if k in ("bos_token", "eos_token")}

    def write(conversations, variant="", think=True):
        template = config["chat_template"]
        if variant == "opens":
            template = template.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
            assert template != config["chat_template"]
        for messages in conversations:
            texts, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True,
                                             enable_thinking=think, **tokens)  # fmt: skip
            print(json.dumps({"model": folder.name, "variant": variant, "think": think, "messages": messages, "text": texts[0]}))

    write(CONVERSATIONS)
    if "reasoning_content" in config["chat_template"]:
        write(THOUGHTS_APART)
        write(CONVERSATIONS[:2] + THOUGHTS_APART[:1], variant="opens")
    if "enable_thinking" in config["chat_template"]:
        write(CONVERSATIONS[:6], think=False)
