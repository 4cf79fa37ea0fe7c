#!/usr/bin/env bash
# Every stage of the recipe for Qwen2.5, two steps each, on random weights of the exact shape: a 0.5B model (or 1.5B) with a
# 0.5B student, on GSM8K (or countdown). The flags are those of data/r1/qwen2.5.sh, with smaller numbers behind them.
# Nothing random weights say is right, so every sample is kept. Wants $R1_FIXTURES, 24 GB of memory for 0.5B (1.5B wants
# --beta 0 there: EXTRA), and 20 GB of disk.
#     tests/real_recipe.sh [0.5B|1.5B [gsm8k|countdown]]
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-0.5B} TASK=${2:-gsm8k} folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
DEVICE=${DEVICE:-auto}
MODEL=$folder/Qwen2.5-$size STUDENTS=$folder/student-0.5B DATA=$folder/data OUT=$folder/run
tests/random_model.sh Qwen2.5-$size-Instruct qwen2.5 "$MODEL"
tests/random_model.sh Qwen2.5-0.5B-Instruct qwen2.5 "$STUDENTS"
. data/r1/qwen2.5.sh

mkdir -p "$DATA"
if [ "$TASK" = gsm8k ]; then
    for part in train test; do head -n 4 "$R1_FIXTURES/datasets/gsm8k/$part.jsonl" >"$DATA/$part.jsonl"; done
else
    build/make_world --countdown "$DATA" --in-words >/dev/null
    for part in train test; do sed -i '5,$d' "$DATA/countdown_$part.jsonl"; done
fi
KEEP="length<1000" GRPO="$GRPO --prompts 2 --group 2 --max-new-tokens 16 --token-budget 1024 ${EXTRA:-}"
SFT="$SFT --batch-tokens 256 --token-budget 1024"
SAMPLE="$SAMPLE --max-new-tokens 16" EVAL="$EVAL --samples 2 --max-new-tokens 16" DISTILL="--steps 2"
ZERO_STEPS=2 COLD_STEPS=2 DEV2_STEPS=2 DEV3_STEPS=2 R1_STEPS=2 STUDENT_STEPS=2
export DEVICE MODEL STUDENTS DATA OUT TASK KEEP GRPO SFT SAMPLE EVAL DISTILL ZERO_STEPS COLD_STEPS DEV2_STEPS DEV3_STEPS \
    R1_STEPS STUDENT_STEPS
data/r1/r1.sh data/r1/qwen2.5.sh
cut -f 1-3 "$OUT/stages.tsv"
