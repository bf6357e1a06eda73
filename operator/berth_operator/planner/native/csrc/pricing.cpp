// Which pattern of a pool is cheapest when the shared nodes have a price?

#include "pricing.hpp"

#include "api.hpp"
#include "beside.hpp"

// Lanes times units from which two threads are faster than one: a lane of 60 units takes some 10 microseconds.
constexpr int64_t kWorthTwo = 1500;

// `bound`, `nodes` [.., option], zero before, and `found` of lanes `lane` at `node_price` [.., option], `penalty`, `ceiling`.
BERTH_API void berth_price(
    const berth::Lanes* lanes, const int64_t* lane, int64_t count, const double* node_price, const double* penalty,
    double missing_price, const double* ceiling, int64_t units, double lacking, double* bound, int64_t* nodes,
    bool* found) {
  berth::each<berth::Pricer>(count, count * units < kWorthTwo, [&](berth::Pricer& pricer, int64_t i) {
    const int64_t row = i * lanes->options;
    const berth::Question question{node_price + row, penalty[i], missing_price, ceiling[i], lacking, units};
    found[i] = pricer.price(berth::Lane(*lanes, lane[i]), question, bound + i, nodes + row);
  });
}
