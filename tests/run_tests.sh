#!/usr/bin/env bash
# Runs each test binary given and adds up doctest's summaries. A case that calls skip() (see
# tests/support.h) has passed for doctest, but is counted as skipped here. The last lines say what was
# skipped and why, then "N passed, N failed, N skipped"; the exit status is 0 only if every run succeeded
# and at least one test case passed.
set -uo pipefail
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}  # so that an impossible request is refused

passed=0 failed=0 skipped=0 reasons=
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$folder"' EXIT
pattern='s/^\[doctest\] test cases: *[0-9]* | *\([0-9]*\) passed | *\([0-9]*\) failed | *\([0-9]*\) skipped.*/\1 \2 \3/p'

for binary in "$@"; do # all at once: each has one thread most of the time
    "$binary" </dev/null >"$folder/${binary//\//_}" 2>&1 &
done
running=($(jobs -p))
for binary in "$@"; do
    echo "== $binary"
    output=$folder/${binary//\//_}
    tail -n +1 -f --pid "${running[0]}" "$output"
    wait "${running[0]}"
    status=$?
    running=("${running[@]:1}")
    read -r p f s < <(sed -n "$pattern" "$output" | tail -n 1; echo) # the echo: empty where it crashed
    p=${p:-0} f=${f:-0} s=${s:-0}
    if ((f == 0 && (status != 0 || p == 0))); then
        echo "$binary: exit status $status with $p test cases passed: the run counts as one failure"
        f=1
    fi
    lines=$(sed -n 's/^\[skipped\] /skipped: /p' "$output" | sort -u) # once, however often a case said it
    n=$(grep -c . <<<"$lines")
    ((p -= n < p ? n : p, s += n))
    reasons+=${lines:+$lines$'\n'}
    ((passed += p, failed += f, skipped += s))
done

sort -u <<<"$reasons" | sed '/^$/d'
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0 && passed > 0))
