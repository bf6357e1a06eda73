// What do nodes cost that carry so many units?  Tables of a covering knapsack.
//
// Option by option, with c the cost of a node and g(j) the units that j of them carry, rounded up:
//
//     after(w) = min over j <= most of before(w - g(j)) + j c
//
// A second coordinate counts replicas still wanted.  Options whose nodes carry less than a unit would each be rounded up
// by most of one.  They are one fluid together: y units of it cost what the densest of them cost at the least, in
// fractions of nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace berth {

constexpr double kHuge = 1e30;

// What can be bought of an option.
struct Nodes {
  int64_t option, times, replicas;  // nodes at most; replicas of a node
  double carried, cost;             // units and USD/h of a node
  double cap;                       // units that all of them may carry, however many
};

class Cover {
 public:
  // Tables of `levels` (replicas wanted, from 0) and `width` (units, from 0).  Returns the costs [level, unit] without
  // any node, to be filled in.
  double* begin(int64_t levels, int64_t width);
  // Options that carry no more than a unit, as a fluid; before all others, on one level.
  void add_fluid(const std::vector<Nodes>& small);
  // `units` [j - 1]: what j nodes may carry at the most; j <= of.times.
  void add(const Nodes& of, const std::vector<double>& units);

  // [level, unit] least costs.
  const double* costs() const { return tables_.data() + tables_.size() - size_; }
  bool empty() const { return steps_.empty(); }
  // Add to `into` [option] what the cost at (level, unit) is made of.  `exactly`: units that there must be without
  // rounding; of the fluid so many nodes are taken.
  void trace(int64_t level, int64_t unit, double exactly, int64_t* into) const;

 private:
  struct Choice {
    int64_t nodes, gain, replicas;
    double cost;
  };
  struct Step {
    Nodes of;
    size_t begin, end;  // of its choices
  };
  void take(const Nodes& of, size_t begin);
  void pour(double lacking, int64_t* into) const;

  int64_t levels_ = 0, width_ = 0;
  size_t size_ = 0;
  std::vector<double> tables_;  // before each step, and the last
  std::vector<Choice> choices_;
  std::vector<Step> steps_;
  std::vector<Nodes> fluid_;  // the densest first
};

// out[y] = least of left[y - x] + right[x] over x < right_width and x <= y < width.
void min_plus(const double* left, const double* right, int64_t width, int64_t right_width, double* out);

}  // namespace berth
