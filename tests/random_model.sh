#!/usr/bin/env bash
# Writes a model folder with a real model's exact shape and tokenizer and random weights in bfloat16. Wants the folder of
# configurations, tokenizers and data sets in $R1_FIXTURES.
#     tests/random_model.sh CONFIG TOKENIZER OUT
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$R1_FIXTURES/configs/$1/"*.json "$R1_FIXTURES/tokenizers/$2/tokenizer.json" "$folder"
echo '{"prompt": "1", "completion": "2"}' >"$folder/none.jsonl"
build/train_sft --model "$folder" --data "$folder/none.jsonl" --steps 0 --token-budget 8 \
    --state-dtype bfloat16 --save-dtype bfloat16 --out "$3" >/dev/null
