// What the contract defines by itself: primitives composed of others, and those that a first port
// leaves to the host.
#include "src/device/backend.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "src/run/comm.h"

namespace r1 {
namespace {

/// Runs `body` with the reference and with copies of the tensors in the host's memory; those that
/// it changes are copied back.
template <class Body>
void compute_on_host(Backend& device, std::initializer_list<Tensor*> changed,
                     std::initializer_list<Tensor*> read, Body body) {
    std::vector<std::pair<Tensor, std::vector<std::byte>>> copies;
    for (const auto& tensors : {changed, read})
        for (Tensor* t : tensors) {
            auto& [original, bytes] = copies.emplace_back(*t, std::vector<std::byte>(t->bytes()));
            device.download(bytes.data(), original);
            t->data = bytes.data();
        }
    body(*make_reference_backend(device.real()));
    for (std::size_t i = 0; i < changed.size(); ++i)
        device.upload(copies[i].first, copies[i].second.data());
}

}  // namespace

void Backend::zero(Tensor t) { upload(t, std::vector<std::byte>(t.bytes()).data()); }

void Backend::to_bfloat16(Tensor to, Tensor from) {
    compute_on_host(*this, {&to}, {&from}, [&](Backend& host) { host.to_bfloat16(to, from); });
}

void Backend::replay(std::shared_ptr<void>&, const std::function<void()>& body) { body(); }

void Backend::advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters) {
    compute_on_host(*this, {&positions, &rows, &spans, &counters}, {},
                    [&](Backend& host) { host.advance(positions, rows, spans, counters); });
}

void Backend::head_forward(Tensor logp, Tensor entropy, Tensor hidden, Tensor weight,
                           Tensor targets, float temperature, Tensor logits) {
    for (std::int64_t m = 0; m < hidden.rows; m += logits.rows) {
        const std::int64_t rows = std::min(logits.rows, hidden.rows - m);
        const Tensor chunk = logits.slice(0, rows);
        linear_forward(chunk, hidden.slice(m, rows), weight, {});
        softmax_forward(logp.slice(m, rows), entropy.slice(m, rows), chunk, targets.slice(m, rows),
                        temperature);
    }
}

void Backend::head_backward(Tensor dhidden, Tensor dweight, Tensor dlogp, Tensor dentropy,
                            Tensor logp, Tensor entropy, Tensor hidden, Tensor weight,
                            Tensor targets, float temperature, Tensor logits) {
    for (std::int64_t m = 0; m < hidden.rows; m += logits.rows) {
        const std::int64_t rows = std::min(logits.rows, hidden.rows - m);
        const Tensor chunk = logits.slice(0, rows);
        if (rows < hidden.rows) linear_forward(chunk, hidden.slice(m, rows), weight, {});
        softmax_backward(chunk, dlogp.slice(m, rows), dentropy ? dentropy.slice(m, rows) : Tensor{},
                         logp.slice(m, rows), entropy.slice(m, rows), targets.slice(m, rows),
                         temperature);
        linear_backward(dhidden.slice(m, rows), dweight, {}, chunk, hidden.slice(m, rows), weight);
    }
}

void Backend::sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                     const SampleOptions& options) {
    compute_on_host(*this, {&tokens, &logp}, {&logits, &counters},
                    [&](Backend& host) { host.sample(tokens, logp, logits, counters, options); });
}

double Backend::sum_of_squares(Tensor t) {
    double sum = 0;
    compute_on_host(*this, {}, {&t}, [&](Backend& host) { sum = host.sum_of_squares(t); });
    return sum;
}

void Backend::adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
                    const AdamWOptions& options) {
    compute_on_host(*this, {&param, &copy, &grad, &m, &v}, {},
                    [&](Backend& host) { host.adamw(param, copy, grad, m, v, options); });
}

void Backend::all_reduce_sum(Tensor t, const Comm& ranks) {
    if (ranks.size() == 1) return;
    const Tensor all = t.reshape(t.size(), 1);
    std::vector<float> host(std::min<std::int64_t>(t.size(), 1 << 22));
    for (std::int64_t begin = 0; begin < t.size(); begin += std::ssize(host)) {
        const Tensor part = all.slice(begin, std::min(std::ssize(host), t.size() - begin));
        download(host.data(), part);
        ranks.all_reduce_sum(std::span(host).first(part.size()));
        upload(part, host.data());
    }
}

void Backend::count(std::size_t taken, std::size_t given) {
    used_ += taken - given;
    peak_ = std::max(peak_, used_);
}

Buffer::Buffer(Backend& backend, std::size_t bytes)
    : backend_(&backend), data_(backend.allocate(bytes)), bytes_(bytes) {
    backend.count(bytes, 0);
}
Buffer::~Buffer() {
    if (!data_) return;
    backend_->release(data_);
    backend_->count(0, bytes_);
}

void download_floats(Backend& backend, Tensor from, std::span<float> to) {
    if (from.dtype == DType::F32) return backend.download(to.data(), from);
    if (from.dtype == DType::BF16) {
        std::vector<std::uint16_t> narrow(to.size());
        backend.download(narrow.data(), from);
        std::ranges::transform(narrow, to.begin(), from_bfloat16);
    } else {
        std::vector<double> wide(to.size());
        backend.download(wide.data(), from);
        std::ranges::copy(wide, to.begin());
    }
}

void upload_floats(Backend& backend, Tensor to, std::span<const float> from) {
    if (to.dtype == DType::F32) return backend.upload(to, from.data());
    if (to.dtype == DType::BF16) {
        std::vector<std::uint16_t> narrow(from.size());
        std::ranges::transform(from, narrow.begin(), to_bfloat16);
        backend.upload(to, narrow.data());
    } else {
        backend.upload(to, std::vector<double>(from.begin(), from.end()).data());
    }
}

}  // namespace r1
