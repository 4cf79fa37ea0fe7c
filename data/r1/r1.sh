#!/usr/bin/env bash
# The recipe of DeepSeek-R1 (arXiv 2501.12948 v2, figure 2), stage by stage, each one command:
#
#   base    --GRPO--> zero                             zero --sample, keep the right and readable--> cold.jsonl
#                                                      (or worked examples that the settings name, and no zero)
#   zero    --GRPO, language rewarded too--> zero-language   (a control: the reward without a cold start)
#   base    --SFT, cold.jsonl--> dev1
#   dev1    --GRPO, language rewarded too--> dev2      dev2 --the same, and general answers 3 : 1--> mixed.jsonl
#   base    --SFT, mixed.jsonl--> dev3
#   dev3    --GRPO, questions of every kind--> r1      r1   --the same--> teacher.jsonl
#   student --SFT, teacher.jsonl--> student-distilled  student --GRPO as for r1--> student-rl   (each of the students)
#
# Then every model answers the held-out questions, and a report is written. What is finished is skipped, what was stopped
# goes on, so that the script can be interrupted and started again at any time.
#
#     data/r1/r1.sh [SETTINGS]     data/r1/tiny.sh, or another file beside it; variables of the environment win
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d build ] && BIN=${BIN:-build} || BIN=${BIN:-.} # a bundle has its programs beside data/

# stage NAME OUTPUT COMMAND...: runs the command, unless its output is there. What it prints is also in NAME.txt, and how
# long it took is a line of stages.tsv: one for each time that it was started.
child='' stopped=''
trap 'stopped=130' INT # the terminal has told the child, too
trap 'stopped=143; kill -TERM $child || true' TERM
stage() {
    local name=$1 output=$2 start=$SECONDS status=0
    shift 2
    [ ! -e "$output" ] || return 0
    [ -z "$stopped" ] || exit $stopped
    echo "== $name: $*"
    "$@" > >(exec tee -ia "$OUT/$name.txt") 2>&1 &
    child=$!
    wait $child || status=$?
    [ -z "$stopped" ] || wait $child || true # a signal ends the first wait, not the child
    printf '%s\t%d\t%d\t%s\n' "$name" $((SECONDS - start)) $status "$*" >>"$OUT/stages.tsv"
    [ $status = 0 ] || { echo "r1.sh: stopped in stage $name (status $status); start it again to go on" >&2; exit $status; }
}

grpo() { # NAME MODEL PROBLEMS REWARD FLAGS...: reinforcement learning of one model into another
    local name=$1 model=$2 problems=$3 reward=$4
    shift 4
    stage "$name" "$OUT/$name/model.safetensors" "$BIN/train_grpo" --model "$model" --train "$problems" --eval "$TEST" \
        --reward "$reward" --out "$OUT/$name" --resume $common $GRPO "$@"
}
sft() { # NAME MODEL EXAMPLES FLAGS...: supervised fine-tuning
    local name=$1 model=$2 examples=$3
    shift 3
    stage "$name" "$OUT/$name/model.safetensors" "$BIN/train_sft" --model "$model" --data "$examples" --out "$OUT/$name" \
        --resume $common $SFT "$@"
}
sample() { # NAME MODEL PROBLEMS FLAGS...: rejection sampling
    local name=$1 model=$2 problems=$3
    shift 3
    stage "$name" "$OUT/$name.jsonl" "$BIN/infer" --model "$model" --sample "$problems" --out "$OUT/$name.jsonl" \
        --keep "$KEEP" --resume $common $SAMPLE "$@"
}
grade() { # NAME MODEL: answers to the held-out questions
    stage "eval-$1" "$OUT/eval/$1.jsonl" "$BIN/infer" --model "$2" --eval "$TEST" --out "$OUT/eval/$1.jsonl" $common $EVAL
}
mix() { # REASONING GENERAL OUT: three reasoning samples to a general one, as in section 2.3.3: 600k and 200k
    { cat "$1" && head -n $(($(wc -l <"$1") / 3)) "${2:-/dev/null}"; } >"$3.partial" && mv "$3.partial" "$3"
}

main() {
    . "${1:-data/r1/tiny.sh}" # sets the variables, and defines prepare()
    common="--seed ${SEED:-1} --threads ${THREADS:-0} --device ${DEVICE:-auto}"
    mkdir -p "$OUT"
    prepare

    local models="dev1 dev2 dev3 r1" name
    if [ -n "${WORKED-}" ]; then # the base finds no answer that a rule could reinforce
        stage cold "$OUT/cold.jsonl" cp "$WORKED" "$OUT/cold.jsonl"
    else
        models="zero $models"
        grpo zero "$MODEL" "$TRAIN" accuracy=1,format=0.2,language=0 --steps $ZERO_STEPS
        if [ "$CONTROL_STEPS" -gt 0 ]; then # what does the language reward do without a cold start?
            grpo zero-language "$OUT/zero" "$TRAIN" accuracy=1,format=0.2,language=$LANGUAGE --steps $CONTROL_STEPS
            grade zero-language "$OUT/zero-language"
        fi
        sample cold "$OUT/zero" "$TRAIN"
    fi
    sft dev1 "$MODEL" "$OUT/cold.jsonl" --steps $COLD_STEPS
    grpo dev2 "$OUT/dev1" "$TRAIN" accuracy=1,format=0.2,language=$LANGUAGE --steps $DEV2_STEPS
    sample reasoning "$OUT/dev2" "$TRAIN"
    stage mixed "$OUT/mixed.jsonl" mix "$OUT/reasoning.jsonl" "$GENERAL" "$OUT/mixed.jsonl"
    sft dev3 "$MODEL" "$OUT/mixed.jsonl" --steps $DEV3_STEPS
    grpo r1 "$OUT/dev3" "$TRAIN_ALL" accuracy=1,format=0.2,language=$LANGUAGE --steps $R1_STEPS

    [ -z "$STUDENTS" ] || sample teacher "$OUT/r1" "$TRAIN_ALL"
    for student in $STUDENTS; do
        name=$(basename "$student")
        sft "$name-distilled" "$student" "$OUT/teacher.jsonl" $DISTILL
        grpo "$name-rl" "$student" "$TRAIN_ALL" accuracy=1,format=0.2,language=$LANGUAGE --steps $STUDENT_STEPS
        grade "$name" "$student"
        grade "$name-distilled" "$OUT/$name-distilled"
        grade "$name-rl" "$OUT/$name-rl"
    done
    grade base "$MODEL"
    for name in $models; do grade $name "$OUT/$name"; done
    rm -f "$OUT/report.html"
    stage report "$OUT/report.html" data/r1/report.sh --out "$OUT/report.html" "$OUT"
}

main "$@"
