#!/usr/bin/env bash
# A table from `cuobjdump --dump-resource-usage` on stdin: registers, stack (where spilled registers go) and kernel.
awk '/^ Function|Function / { name = $2; sub(/:$/, "", name) }
     /REG:/ { match($0, /REG:[0-9]+/); registers = substr($0, RSTART + 4, RLENGTH - 4)
              match($0, /STACK:[0-9]+/); stack = substr($0, RSTART + 6, RLENGTH - 6)
              print registers, stack, name }' |
    { command -v c++filt >/dev/null && c++filt || cat; } |
    sed 's/r1::cuda::(anonymous namespace):://; s/(.*$//' | sort -u | sort -k1,1nr -k3 |
    awk 'BEGIN { print "registers  stack bytes  kernel" }
         { printf "%9d  %11d  ", $1, $2; $1 = $2 = ""; print; if ($2 > 0) spilled++ }'
