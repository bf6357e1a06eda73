// Pools and their options as arrays by lane and option (lanes.py says what each is, `Lanes` there fills them in).
#pragma once

#include <algorithm>
#include <cstdint>

namespace berth {

struct Lanes {
  int64_t options, vendors, most_nodes;
  const double *share, *usd;
  const int64_t *per_node, *most, *parts, *vendor, *zones, *spread;
  const bool* spot;
  const double* spreads;  // [kind, nodes], nodes below `most_nodes`
  const double* widest;   // [kind] the greatest of them
  const double *spot_share, *loss_share, *vendor_share, *budget;
  const int64_t *floor, *least, *most_replicas;
};

// The rows of one lane.
struct Lane {
  Lane(const Lanes& all, int64_t lane)
      : options(all.options), vendors(all.vendors), most_nodes(all.most_nodes),
        share(all.share + lane * options), usd(all.usd + lane * options),
        per_node(all.per_node + lane * options), most(all.most + lane * options), parts(all.parts + lane * options),
        vendor(all.vendor + lane * options), zones(all.zones + lane * options), kind(all.spread + lane * options),
        spot(all.spot + lane * options), spreads(all.spreads), widest(all.widest),
        spot_share(all.spot_share[lane]), loss_share(all.loss_share[lane]), vendor_share(all.vendor_share[lane]),
        budget(all.budget[lane]), floor(all.floor[lane]), least(all.least[lane]),
        most_replicas(all.most_replicas[lane]) {}

  // Times that one zone's share fits into so many nodes; of more than can be of use, that of as many as can.
  double spread(int64_t option, int64_t nodes) const {
    return kind[option] > 0 ? spreads[kind[option] * most_nodes + std::min(nodes, most_nodes - 1)] : 1.0;
  }

  // Share of traffic that its nodes may carry at the most where it is spot, however many.
  double most_lost(int64_t option) const { return loss_share * widest[kind[option]]; }

  bool uses_spot() const {
    if (spot_share <= 0) return false;
    for (int64_t k = 0; k < options; ++k)
      if (spot[k] && most[k] > 0) return true;
    return false;
  }

  int64_t options, vendors, most_nodes;
  const double *share, *usd;
  const int64_t *per_node, *most, *parts, *vendor, *zones, *kind;
  const bool* spot;
  const double *spreads, *widest;
  double spot_share, loss_share, vendor_share, budget;
  int64_t floor, least, most_replicas;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace berth
