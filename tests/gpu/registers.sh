#!/usr/bin/env bash
# A table from what `ptxas -v` wrote about each kernel: registers, bytes spilled to memory, and for which chip.
#     tests/gpu/registers.sh LOG...
awk '/Compiling entry function/ { split($0, part, "\047"); name = part[2]; chip = part[4] }
     /bytes stack frame/ { spilled = $5 + $9 }
     /Used [0-9]+ registers/ { for (i = 1; i < NF; i++) if ($i == "Used") print $(i + 1), spilled, chip, name }' "$@" |
    { command -v c++filt >/dev/null && c++filt || cat; } |
    sed -E 's/(void )?r1::cuda::\(anonymous namespace\):://g; s/__nv_bfloat16/bf16/g; s/\(.*$//' | sort -k1,1nr -k4 |
    awk 'BEGIN { printf "%9s %13s %-6s %s\n", "registers", "spilled bytes", "chip", "kernel" }
         { r = $1; s = $2; c = $3; $1 = $2 = $3 = ""; sub(/^ +/, ""); printf "%9d %13d %-6s %s\n", r, s, c, $0
           n++; if (s > 0) with++ }
         END { printf "%d kernels, %d of them spill registers\n", n, with }'
