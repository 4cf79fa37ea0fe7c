# The recipe on the tiny base model of data/world/base, in its world of four kinds of questions and two languages
# (data/world/world.h): two CPU cores are enough.
OUT=${OUT:-runs/r1} MODEL=${MODEL:-data/world/base} DATA=${DATA:-$OUT/data}
STUDENTS=${STUDENTS-$OUT/student-102k $OUT/student-33k}
TRAIN=$DATA/train.jsonl TRAIN_ALL=$DATA/train_all.jsonl TEST=$DATA/test.jsonl GENERAL=$DATA/general.jsonl

GRPO=${GRPO:-"--lr 2e-4 --warmup 20 --group 8 --prompts 32 --schedule cosine
    --beta 0.001 --reference-refresh 400 --eval-every 50 --show-every 50"}
SFT=${SFT:-"--lr 1e-3 --warmup 20 --batch-tokens 8192"}
SAMPLE=${SAMPLE:-"--samples 4 --per-prompt 2 --temperature 1 --top-p 1"}
KEEP=${KEEP:-"correct,readable,language>=1,length<200"}
EVAL=${EVAL:-"--samples 16"}
LANGUAGE=${LANGUAGE:-0.5}
ZERO_STEPS=${ZERO_STEPS:-300} COLD_STEPS=${COLD_STEPS:-120} DEV2_STEPS=${DEV2_STEPS:-100} DEV3_STEPS=${DEV3_STEPS:-160}
R1_STEPS=${R1_STEPS:-200} CONTROL_STEPS=${CONTROL_STEPS:-100}
# A student's two ways: the second has no less compute than the first.
DISTILL=${DISTILL:-"--steps 600 --lr 3e-3"} STUDENT_STEPS=${STUDENT_STEPS:-800}

# The world's files, and the students: half and a sixth of the base's size, pretrained for a quarter of the time.
prepare() {
    stage data "$DATA/general.jsonl" "$BIN/make_world" --problems "$DATA" --general "$DATA/general.jsonl" --samples 10000
    local student name
    for student in $STUDENTS; do
        name=$(basename "$student")
        [ "$student" = "$OUT/$name" ] || continue # one that is there already
        stage corpus "$OUT/corpus.jsonl" "$BIN/make_world" --corpus "$OUT/corpus.jsonl" --documents 240000 --seed 2
        sft "$name" "data/world/$name/config.json" "$OUT/corpus.jsonl" --tokenizer "$MODEL" --no-shuffle --steps 1200 \
            --lr 3e-3 --warmup 100 --weight-decay 0.01
    done
}
