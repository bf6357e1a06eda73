// What patterns serve.
#pragma once

#include <cstdint>
#include <vector>

#include "lanes.hpp"

namespace berth {

constexpr double kTolerance = 1e-6;  // pricing.TOLERANCE

// So many nodes, or replicas, of an option.
struct Taken {
  int64_t option, count;
};
using Pattern = std::vector<Taken>;

struct Served {
  double unserved;  // share of demand
  int64_t missing;  // replicas to minReplicas
  bool allowed;     // within budget and maxReplicas
};

// The options of which `nodes` [option] has any, in their order.
void pattern_of(const int64_t* nodes, int64_t options, Pattern& into);

class Serving {
 public:
  Served served(const Lane& lane, const Pattern& nodes);
  double unserved(const Lane& lane, const Pattern& replicas);
  // All replicas that nodes hold.  Above maxReplicas the least able ones are left out, as long as the same nodes are
  // needed.
  const Pattern& most_replicas(const Lane& lane, const Pattern& nodes);

 private:
  struct Spot {
    double carried, alone;  // share of demand, and of what is served, that it may carry at the most
    int64_t vendor;
  };
  struct Flow {
    double most, slope;
  };
  Flow flow(const Lane& lane, double served, int64_t vendors);

  Pattern replicas_, by_ability_;
  std::vector<Spot> spot_;
  std::vector<double> steady_, on_spot_, slope_;  // [vendor]
};

}  // namespace berth
