// What is the greatest rate at which at most one turn in a hundred is late, and what are the p99s there?

#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "api.hpp"
#include "queueing.hpp"

namespace berth {
namespace {

// Rates are powers of 2^(1/64), a grid that all share: so that what is easier to serve is never found to carry less, as
// it could be between the ends of two bisections.
constexpr int64_t kPerOctave = 64;

// Steps of the grid below the most turns/s at which a replica counts as carrying nothing.
constexpr int64_t kDeepest = 16 * kPerOctave;

// Steps of the grid: half of the replicas carry more than 2^(-1/4) of the turns/s that they can end at all.
constexpr int64_t kFirstStride = 8;

// When strides are as long, many of those that are left carry nothing.
constexpr int64_t kLongStride = 32;

// Logarithm of the odds of being late beyond which rates are alike in the search.
constexpr double kMostOdds = 12.0;

// Of what is left of a search, how far from the interpolated rate towards the middle it looks.
constexpr double kTruncated = 0.02;

// Turns/s that differ by no more, relative, are as many.
constexpr double kAlike = 1e-9;

// Tokens that streams leave of a step's budget at least: with less, prompts stand still.
constexpr double kLeastLeft = 16;

// Token budgets are the most and its halves, and up to here three quarters of these as well, where a chunk more or less
// decides whether a step keeps the promise.
constexpr double kFineBudget = 1024;

// Paces below the promise, seconds of a decade.
constexpr double kPaces[] = {7, 5, 3, 2, 1.5, 1};

// Share of sessions, so small that it is none.
constexpr double kForgotten = 1e-9;

// Of a chance: nearly a straight line in the logarithm of the rate, where the chance itself is a steep curve.
double log_odds(double share) {
  const double inside = clip(share, 1 / (1 + exp(kMostOdds)), 1 / (1 + exp(-kMostOdds)));
  return log(inside / (1 - inside));
}

// Where to look next between `low` and `high`: where the line through both ends is 0, a little towards the middle, so
// that the other end comes near, too, and near enough to it that what is left is at most `widest` wide.
int64_t towards(int64_t low, int64_t high, double under, double over, double widest) {
  const double width = static_cast<double>(high - low), middle = static_cast<double>(low + high) / 2;
  const double crossing = static_cast<double>(low) + width * clip(-under / (over - under), 0.0, 1.0);
  const double step = std::min(kTruncated * width + 0.5, std::abs(middle - crossing));
  const double room = std::max(widest - width / 2, 0.0);
  const double at = clip(crossing < middle ? crossing + step : crossing - step, middle - room, middle + room);
  return std::clamp(static_cast<int64_t>(rint(at)), low + 1, high - 1);
}

// p99s, seconds.
struct Latencies {
  double first_token, turn;
};

// A pair of a replica and a load.  Rates are told as exponents on the common grid.
class Pair {
 public:
  Speed given;
  Load load;

  // Looks at so many columns only.
  void choose(int columns);
  // Looks at the numbers of slots at which the gap holds, up to the one with the most turns/s.  `fits`: columns that
  // memory has room for.  False: not even one turn.
  bool choose_useful(int fits);
  void settle();
  // The greatest rate that holds, with a token budget a step of those from `most` down to `least`, or where there is
  // none with the pace that is given, else the promise or a lower pace; as set afterwards.  False: none that counts;
  // then the budget is the greatest with which a turn alone keeps the gap, else the least.
  //
  // What a replica carries with b slots and a budget or a pace does not depend on what it could have, and the best
  // counts: whoever may have more, because memory is larger or the promise is looser, carries no less.  (But for a
  // promise that is a pace itself: it may carry a little more than the paces below a looser one.)
  bool search(int fits, double least, double most);
  // At a rate, turns/s, with as many slots as a column says.
  void set(double rate, int slots);
  // At most `most`; between steps of the grid by interpolation.
  Latencies p99s(int column, Latencies most, int octaves, int per_octave);

  const Speed& speed() const { return chosen().speed; }
  const Queue& queue() const { return queue_; }
  const Station& station() const { return chosen().ahead.station; }
  int slots() const { return slots_; }

 private:
  int64_t top() const;
  double unit() const;
  double rate(int64_t exponent) const { return unit() * exp2(static_cast<double>(exponent) / kPerOctave); }
  double most_read(double budget) const;
  void at(int64_t exponent);
  bool smooth(int column) const;
  std::optional<int64_t> search_slots(std::optional<int64_t> beyond);
  double excess(int64_t exponent);
  double excess(double first);
  int64_t greatest(int64_t top);
  int64_t more(int64_t base);
  int64_t between(int64_t low, int64_t high, double under, double over);
  std::vector<int> worth_a_try(int64_t exponent, int64_t top);
  template <typename Consider>
  void each_budget(double least, double most, Consider consider) const;
  template <typename Consider>
  void each_lower_pace(Consider consider) const;
  template <typename Late>
  double p99(double most, int octaves, int per_octave, Late late);

  // What one budget or pace comes to.
  struct Chosen {
    Speed speed;  // in the chosen columns
    Ahead ahead;
    bool settled = false;  // what is ahead is the same at all rates
  };
  Chosen& chosen() { return both_[current_]; }
  const Chosen& chosen() const { return both_[current_]; }

  std::array<Chosen, 2> both_;  // the best one so far, and the one that is tried
  int current_ = 0;
  Queue queue_;
  int slots_ = 0;         // the column where their number stands; no more turns than that fit
  double work_ = 0;       // prefill of a turn, seconds, where no session is forgotten
  Column added_;          // where steps have a budget: seconds by which a whole chunk lengthens one
};

void Pair::choose(int columns) {
  Speed& speed = chosen().speed;
  speed = given;
  for (Column* values : {&speed.turns, &speed.step, &speed.gap_p99, &speed.idle}) values->resize(columns);
  slots_ = columns - 1;
  chosen().settled = false;
}

// Whether the gap holds with so many streams.  Who has a budget is not told the promise: there whatever the step reads.
bool Pair::smooth(int column) const {
  const double most = load.gap * (1 + 1e-9), gap = given.gap_p99[column];
  if (given.token_budget == 0) return gap <= most;
  return gap * (1 + added_[column] / given.step[column]) <= most &&
         given.token_budget - given.turns[column] >= kLeastLeft;
}

bool Pair::choose_useful(int fits) {
  if (given.token_budget > 0) added_seconds(given, given.step, added_);
  int columns = 1;
  while (columns < fits && smooth(columns)) ++columns;
  if (columns < 2) return false;
  Station& station = chosen().ahead.station;
  station.ends(given, load, columns, 1.0);
  work_ = station.work.mean;
  const double least = *std::min_element(station.took.begin() + 1, station.took.end());
  int last = 1;
  while (station.took[last] > least * (1 + kAlike)) ++last;
  choose(last + 1);
  // sessions are of one turn, or memory keeps all of them even at the greatest rate
  chosen().settled = kept_sessions(given, load, 1 / least) > 1 - kForgotten;
  return true;
}

// What is the same at all rates.
void Pair::settle() {
  auto& [speed, ahead, settled] = chosen();
  if (!settled) return;
  ahead.station.times(speed, load, speed.columns());
  ahead.set(speed, load);
}

void Pair::set(double rate, int slots) {
  auto& [speed, ahead, settled] = chosen();
  if (!settled) {
    ahead.station.solve(given, load, speed.columns(), kept_sessions(given, load, rate));
    ahead.set(speed, load);
  }
  queue_.set(ahead, rate, slots);
}

// Turns/s at exponent 0: where sessions are stated those of one, so that rates count sessions.
double Pair::unit() const { return std::isfinite(load.sessions) ? 1 / (load.think_seconds + load.turn) : 1.0; }

void Pair::at(int64_t exponent) { set(rate(exponent), slots_); }

// By how much too many turns are late, in log odds: where it is 0 or less, the rate holds.  Where too many first tokens
// are, by how much these are: how many turns end late does not matter then.
double Pair::excess(int64_t exponent) {
  at(exponent);
  return excess(queue_.first_late(slots_));
}

// The same of the rate that is set, at which such a share of first tokens is late.
double Pair::excess(double first) {
  if (first > kLate) return log_odds(first) - log_odds(kLate);
  queue_.turns();
  return log_odds(std::max(first, queue_.turn_late(slots_, load.turn))) - log_odds(kLate);
}

// Down from the top in ever longer strides; then to where the last one crosses what may be late.
//
// `kDeepest` below the top where no rate above that holds: after a few strides it is asked whether that one does.
int64_t Pair::greatest(int64_t top) {
  const int64_t floor = top - kDeepest;
  int64_t low = top + 1, high = low;
  double under = -kMostOdds, over = kMostOdds;
  for (int64_t stride = kFirstStride; low > floor;) {
    high = low;
    low = std::max(low - stride, floor);
    if (low == floor) break;
    const double found = excess(low);
    if (found <= 0) {
      under = found;
      break;
    }
    over = found;
    stride *= 2;
    if (stride == kLongStride && excess(floor) > 0) return floor;
  }
  return between(low, high, under, over);
}

// Up from a rate in ever longer strides, as far as it holds.
int64_t Pair::more(int64_t base) {
  at(base + 1);
  const double first = queue_.first_late(slots_);
  if (first > kLate) return base;  // as most do, and nothing is between the two
  int64_t low = base, high = base + 1;
  double under = -kMostOdds, over = kMostOdds;
  for (int64_t stride = 1;; stride *= 2) {
    high = low + stride;
    const double found = high == base + 1 ? excess(first) : excess(high);
    if (found > 0) {
      over = found;
      break;
    }
    under = found;
    low = high;
  }
  return between(low, high, under, over);
}

// Where the excess crosses 0, found by interpolation, truncated and projected so that it takes no more than one
// evaluation more than bisection (ITP; Oliveira and Takahashi 2020).
int64_t Pair::between(int64_t low, int64_t high, double under, double over) {
  double widest = 1;
  while (widest < static_cast<double>(high - low)) widest *= 2;
  for (; high - low > 1; widest /= 2) {
    const int64_t at = towards(low, high, under, over, widest);
    const double found = excess(at);
    (found <= 0 ? low : high) = at;
    (found <= 0 ? under : over) = found;
  }
  return low;
}

// The greatest rate that any number of slots can end at all.
int64_t Pair::top() const {
  const auto took = station().took.begin();
  const double least = *std::min_element(took, took + speed().columns());
  return static_cast<int64_t>(floor(log2(1 / (least * unit())) * kPerOctave));
}

// Fewer slots that might carry more: whose first tokens, which do not depend on how many slots there are beyond those,
// would be in time.
std::vector<int> Pair::worth_a_try(int64_t exponent, int64_t top) {
  std::vector<int> found;
  if (exponent >= top) return found;
  at(exponent + 1);
  for (int column = 1; column < slots_; ++column)
    if (queue_.stable(column) && queue_.first_late(column) <= kLate) found.push_back(column);
  return found;
}

// Prompts a second that are read at most, where steps have such a budget: with one in each.
double Pair::most_read(double budget) const {
  const double chunk = budget / given.prefill_tokens_per_second, longer = std::max(chunk - given.idle[1], 0.0);
  return chunk / ((given.step[1] + longer) * work_);
}

template <typename Consider>
void Pair::each_budget(double least, double most, Consider consider) const {
  consider(most);
  for (double budget = most; budget > least; budget /= 2) {
    if (budget <= kFineBudget && budget * 3 / 4 >= least) consider(budget * 3 / 4);
    if (budget / 2 >= least) consider(budget / 2);
  }
}

// Below the promise, and none that makes the same steps as a greater one.  Only where arithmetic waits for memory can a
// lower pace carry more: what rides along in a small chunk is free.
template <typename Consider>
void Pair::each_lower_pace(Consider consider) const {
  const auto [low, high] = pace_range(given);
  if (low >= load.gap || *std::max_element(given.idle.begin(), given.idle.end()) <= 0) return;
  for (double decade = 1e-3;; decade *= 10) {
    for (const double digits : kPaces) {
      const double pace = digits / decade;
      if (pace >= std::min(load.gap, high)) continue;
      consider(pace);
      if (pace <= low) return;
    }
  }
}

bool Pair::search(int fits, double least, double most) {
  struct Best {
    double budget, pace;
    int chosen, slots;
    int64_t exponent;
  };
  std::optional<Best> best;
  double alone = least;
  const auto consider = [&](double budget, double pace) {
    if (best && budget > 0 && most_read(budget) <= rate(best->exponent)) return;
    given.token_budget = budget, given.pace = pace;
    if (!choose_useful(fits)) return;
    alone = std::max(alone, budget);
    const auto found = search_slots(best ? std::optional(best->exponent) : std::nullopt);
    if (!found) return;
    best = {budget, pace, current_, slots_, *found};
    current_ = 1 - current_;
  };
  if (most > 0) {
    each_budget(least, most, [&](double budget) { consider(budget, 0.0); });
  } else {
    const bool told = given.pace > 0;
    consider(0.0, told ? given.pace : load.gap);
    // What carries nothing is too slow for turns that meet nobody, at any pace.
    if (best && !told) each_lower_pace([&](double pace) { consider(0.0, pace); });
  }
  if (!best) {
    given.token_budget = alone;
    return false;
  }
  given.token_budget = best->budget, given.pace = best->pace;
  current_ = best->chosen;
  slots_ = best->slots;
  at(best->exponent);
  return true;
}

// The greatest rate, of any number of slots that may be chosen, that is `beyond` another; the slots are those of it.
std::optional<int64_t> Pair::search_slots(std::optional<int64_t> beyond) {
  if (!chosen().settled) chosen().ahead.station.ends_alike(given, load, speed().columns());
  const int64_t top = this->top();
  if (beyond && top <= *beyond) return std::nullopt;
  settle();
  const int64_t base = beyond ? more(*beyond) : greatest(top);
  int64_t exponent = base;
  int best = slots_;
  for (int column : worth_a_try(base, top)) {
    slots_ = column;
    const int64_t found = more(base);
    if (found > exponent) exponent = found, best = column;
  }
  slots_ = best;
  const bool counts = beyond ? exponent > *beyond : exponent > top - kDeepest;
  return counts ? std::optional(exponent) : std::nullopt;
}

template <typename Late>
double Pair::p99(double most, int octaves, int per_octave, Late late) {
  int low = -octaves * per_octave, high = 0;
  double under = 1.0, over = kLate;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    const double share = late(most * exp2(static_cast<double>(middle) / per_octave));
    (share <= kLate ? high : low) = middle;
    (share <= kLate ? over : under) = share;
  }
  const double above = log(std::max(under, 1e-9)), below = log(std::max(over, 1e-9));
  const double part = above > below ? (above - log(kLate)) / std::max(above - below, 1e-9) : 1.0;
  return most * exp2((low + clip(part, 0.0, 1.0)) / per_octave);
}

Latencies Pair::p99s(int column, Latencies most, int octaves, int per_octave) {
  queue_.turns();
  const auto first = [&](double limit) { return queue_.first_late(column, limit); };
  const auto turn = [&](double limit) { return queue_.turn_late(column, limit); };
  return {p99(most.first_token, octaves, per_octave, first), p99(most.turn, octaves, per_octave, turn)};
}

// Arrays of many pairs, [pair, column] and [pair].
struct Pairs {
  int64_t columns;
  const double *turns, *step, *gap_p99, *idle;
  const int64_t* fits;
  const double *prefill, *attention, *kv, *pace;
  const int64_t* budgets;  // least and most
  const Load* loads;

  // Where rows were made longer for others, the last column is repeated.
  void read(int64_t row, Pair& pair) const {
    const double* const turn = turns + row * columns;
    const int64_t last = std::find(turn + 1, turn + columns, turn[columns - 1]) - turn;
    const int64_t width = std::min(std::max(last + 1, fits[row]), columns);
    Speed& speed = pair.given;
    const std::pair<Column*, const double*> all[] = {
        {&speed.turns, turns}, {&speed.step, step}, {&speed.gap_p99, gap_p99}, {&speed.idle, idle}};
    for (const auto& [column, values] : all)
      column->assign(values + row * columns, values + row * columns + width);
    speed.prefill_tokens_per_second = prefill[row];
    speed.attention_seconds = attention[row];
    speed.kv_cache_tokens = kv[row];
    speed.token_budget = static_cast<double>(budgets[2 * row + 1]);
    speed.pace = pace[row];
    pair.load = loads[row];
  }

  // The same, to be looked at as far as memory has room.
  void read_fitting(int64_t row, Pair& pair) const {
    read(row, pair);
    if (pair.given.pace == 0) pair.given.pace = pair.load.gap;
    pair.choose(fits[row]);
  }
};

}  // namespace
}  // namespace berth

using berth::Load;
using berth::Pair;
using berth::Pairs;

// What each of these finds is told by the function that calls it in ../../queueing.py; `fits` is at least 1.
#define BERTH_PAIRS                                                                                                  \
  int64_t pairs, int64_t columns, const double *turns, const double *step, const double *gap_p99, const double *idle, \
      const int64_t *fits, const double *prefill, const double *attention, const double *kv, const double *pace,       \
      const int64_t *budgets, const Load *loads

BERTH_API void berth_greatest_rates(BERTH_PAIRS, double* out) {
  const Pairs all{columns, turns, step, gap_p99, idle, fits, prefill, attention, kv, pace, budgets, loads};
  Pair pair;
  for (int64_t row = 0; row < pairs; ++row, out += 7) {
    std::fill(out, out + 7, 0.0);
    all.read(row, pair);
    const auto least = static_cast<double>(budgets[2 * row]), most = static_cast<double>(budgets[2 * row + 1]);
    const bool carries = pair.search(static_cast<int>(fits[row]), least, most);
    out[5] = pair.given.token_budget;
    if (!carries) continue;
    const auto [first, turn] = pair.p99s(pair.slots(), {pair.load.first_token, pair.load.turn}, 4, 1);
    out[0] = pair.queue().rate();
    out[1] = pair.speed().turns[pair.slots()];
    out[2] = first;
    out[3] = std::min(pair.queue().gap_p99(pair.slots()), pair.load.gap);
    out[4] = turn;
    out[6] = pair.given.pace;
  }
}

BERTH_API void berth_latencies(BERTH_PAIRS, const double* rates, const int64_t* slots, double* out) {
  const Pairs all{columns, turns, step, gap_p99, idle, fits, prefill, attention, kv, pace, budgets, loads};
  Pair pair;
  for (int64_t row = 0; row < pairs; ++row, out += 3) {
    all.read_fitting(row, pair);
    pair.set(rates[row], pair.slots());
    const int column = static_cast<int>(slots[row]);
    std::fill(out, out + 3, std::numeric_limits<double>::quiet_NaN());
    if (!pair.queue().stable(column)) continue;
    const auto [first, turn] = pair.p99s(column, {3600.0, 3600.0}, 30, 64);
    out[0] = first;
    out[1] = pair.queue().gap_p99(column);
    out[2] = turn;
  }
}

BERTH_API void berth_states(BERTH_PAIRS, const double* rates, double* out) {
  const Pairs all{columns, turns, step, gap_p99, idle, fits, prefill, attention, kv, pace, budgets, loads};
  std::fill(out, out + 5 * pairs * columns, 0.0);
  Pair pair;
  berth::Column added;
  for (int64_t row = 0; row < pairs; ++row) {
    all.read_fitting(row, pair);
    pair.set(rates[row], pair.slots());
    berth::added_seconds(pair.speed(), pair.speed().step, added);
    const auto& station = pair.station();
    const berth::Column* found[] = {&pair.queue().found(), &station.took, &station.reading, &station.own[0], &added};
    for (int64_t kind = 0; kind < 5; ++kind)
      std::copy(found[kind]->begin(), found[kind]->end(), out + (kind * pairs + row) * columns);
  }
}
