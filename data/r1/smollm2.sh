# The recipe on SmolLM2-135M-Instruct (huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), on two CPU cores.
#
#     MODEL=~/SmolLM2-135M-Instruct make r1 SETTINGS=data/r1/smollm2.sh
#
# As it comes, the model states no answer where a rule could find it, so there is nothing for R1-Zero to reinforce: the
# cold start learns from 240 worked problems instead. These, and the problems of the other stages, are made here.
: "${MODEL:?the folder of SmolLM2-135M-Instruct}"
OUT=${OUT:-runs/r1-smollm2} STUDENTS='' GENERAL='' CONTROL_STEPS=0
DATA=${DATA:-$OUT/data}
TRAIN=$DATA/train.jsonl TRAIN_ALL=$TRAIN TEST=$DATA/test.jsonl WORKED=$DATA/worked.jsonl

memory="--dtype bfloat16 --token-budget 4096"
GRPO=${GRPO:-"--lr 2e-5 --warmup 5 --schedule cosine --group 8 --prompts 8 --max-new-tokens 128
    --eval-every 20 --eval-limit 50 --show-every 10 $memory"}
SFT=${SFT:-"--lr 1e-4 --warmup 4 --batch-tokens 2048 $memory"}
SAMPLE=${SAMPLE:-"--samples 4 --per-prompt 1 --temperature 1 --top-p 1 --max-new-tokens 128
    --dtype bfloat16"}
KEEP=${KEEP:-"correct,readable"}
EVAL=${EVAL:-"--samples 16 --max-new-tokens 128 --dtype bfloat16"}
LANGUAGE=${LANGUAGE:-0.2}
COLD_STEPS=${COLD_STEPS:-24} DEV2_STEPS=${DEV2_STEPS:-60} DEV3_STEPS=${DEV3_STEPS:-60} R1_STEPS=${R1_STEPS:-60}

prepare() {
    stage data "$WORKED" python3 data/r1/make_stories.py "$DATA"
}
