// Which neighbours of patterns are cheaper?

#include <cmath>

#include "api.hpp"
#include "neighbours.hpp"

// Better `nodes` [pattern, option] of lanes `lane` [pattern] and their `cost` [pattern], nodes at `node_price` [pattern,
// option], `unserved` [pattern] for leaving all unserved; patterns that break a rule, whose cost is infinite, stay.
BERTH_API void berth_better(
    const berth::Lanes* lanes, const double* node_price, const double* unserved, double missing, double least,
    const int64_t* lane, int64_t patterns, int64_t most, int64_t exchange, int64_t* nodes, double* cost) {
  berth::Neighbours neighbours;
  for (int64_t i = 0; i < patterns; ++i) {
    const int64_t row = i * lanes->options;
    const berth::Prices prices{node_price + row, unserved[i], missing, least};
    if (std::isfinite(cost[i]))
      neighbours.better(berth::Lane(*lanes, lane[i]), prices, nodes + row, cost + i, most, exchange != 0);
  }
}
