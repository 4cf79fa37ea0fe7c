#!/usr/bin/env bash
# Writes one HTML page about runs: report.html, which draws, and behind it the runs' files.
#     data/r1/report.sh [--out PAGE] RUN...
#
# A RUN is a folder of train_grpo or train_sft, or of the whole recipe; several of these are seeds.
set -euo pipefail
export LC_ALL=C # a log may have been cut off in the middle of a character
out=report.html
fail() { echo "$*" >&2; exit 2; }
[ "${1:-}" != --out ] || { [ $# -gt 1 ] && out=$2 && shift 2; }
[ $# -gt 0 ] || fail "usage: report.sh [--out PAGE] RUN..."

escaped() { sed 's/&/\&amp;/g; s/</\&lt;/g; s/"/\&quot;/g'; }

# An evaluation has a line for each response, tens of megabytes in all. The page needs only the sums
# over the responses to each problem, and the first of these responses as an example.
by_problem() {
    awk '!/"problem":[0-9].*}$/ { print; next } # the summary
        {
            match($0, /"problem":[0-9]+/)
            p = substr($0, RSTART + 10, RLENGTH - 10)
            if (!n[p]++) print
            gsub(/"(prompt|response|reason|kind)":"([^"\\]|\\.)*"/, "")
            for (i = split($0, field, /[{},]/); i > 0; --i)
                if (split(field[i], pair, ":") == 2 && pair[2] ~ /^[-0-9]/) {
                    names[pair[1]]
                    sum[p, pair[1]] += pair[2]
                }
        }
        END {
            for (p in n) {
                printf "{\"sums_of\":%s,\"n\":%d", p, n[p]
                for (name in names) printf ",%s:%.17g", name, sum[p, name]
                print "}"
            }
        }'
}
table_as_json() { sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/","/g; s/.*/["&"]/'; }

# embed RUN FILE FILTER: a model may have written </script>, which ends nothing without its "<".
embed() {
    printf '<script type="application/json" data-run="%s" data-file="%s">\n' \
        "$(escaped <<<"$1")" "$(escaped <<<"$2")"
    $3 <"$1/$2" | sed 's/</\\u003c/g'
    printf '\n</script>\n'
}

write() {
    cat "$(dirname "$0")/report.html"
    for run; do
        found=
        for file in "$run"/{,*/,students/*/}{log,samples}.jsonl "$run"/eval/*.jsonl; do
            [ -s "$file" ] || continue
            name=${file#"$run"/} filter=cat
            [[ $name == *samples.jsonl ]] || found=1
            [[ $name != eval/* ]] || filter=by_problem
            embed "$run" "$name" $filter
        done
        [ "$found" ] || fail "$run: holds neither log.jsonl nor eval/*.jsonl; name a run folder"
        [ ! -f "$run/stages.tsv" ] || embed "$run" stages.tsv table_as_json
    done
    echo '<noscript><p>Without JavaScript there are only the held-out evaluations:</p><pre>'
    { grep -rsHo --include=log.jsonl '"eval":{[^}]*}' "$@" || true; } | tr -d '"{}' | escaped
    echo '</pre></noscript>'
}

trap 'rm -f "$out.partial"' EXIT
write "${@%/}" >"$out.partial"
mv "$out.partial" "$out" # whole or not at all, since someone may be looking at it
echo "$out"
