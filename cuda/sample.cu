// Drawing a token from logits, with the same counter-based randomness as the CPU.
//
// No sorting: the truncated distribution keeps all tokens above some logit and, of those equal to
// it, the first few. That logit is found by bisection over the 2^32 possible floats, 32 passes over
// those tokens that can be among them: with a real vocabulary a few hundred, which fit into shared
// memory.
#include "cuda/backend_cuda.h"
#include "cuda/softmax.cuh"

namespace r1::cuda {
namespace {

constexpr int kThreads = kSoftmaxThreads, kWarps = kThreads / 32;
constexpr int kCandidates = 4096;  // logits that shared memory holds

/// Unsigned integers in the order of the floats; adding 0 makes one of the two zeros.
__device__ std::uint32_t order_of(float x) {
    const std::uint32_t bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float float_of(std::uint32_t order) {
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

/// One row, as all threads of a block see it.
struct Row {
    const float* logits;
    int V;
    LogSoftmax log_p;
    double* shared;  ///< [32]

    __device__ double p(float logit) const { return expf(log_p(logit)); }
    /// Count and mass of the tokens whose logit is above that of `order`.
    __device__ int count_above(std::uint32_t order) const {
        int count = 0;
        for (int v = threadIdx.x; v < V; v += kThreads) count += order_of(logits[v]) > order;
        return block_reduce(count, 0, reinterpret_cast<int*>(shared), Add());
    }
    __device__ double mass_above(std::uint32_t order) const {
        double mass = 0;
        for (int v = threadIdx.x; v < V; v += kThreads)
            if (order_of(logits[v]) > order) mass += p(logits[v]);
        return block_reduce(mass, 0.0, shared, Add());
    }
};

/// The smallest x for which the condition holds; it must hold from there on.
template <class Condition>
__device__ std::uint32_t bisect(Condition holds) {
    std::uint32_t low = 0, high = 0xffffffffu;
    while (low < high) {
        const std::uint32_t middle = low + (high - low) / 2;
        if (holds(middle))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/// Copies those logits whose probability is at least `least` into `to`, in their order. Returns how
/// many there are; if that is more than kCandidates, nothing is copied. counts [kWarps] is shared.
__device__ int compact(const Row& row, double least, float* to, int* counts) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int segment = (row.V + kThreads - 1) / kThreads * 32;
    int total = 0, at = 0;
    for (int pass = 0; pass < 2; ++pass) {
        int count = 0;
        for (int v = warp * segment + lane; v < (warp + 1) * segment; v += 32) {
            const bool in = v < row.V && row.p(row.logits[v]) >= least;
            const unsigned votes = __ballot_sync(kAllLanes, in);
            if (pass == 1 && in)
                to[at + count + __popc(votes & ((1u << lane) - 1))] = row.logits[v];
            count += __popc(votes);
        }
        if (pass == 0) {
            if (lane == 0) counts[warp] = count;
            __syncthreads();
            for (int w = 0; w < kWarps; ++w) {
                if (w == warp) at = total;
                total += counts[w];
            }
            if (total > kCandidates) break;
        }
    }
    __syncthreads();
    return total;
}

/// What is left to draw from: tokens above `order`, and the first `ties` of those at it; their
/// mass.
struct Kept {
    std::uint32_t order = 0;
    int ties = 0;
    double mass = 1;
};

__device__ Kept truncate(const Row& row, int top_k, float top_p, float* candidates, int* counts) {
    Kept kept{0, row.V, 0};
    Row possible = row;  // holds every token that is kept
    if (top_k > 0 && top_k < row.V) {
        kept.order = bisect([&](std::uint32_t x) { return row.count_above(x) < top_k; });
        kept.ties = top_k - row.count_above(kept.order);
        kept.mass = row.mass_above(kept.order) + kept.ties * row.p(float_of(kept.order));
    } else {
        kept.mass = row.mass_above(0);
    }
    if (top_p < 1 && top_k <= 0) {
        // A token that top_p keeps and those that are no likelier, at most V of them, hold more
        // than 1 - top_p of the mass. (0.999: a margin for rounding.)
        const double least = 0.999 * (1.0 - top_p) * kept.mass / row.V;
        const int count = compact(row, least, candidates, counts);
        if (count <= kCandidates) {
            possible.logits = candidates;
            possible.V = count;
        }
    }
    if (top_p < 1) {
        const double wanted = top_p * kept.mass;
        const std::uint32_t order =
            bisect([&](std::uint32_t x) { return possible.mass_above(x) < wanted; });
        const double above = possible.mass_above(order), each = row.p(float_of(order));
        const int there = order > kept.order
                              ? possible.count_above(order - 1) - possible.count_above(order)
                              : kept.ties;
        const double ties = each > 0 ? ceil((wanted - above) / each) : 1;
        kept.order = order;
        kept.ties = static_cast<int>(fmax(1.0, fmin(ties, there)));
        kept.mass = above + kept.ties * each;
    }
    return kept;
}

/// A block draws for a row. Reads V logits twice, of a truncated distribution more often.
template <int W>
__global__ void __launch_bounds__(kThreads, 2)
    sample_kernel(std::int32_t* tokens, float* logp, const float* logits,
                  const std::uint32_t* counters, SampleOptions options, int V) {
    double* shared = dynamic_shared<double>();  // [32], then a segment's mass and ties for each
                                                // warp, and candidates
    double* segment_mass = shared + 32;
    int* segment_ties = reinterpret_cast<int*>(segment_mass + kWarps);
    float* candidates = reinterpret_cast<float*>(segment_ties + kWarps);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    logits += blockIdx.x * std::int64_t{V};
    const float inverse = options.temperature > 0 ? inverse_of(options.temperature) : 1;
    const Row row{logits, V, log_softmax<W>(logits, inverse, V, reinterpret_cast<float*>(shared)),
                  shared};

    if (options.temperature == 0) {  // the first of the largest
        int first = V;
        for (int v = threadIdx.x; v < V && first == V; v += kThreads)
            if (row.logits[v] == row.log_p.largest) first = v;
        first = -block_reduce(-first, -V, reinterpret_cast<int*>(shared), Max());
        first = min(first, V - 1);  // logits that are all NaN have no largest
        if (threadIdx.x == 0)
            tokens[blockIdx.x] = first, logp[blockIdx.x] = row.log_p(row.logits[first]);
        return;
    }
    Kept kept{0, V, 1};
    const bool truncated = options.top_k > 0 || options.top_p < 1;
    if (truncated) kept = truncate(row, options.top_k, options.top_p, candidates, segment_ties);

    // The first token, counted up, at which the cumulative probability exceeds u. Each warp adds up
    // a sixteenth of the vocabulary, and the sixteenth where it happens is divided once more;
    // through what is left warp 0 walks.
    const double u = philox_uniform(options.seed, counters + blockIdx.x * 4) * kept.mass,
                 each = truncated ? row.p(float_of(kept.order)) : 0;
    auto is_tie = [&](float z) { return truncated && order_of(z) == kept.order; };
    auto is_above = [&](float z) { return !truncated || order_of(z) > kept.order; };
    int begin = 0, end = V, ties_before = 0, possible = 0;
    double before = 0;
    for (int level = 0; level < 2; ++level) {
        const int segment = (end - begin + kThreads * W - 1) / (kThreads * W) * 32 * W,
                  from = begin + warp * segment, to = min(from + segment, end);
        double mass = 0;
        int ties = 0;
        for (int v = from + lane * W; v < to; v += 32 * W) {
            const auto z = load<W>(logits + v);
            for (int i = 0; i < W; ++i) {
                const bool above = is_above(z.v[i]), tie = is_tie(z.v[i]);
                const double p = row.p(z.v[i]);
                if (above) mass += p;
                ties += tie;
                if ((above || tie) && p > 1e-37) possible = max(possible, v + i);
            }
        }
        mass = warp_reduce(mass, Add());
        ties = warp_reduce(ties, Add());
        if (lane == 0) segment_mass[warp] = mass, segment_ties[warp] = ties;
        possible =
            block_reduce(possible, 0, reinterpret_cast<int*>(shared), Max());  // and a barrier
        int at = 0;
        for (; at < kWarps - 1; ++at) {
            const int kept_ties = max(0, min(segment_ties[at], kept.ties - ties_before));
            const double with = before + segment_mass[at] + kept_ties * each;
            if (with > u) break;
            before = with;
            ties_before += segment_ties[at];
        }
        begin += at * segment;
        end = min(begin + segment, end);
        __syncthreads();  // the next sums take the place of these
    }
    if (warp != 0) return;

    int token = possible;  // rounding may leave the sum just below u: then the last possible token
    for (int base = begin; base < end; base += 32) {
        const bool inside = base + lane < end;
        const float z = inside ? logits[base + lane] : 0;
        const unsigned tied = __ballot_sync(kAllLanes, inside && is_tie(z));
        const bool in =
            inside && (is_above(z) ||
                       (is_tie(z) && ties_before + __popc(tied & ((1u << lane) - 1)) < kept.ties));
        double cumulative = in ? row.p(z) : 0;
        for (int offset = 1; offset < 32; offset *= 2) {
            const double other = __shfl_up_sync(kAllLanes, cumulative, offset);
            if (lane >= offset) cumulative += other;
        }
        const unsigned exceeds = __ballot_sync(kAllLanes, in && before + cumulative > u);
        if (exceeds) {
            token = base + __ffs(static_cast<int>(exceeds)) - 1;
            break;
        }
        before += __shfl_sync(kAllLanes, cumulative, 31);
        ties_before += __popc(tied);
    }
    if (lane == 0) {
        tokens[blockIdx.x] = token;
        logp[blockIdx.x] =
            row.log_p(row.logits[token]) - (truncated ? static_cast<float>(log(kept.mass)) : 0);
    }
}

}  // namespace

void CudaBackend::sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                         const SampleOptions& options) {
    if (!logits.size()) return;
    choose(eightfold(logits.cols, logits.data), [&](auto wide) {
        constexpr int W = wide ? 8 : 1;
        launch(stream_, grid_of(logits.rows), kThreads,
               (32 + kWarps) * sizeof(double) + kWarps * sizeof(int) + kCandidates * sizeof(float),
               sample_kernel<W>, tokens.as<std::int32_t>(), logp.as<float>(), logits.as<float>(),
               counters.as<std::uint32_t>(), options, static_cast<int>(logits.cols));
    });
}

}  // namespace r1::cuda
