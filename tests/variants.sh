#!/usr/bin/env bash
# Every preset on the tiny base model, several seeds each: what is learnt in so many steps, mean and spread. Finished runs
# in runs/variants are kept, so that it goes on where it was stopped.
#     tests/variants.sh        STEPS=150 SEEDS="1 2 3" PRESETS="r1-zero grpo dapo dr-grpo gspo" BUILD=build
set -uo pipefail
cd "$(dirname "$0")/.."
export STEPS=${STEPS:-150} BUILD=${BUILD:-build}
seeds=${SEEDS:-1 2 3} presets=${PRESETS:-r1-zero grpo dapo dr-grpo gspo} folder=runs/variants
mkdir -p $folder

run() {
    out=runs/variants/$1-$2-$STEPS
    grep -q "\"eval\":{\"step\":$STEPS" "$out/log.jsonl" 2>/dev/null && exit 0
    "$BUILD/train_grpo" --preset "$1" --seed "$2" --steps "$STEPS" --lr 2e-4 --warmup 20 --threads 1 --device cpu \
        --model data/world/base --train data/world/countdown_train.jsonl --eval data/world/countdown_test.jsonl --eval-samples 4 \
        --out "$out" --overwrite --save-every 1000000 >"$out.txt" 2>&1 || { echo "$1, seed $2: $(tail -n 1 "$out.txt")" >&2; exit 1; }
    echo "$1, seed $2: $(grep '^held out: ' "$out.txt")" >&2
}
export -f run
for preset in $presets; do for seed in $seeds; do echo "$preset $seed"; done; done |
    xargs -P "$(nproc)" -L 1 bash -c 'run "$0" "$1"'

# evaluated NAME LOG: a measure of the last evaluation
evaluated() { sed -n "s/.*\"eval\":{\"step\":$STEPS,.*\"$1\":\([^,}]*\).*/\1/p" "$2" | tail -n 1; }

echo "$STEPS steps of 32 questions; held out: 428 problems, 4 samples each; mean (smallest to largest) over seeds $seeds"
printf '| %-8s | %-24s | %-24s | %-22s | %s |\n' preset accuracy well-formed 'length' 'largest sampling/training gap'
printf '|---|---|---|---|---|\n'
for preset in $presets; do
    for seed in $seeds; do
        log=$folder/$preset-$seed-$STEPS/log.jsonl
        gap=$(sed -n 's/.*"logp_gap_max":\([^,]*\),.*/\1/p' "$log" | sort -g | tail -n 1)
        printf '%s %s %s %s\n' "$(evaluated accuracy "$log")" "$(evaluated format "$log")" \
            "$(evaluated length "$log")" "$gap"
    done | awk -v preset="$preset" '
        { for (i = 1; i <= 4; i++) { sum[i] += $i; if (NR == 1 || $i < low[i]) low[i] = $i; if (NR == 1 || $i > high[i]) high[i] = $i } }
        END { if (!NR) exit
              printf "| %-8s | %.1f%% (%.1f to %.1f) | %.1f%% (%.1f to %.1f) | %.1f (%.1f to %.1f) | %g |\n", preset,
                  100 * sum[1] / NR, 100 * low[1], 100 * high[1], 100 * sum[2] / NR, 100 * low[2], 100 * high[2],
                  sum[3] / NR, low[3], high[3], high[4] }'
done
