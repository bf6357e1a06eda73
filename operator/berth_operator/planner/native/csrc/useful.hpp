// Which options can be part of a cheap pattern at all?
#pragma once

#include <cstdint>
#include <vector>

#include "lanes.hpp"

namespace berth {

class Useful {
 public:
  // `times` [option]: nodes up to which an option can be part of a pattern that costs `ceiling` or less, with nodes
  // at `price` [option] and `penalty` for leaving all unserved.
  void nodes(const Lane& lane, const double* price, double penalty, double ceiling, int64_t* times);

 private:
  std::vector<double> share_, density_;
  std::vector<int64_t> dense_;
};

}  // namespace berth
