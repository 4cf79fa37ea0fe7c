#!/usr/bin/env bash
# Fuzzes one target for some seconds, from the corpus in the repository; what it finds stays in build-fuzz/.
set -uo pipefail
target=$1 seconds=$2
cd "$(dirname "$0")/../.."
found=build-fuzz/found/$target
mkdir -p "$found"
export R1_FUZZ_TARGET=$target
if build-fuzz/r1_fuzz -max_total_time="$seconds" -timeout=10 -rss_limit_mb=3000 -max_len=8192 -print_final_stats=1 \
    -artifact_prefix="build-fuzz/$target-" "$found" "tests/fuzz/corpus/$target" 2>"build-fuzz/$target.log" >/dev/null; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "build-fuzz/$target.log")
    echo "$target: $seconds s, $runs inputs, no crash, no hang"
else
    echo "$target: FAILED, see build-fuzz/$target.log; the input is in build-fuzz/$target-*"
    exit 1
fi
