// Which neighbour of a pattern is cheaper?
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lanes.hpp"
#include "serving.hpp"

namespace berth {

struct Prices {
  const double* node;  // [option]
  double unserved, missing, least;

  double shortage(double share) const {
    return share > kTolerance ? std::max(share, least) * unserved : 0.0;
  }
};

class Neighbours {
 public:
  // Nodes added, and with `exchange` also taken away or exchanged one for one, the best each time, while that makes
  // the pattern cheaper.
  void better(const Lane& lane, const Prices& prices, int64_t* nodes, double* cost, int64_t most, bool exchange) {
    for (int64_t step = 0; step < most; ++step) {
      pattern_of(nodes, lane.options, pattern_);
      double base = 0.0;
      for (const auto& [k, count] : pattern_) base += count * prices.node[k];
      if (!exchange && *cost <= base + kGain) return;
      best_ = *cost - kGain, add_ = take_ = kNone;
      look(lane, prices, base, *cost - base, nodes, exchange);
      if (add_ == kNone && take_ == kNone) return;
      if (add_ != kNone) ++nodes[add_];
      if (take_ != kNone) --nodes[take_];
      *cost = best_;
    }
  }

 private:
  static constexpr double kGain = 1e-9;  // USD/h that a step has to gain
  static constexpr int64_t kNone = -1;

  // `lacking`: what goes for shortage, which is the most that a neighbour may cost more in nodes.
  void look(const Lane& lane, const Prices& prices, double base, double lacking, const int64_t* nodes, bool exchange) {
    double steady = 0.0, on_spot = 0.0;
    for (const auto& [k, count] : pattern_) (lane.spot[k] ? on_spot : steady) += carried(lane, k, count);
    for (int64_t i = 0; i <= lane.options; ++i) {
      const int64_t add = i < lane.options ? i : kNone;
      if (add != kNone && (nodes[add] >= lane.most[add] || (lane.spot[add] && lane.spot_share <= 0))) continue;
      const double more = add == kNone ? 0.0 : carried(lane, add, nodes[add] + 1) - carried(lane, add, nodes[add]);
      for (size_t j = exchange ? 0 : pattern_.size(); j <= pattern_.size(); ++j) {
        const int64_t take = j < pattern_.size() ? pattern_[j].option : kNone;
        if (add == take) continue;
        const double dearer = (add == kNone ? 0.0 : prices.node[add]) - (take == kNone ? 0.0 : prices.node[take]);
        if (dearer >= lacking - kGain || base + dearer > best_ + kGain) continue;
        double by_steady = steady, by_spot = on_spot;
        if (add != kNone) (lane.spot[add] ? by_spot : by_steady) += more;
        if (take != kNone) {
          const double less = carried(lane, take, nodes[take]) - carried(lane, take, nodes[take] - 1);
          (lane.spot[take] ? by_spot : by_steady) -= less;
        }
        const double least = dearer + prices.shortage(1 - most_served(lane, by_steady, by_spot));
        if (least >= lacking - kGain || base + least > best_ + kGain) continue;
        consider(lane, prices, add, take);
      }
    }
  }

  // Nobody serves more than nodes can carry, of which no more than its share is on spot.
  static double most_served(const Lane& lane, double by_steady, double by_spot) {
    const double most = by_steady + std::min(by_spot, lane.spot_share);
    return lane.spot_share < 1 ? std::min(most, std::max(by_steady, 0.0) / (1 - lane.spot_share)) : most;
  }

  // Share of demand that so many nodes of an option carry at the most.
  static double carried(const Lane& lane, int64_t k, int64_t count) {
    const double all = static_cast<double>(count) * lane.share[k];
    return lane.spot[k] ? std::min(all, lane.most_lost(k)) : all;
  }

  void consider(const Lane& lane, const Prices& prices, int64_t add, int64_t take) {
    tried_.clear();
    bool added = add == kNone;
    for (const auto& [k, count] : pattern_) {
      if (!added && k >= add) {
        added = true;
        if (k > add) tried_.push_back({add, 1});
      }
      if (const int64_t now = count + (k == add) - (k == take); now > 0) tried_.push_back({k, now});
    }
    if (!added) tried_.push_back({add, 1});
    double cost = 0.0;
    for (const auto& [k, count] : tried_) cost += count * prices.node[k];
    const Served served = serving_.served(lane, tried_);
    if (!served.allowed) return;
    cost += prices.shortage(served.unserved) + served.missing * prices.missing;
    if (cost < best_) best_ = cost, add_ = add, take_ = take;
  }

  Serving serving_;
  Pattern pattern_, tried_;
  double best_ = 0.0;
  int64_t add_ = kNone, take_ = kNone;
};

}  // namespace berth
