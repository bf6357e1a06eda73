// What do patterns serve?  lanes.py has the equation.

#include "serving.hpp"

#include "api.hpp"

namespace berth {

constexpr double kShareTolerance = 1e-9;  // of demand: what rounding may leave unserved of a pattern that serves all
constexpr double kFlat = 1e-6;            // by which a slope is below one at the least
constexpr int kSteps = 64;                // of Newton: a piece each, and there are two for every spot option and vendor

void pattern_of(const int64_t* nodes, int64_t options, Pattern& into) {
  into.clear();
  for (int64_t k = 0; k < options; ++k)
    if (nodes[k] > 0) into.push_back({k, nodes[k]});
}

const Pattern& Serving::most_replicas(const Lane& lane, const Pattern& nodes) {
  replicas_.clear();
  int64_t running = 0;
  for (const auto& [k, count] : nodes) {
    replicas_.push_back({k, count * lane.per_node[k]});
    running += replicas_.back().count;
  }
  int64_t excess = running - lane.most_replicas;
  if (excess <= 0) return replicas_;
  by_ability_.clear();
  for (size_t i = 0; i < nodes.size(); ++i) by_ability_.push_back({nodes[i].option, static_cast<int64_t>(i)});
  const auto able = [&](const Taken& one) { return lane.share[one.option] / lane.per_node[one.option]; };
  std::stable_sort(by_ability_.begin(), by_ability_.end(),
                   [&](const Taken& a, const Taken& b) { return able(a) < able(b); });
  for (const auto& [k, place] : by_ability_) {
    const int64_t left_out = std::min(excess, lane.per_node[k] - 1);
    replicas_[place].count -= left_out;
    excess -= left_out;
  }
  return replicas_;
}

Served Serving::served(const Lane& lane, const Pattern& nodes) {
  double spent = 0.0;
  for (const auto& [k, count] : nodes) spent += ceil_div(count, lane.parts[k]) * lane.usd[k];
  int64_t running = 0;
  const Pattern& replicas = most_replicas(lane, nodes);
  for (const auto& one : replicas) running += one.count;
  return {unserved(lane, replicas), std::max<int64_t>(lane.least - running, 0),
          spent <= lane.budget * (1 + 1e-9) && running <= lane.most_replicas};
}

// The greatest flow where the shares are those of a served share, and its slope just below.
Serving::Flow Serving::flow(const Lane& lane, double served, int64_t vendors) {
  std::fill_n(on_spot_.begin(), vendors, 0.0);
  std::fill_n(slope_.begin(), vendors, 0.0);
  for (const auto& spot : spot_) {
    const double most = spot.alone * served;
    on_spot_[spot.vendor] += std::min(spot.carried, most);
    if (most <= spot.carried) slope_[spot.vendor] += spot.alone;
  }
  double steady = 0.0, steady_slope = 0.0, spot = 0.0, spot_slope = 0.0;
  for (int64_t v = 0; v < vendors; ++v) {
    double mine = steady_[v], mine_slope = 0.0;
    if (lane.vendor_share < 1) {
      const double most = lane.vendor_share * served;
      if (most <= mine) mine = most, mine_slope = lane.vendor_share;
      const double room = most - mine, room_slope = lane.vendor_share - mine_slope;
      if (room < on_spot_[v] || (room == on_spot_[v] && room_slope > slope_[v]))
        on_spot_[v] = room, slope_[v] = room_slope;
    }
    steady += mine, steady_slope += mine_slope;
    spot += on_spot_[v], spot_slope += slope_[v];
  }
  const double most = lane.spot_share * served;
  if (most < spot || (most == spot && lane.spot_share > spot_slope)) spot = most, spot_slope = lane.spot_share;
  return {steady + spot, steady_slope + spot_slope};
}

double Serving::unserved(const Lane& lane, const Pattern& replicas) {
  const int64_t vendors = lane.vendor_share < 1 ? lane.vendors : 1;
  steady_.assign(vendors, 0.0), on_spot_.resize(vendors), slope_.resize(vendors);
  spot_.clear();
  int64_t steady = 0;
  for (const auto& [k, count] : replicas)
    if (!lane.spot[k]) steady += count;
  for (const auto& [k, count] : replicas) {
    const int64_t vendor = vendors > 1 ? lane.vendor[k] : 0;
    const double carried = count * lane.share[k] / lane.per_node[k];
    if (!lane.spot[k])
      steady_[vendor] += carried;
    else if (steady >= lane.floor)
      spot_.push_back({carried, lane.loss_share * lane.spread(k, ceil_div(count, lane.per_node[k])), vendor});
  }
  // Newton's steps from above, exact on a concave flow of straight pieces once the last piece is reached.
  double share = 1.0;
  Flow found = flow(lane, share, vendors);
  if (found.most >= 1 - kShareTolerance) return 0.0;
  for (int step = 0; step < kSteps && found.most < share - kShareTolerance / 10; ++step) {
    const double slope = std::clamp(found.slope, 0.0, 1 - kFlat);
    share = std::min(std::max((found.most - slope * share) / (1 - slope), 0.0), share);
    found = flow(lane, share, vendors);
  }
  if (found.most < share) share = std::max(found.most, 0.0);
  return share >= 1 - kShareTolerance ? 0.0 : 1 - share;
}

}  // namespace berth

// `nodes` [pattern, option] of lanes `lane` [pattern]: unserved, missing, allowed [pattern].
BERTH_API void berth_served(const berth::Lanes* lanes, const int64_t* lane, const int64_t* nodes, int64_t patterns,
                            double* unserved, int64_t* missing, bool* allowed) {
  berth::Serving serving;
  berth::Pattern pattern;
  for (int64_t i = 0; i < patterns; ++i, nodes += lanes->options) {
    berth::pattern_of(nodes, lanes->options, pattern);
    const berth::Served one = serving.served(berth::Lane(*lanes, lane[i]), pattern);
    unserved[i] = one.unserved, missing[i] = one.missing, allowed[i] = one.allowed;
  }
}

// The most `replicas` [pattern, option], which are zero before, on such nodes.
BERTH_API void berth_most_replicas(const berth::Lanes* lanes, const int64_t* lane, const int64_t* nodes,
                                   int64_t patterns, int64_t* replicas) {
  berth::Serving serving;
  berth::Pattern pattern;
  for (int64_t i = 0; i < patterns; ++i, nodes += lanes->options, replicas += lanes->options) {
    berth::pattern_of(nodes, lanes->options, pattern);
    for (const auto& [k, count] : serving.most_replicas(berth::Lane(*lanes, lane[i]), pattern)) replicas[k] = count;
  }
}

// What `replicas` [pattern, option] leave unserved.
BERTH_API void berth_unserved(const berth::Lanes* lanes, const int64_t* lane, const int64_t* replicas,
                              int64_t patterns, double* unserved) {
  berth::Serving serving;
  berth::Pattern pattern;
  for (int64_t i = 0; i < patterns; ++i, replicas += lanes->options) {
    berth::pattern_of(replicas, lanes->options, pattern);
    unserved[i] = serving.unserved(berth::Lane(*lanes, lane[i]), pattern);
  }
}
