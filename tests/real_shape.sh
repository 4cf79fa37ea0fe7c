#!/usr/bin/env bash
# Two GRPO steps on random weights of a real model's exact shape, with its real tokenizer, on GSM8K; and whether the memory
# plan was held to within 5%. Wants the folder of configurations, tokenizers and data sets in $R1_FIXTURES.
#     tests/real_shape.sh [CONFIG TOKENIZER [FLAGS OF train_grpo]]
set -euo pipefail
cd "$(dirname "$0")/.."
config=${1:-Qwen2.5-0.5B-Instruct} tokenizer=${2:-qwen2.5}
shift $(($# < 2 ? $# : 2))
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tests/random_model.sh "$config" "$tokenizer" "$folder/model"
build/train_grpo --model "$folder/model" --train "$R1_FIXTURES/datasets/gsm8k/train.jsonl" --steps 2 --prompts 4 --group 4 \
    --max-new-tokens 32 --token-budget 1024 --show-every 1 --out "$folder/run" "$@"
sed -n 's/.*"memory":{"planned":\([0-9]*\),"peak":\([0-9]*\)}.*/\1 \2/p' "$folder/run/log.jsonl" | tail -n 1 |
    awk '{ printf "peak / plan = %.3f\n", $2 / $1; exit !($2 / $1 > 0.95 && $2 / $1 < 1.05) }'
