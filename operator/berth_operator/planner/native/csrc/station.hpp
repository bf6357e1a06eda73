// What n turns in a replica do to each other; the model is told in ../../queueing.py.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "arithmetic.hpp"

namespace berth {

// Figures by column: by the number of turns in a replica.
using Column = std::vector<double>;

constexpr int kKinds = 3;

// A workload and its promises; seconds and tokens.
struct Load {
  double prompt_tokens, output_tokens, context_tokens, cached_share, turns_per_session, think_seconds;
  double prompt_spread;  // variance over squared mean of a turn's uncached prompt
  double output_spread;
  double first_token, gap, turn;
  double sessions;  // that all turns are of, each with one at a time; infinite where unknown: turns come at random

  bool keeps() const { return turns_per_session > 1; }
  double new_tokens() const;
  double growth() const;
  double reread() const;

 private:
  double most_growth() const;
};

static_assert(sizeof(Load) == 12 * sizeof(double));  // as queueing.LOAD

// How fast a replica is, by column: turns[0] = 0, then ascending from 1.
struct Speed {
  Column turns;
  Column step;  // seconds of a decode step with so many streams; column 0 as column 1
  Column gap_p99, idle;
  double prefill_tokens_per_second;  // at the load's mean context
  double attention_seconds;          // that reading a token of a prompt takes longer for each token before it
  double kv_cache_tokens;
  double token_budget;  // of a step, streams' tokens among them; 0: a pace bounds its chunks
  double pace;          // p99 between tokens, seconds, that it is told to keep

  int columns() const { return static_cast<int>(turns.size()); }
};

// Prefill that one kind of turn brings, seconds; mean, variance, and third cumulant.
struct Work {
  double mean, variance, third;
};

// Times by column, seconds.
struct Cumulants {
  Column mean, variance, third;

  void resize(int columns);
};

// Share of later turns that find their session in memory at that rate, turns/s.
double kept_sessions(const Speed& speed, const Load& load, double rate);

// Seconds by which a chunk lengthens a step of that many seconds: e.
void added_seconds(const Speed& speed, const Column& step, Column& added);
// Seconds: a lower pace than the first is as good as that, and a higher one than the second.
std::pair<double, double> pace_range(const Speed& speed);

// n turns in a replica, by column; but for forgotten sessions, no matter how many come.
struct Station {
  int kinds = 0;
  // of turns: all, or first ones, later ones whose session is in memory, and those whose is not
  std::array<double, kKinds> shares{};
  std::array<Work, kKinds> works{};
  Work work{};                       // of all
  std::array<Column, kKinds> own;     // T of each kind, beside n others; beside none a prompt has a step of its own
  Cumulants every;                   // T of all
  Column stretch;                    // seconds by which T grows with a second of S
  Column steals;                     // share of prefill that lengthens steps
  Column took;                       // 1/X
  Column reading;                    // chance that a prompt is being read
  Column read;                       // T on average while one is
  Column there, there_variance;      // prompts that are read or wait for it, while one is
  Column decoding;                   // mean of d
  Column step;                       // s at that
  Column joining;                    // prefill that one more prompt brings into the last step of another, seconds

  // Solves the chain for every n in so many columns.  `kept`: share of sessions in memory.
  void solve(const Speed& speed, const Load& load, int columns, double kept);
  // Its first half: how fast turns end, `took`.
  void ends(const Speed& speed, const Load& load, int columns, double kept);
  // The same where turns of a session are not told apart, and none is forgotten.
  void ends_alike(const Speed& speed, const Load& load, int columns);
  // Its second half, all the rest, in the first of these columns.
  void times(const Speed& speed, const Load& load, int columns);

 private:
  struct Prompt;
  void ends(const Speed& speed, const Load& load, int columns);
  void bound(const Speed& speed, int columns);
  void chain(const Speed& speed, const Load& load, int columns);
  template <int kMixed>
  void mix(int columns);

  Column added_, chunk_, varies_, rest_read_, rest_step_, last_read_, last_step_;
  Column up_, down_, chance_, one_, part_, middle_, ended_, scale_, single_, fades_;
  Column ends_one_, only_, by_itself_, several_, mean_, square_;
};

// Mean over kinds of turns.
Work mixed(int kinds, const double* shares, const Work* works);

}  // namespace berth
