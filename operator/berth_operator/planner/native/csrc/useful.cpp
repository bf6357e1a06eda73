// Which options can be part of a cheap pattern at all?  useful.py says why.

#include "useful.hpp"

#include <cmath>

#include "api.hpp"

namespace berth {
namespace {

constexpr double kHair = 1e-9, kNothing = 1e-12;
constexpr double kRounds = 4;  // zones.ROUNDS

// Nodes from which more carry no more: where they lie in several zones, as many in each as may be lost of one.
double carrying_more(const Lane& lane, int64_t k, double share, double available) {
  if (lane.kind[k] > 0) {
    const double rounds = std::ceil(lane.loss_share / share - kHair);
    return lane.per_node[k] == 1 && rounds <= kRounds ? rounds * static_cast<double>(lane.zones[k]) : available;
  }
  return std::ceil((lane.spot[k] ? std::min(lane.most_lost(k), 1.0) : 1.0) / share - kHair);
}

}  // namespace

void Useful::nodes(const Lane& lane, const double* price, double penalty, double ceiling, int64_t* times) {
  const int64_t options = lane.options;
  const double spot_share = lane.spot_share;
  const bool idle = spot_share <= 0 && lane.least <= 1;  // spot that may carry nothing still counts as a replica
  share_.resize(options), density_.resize(options), dense_.clear();
  double steady = penalty;  // value of a unit carried by steady nodes
  for (int64_t k = 0; k < options; ++k) {
    times[k] = lane.spot[k] && idle ? 0 : lane.most[k];
    if (lane.share[k] <= 0) times[k] = 0;
    if (times[k] <= 0) continue;
    // Of a node that could carry more than it may, the rest is worth nothing.
    const double may = lane.spot[k] ? std::min(lane.most_lost(k), spot_share) : 1.0;
    share_[k] = std::max(std::min(lane.share[k], may), 0.0);
    density_[k] = price[k] / std::max(share_[k], kNothing);
    if (lane.spot[k])
      dense_.push_back(k);
    else
      steady = std::min(steady, density_[k]);
  }
  std::stable_sort(dense_.begin(), dense_.end(), [&](int64_t a, int64_t b) { return density_[a] < density_[b]; });
  double marginal = steady, filled = 0.0;
  for (size_t i = 0; i < dense_.size() && filled < spot_share; ++i) {
    const int64_t k = dense_[i];
    if (density_[k] >= steady) break;
    filled += std::min(lane.most_lost(k), static_cast<double>(times[k]) * share_[k]);
    if (filled >= spot_share) marginal = density_[k];
  }
  // Spot below the marginal density pays until its share is full: the better of both roundings is allowed for.
  double relaxed = steady - (steady - marginal) * spot_share;
  for (const int64_t k : dense_) {
    const double available = static_cast<double>(times[k]), lost = lane.most_lost(k);
    const double each = price[k] - marginal * share_[k];
    const double whole = std::floor(lost / std::max(share_[k], kNothing) + kHair), up = std::min(whole + 1, available);
    const double over = up * price[k] - marginal * std::min(up * share_[k], lost);
    relaxed += std::min({0.0, std::min(whole, available) * each, over});
  }
  const double slack = std::max(ceiling - relaxed, 0.0) * (1 + 1e-9) + 1e-9;
  const int64_t floor = std::max(lane.least, lane.uses_spot() ? lane.floor : 0);
  for (int64_t k = 0; k < options; ++k) {
    if (times[k] <= 0) continue;
    const double available = static_cast<double>(times[k]);
    const double useful = std::max(carrying_more(lane, k, std::max(share_[k], kNothing), available),
                                   static_cast<double>(ceil_div(floor, lane.per_node[k])));
    const double each = price[k] - (lane.spot[k] ? marginal : steady) * share_[k];
    double most = std::min(useful, available);
    if (each > 0) most = std::min(most, std::floor(std::min(slack / std::max(each, 1e-15), 1e9)));
    times[k] = static_cast<int64_t>(most);
  }
}

}  // namespace berth

// `times` [lane, option] of lanes `lane` [lane], at `node_price` [lane, option], `penalty` and `ceiling` [lane].
BERTH_API void berth_useful_nodes(
    const berth::Lanes* lanes, const int64_t* lane, int64_t count, const double* node_price, const double* penalty,
    const double* ceiling, int64_t* times) {
  berth::Useful useful;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = i * lanes->options;
    useful.nodes(berth::Lane(*lanes, lane[i]), node_price + row, penalty[i], ceiling[i], times + row);
  }
}
