// Attention of one new token a sequence over the key/value cache.
//
// All query heads of a group read the same keys, so they are the rows of one 16-row product on
// tensor cores, and each key and value is read from memory once: B K L (2 D) elements for L cached
// tokens, which is the kernel's cost. The keys of a sequence are split among the four warps of a
// block, and, where there are few sequences, among several blocks (flash-decoding), the last of
// which to end merges the partial softmaxes, in a fixed order. Other types and head sizes, and
// exact arithmetic, take the plain kernel of attention.cu.
#include "cuda/backend_cuda.h"
#include "cuda/tensor_core.cuh"

namespace r1::cuda {
namespace {

constexpr int kKeys = 32;   // of a warp's tile
constexpr int kHeads = 16;  // largest group
constexpr int kWarps = 4;
constexpr int kMostSplits = 16;
constexpr float kLog2e = 1.4426950408889634f;

/// The keys of one sequence: pool rows [s0, s0 + s1), then [s2, s2 + s3).
struct Keys {
    int first, shared, own, count;
    __device__ explicit Keys(const std::int32_t* span)
        : first(span[0]), shared(span[1]), own(span[2]), count(span[1] + span[3]) {}
    __device__ std::int64_t row(int i) const { return i < shared ? first + i : own + i - shared; }
};

/// A softmax over some of the keys, unfinished: scores relative to m (base 2), their sum l,
/// weighted values o.
__device__ float weight_of(float m, float common) { return m == -INFINITY ? 0 : exp2f(m - common); }
/// Of `count` such, rows [m, l, o] that are `stride` apart: their common m, l, and o[d].
struct Merged {
    float m = -INFINITY, l = 0, o = 0;
    __device__ Merged(const float* rows, int count, int stride, int d) {
        for (int i = 0; i < count; ++i) m = fmaxf(m, rows[i * stride]);
        for (int i = 0; i < count; ++i) {
            const float* row = rows + i * stride;
            const float weight = weight_of(row[0], m);
            l += weight * row[1];
            o += weight * row[2 + d];
        }
    }
    __device__ bf16 mean() const { return from_float<bf16>(l > 0 ? o / l : 0); }
};

/// Block (b, k, split) computes the heads of group k for sequence b over every splits-th tile of
/// keys. arrived [B K]: 0 before and after.
template <int D>
__global__ void __launch_bounds__(128)
    flash_decode_kernel(bf16* out, float* partial, int* arrived, const bf16* qkv,
                        const bf16* k_pool, const bf16* v_pool, const std::int32_t* spans,
                        AttentionShape shape) {
    bf16* q_tile = dynamic_shared<bf16>();
    bf16* tiles = q_tile + kHeads * kStride<D>;
    const int b = blockIdx.x, group = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
    const int heads = shape.heads / shape.kv_heads, lane = threadIdx.x % 32,
              warp = threadIdx.x / 32;
    const Keys keys(spans + b * 4);
    const std::int64_t cols = shape.kv_cols();
    bf16 *k_tile = tiles + warp * 2 * kKeys * kStride<D>, *v_tile = k_tile + kKeys * kStride<D>;
    const int step = splits * kWarps * kKeys;
    int first = (split * kWarps + warp) * kKeys;
    auto load = [&](bf16* tile, const bf16* pool) {
        if (first < keys.count)
#pragma unroll 4
            for (int i = lane; i < kKeys * (D / 8); i += 32) {
                const int key = i / (D / 8), d = i % (D / 8) * 8;
                const bool there = first + key < keys.count;
                copy_async(tile + key * kStride<D> + d,
                           pool + (there ? keys.row(first + key) * cols + group * D + d : 0),
                           there);
            }
        end_group();
    };
    load_rows<D>(q_tile, qkv + b * static_cast<std::int64_t>(shape.qkv_cols()) + group * heads * D,
                 D, heads, kHeads, threadIdx.x, 128);
    end_group();
    load(k_tile, k_pool);
    load(v_tile, v_pool);
    wait_for_copies_but<2>();
    __syncthreads();

    const float scale = kLog2e / sqrtf(static_cast<float>(D));
    float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    for (int here = first; here < keys.count; here = first) {
        wait_for_copies_but<1>();
        __syncwarp();  // K is there
        float s[kKeys / 8][4] = {};
        multiply_transposed<D>(s, q_tile, k_tile);
        __syncwarp();
        first += step;
        load(k_tile, k_pool);
        for (int half = 0; half < 2; ++half) {
            float largest = m[half];
            for (int t = 0; t < kKeys / 8; ++t)
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    const int key = here + t * 8 + lane % 4 * 2 + i % 2;
                    s[t][i] = key < keys.count ? s[t][i] * scale : -INFINITY;
                    largest = fmaxf(largest, s[t][i]);
                }
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            const float shrink = weight_of(m[half], largest);
            m[half] = largest;
            float sum = 0;
            for (int t = 0; t < kKeys / 8; ++t)
                for (int i = 2 * half; i < 2 * half + 2; ++i)
                    sum += s[t][i] = exp2f(s[t][i] - largest);
            l[half] = l[half] * shrink + sum;
            for (int d = 0; d < D / 8; ++d) o[d][2 * half] *= shrink, o[d][2 * half + 1] *= shrink;
        }
        wait_for_copies_but<1>();
        __syncwarp();  // V is there
        multiply<D>(o, s, v_tile);
        __syncwarp();
        load(v_tile, v_pool);
    }

    // The four warps' results meet in shared memory, where the tiles were.
    __syncthreads();
    constexpr int kRow = D + 2;
    auto* merged = reinterpret_cast<float*>(tiles);  // [warp][head][m, l, o]
    for (int half = 0; half < 2; ++half) {
        l[half] += __shfl_xor_sync(kAllLanes, l[half], 1);
        l[half] += __shfl_xor_sync(kAllLanes, l[half], 2);
        float* row = merged + (warp * kHeads + lane / 4 + 8 * half) * kRow;
        if (lane % 4 == 0) row[0] = m[half], row[1] = l[half];
        for (int d = 0; d < D / 8; ++d)
            for (int i = 0; i < 2; ++i) row[2 + d * 8 + lane % 4 * 2 + i] = o[d][2 * half + i];
    }
    __syncthreads();
    const std::int64_t first_item = b * std::int64_t{shape.heads} + group * heads;
    for (int i = threadIdx.x; i < heads * D; i += blockDim.x) {
        const int head = i / D, d = i % D;
        const Merged warps(merged + head * kRow, kWarps, kHeads * kRow, d);
        if (splits == 1) {
            out[(first_item + head) * D + d] = warps.mean();
        } else {
            float* to = partial + ((first_item + head) * splits + split) * kRow;
            if (d == 0) to[0] = warps.m, to[1] = warps.l;
            to[2 + d] = warps.o;
        }
    }
    if (splits == 1) return;
    int* count = arrived + b * shape.kv_heads + group;
    auto* is_last = reinterpret_cast<bool*>(q_tile);
    __syncthreads();
    if (threadIdx.x == 0) {
        *is_last = arrive(count) == splits - 1;
        if (*is_last) *count = 0;
    }
    __syncthreads();
    if (*is_last)
        for (int i = threadIdx.x; i < heads * D; i += blockDim.x) {
            const std::int64_t item = first_item + i / D;
            out[item * D + i % D] =
                Merged(partial + item * splits * kRow, splits, kRow, i % D).mean();
        }
}

__global__ void advance_kernel(std::int32_t* positions, std::int32_t* rows, std::int32_t* spans,
                               std::int32_t* counters, int B) {
    const int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= B || rows[b] < 0) return;
    ++rows[b];
    ++positions[b];
    ++spans[4 * b + 3];
    ++counters[4 * b + 3];
}

}  // namespace

void CudaBackend::advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters) {
    launch(stream_, grid_of(ceil_div(rows.rows, 128)), 128, 0, advance_kernel,
           positions.as<std::int32_t>(), rows.as<std::int32_t>(), spans.as<std::int32_t>(),
           counters.as<std::int32_t>(), static_cast<int>(rows.rows));
}

void CudaBackend::decode_attention(Tensor out, Tensor qkv, Tensor k_pool, Tensor v_pool,
                                   Tensor spans, AttentionShape shape) {
    if (!out.size()) return;
    const std::int64_t items = out.rows * shape.heads, blocks = out.rows * shape.kv_heads;
    auto on_tensor_cores = [&](auto d) {
        constexpr int D = d;
        const std::int64_t splits = std::clamp<std::int64_t>(kSplitBlocks / blocks, 1, kMostSplits);
        auto* partial = scratch<float>(Slot::Decode, items * splits * (D + 2));
        launch(stream_, dim3(grid_of(out.rows), grid_of(shape.kv_heads), grid_of(splits)),
               kWarps * 32, (kHeads + kWarps * 2 * kKeys) * kStride<D> * sizeof(bf16),
               flash_decode_kernel<D>, out.as<bf16>(), partial, static_cast<int*>(arrived_.data()),
               qkv.as<bf16>(), k_pool.as<bf16>(), v_pool.as<bf16>(), spans.as<std::int32_t>(),
               shape);
    };
    if (!exact_ && qkv.dtype == DType::BF16 && shape.heads / shape.kv_heads <= kHeads) {
        if (shape.head_dim == 64) return on_tensor_cores(std::integral_constant<int, 64>());
        if (shape.head_dim == 96) return on_tensor_cores(std::integral_constant<int, 96>());
        if (shape.head_dim == 128) return on_tensor_cores(std::integral_constant<int, 128>());
    }
    attend(out, {}, qkv, k_pool, v_pool, spans, shape);
}

}  // namespace r1::cuda
