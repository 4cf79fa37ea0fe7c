# The recipe on a real base model, Qwen2.5-0.5B or Qwen2.5-1.5B, on one GPU.
#
#     MODEL=~/Qwen2.5-0.5B DATA=~/gsm8k make r1 SETTINGS=data/r1/qwen2.5.sh
#     MODEL=~/Qwen2.5-1.5B STUDENTS=~/Qwen2.5-0.5B TASK=countdown make r1 SETTINGS=data/r1/qwen2.5.sh
#
# MODEL    a Hugging Face folder, as downloaded
# TASK     gsm8k: DATA is a folder with train.jsonl and test.jsonl, {"question": ..., "answer": ... "#### 72"} a line;
#          countdown: made here, three numbers from 1 to 12
# STUDENTS smaller models; without one there is no distillation
# GPU      memory of the card in GB, 80 or 24
# GENERAL  examples without reasoning for train_sft, mixed in 3 : 1; without them Dev3 learns from reasoning alone
#
# Memory of a GPU that reinforcement learning on GSM8K wants by the plan, which is printed before each stage and can be made
# smaller with the flags named there (tests/test_recipe.cpp holds these lines to it):
#   0.5B on 80 GB: 35.5 GiB
#   1.5B on 80 GB: 72.5 GiB
#   0.5B on 24 GB: 19.2 GiB
#   1.5B on 24 GB: 22.0 GiB
# Time: not measured yet. PREDICTED for an H100 by tests/gpu/predict.py, for steps of 512 responses of 300 tokens to prompts
# of 100: 2.8 s for 0.5B and 6.3 s for 1.5B, and more where some responses are much longer than the others; the recipe's
# 500 steps 25 or 55 minutes, its samples and graded answers (56 million tokens) 8 or 15 minutes more.
#
# What others have published, to hold results beside (greedy decoding, 0-shot):
#   GSM8K      0.5B 36.7 -> 49.5, 1.5B 55.7 -> 74.4 by GRPO on the base model (SimpleRL-Zoo, arXiv 2503.18892)
#   countdown  0.5B guesses and stops, 1.5B learns to search and to verify (TinyZero, github.com/Jiayi-Pan/TinyZero)
: "${MODEL:?the folder of Qwen2.5-0.5B or Qwen2.5-1.5B}"
TASK=${TASK:-gsm8k} GPU=${GPU:-80} OUT=${OUT:-runs/r1-$(basename "$MODEL")-$TASK} STUDENTS=${STUDENTS-} GENERAL=${GENERAL-}
DATA=${DATA:-$OUT/data}
DEVICE=${DEVICE:-cuda} # `auto` would train on the CPU, far too slowly, where the driver does not work
TRAIN=$DATA/train.jsonl TRAIN_ALL=$DATA/train.jsonl TEST=$DATA/test.jsonl
[ "$TASK" != countdown ] || TRAIN=$DATA/countdown_train.jsonl TRAIN_ALL=$TRAIN TEST=$DATA/countdown_test.jsonl

# float32 states, activations that are kept and not computed twice, and 512 responses in flight, as far as there is room.
case $(basename "$MODEL")-$GPU in
*0.5B*-80) memory="--state-dtype float32 --token-budget 16384" slots=512 ;;
*-80) memory="--state-dtype bfloat16 --token-budget 16384" slots=512 ;;
*0.5B*-24) memory="--state-dtype bfloat16 --token-budget 8192" slots=256 ;;
*-24) memory="--state-dtype bfloat16 --token-budget 4096 --recompute" slots=64 ;;
*) echo "r1.sh: GPU is $GPU; there are settings for 80 and for 24" >&2; exit 2 ;;
esac
# DeepSeek-R1's KL weight and temperature; learning rate and group as SimpleRL-Zoo's, fewer questions a step. With one update a
# rollout nothing is clipped.
GRPO=${GRPO:-"--lr 1e-6 --beta 0.001 --reference-refresh 400 --group 8 --prompts 64
    --max-new-tokens 1024 --slots $slots --eval-every 50 $memory"}
# DeepSeek-R1 trains two to three epochs on its samples, cosine schedule.
SFT=${SFT:-"--lr 1e-5 --warmup 20 --batch-tokens 65536 $memory"}
SAMPLE=${SAMPLE:-"--samples 4 --per-prompt 2 --temperature 1 --top-p 1 --max-new-tokens 1024"}
KEEP=${KEEP:-"correct,readable,length<1000"}
EVAL=${EVAL:-"--samples 16 --max-new-tokens 1024"}
LANGUAGE=${LANGUAGE:-0.2}
ZERO_STEPS=${ZERO_STEPS:-200} COLD_STEPS=${COLD_STEPS:-100} DEV2_STEPS=${DEV2_STEPS:-200} DEV3_STEPS=${DEV3_STEPS:-150}
R1_STEPS=${R1_STEPS:-100} CONTROL_STEPS=${CONTROL_STEPS:-0} DISTILL=${DISTILL:-"--steps 150"} STUDENT_STEPS=${STUDENT_STEPS:-200}

prepare() {
    [ "$TASK" != countdown ] || stage data "$TEST" "$BIN/make_world" --countdown "$DATA" --in-words
    for file in "$TRAIN" "$TEST"; do
        [ -e "$file" ] || { echo "r1.sh: there is no $file; DATA wants a folder with train.jsonl and test.jsonl" >&2; exit 2; }
    done
}
