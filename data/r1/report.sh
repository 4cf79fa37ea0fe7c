#!/usr/bin/env bash
# Writes one HTML page about runs: report.html, which draws, followed by the runs' files, from which it
# draws.
#
#     data/r1/report.sh [--out PAGE] RUN...
#
# A RUN is a folder of train_grpo or train_sft, or of the whole recipe; several of the latter are seeds.
set -euo pipefail
export LC_ALL=C # a log may have been cut off in the middle of a character
out=report.html
[ "${1:-}" != --out ] || { out=${2:?--out wants the name of the page}; shift 2; }
[ $# -gt 0 ] || { echo "usage: report.sh [--out PAGE] RUN..." >&2; exit 2; }

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
as_json_strings() { sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/\\t/g; s/.*/"&"/'; }

# embed RUN FILE FILTER: a model may have written </script>, which ends nothing without its "<".
embed() {
    printf '<script type="application/json" data-run="%s" data-file="%s">\n' \
        "$(escaped <<<"$1")" "$(escaped <<<"$2")"
    $3 <"$1/$2" | sed 's/</\\u003c/g'
    printf '\n</script>\n'
}

write() {
    cat "$(dirname "$0")/report.html"
    local run file
    for run; do
        found=
        for file in "$run"/{,*/,students/*/}{log,samples}.jsonl "$run"/eval/*.jsonl; do
            [ -s "$file" ] || continue
            found=${file#"$run"/}
            [[ $found == eval/* ]] && embed "$run" "$found" by_problem || embed "$run" "$found" cat
        done
        [ "$found" ] || {
            echo "$run: holds neither log.jsonl nor eval/*.jsonl; name the folder of a run" >&2
            exit 2
        }
        [ ! -f "$run/stages.tsv" ] || embed "$run" stages.tsv as_json_strings
    done
    echo '<noscript><p>Without JavaScript there are only the held-out evaluations:</p><pre>'
    for run; do grep -sHo '"eval":{[^}]*}' "$run"/{,*/}log.jsonl || true; done | tr -d '"{}' | escaped
    echo '</pre></noscript>'
}

mkdir -p "$(dirname "$out")"
trap 'rm -f "$out.partial"' EXIT
write "${@%/}" >"$out.partial"
mv "$out.partial" "$out" # whole or not at all, since someone may be looking at it
echo "$out"
