#!/usr/bin/env bash
# Writes one HTML page about runs. It is report.html, which draws, followed by the runs' files, from
# which it draws: no program, network or library is needed to look at it.
#
#     data/r1/report.sh [--out PAGE] RUN...
#
# A RUN is a run folder of train_grpo or train_sft, or one of the whole recipe; several of the recipe
# are taken as its seeds.
set -euo pipefail
export LC_ALL=C # a log may have been cut off in the middle of a character
out=report.html
[ "${1:-}" != --out ] || { out=${2:?--out wants the name of the page}; shift 2; }
[ $# -gt 0 ] || { echo "usage: report.sh [--out PAGE] RUN..." >&2; exit 2; }

escaped() { sed 's/&/\&amp;/g; s/</\&lt;/g; s/"/\&quot;/g'; }

# Evaluations hold a line for each response, tens of megabytes in all. The page needs only the sums
# over the responses to each problem, and the first of these responses as an example.
by_problem() {
    awk '!/}$/ { next }                    # cut off
        !/"problem":[0-9]/ { print; next } # the summary
        {
            match($0, /"problem":[0-9]+/)
            p = substr($0, RSTART + 10, RLENGTH - 10)
            if (!n[p]++) { print; order[++problems] = p }
            if (match($0, /"kind":"([^"\\]|\\.)*"/)) kind[p] = "," substr($0, RSTART, RLENGTH)
            gsub(/"(prompt|response|reason)":"([^"\\]|\\.)*"/, "")
            fields = split($0, field, /[{},]/)
            for (i = 1; i <= fields; ++i)
                if (field[i] ~ /^"[a-z_]+":-?[0-9][-+.e0-9]*$/ && split(field[i], pair, ":")) {
                    sum[p, pair[1]] += pair[2]
                    if (pair[1] != "\"problem\"") names[pair[1]]
                }
        }
        END {
            for (i = 1; i <= problems; ++i) {
                p = order[i]
                printf "{\"sums_of\":%s,\"n\":%d%s", p, n[p], kind[p]
                for (name in names) if ((p, name) in sum) printf ",%s:%.17g", name, sum[p, name]
                print "}"
            }
        }'
}
as_json_strings() { sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/\\t/g; s/.*/"&"/'; }

# embed RUN FILE FILTER: text of a model may say </script>, but without its "<" that ends nothing.
embed() {
    [ -s "$1/$2" ] || return 0
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
            found=1
            case $file in
            "$run"/eval/*) embed "$run" "${file#"$run"/}" by_problem ;;
            *) embed "$run" "${file#"$run"/}" cat ;;
            esac
        done
        [ "$found" ] || {
            echo "$run: holds neither log.jsonl nor eval/*.jsonl; name the folder of a run" >&2
            exit 2
        }
        embed "$run" stages.tsv as_json_strings
    done
    echo '<noscript><h2>Without JavaScript</h2><p>What was last measured on held-out problems:</p><ul>'
    for run; do
        for file in "$run"/{,*/}log.jsonl; do
            [ ! -s "$file" ] || printf '%s: %s\n' "$file" \
                "$(sed -n 's/.*"eval":{\([^}]*\)}.*/\1/p' "$file" | tail -n 1)"
        done
    done | tr -d '"' | escaped | sed 's/^/<li>/; s/,/, /g'
    echo '</ul></noscript>'
}

mkdir -p "$(dirname "$out")"
trap 'rm -f "$out.partial"' EXIT
write "${@%/}" >"$out.partial"
mv "$out.partial" "$out" # whole or not at all, since someone may be looking at it
echo "$out"
