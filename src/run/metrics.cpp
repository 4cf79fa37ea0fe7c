#include "src/run/metrics.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

namespace r1 {

Metrics::Entry& Metrics::entry(const std::string& name, Kind kind, double initial) {
    const auto found = std::ranges::find(entries_, name, &Entry::name);
    if (found == entries_.end()) return entries_.emplace_back(Entry{name, kind, initial, 0});
    if (found->kind != kind)
        throw std::logic_error("the metric " + name + " is recorded in two ways");
    return *found;
}

void Metrics::mean(const std::string& name, double value, double count) {
    Entry& e = entry(name, Kind::Mean, 0);
    e.value += value;
    e.count += count;
}

void Metrics::sum(const std::string& name, double value) {
    entry(name, Kind::Sum, 0).value += value;
}

void Metrics::max(const std::string& name, double value) {
    Entry& e = entry(name, Kind::Max, -std::numeric_limits<double>::infinity());
    e.value = std::max(e.value, value);
}

void Metrics::local(const std::string& name, double value) {
    entry(name, Kind::Local, 0).value += value;
}

void Metrics::lap(const std::string& name) {
    const double now = age();
    local(name, now - last_lap_);
    last_lap_ = now;
}

double Metrics::operator[](const std::string& name) const {
    const auto found = std::ranges::find(entries_, name, &Entry::name);
    return found == entries_.end() ? std::nan("") : found->result();
}

void Metrics::all_reduce(const Comm& comm) {
    std::string names;
    std::vector<double> sums, maxima;
    for (const Entry& e : entries_) {
        names += e.name + ' ';
        sums.push_back(e.value);
        sums.push_back(e.count);
        maxima.push_back(e.value);
    }
    // Values are matched by their places alone. Where a rank has other names, the largest hash and
    // the smallest one differ.
    const auto hash = static_cast<double>(std::hash<std::string>()(names) >> 12);
    double largest_and_smallest[2] = {hash, -hash};
    comm.all_reduce_max(largest_and_smallest);
    if (largest_and_smallest[0] != -largest_and_smallest[1])
        throw std::logic_error("the ranks have measured different things");
    comm.all_reduce_max(maxima);
    comm.all_reduce_sum(sums);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        Entry& e = entries_[i];
        if (e.kind == Kind::Mean || e.kind == Kind::Sum) e.value = sums[2 * i];
        if (e.kind == Kind::Max) e.value = maxima[i];
        e.count = sums[2 * i + 1];
    }
}

nlohmann::ordered_json Metrics::json() const {
    nlohmann::ordered_json object;
    for (const Entry& e : entries_)
        object[nlohmann::ordered_json::json_pointer("/" + e.name)] = e.result();
    return object;
}

}  // namespace r1
