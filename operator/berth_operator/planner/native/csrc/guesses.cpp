// Patterns that are likely good (quick.py).

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "lanes.hpp"

namespace berth {
namespace {

constexpr double kHuge = 1e30;
constexpr double kSmall = 1e-12;
constexpr double kRound = 1e-9;

class Guesses {
 public:
  Guesses(const Lanes& lanes, int64_t dense, int64_t spot_classes)
      : dense_(dense), spot_classes_(std::min(spot_classes, lanes.options)), steady_(lanes.options),
        some_(lanes.options), room_(lanes.options), wide_(lanes.options), spot_nodes_(lanes.options),
        order_(lanes.options), by_spot_(lanes.options), best_(lanes.vendors), vendors_(lanes.vendors) {}

  // Into `found`, [guess, ., option] with `stride` between guesses: as many as spot classes and one, and one more with
  // `by_vendor`.
  void of(const Lane& lane, const double* price, bool by_vendor, int64_t* found, int64_t stride) {
    for (int64_t k = 0; k < lane.options; ++k) {
      const bool usable = lane.most[k] > 0 && lane.share[k] > 0;
      wide_[k] = std::max(lane.share[k], kSmall);
      room_[k] = std::max(lane.most[k] * lane.share[k], 0.0);
      const double density = usable ? price[k] / wide_[k] : kHuge;
      steady_[k] = lane.spot[k] ? kHuge : density;
      some_[k] = lane.spot[k] ? density : kHuge;
      spot_nodes_[k] = 0;
    }
    sort(some_, by_spot_);
    sort(steady_, order_);
    double carried = 0.0;
    for (int64_t step = 0;; ++step, found += stride) {
      for (int64_t k = 0; k < lane.options; ++k) found[k] += spot_nodes_[k];
      finish(lane, price, steady_, 1.0 - carried, found);
      if (step == spot_classes_) break;
      carried += with_spot(lane, by_spot_[step], carried);
    }
    if (by_vendor) two_vendors(lane, price, found + stride);
  }

 private:
  // Indices in the order of `values`.
  static void sort(const std::vector<double>& values, std::vector<int64_t>& order) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] < values[b]; });
  }

  // Nodes of a spot class, as many as it may carry; returns the share of demand that they do.
  double with_spot(const Lane& lane, int64_t k, double carried) {
    if (!lane.spot[k] || some_[k] >= kHuge) return 0.0;
    double most = std::min(lane.most_lost(k), lane.spot_share - carried);
    const double wanted = std::ceil(most / wide_[k] - kRound);
    const auto nodes = static_cast<int64_t>(std::clamp(wanted, 0.0, static_cast<double>(lane.most[k])));
    most = std::min(most, lane.loss_share * lane.spread(k, nodes));
    spot_nodes_[k] += nodes;
    return std::min(nodes * lane.share[k], std::max(most, 0.0));
  }

  // Add whole nodes of one dense option, and the remainder of `rest` on the cheapest option for it.  `order_` is that of
  // `density`.
  void finish(const Lane& lane, const double* price, const std::vector<double>& density, double rest, int64_t* nodes) {
    double best = std::numeric_limits<double>::infinity(), bulk_nodes = 0.0, last_nodes = 0.0;
    int64_t bulk = 0, last = 0;
    for (int64_t step = 0; step < std::min(dense_, lane.options); ++step) {
      const int64_t k = order_[step];
      if (density[k] >= kHuge) break;
      const double whole = std::floor(std::min(rest, room_[k]) / wide_[k] + kRound);
      double left = std::max(rest - whole * lane.share[k], 0.0);
      if (left < kRound) left = 0.0;
      int64_t finisher = 0;
      double least = left > 0 ? kHuge : 0.0;
      for (int64_t j = 0; left > 0 && j < lane.options; ++j) {
        if (density[j] >= kHuge) continue;
        const double count = std::ceil(left / wide_[j] - kRound);
        if (count * price[j] < least && count * lane.share[j] <= room_[j] + lane.share[j] * kRound)
          least = count * price[j], finisher = j;
      }
      const double cost = whole * price[k] + least;
      if (cost >= best) continue;
      best = cost, bulk = k, bulk_nodes = whole, last = finisher;
      last_nodes = left > 0 ? std::ceil(left / wide_[finisher] - kRound) : 0.0;
    }
    nodes[bulk] += static_cast<int64_t>(bulk_nodes);
    nodes[last] += static_cast<int64_t>(last_nodes);
  }

  // The two cheapest vendors, the first with as much as it may carry.
  void two_vendors(const Lane& lane, const double* price, int64_t* nodes) {
    std::fill(best_.begin(), best_.end(), kHuge);
    for (int64_t k = 0; k < lane.options; ++k)
      best_[lane.vendor[k]] = std::min(best_[lane.vendor[k]], steady_[k]);
    sort(best_, vendors_);
    const double part = std::min(lane.vendor_share, 1.0);
    for (size_t place = 0; place < std::min<size_t>(2, vendors_.size()); ++place) {
      for (int64_t k = 0; k < lane.options; ++k)
        some_[k] = lane.vendor[k] == vendors_[place] ? steady_[k] : kHuge;
      sort(some_, order_);
      finish(lane, price, some_, place == 0 ? part : 1 - part, nodes);
    }
  }

  int64_t dense_, spot_classes_;
  std::vector<double> steady_, some_;                   // [option] USD/h for all demand: of steady ones, of some
  std::vector<double> room_, wide_;                     // [option] share of demand: of all nodes, of one
  std::vector<int64_t> spot_nodes_, order_, by_spot_;   // [option]
  std::vector<double> best_;                            // [vendor]
  std::vector<int64_t> vendors_;                        // by that
};

}  // namespace
}  // namespace berth

// Into `found` [guess, pattern, option] of lanes `lane` [pattern], nodes at `price` [pattern, option].
extern "C" __attribute__((visibility("default"))) void berth_guesses(
    const berth::Lanes* lanes, const double* price, const int64_t* lane, int64_t patterns, int64_t dense,
    int64_t spot_classes, int64_t by_vendor, int64_t* found) {
  berth::Guesses guesses(*lanes, dense, spot_classes);
  for (int64_t i = 0; i < patterns; ++i) {
    const int64_t row = i * lanes->options;
    guesses.of(berth::Lane(*lanes, lane[i]), price + row, by_vendor != 0, found + row, patterns * lanes->options);
  }
}
