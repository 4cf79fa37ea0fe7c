#!/usr/bin/env bash
# Plants faults in a copy of the kernels, one at a time, and counts how many the conformance suite catches on the CPU
# (under AddressSanitizer). A suite that lets a planted fault pass would let a real one pass too.
#     tests/mutants.sh [BUILD FOLDER]
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:-build-mutants}
rm -rf "$build/planted"
mkdir -p "$build/planted"
cp -r cuda "$build/planted/cuda"
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DR1_SANITIZE=ON -DR1_KERNEL_FOLDER="$PWD/$build/planted" >"$build/log" 2>&1 || { cat "$build/log"; exit 2; }
cmake --build "$build" --parallel "$(nproc)" --target r1_conformance >>"$build/log" 2>&1 || { cat "$build/log"; exit 2; }

# file | the line's text | what it becomes | the test cases that should notice
mutants=$(grep -v '^#' <<'LIST'
# missing barriers
common.cuh|    if (lane == 0) shared[warp] = value;\n    __syncthreads();|    if (lane == 0) shared[warp] = value;|*RMSNorm with*
common.cuh|identity, operation);\n    __syncthreads();|identity, operation);|*the head*
attention.cu|        __syncthreads();\n        const int keys|        const int keys|*attention over*
attention.cu|threadIdx.x, 128);\n        __syncthreads();\n\n        float s|threadIdx.x, 128);\n        float s|*attention over*
attention.cu|column_delta[threadIdx.x] = delta[at + head];\n            }\n            __syncthreads();|column_delta[threadIdx.x] = delta[at + head];\n            }|*attention over*
decode.cu|    __syncthreads();\n\n    const float scale|    const float scale|*decoding*
decode.cu|    __syncthreads();\n    constexpr int kRow|    constexpr int kRow|*decoding*
rope.cu|    __syncthreads();\n    T* token|    T* token|*RoPE*
head.cu|        __syncthreads();  // what|        // what|*the head*
embedding.cu|        if (lane == 0) found[warp] = __popc(votes);\n        __syncthreads();|        if (lane == 0) found[warp] = __popc(votes);|*embedding*
# indices out of range, or one off
attention.cu|key <= mine[half] ? s|key < mine[half] ? s|*attention over*
attention.cu|        if (mine[half] >= in.tokens) continue;\n        bf16* row = out|        bf16* row = out|*attention over*
attention.cu|n + column < end[half]|n + column <= end[half]|*attention over*
tensor_core.cuh|row < rows ? |row <= rows ? |*attention over*
decode.cu|first + key < keys.count|first + key <= keys.count|*decoding*
norm.cu|c < C; c += blockDim.x * W) {  // what|c <= C; c += blockDim.x * W) {  // what|*RMSNorm with*
elementwise.cu| c = blockIdx.x * 32 + lane;| c = blockIdx.x * 32 + lane + 1;|*RMSNorm with*
elementwise.cu|n * 2 * F + F + f);\n        for|n * 2 * F + f);\n        for|*SwiGLU*
embedding.cu|n < N && ids[n] == id|n <= N && ids[n] == id|*embedding*
sample.cu|__popc(tied & ((1u << lane) - 1)) < kept.ties|__popc(tied \& ((1u << lane) - 1)) <= kept.ties|*sampling*
# wrong arithmetic
attention.cu|rsqrtf(static_cast<float>(D)) * kLog2e;  // exp2|rsqrtf(static_cast<float>(D + 1)) * kLog2e;  // exp2|*attention over*
attention.cu|l[half] = l[half] * shrink + sum;|l[half] = l[half] + sum;|*attention over*
attention.cu|dp[t][i] - row_delta[half]) * scale|dp[t][i]) * scale|*attention over*
decode.cu|total += weight * row[1];|total += row[1];|*decoding*
norm.cu|scale = r * r * dot / C;|scale = r * dot / C;|*RMSNorm with*
head.cu|w = shrink * (w + s * shift);|w = shrink * w;|*the head*
elementwise.cu|s * (1 + g * (1 - s))|s * (1 + g * s)|*SwiGLU*
elementwise.cu|(1 - o.beta2) * g * g|(1 - o.beta2) * g|*AdamW*
rope.cu|inverse ? -s : s|s|*RoPE*
backend_cuda.cu|const float one = 1, beta = accumulate ? 1 : 0;|const float one = 1, beta = 0;|*linear*
LIST
)

planted=0 caught=0
while IFS='|' read -r file from to cases; do
    cp "cuda/$file" "$build/planted/cuda/$file"
    FROM=$from TO=$to perl -0pi -e 'BEGIN { ($f, $t) = @ENV{qw(FROM TO)}; s/\\n/\n/g, s/\\&/&/g for $f, $t } s/\Q$f\E/$t/' \
        "$build/planted/cuda/$file"
    what="$file: ${from:0:70} -> ${to:0:60}"
    if cmp -s "cuda/$file" "$build/planted/cuda/$file"; then
        echo "NOT FOUND  $what"
        exit 2
    fi
    ((++planted))
    if ! cmake --build "$build" --parallel "$(nproc)" --target r1_conformance >>"$build/log" 2>&1; then
        echo "NOT BUILT  $what"
        exit 2
    elif R1_BACKEND=cuda-on-cpu timeout 300 "$build/r1_conformance" -tc="$cases" >>"$build/log" 2>&1; then
        echo "MISSED     $what"
    else
        echo "caught     $what"
        ((++caught))
    fi
    cp "cuda/$file" "$build/planted/cuda/$file"
done <<<"$mutants"
echo "$caught of $planted planted faults caught"
((10 * caught >= 9 * planted))
