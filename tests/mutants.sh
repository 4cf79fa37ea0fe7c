#!/usr/bin/env bash
# Plants faults in a copy of the device layer, one at a time, and counts how many the conformance
# suite and the tests of its oracle catch (under AddressSanitizer). A suite that lets a planted fault
# pass would let a real one pass too. It takes about an hour; a second argument plants only the
# faults whose line matches it.
#     tests/mutants.sh [BUILD FOLDER [PATTERN]]
set -uo pipefail
cd "$(dirname "$0")/.."
build=$(realpath -m "${1:-build-mutants}")
copy=$build/copy
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z | grep -zv '^data/r1' | xargs -0 cp --parents -t "$copy" 2>/dev/null
make_all() {
    cmake --build "$build" --parallel "$(nproc)" --target r1_conformance r1_cuda-on-cpu r1_skeleton >>"$build/log" 2>&1
}
cmake -S "$copy" -B "$build" -DCMAKE_BUILD_TYPE=Release -DR1_SANITIZE=ON >"$build/log" 2>&1 && make_all ||
    { cat "$build/log"; exit 2; }

# device | file | the line's text | what it becomes | the test cases that should notice
mutants=$(grep -v '^#' <<'LIST' | grep -e "${2:-.}"
# CUDA kernels: missing barriers
cuda-on-cpu|cuda/common.cuh|    if (lane == 0) shared[warp] = value;\n    __syncthreads();|    if (lane == 0) shared[warp] = value;|*RMSNorm with*
cuda-on-cpu|cuda/common.cuh|identity, operation);\n    __syncthreads();|identity, operation);|*the head*
cuda-on-cpu|cuda/attention.cu|        __syncthreads();  // K is there, and nobody needs the last V\n||*attention over*
cuda-on-cpu|cuda/attention.cu|        __syncthreads();  // nobody needs this dO\n||*attention over*
cuda-on-cpu|cuda/attention.cu|end <= mine[half] + 1)|end <= mine[half] + 2)|*edges of tiles*
cuda-on-cpu|cuda/attention.cu|n + kRows <= min(end[0], end[1])|n + kRows <= min(end[0], end[1]) + 1|*edges of tiles*
cuda-on-cpu|cuda/attention.cu|        wait_for_copies();\n        __syncthreads();  // V is there|        __syncthreads();  // V is there|*attention over*
cuda-on-cpu|cuda/decode.cu|    __syncthreads();\n\n    const float scale|    const float scale|*decoding*
cuda-on-cpu|cuda/decode.cu|    __syncthreads();\n    constexpr int kRow|    constexpr int kRow|*decoding*
cuda-on-cpu|cuda/rope.cu|    __syncthreads();\n    T* token|    T* token|*RoPE*
cuda-on-cpu|cuda/head.cu|        __syncthreads();  // what|        // what|*the head*
cuda-on-cpu|cuda/embedding.cu|        if (lane == 0) found[warp] = __popc(votes);\n        __syncthreads();|        if (lane == 0) found[warp] = __popc(votes);|*rows*
# CUDA kernels: indices out of range, or one off
cuda-on-cpu|cuda/attention.cu|range.begin && j <= n)|range.begin && j < n)|*attention over*
cuda-on-cpu|cuda/attention.cu|j < range.prompt_end);|j <= range.prompt_end);|*attention over*
cuda-on-cpu|cuda/attention.cu|if (column >= keys |if (column > keys |*attention over*
cuda-on-cpu|cuda/attention.cu|last = max(last, in.ranges[n].end)|last = in.ranges[n].end|*attention over*
cuda-on-cpu|cuda/attention.cu|        if (mine[half] >= in.tokens) continue;\n        bf16* row =\n            out|        bf16* row =\n            out|*attention over*
cuda-on-cpu|cuda/attention.cu|query >= end[half])|query > end[half])|*attention over*
cuda-on-cpu|cuda/tensor_core.cuh|row < rows);|row <= rows);|*attention over*
cuda-on-cpu|cuda/decode.cu|        wait_for_copies_but<1>();\n        __syncwarp();  // K|        __syncwarp();  // K|*decoding*
cuda-on-cpu|cuda/decode.cu|first + key < keys.count|first + key <= keys.count|*decoding*
cuda-on-cpu|cuda/norm.cu|float r = 1 / sqrtf(squares / C + eps)|float r = 1 / sqrtf(squares / C)|*RMSNorm with*
cuda-on-cpu|cuda/elementwise.cu| c = blockIdx.x * 32 + lane;| c = blockIdx.x * 32 + lane + 1;|*RMSNorm with*
cuda-on-cpu|cuda/elementwise.cu|n * 2 * F + F + f);\n        for|n * 2 * F + f);\n        for|*SwiGLU*
cuda-on-cpu|cuda/embedding.cu|m < M && index[m] == row|m <= M && index[m] == row|*rows*
cuda-on-cpu|cuda/sample.cu|(1u << lane) - 1)) < kept.ties|(1u << lane) - 1)) <= kept.ties|*sampling*
cuda-on-cpu|cuda/common.cuh|pointers) % 32 == 0|pointers) % 2 == 0|*RMSNorm*
# CUDA kernels: wrong arithmetic
cuda-on-cpu|cuda/attention.cu|kLog2e / sqrtf(static_cast<float>(D))|kLog2e / sqrtf(static_cast<float>(D + 1))|*attention over*
cuda-on-cpu|cuda/attention.cu|l[half] * shrink + sum;|l[half] + sum;|*attention over*
cuda-on-cpu|cuda/attention.cu|dp[t][i] - row_delta[i / 2]) * scale|dp[t][i]) * scale|*attention over*
cuda-on-cpu|cuda/attention.cu|const float largest = fmaxf(m, s)|const float largest = 0|*attention over*
cuda-on-cpu|cuda/attention.cu|largest == -INFINITY ? 0 : largest;|0;|*attention over*
cuda-on-cpu|cuda/decode.cu|l += weight * row[1];|l += row[1];|*decoding*
cuda-on-cpu|cuda/decode.cu|arrive(count) == splits - 1;|arrive(count) == splits - 2;|*decoding*
cuda-on-cpu|cuda/decode.cu|if (*is_last) *count = 0;|;|*decoding*
cuda-on-cpu|cuda/attention.cu|count = shared + (lse ? n + 1 - own : span[3]);|count = (lse ? n + 1 - own : span[3]);|*decoding*
cuda-on-cpu|cuda/decode.cu|    ++positions[b];|    positions[b] += 0;|*advance*
cuda-on-cpu|cuda/norm.cu|scale = r * r * dot / C;|scale = r * dot / C;|*RMSNorm with*
cuda-on-cpu|cuda/softmax.cuh|w = shrink * (w + s * shift);|w = shrink * w;|*the head*
cuda-on-cpu|cuda/softmax.cuh|sums.rebase(block_reduce(sums.largest, -INFINITY, shared, Max()));|;|*the head*
cuda-on-cpu|cuda/elementwise.cu|s * (1 + g * (1 - s))|s * (1 + g * s)|*SwiGLU*
cuda-on-cpu|cuda/elementwise.cu|(1 - o.beta2) * g * g|(1 - o.beta2) * g|*AdamW*
cuda-on-cpu|cuda/elementwise.cu|r1_rounding_bits(o.seed, |r1_rounding_bits(static_cast<std::uint32_t>(o.seed), |*AdamW with states*
cuda-on-cpu|cuda/elementwise.cu|store_rounded(m + i, m_i, random >> 16);|store_rounded(m + i, m_i, random);|*AdamW with states*
cuda-on-cpu|cuda/sample.cu|philox_uniform(options.seed,|philox_uniform(options.seed & 0xffffffffu,|*sampling*
cuda-on-cpu|cuda/rope.cu|inverse ? -s : s|s|*RoPE*
cuda-on-cpu|cuda/norm.cu|    __syncthreads();\n    for (int c = threadIdx.x * W|    for (int c = threadIdx.x * W|*RMSNorm with*
cuda-on-cpu|cuda/norm.cu|n += gridDim.x * warps|n += gridDim.x|*RMSNorm with*
cuda-on-cpu|cuda/backend_cuda.cu|const float one = 1, beta = accumulate ? 1 : 0;|const float one = 1, beta = 0;|*linear*
cuda-on-cpu|cuda/exact.cu|from + k < end;|from + k <= end;|*linear*
cuda-on-cpu|cuda/exact.cu|if (accumulate) for_each|if (false) for_each|*linear*
cuda-on-cpu|cuda/attention.cu|if (!exact_ && on_tensor_cores|if (on_tensor_cores|*exact arithmetic*
cuda-on-cpu|cuda/sample.cu|        __syncthreads();  // the next sums|        // the next sums|*sampling*
cuda-on-cpu|cuda/sample.cu|end = min(begin + segment, end);|end = begin + segment;|*sampling*
cuda-on-cpu|cuda/sample.cu|log_softmax<W>(logits, inverse,|log_softmax<1>(logits, inverse,|*exact arithmetic*
cuda-on-cpu|cuda/backend_cuda.cu|if (a.dtype != b.dtype)|if (a.rows < 0)|*linear*
cuda-on-cpu|cuda/backend_cuda.cu|CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));|CUBLAS_DEFAULT_MATH));|*linear*
cuda-on-cpu|cuda/backend_cuda.cu|to.data) + done, piece.data, bytes,|to.data) + done, static_cast<const std::byte*>(host) + done, bytes,|*memory*
cuda-on-cpu|cuda/backend_cuda.cu|        cuda::check(cudaEventSynchronize(piece.copied), "upload");|        ;|*memory*
# the reference, which is the oracle
reference|src/device/reference.cpp|largest = std::max(largest, p[j]);|largest = 0;|*attention*
cpu|src/device/reference.cpp|p[j] / sum * values|p[j] * values|*attention*
cpu|src/device/reference.cpp|j <= n; j = range.next(j)) {\n            keys|j < n; j = range.next(j)) {\n            keys|*attention*
cpu|src/device/reference.cpp|in.value(j, h), D) - delta) * scale|in.value(j, h), D)) * scale|*attention*
cpu|src/device/reference.cpp|mean += w[c] * d[c] * in[c] / x.cols|mean += d[c] * in[c] / x.cols|*RMSNorm*
cpu|src/device/reference.cpp|h < shape.heads ? q_weight : k_weight|h <= shape.heads ? q_weight : k_weight|*RMSNorm of*
cpu|src/device/reference.cpp|x[half] = b * cosine + a * sine;|x[half] = b * cosine - a * sine;|*RoPE*
cpu|src/device/reference.cpp|int64_t m = 0; m < in.rows; ++m)|int64_t m = in.rows - 1; m >= 0; --m)|*rows*
cpu|src/device/reference.cpp|z[v] > z[w]|z[v] >= z[w]|*sampling*
cpu|src/device/reference.cpp|mass < o.top_p * total|mass <= o.top_p|*sampling*
cpu|src/device/reference.cpp|(1 + gate[f] * (1 - sigmoid))|(1 + gate[f] * sigmoid)|*SwiGLU*
cpu|src/device/reference.cpp|d_entropy * p * (log_p + entropy.as<Real>()[m])|d_entropy * p * log_p|*head*
cpu|src/device/reference.cpp|Real sum = bias ? bias.as<Real>()[o] : 0;|Real sum = 0;|*linear*
cpu|src/device/reference.cpp|        ++counters.as<int32_t>()[4 * b + 3];|        ;|*advance*
cpu|src/device/reference.cpp|(1 - o.beta1) * g|o.beta1 * g|*AdamW*
# the fast CPU backend
cpu|src/device/cpu.cpp|fast_exp(scores[j] - top)|fast_exp(scores[j])|*attention*
cpu|src/device/cpu.cpp|fast_exp((logits[v] - top) * inverse)|fast_exp(logits[v] * inverse)|*the head*
cpu|src/device/cpu.cpp|dk + 2 * width * D, 0.0f|dk + width * D, 0.0f|*attention*
cpu|src/device/cpu.cpp|if (seen + N <= 1) return;|if (seen <= 0) return;|*attention*
cpu|src/device/cpu.cpp|ds[j] = j < seen ? |ds[j] = j <= seen ? |*attention*
cpu|src/device/cpu.cpp|j = seen / kLanes * kLanes; j < seen|j = seen / kLanes * kLanes; j < seen - 1|*attention*
cpu|src/device/cpu.cpp|if (even + i < std::min(seen + r, end))|if (even + i < std::min(seen, end))|*attention over*
cpu|src/device/cpu.cpp|std::max<int64_t>(std::min(seen, end) - begin, 0)|(std::min(seen, end) - begin)|*attention over*
cpu|src/device/cpu.cpp|int64_t j = begin; j < std::min(seen + r, end)|int64_t j = begin; j < seen + r|*attention over*
cpu|src/device/cpu.cpp|j < span[2 * part + 1]; j += kKvBlock)|j < span[2 * part + 1]; j += kKvBlock + 1)|*decoding*
cpu|src/device/cpu.cpp|std::fill(to + rows * cols, to + padded * cols, 0);|;|*linear*
cpu|src/device/cpu.cpp|(padded * cols), r1::to_bfloat16)|(padded * cols), [](float f) { return static_cast<bf16>(std::bit_cast<std::uint32_t>(f) >> 16); })|*linear*
cpu|src/device/cpu.cpp|h = dentropy ? |h = !dentropy ? |*the head*
cpu|src/device/cpu.cpp|if ((cumulative += p[v]) > u) break;|if ((cumulative += p[v]) > mass - u) break;|*sampling*
cpu|src/device/cpu.cpp|if (kept + half < o.top_p * total) {|if (kept + half <= o.top_p) {|*sampling*
cpu|src/device/cpu.cpp|0.999 * (1 - o.top_p) * total|2000 * (1 - o.top_p) * total|*sampling*
cpu|src/device/cpu.cpp|(i < sequence.prompt ? to[k_col + d] : 0)|0|*attention*
cpu|src/device/cpu.cpp|mm[i] * c1 /|mm[i] /|*AdamW*
# formulas and defaults
skeleton|src/device/formulas.h|0x7fffu + (bits >> 16 & 1u)|0x8000u|*rounding to*
skeleton|src/device/formulas.h|k1 = (r1_u32)(seed >> 32)|k1 = 0|*Philox*
skeleton|src/device/backend.cpp|i < changed.size()|i + 1 < changed.size()|*sampling*,*advance*
skeleton|src/device/backend.cpp|softmax_backward(chunk, dlogp.slice(m, rows)|softmax_backward(chunk, dlogp.slice(0, rows)|*head*
skeleton|src/device/backend.cpp|logp.slice(m, rows), entropy.slice(m, rows), targets|logp.slice(0, rows), entropy.slice(m, rows), targets|*head*
skeleton|src/device/backend.cpp|upload(t, std::vector<std::byte>(t.bytes()).data());|upload(t, std::vector<std::byte>(t.bytes(), std::byte{1}).data());|*memory*
# the plugin
skeleton|tests/port/skeleton.cpp|gate / (1 + std::exp(-gate)) * up|1 / (1 + std::exp(-gate)) * up|*SwiGLU*
skeleton|tests/port/skeleton.cpp|Backend::to_bfloat16(to, from);|(void)to, (void)from;|*rounding to*
skeleton|tests/port/skeleton.cpp|Backend::advance(positions, rows, spans, counters);|(void)positions;|*advance*
LIST
)

planted=0 caught=0 broken=0
while IFS='|' read -r device file from to cases; do
    cp "$copy/$file" "$build/whole"
    FROM=$from TO=$to perl -0pi -e 'BEGIN { ($f, $t) = @ENV{qw(FROM TO)}; s/\\n/\n/g for $f, $t } s/\Q$f\E/$t/' \
        "$copy/$file"
    what="$device, $file: ${from:0:70} -> ${to:0:60}"
    if cmp -s "$build/whole" "$copy/$file"; then
        echo "NOT FOUND  $what"
        ((++broken))
        continue
    fi
    ((++planted))
    if ! make_all; then
        echo "NOT BUILT  $what"
        ((++broken))
    elif R1_BACKEND=$device timeout 300 "$build/r1_conformance" --abort-after=1 -tc="$cases" >>"$build/log" 2>&1; then
        echo "MISSED     $what"
    else
        echo "caught     $what"
        ((++caught))
    fi
    cp "$build/whole" "$copy/$file"
done <<<"$mutants"
echo "$caught of $planted planted faults caught"
((broken == 0 && caught >= planted - 2))
