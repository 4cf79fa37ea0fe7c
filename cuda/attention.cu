// Causal attention over packed sequences, forward and backward.
//
// Two versions of each. The plain one stands first: a warp for each row, key by key, for any type
// and head size; with exact arithmetic its forward pass is what trains and what decodes. The one on
// tensor cores is for bfloat16 and heads of 64, 96 or 128 (FlashAttention-2, arXiv 2307.08691:
// tiles of 64 x 64 scores live in registers, nothing of size T x T exists). The tiles ignore where
// sequences end: a tile of 64 rows of the packed batch may hold pieces of several. It visits what
// its first row sees, a shared prompt and then everything from the start of that row's sequence on,
// and every row masks the keys that it does not see itself.
//
// The backward pass recomputes scores twice, once for dK and dV (a block owns keys) and once for dQ
// (a block owns queries): two products more than one pass would need, but no atomics and one order
// of summation.
#include "cuda/backend_cuda.h"
#include "cuda/tensor_core.cuh"

namespace r1::cuda {
namespace {

struct HeadOfRow {
    int n, head, group;
};

/// Where in the packed buffers a block works.
struct Packed {
    const RowRange* ranges;  ///< of each row
    int tokens;
    AttentionShape shape;
    __device__ int width() const { return shape.qkv_cols(); }
    __device__ int query(int head) const { return head * shape.head_dim; }
    __device__ int key(int group) const { return shape.q_cols() + group * shape.head_dim; }
    __device__ int value(int group) const {
        return shape.q_cols() + shape.kv_cols() + group * shape.head_dim;
    }
    /// The item-th of [tokens, heads].
    __device__ HeadOfRow head_of_row(std::int64_t item) const {
        const int head = static_cast<int>(item % shape.heads);
        return {static_cast<int>(item / shape.heads), head, head / (shape.heads / shape.kv_heads)};
    }
};

// ---- for any type and head size ----

constexpr int kLargestHead = 256;
constexpr int kColumns = kLargestHead / 32;  // of a head, for each lane

template <class T>
__device__ float dot(const T* a, const T* b, int D) {
    float sum = 0;
    for (int d = threadIdx.x % 32; d < D; d += 32) sum += to_float(a[d]) * to_float(b[d]);
    return warp_reduce(sum, Add());
}

/// A warp computes one head of one query, key by key, with the online softmax, over rows of a
/// packed batch or, without lse, of the cache. It is one kernel for both, and multiplications and
/// additions are fused where it says so: what is sampled and what is trained agree in every bit.
/// Reads 2 D elements for 4 D FLOPs, for each key that a query head sees.
template <class T>
__global__ void attend_kernel(T* out, float* lse, const T* qkv, const T* k_rows, const T* v_rows,
                              std::int64_t stride, const std::int32_t* spans, AttentionShape shape,
                              std::int64_t items) {
    const std::int64_t item = warp_index();
    if (item >= items) return;
    const int n = static_cast<int>(item / shape.heads), head = static_cast<int>(item % shape.heads),
              D = shape.head_dim, lane = threadIdx.x % 32;
    const std::int32_t* span = spans + 4 * std::int64_t{n};
    // Rows [first, first + shared), then others from `own` on.
    const int first = span[0], shared = lse ? span[1] - first : span[1], own = span[2],
              count = shared + (lse ? n + 1 - own : span[3]);
    const std::int64_t column = head / (shape.heads / shape.kv_heads) * D + lane;
    const float scale = 1 / sqrtf(static_cast<float>(D));
    float q[kColumns] = {}, o[kColumns] = {}, m = -INFINITY, l = 0;
    for (int i = 0; i < kColumns; ++i)
        if (lane + 32 * i < D)
            q[i] = to_float(qkv[n * std::int64_t{shape.qkv_cols()} + head * D + lane + 32 * i]) *
                   scale;
    for (int j = 0; j < count; ++j) {
        const std::int64_t at = (j < shared ? first + j : own + j - shared) * stride + column;
        float s = 0;
        for (int i = 0; i < kColumns; ++i)
            if (lane + 32 * i < D) s = fmaf(q[i], to_float(k_rows[at + 32 * i]), s);
        s = warp_reduce(s, Add());
        const float largest = fmaxf(m, s), shrink = expf(m - largest), p = expf(s - largest);
        m = largest;
        l = fmaf(l, shrink, p);
        for (int i = 0; i < kColumns; ++i)
            if (lane + 32 * i < D) o[i] = fmaf(p, to_float(v_rows[at + 32 * i]), o[i] * shrink);
    }
    for (int i = 0; i < kColumns; ++i)
        if (lane + 32 * i < D) out[item * D + lane + 32 * i] = from_float<T>(l == 0 ? 0 : o[i] / l);
    if (lse && lane == 0) lse[item] = m + logf(l);
}

/// delta[n, h] = sum_d dout out: what the softmax's gradient subtracts. A warp takes a head of a
/// row.
template <class T>
__global__ void attention_delta_kernel(float* delta, const T* dout, const T* out,
                                       std::int64_t items, int D) {
    const std::int64_t item = warp_index();
    if (item >= items) return;
    const float sum = dot(dout + item * D, out + item * D, D);
    if (threadIdx.x % 32 == 0) delta[item] = sum;
}

template <class T>
__global__ void attention_backward_q_kernel(T* dqkv, const T* dout, const float* lse,
                                            const float* delta, const T* qkv, Packed in) {
    const std::int64_t item = warp_index();
    if (item >= std::int64_t{in.tokens} * in.shape.heads) return;
    const auto [n, head, group] = in.head_of_row(item);
    const int D = in.shape.head_dim, lane = threadIdx.x % 32;
    const std::int64_t width = in.width();
    const float scale = 1 / sqrtf(static_cast<float>(D));
    float dq[kColumns] = {};
    const RowRange range = in.ranges[n];
    for (int j = range.first(); j <= n; j = range.next(j)) {
        const T *k = qkv + j * width + in.key(group), *v = qkv + j * width + in.value(group);
        const float p = expf(dot(qkv + n * width + in.query(head), k, D) * scale - lse[item]);
        const float ds = p * (dot(dout + item * D, v, D) - delta[item]) * scale;
        for (int i = 0; i < kColumns; ++i)
            if (lane + 32 * i < D) dq[i] += ds * to_float(k[lane + 32 * i]);
    }
    for (int i = 0; i < kColumns; ++i)
        if (lane + 32 * i < D)
            dqkv[n * width + in.query(head) + lane + 32 * i] = from_float<T>(dq[i]);
}

template <class T>
__global__ void attention_backward_kv_kernel(T* dqkv, const T* dout, const float* lse,
                                             const float* delta, const T* qkv, Packed in) {
    const std::int64_t item = warp_index();
    if (item >= std::int64_t{in.tokens} * in.shape.kv_heads) return;
    const int j = static_cast<int>(item / in.shape.kv_heads),
              group = static_cast<int>(item % in.shape.kv_heads),
              heads = in.shape.heads / in.shape.kv_heads, D = in.shape.head_dim,
              lane = threadIdx.x % 32;
    const std::int64_t width = in.width();
    const float scale = 1 / sqrtf(static_cast<float>(D));
    const T *k = qkv + j * width + in.key(group), *v = qkv + j * width + in.value(group);
    const int end = in.ranges[j].end;
    float dk[kColumns] = {}, dv[kColumns] = {};
    for (int head = group * heads; head < (group + 1) * heads; ++head)
        for (int n = j; n < end; ++n) {
            const std::int64_t at = n * std::int64_t{in.shape.heads} + head;
            const T *q = qkv + n * width + in.query(head), *d_o = dout + at * D;
            const float p = expf(dot(q, k, D) * scale - lse[at]);
            const float ds = p * (dot(d_o, v, D) - delta[at]) * scale;
            for (int i = 0; i < kColumns; ++i)
                if (lane + 32 * i < D) {
                    dk[i] += ds * to_float(q[lane + 32 * i]);
                    dv[i] += p * to_float(d_o[lane + 32 * i]);
                }
        }
    for (int i = 0; i < kColumns; ++i)
        if (lane + 32 * i < D) {
            dqkv[j * width + in.key(group) + lane + 32 * i] = from_float<T>(dk[i]);
            dqkv[j * width + in.value(group) + lane + 32 * i] = from_float<T>(dv[i]);
        }
}

// ---- on tensor cores ----

constexpr int kRows = 64;  // of a tile; each of four warps has 16
constexpr int kTiles = 8;  // 8 columns each: 64 keys or queries
constexpr float kLog2e = 1.4426950408889634f;

/// Whether row n, which is in `range`, reads row j's key.
__device__ bool sees(const RowRange& range, int n, int j) {
    return (j >= range.begin && j <= n) || (j >= range.prompt_begin && j < range.prompt_end);
}

/// Takes from a warp's scores, 16 queries by 64 keys from row j on, the keys that a query does not
/// see, and those from `keys` on, which are not there. Of most tiles nothing is taken.
__device__ void mask_keys(float (&s)[kTiles][4], const RowRange (&seen)[2], const int (&mine)[2],
                          int j, int keys) {
    const int end = j + kRows;
    bool whole = keys == kRows;
    for (int half = 0; half < 2; ++half)
        whole = whole && ((j >= seen[half].begin && end <= mine[half] + 1) ||
                          (j >= seen[half].prompt_begin && end <= seen[half].prompt_end));
    if (__ballot_sync(kAllLanes, whole) == kAllLanes) return;
    for (int t = 0; t < kTiles; ++t)
        for (int i = 0; i < 4; ++i) {
            const int half = i / 2, column = t * 8 + threadIdx.x % 4 * 2 + i % 2;
            if (column >= keys || !sees(seen[half], mine[half], j + column)) s[t][i] = -INFINITY;
        }
}

/// The same where rows are keys and columns 64 queries from row n on: a key is read by the queries
/// in [mine, end).
__device__ void mask_queries(float (&s)[kTiles][4], const int (&mine)[2], const int (&end)[2],
                             int n) {
    const bool whole = n >= max(mine[0], mine[1]) && n + kRows <= min(end[0], end[1]);
    if (__ballot_sync(kAllLanes, whole) == kAllLanes) return;
    for (int t = 0; t < kTiles; ++t)
        for (int i = 0; i < 4; ++i) {
            const int half = i / 2, query = n + t * 8 + threadIdx.x % 4 * 2 + i % 2;
            if (query < mine[half] || query >= end[half]) s[t][i] = -INFINITY;
        }
}

/// Begins to copy 64 rows of qkv, or fewer, from `row` and `column` on.
template <int D>
__device__ void load(bf16* to, const bf16* qkv, const Packed& in, int column, int row, int rows) {
    const std::int64_t width = in.width();
    load_rows<D>(to, qkv + row * width + column, width, rows, kRows, threadIdx.x, 128);
}

/// The 64 rows of qkv, or fewer, that a block's tile begins with.
struct Tile {
    int first, rows;
    __device__ Tile(const Packed& in)
        : first(static_cast<int>(blockIdx.x) * kRows), rows(min(kRows, in.tokens - first)) {}
    /// How many keys the tile from row j on holds: a shared prompt ends where its keys do.
    __device__ int keys(const RowRange& range, int j) const {
        return min(kRows, (j < range.prompt_end ? range.prompt_end : first + rows) - j);
    }
};

/// A block computes 64 rows of one head. The online softmax keeps, for each row, the largest score
/// m so far and the sum l of exp(score - m); when m grows, what was summed shrinks by exp(old m -
/// new m). Reads K and V of a head once for every 64 queries; while one is multiplied, the other is
/// on its way.
template <int D>
__global__ void __launch_bounds__(128)
    flash_forward_kernel(bf16* out, float* lse, const bf16* qkv, Packed in) {
    bf16 *q_tile = dynamic_shared<bf16>(), *k_tile = q_tile + kRows * kStride<D>,
         *v_tile = k_tile + kRows * kStride<D>;
    const int head = blockIdx.y, group = head / (in.shape.heads / in.shape.kv_heads),
              lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Tile tile(in);
    const int end = tile.first + tile.rows,
              mine[2] = {tile.first + warp * 16 + lane / 4,
                         tile.first + warp * 16 + lane / 4 + 8};  // rows of this lane
    const RowRange seen[2] = {in.ranges[min(mine[0], in.tokens - 1)],
                              in.ranges[min(mine[1], in.tokens - 1)]};
    const float scale = kLog2e / sqrtf(static_cast<float>(D));  // exp2 is what the hardware has

    const RowRange range = in.ranges[tile.first];
    int j = range.first(), keys = tile.keys(range, j);
    load<D>(q_tile, qkv, in, in.query(head), tile.first, tile.rows);
    load<D>(k_tile, qkv, in, in.key(group), j, keys);
    float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    while (j < end) {
        wait_for_copies();
        __syncthreads();  // K is there, and nobody needs the last V
        load<D>(v_tile, qkv, in, in.value(group), j, keys);
        float s[kTiles][4] = {};
        multiply_transposed<D>(s, q_tile + warp * 16 * kStride<D>, k_tile);
        mask_keys(s, seen, mine, j, keys);
        for (int half = 0; half < 2; ++half) {  // the two rows of this lane
            float largest = m[half];
            for (int t = 0; t < kTiles; ++t)
                largest = fmaxf(largest, fmaxf(s[t][2 * half], s[t][2 * half + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            const float base =
                largest == -INFINITY ? 0 : largest;  // no key of this row has come yet
            const float shrink = exp2f((m[half] - base) * scale);
            m[half] = largest;
            float sum = 0;
            for (int t = 0; t < kTiles; ++t)
                for (int i = 2 * half; i < 2 * half + 2; ++i)
                    sum += s[t][i] = exp2f((s[t][i] - base) * scale);
            l[half] =
                l[half] * shrink + sum;  // of this lane's columns; lanes are added up at the end
            for (int d = 0; d < D / 8; ++d) o[d][2 * half] *= shrink, o[d][2 * half + 1] *= shrink;
        }
        j = range.next(j, keys);
        wait_for_copies();
        __syncthreads();  // V is there, and nobody needs this K
        if (j < end) load<D>(k_tile, qkv, in, in.key(group), j, keys = tile.keys(range, j));
        multiply<D>(o, s, v_tile);
    }
    for (int half = 0; half < 2; ++half) {
        l[half] += __shfl_xor_sync(kAllLanes, l[half], 1);
        l[half] += __shfl_xor_sync(kAllLanes, l[half], 2);
        if (mine[half] >= in.tokens) continue;
        bf16* row =
            out + mine[half] * std::int64_t{in.shape.q_cols()} + in.query(head) + lane % 4 * 2;
        for (int d = 0; d < D / 8; ++d)
            *reinterpret_cast<std::uint32_t*>(row + d * 8) =
                pack_bf16(o[d][2 * half] / l[half], o[d][2 * half + 1] / l[half]);
        if (lane % 4 == 0)
            lse[mine[half] * std::int64_t{in.shape.heads} + head] =
                (m[half] * scale + log2f(l[half])) / kLog2e;
    }
}

/// dQ of 64 rows of one head: with p = exp(s - lse) and ds = p (dout . v - delta), dq = sum_j ds k
/// / sqrt(D).
template <int D>
__global__ void __launch_bounds__(128)
    flash_backward_q_kernel(bf16* dqkv, const bf16* dout, const float* lse, const float* delta,
                            const bf16* qkv, Packed in) {
    bf16 *q_tile = dynamic_shared<bf16>(), *do_tile = q_tile + kRows * kStride<D>,
         *k_tile = do_tile + kRows * kStride<D>, *v_tile = k_tile + kRows * kStride<D>;
    const int head = blockIdx.y, group = head / (in.shape.heads / in.shape.kv_heads),
              lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Tile tile(in);
    const int end = tile.first + tile.rows;
    const float scale = 1 / sqrtf(static_cast<float>(D));
    int mine[2];
    RowRange seen[2];
    float row_lse[2], row_delta[2];
    for (int half = 0; half < 2; ++half) {
        mine[half] = tile.first + warp * 16 + lane / 4 + 8 * half;
        const int n = min(mine[half], in.tokens - 1);
        seen[half] = in.ranges[n];
        row_lse[half] = lse[n * std::int64_t{in.shape.heads} + head] * kLog2e;
        row_delta[half] = delta[n * std::int64_t{in.shape.heads} + head];
    }
    const std::int64_t width = in.width();
    const RowRange range = in.ranges[tile.first];
    int j = range.first(), keys = tile.keys(range, j);
    load<D>(q_tile, qkv, in, in.query(head), tile.first, tile.rows);
    load_rows<D>(do_tile, dout + tile.first * std::int64_t{in.shape.q_cols()} + in.query(head),
                 in.shape.q_cols(), tile.rows, kRows, threadIdx.x, 128);
    load<D>(v_tile, qkv, in, in.value(group), j, keys);
    float dq[D / 8][4] = {};
    while (j < end) {
        wait_for_copies();
        __syncthreads();  // V is there, and nobody needs the last K
        load<D>(k_tile, qkv, in, in.key(group), j, keys);
        float s[kTiles][4] = {}, dp[kTiles][4] = {};
        multiply_transposed<D>(dp, do_tile + warp * 16 * kStride<D>, v_tile);
        const int first = j, count = keys;
        j = range.next(j, keys);
        wait_for_copies();
        __syncthreads();  // K is there, and nobody needs this V
        if (j < end) load<D>(v_tile, qkv, in, in.value(group), j, keys = tile.keys(range, j));
        multiply_transposed<D>(s, q_tile + warp * 16 * kStride<D>, k_tile);
        mask_keys(s, seen, mine, first, count);
        for (int t = 0; t < kTiles; ++t)
            for (int i = 0; i < 4; ++i) {
                const float p = exp2f(s[t][i] * (scale * kLog2e) - row_lse[i / 2]);
                s[t][i] = p * (dp[t][i] - row_delta[i / 2]) * scale;
            }
        multiply<D>(dq, s, k_tile);
    }
    for (int half = 0; half < 2; ++half) {
        if (mine[half] >= in.tokens) continue;
        bf16* row = dqkv + mine[half] * width + in.query(head) + lane % 4 * 2;
        for (int d = 0; d < D / 8; ++d)
            *reinterpret_cast<std::uint32_t*>(row + d * 8) =
                pack_bf16(dq[d][2 * half], dq[d][2 * half + 1]);
    }
}

/// dK and dV of 64 keys of one key/value head, from every query of its group's heads that sees
/// them: dv = sum_n p dout, dk = sum_n ds q / sqrt(D). Scores are transposed: rows are keys,
/// columns queries.
template <int D>
__global__ void __launch_bounds__(128)
    flash_backward_kv_kernel(bf16* dqkv, const bf16* dout, const float* lse, const float* delta,
                             const bf16* qkv, Packed in) {
    bf16 *k_tile = dynamic_shared<bf16>(), *v_tile = k_tile + kRows * kStride<D>,
         *q_tile = v_tile + kRows * kStride<D>, *do_tile = q_tile + kRows * kStride<D>;
    auto* column_lse =
        reinterpret_cast<float*>(do_tile + kRows * kStride<D>);  // [64] of the queries at hand
    float* column_delta = column_lse + kRows;
    const int group = blockIdx.y, heads = in.shape.heads / in.shape.kv_heads,
              lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Tile tile(in);
    int mine[2], end[2];
    for (int half = 0; half < 2; ++half) {
        mine[half] = tile.first + warp * 16 + lane / 4 + 8 * half;
        end[half] = mine[half] < in.tokens ? in.ranges[mine[half]].end : 0;
    }
    int last = 0;  // of the rows that read one of these keys
    for (int n = tile.first; n < tile.first + tile.rows; ++n) last = max(last, in.ranges[n].end);
    const float scale = 1 / sqrtf(static_cast<float>(D));
    const std::int64_t width = in.width(), out_width = in.shape.q_cols();
    auto load_dout = [&](int head, int n) {
        load_rows<D>(do_tile, dout + n * out_width + in.query(head), out_width,
                     min(kRows, last - n), kRows, threadIdx.x, 128);
    };
    int head = group * heads, n = tile.first;
    load<D>(k_tile, qkv, in, in.key(group), tile.first, tile.rows);
    load<D>(v_tile, qkv, in, in.value(group), tile.first, tile.rows);
    load_dout(head, n);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    while (head < (group + 1) * heads) {
        wait_for_copies();
        __syncthreads();  // dO is there, and nobody needs the last Q
        load<D>(q_tile, qkv, in, in.query(head), n, min(kRows, last - n));
        if (threadIdx.x < kRows) {
            const std::int64_t at =
                min(n + static_cast<int>(threadIdx.x), last - 1) * std::int64_t{in.shape.heads};
            column_lse[threadIdx.x] = lse[at + head] * kLog2e;
            column_delta[threadIdx.x] = delta[at + head];
        }
        float s[kTiles][4] = {}, dp[kTiles][4] = {};
        multiply_transposed<D>(dp, v_tile + warp * 16 * kStride<D>, do_tile);
        wait_for_copies();
        __syncthreads();  // Q is there
        multiply_transposed<D>(s, k_tile + warp * 16 * kStride<D>, q_tile);
        mask_queries(s, mine, end, n);
        for (int t = 0; t < kTiles; ++t)
            for (int i = 0; i < 4; ++i) {
                const int column = t * 8 + lane % 4 * 2 + i % 2;
                const float p = exp2f(s[t][i] * (scale * kLog2e) - column_lse[column]);
                s[t][i] = p;
                dp[t][i] = p * (dp[t][i] - column_delta[column]) * scale;
            }
        multiply<D>(dv, s, do_tile);
        if ((n += kRows) >= last) n = tile.first, ++head;
        __syncthreads();  // nobody needs this dO
        if (head < (group + 1) * heads) load_dout(head, n);
        multiply<D>(dk, dp, q_tile);
    }
    for (int half = 0; half < 2; ++half) {
        if (mine[half] >= in.tokens) continue;
        bf16* row = dqkv + mine[half] * width + lane % 4 * 2;
        for (int d = 0; d < D / 8; ++d) {
            *reinterpret_cast<std::uint32_t*>(row + in.key(group) + d * 8) =
                pack_bf16(dk[d][2 * half], dk[d][2 * half + 1]);
            *reinterpret_cast<std::uint32_t*>(row + in.value(group) + d * 8) =
                pack_bf16(dv[d][2 * half], dv[d][2 * half + 1]);
        }
    }
}

Packed packed(Tensor qkv, Tensor ranges, AttentionShape shape) {
    return {row_ranges(ranges), static_cast<int>(qkv.rows), shape};
}

/// body(std::integral_constant<int, D>) if there is a tensor-core version for this type and head
/// size.
template <class Body>
bool on_tensor_cores(Tensor qkv, AttentionShape shape, Body body) {
    if (qkv.dtype != DType::BF16) return false;
    switch (shape.head_dim) {
        case 64:
            return body(std::integral_constant<int, 64>()), true;
        case 96:
            return body(std::integral_constant<int, 96>()), true;
        case 128:
            return body(std::integral_constant<int, 128>()), true;
        default:
            return false;
    }
}

}  // namespace

void CudaBackend::attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor ranges,
                                    AttentionShape shape) {
    if (!qkv.size()) return;
    const Packed in = packed(qkv, ranges, shape);
    if (!exact_ && on_tensor_cores(qkv, shape, [&](auto d) {
            constexpr int D = d;
            launch(stream_, dim3(grid_of(ceil_div(qkv.rows, kRows)), grid_of(shape.heads)), 128,
                   3 * kRows * kStride<D> * sizeof(bf16), flash_forward_kernel<D>, out.as<bf16>(),
                   lse.as<float>(), qkv.as<bf16>(), in);
        }))
        return;
    Tensor k = qkv, v = qkv;
    k.data = static_cast<char*>(qkv.data) + shape.q_cols() * bytes_of(qkv.dtype);
    v.data = static_cast<char*>(k.data) + shape.kv_cols() * bytes_of(qkv.dtype);
    attend(out, lse, qkv, k, v, ranges, shape);
}

void CudaBackend::attend(Tensor out, Tensor lse, Tensor qkv, Tensor k, Tensor v, Tensor spans,
                         AttentionShape shape) {
    if (shape.head_dim > kLargestHead)
        fail("heads of ", shape.head_dim, " elements are more than the CUDA backend's ",
             kLargestHead);
    const std::int64_t items = out.rows * shape.heads;
    choose(qkv.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(ceil_div(items, 4)), 128, 0, attend_kernel<T>, out.as<T>(),
               lse ? lse.as<float>() : nullptr, qkv.as<T>(), k.as<T>(), v.as<T>(), k.cols,
               spans.as<std::int32_t>(), shape, items);
    });
}

void CudaBackend::attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv,
                                     Tensor ranges, AttentionShape shape) {
    if (!qkv.size()) return;
    const Packed in = packed(qkv, ranges, shape);
    const std::int64_t items = qkv.rows * shape.heads;
    auto* delta = scratch<float>(Slot::Delta, items);
    choose(qkv.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(ceil_div(items, 4)), 128, 0, attention_delta_kernel<T>, delta,
               dout.as<T>(), out.as<T>(), items, shape.head_dim);
    });
    if (on_tensor_cores(qkv, shape, [&](auto d) {
            constexpr int D = d;
            constexpr std::size_t tiles = 4 * kRows * kStride<D> * sizeof(bf16);
            const unsigned blocks = grid_of(ceil_div(qkv.rows, kRows));
            launch(stream_, dim3(blocks, grid_of(shape.kv_heads)), 128,
                   tiles + 2 * kRows * sizeof(float), flash_backward_kv_kernel<D>, dqkv.as<bf16>(),
                   dout.as<bf16>(), lse.as<float>(), delta, qkv.as<bf16>(), in);
            launch(stream_, dim3(blocks, grid_of(shape.heads)), 128, tiles,
                   flash_backward_q_kernel<D>, dqkv.as<bf16>(), dout.as<bf16>(), lse.as<float>(),
                   delta, qkv.as<bf16>(), in);
        }))
        return;
    choose(qkv.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(ceil_div(qkv.rows * shape.kv_heads, 4)), 128, 0,
               attention_backward_kv_kernel<T>, dqkv.as<T>(), dout.as<T>(), lse.as<float>(), delta,
               qkv.as<T>(), in);
        launch(stream_, grid_of(ceil_div(items, 4)), 128, 0, attention_backward_q_kernel<T>,
               dqkv.as<T>(), dout.as<T>(), lse.as<float>(), delta, qkv.as<T>(), in);
    });
}

}  // namespace r1::cuda
