// How long do turns take on a replica at a given rate?  The model is told in ../../queueing.py.
#pragma once

#include "station.hpp"

namespace berth {

// Share of turns, or tokens, that may take longer than an objective.
constexpr double kLate = 0.01;

// What turns have ahead of them that find i others, by column: like the station the same at all rates, unless sessions
// are forgotten.
struct Ahead {
  const Speed* speed = nullptr;
  const Load* load = nullptr;
  Station station;
  Column noise;                                       // deviation of steps over their mean
  std::array<Cumulants, kKinds> free, behind;          // when the first token comes, where no prompt is ahead, and one is
  Column late, usual;                                 // share of first tokens later than promised, and their mean time
  std::array<Cumulants, kKinds> before;                // a turn but for decoding, without noise
  Column base;                                        // logarithm of P at one turn/s

  // Requires that `station` is solved for both, which must outlive this.
  void set(const Speed& speed, const Load& load);
  // Share of turns whose first token takes longer than `limit` seconds, and its mean time, with a slot free.
  void first_tokens(double limit, Column& late, Column& usual) const;

 private:
  void read_behind(const Column& own);

  Column read_behind_;  // T of a prompt that others are read before
};

// A replica at a rate, which has as many slots as its last column says, by the turns that an arrival finds.
class Queue {
 public:
  // `rate`: turns/s.  `slots`: the last column.
  void set(const Ahead& ahead, double rate, int slots);

  double rate() const { return rate_; }
  bool stable(int column) const;
  // Share of turns whose first token comes later than promised, with `turns[column]` slots; likewise below.
  double first_late(int column) const;
  double first_late(int column, double limit);
  // Works out how long turns take, for the two that ask it below.
  void turns();
  double turn_late(int column, double limit);
  // p99 between a stream's tokens, seconds: of all steps, with a chunk and without.
  double gap_p99(int column) const;

  const Column& found() const { return weights_; }  // chance of what an arrival finds

 private:
  double coming(int column) const;
  double late(int column, const Column& by_state, double slack) const;
  double let_in(const Column& by_state, int column) const;

  const Ahead* ahead_ = nullptr;
  double rate_ = 0, away_ = 0, sessions_ = 0;
  int columns_ = 0;
  Column chance_, weights_;
  Column between_;  // chance of the whole numbers about a column
  Column late_, usual_;
  std::array<Cumulants, kKinds> turn_;
};

}  // namespace berth
