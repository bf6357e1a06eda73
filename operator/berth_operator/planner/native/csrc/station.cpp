// What do n turns in a replica do to each other?  The model is told in ../../queueing.py.

#include "station.hpp"

#include <utility>

#include "clones.hpp"

namespace berth {
namespace {

// As in the engine's pacing: a step with a chunk takes at most so many times a step without, or so many seconds.
constexpr double kStepFactor = 2.0, kLeastPace = 0.02;

// How far below the bound the engine aims, so that its jitter stays within (its `engine/cost.py`): for all but half a
// percent of steps, which is 1.1 times as far as the p99 is, and its predictions are a few percent off themselves.  It
// aims 1.25 times below at most, and nearer again until the next step is late: 1.20 to 1.23 on average where steps vary.
constexpr double kLeastLateness = 1.05, kMostLateness = 1.22, kBeyondP99 = 1.1, kOff = 1.02;

// By how much the seconds vary that it gives to a step with a chunk, as it learns what steps take: half of the range
// over what it leaves for lateness.  The deviation was 0.2 of that on a virtual clock, 0.24 of the real worker.
constexpr double kVaries = 0.4;

// Tokens of a prompt that a step reads, however late it is (its `engine/scheduler.py`): a prompt always gets on.
constexpr double kLeastChunk = 4;

// Of the number of turns that decode, in standard deviations from where it mostly is.
constexpr double kPoints[] = {-1.5, 0.0, 1.5};

// By what share prompts ahead vary less than in the chain where one is always read and all are alike.
constexpr double kEven = 0.5;

// KV memory is given out in blocks of so many tokens, and a session's last one is half full.
constexpr double kBlockTokens = 16;

double uniform_variance(double count) { return (count * count - 1) / 12; }

// Reading one token of a prompt behind so many others.
double token_seconds(const Speed& speed, const Load& load, double position) {
  const double context = load.prompt_tokens + load.output_tokens / 2, base = 1 / speed.prefill_tokens_per_second;
  return std::max(base + speed.attention_seconds * (position - context), 0.1 * base);
}

Work work_of(double mean, double grown, const Load& load) {
  const double varied = load.prompt_spread * mean * mean;
  return {mean, varied + grown, 2 * varied * varied / mean};
}

// What is not cached of so many prompts, longer by `offset` than all on average, behind growing histories.
Work work_read(const Speed& speed, const Load& load, double offset, double count) {
  const double growth = load.growth(), again = load.reread();
  const double read = std::max(load.new_tokens() + again * offset, 1.0);
  const double token = token_seconds(speed, load, load.prompt_tokens + offset - read / 2);
  const double each = again * token + read * speed.attention_seconds * (1 - again / 2);
  return work_of(read * token, growth * each * (growth * each) * uniform_variance(count), load);
}

// Of a later turn whose session was forgotten: the whole prompt.
Work work_cold(const Speed& speed, const Load& load) {
  const double later = std::max(load.turns_per_session - 1, 1.0), growth = load.growth();
  const double prompt = load.prompt_tokens + growth / 2, variance = growth * growth * uniform_variance(later);
  const double g = speed.attention_seconds, at_middle = token_seconds(speed, load, prompt / 2);
  const double slope = at_middle + g * prompt / 2;
  return work_of(prompt * at_middle + g / 2 * variance, slope * slope * variance, load);
}

// Of e: what the runtime takes by itself, what the promise leaves, and what it takes all the same.
struct Bounds {
  double step, lateness, usual, promised, least;

  BERTH_INLINE Bounds(double gap_p99, double own_step, double at_step, double promise, double prefill) {
    step = at_step;
    lateness = clip(kOff * exp(kBeyondP99 * log(gap_p99 / own_step)), kLeastLateness, kMostLateness);
    usual = std::max(kStepFactor * step, kLeastPace) / lateness - step;
    promised = promise / lateness - step;
    least = kLeastChunk / prefill;
  }

  BERTH_INLINE double added() const { return std::max(std::min(usual, promised), least); }
  // By what share chunks differ from that.
  BERTH_INLINE double varies() const { return std::min(kVaries * (lateness - 1) * (1 + step / added()), 0.9); }
};

// Steps that so many chunks of a prompt take: the next whole number, smoothed as chunks differ by some share.
BERTH_INLINE double whole(double chunks, double varies) {
  const auto area = [](double x) {
    const double below = floor(x);
    return below * (below + 1) / 2 + (below + 1) * (x - below);
  };
  const double low = (1 - varies) * chunks, high = (1 + varies) * chunks;
  return chunks < 1e9 ? (area(high) - area(low)) / std::max(high - low, kTiny) : chunks;
}

}  // namespace

double Load::new_tokens() const { return std::max(prompt_tokens * (1 - cached_share), 1.0); }

// Tokens by which a session's prompt is longer than the one before it: what is new and what was answered; where that is
// more than leaves room for all that is new in the first one, `most_growth`, part of what was there before is read
// again each time.
double Load::growth() const { return keeps() ? std::min(new_tokens() + output_tokens, most_growth()) : 0.0; }

// Share of the growth that is not cached either: 0 where only what is new is read, 1 where everything is.
double Load::reread() const {
  const double first = std::max(most_growth() - output_tokens, 0.0);  // what is new where growth is greatest
  return keeps() ? clip((new_tokens() - first) / std::max(prompt_tokens - first, kTiny), 0.0, 1.0) : 0.0;
}

// With which the first prompt is just what is new in it, or nothing: no prompt is shorter.
double Load::most_growth() const {
  const double all = 2 * (prompt_tokens + output_tokens) / (turns_per_session + 1);
  return std::min(all, 2 * prompt_tokens / std::max(turns_per_session - 1, 1.0));
}

void Cumulants::resize(int columns) {
  for (Column* values : {&mean, &variance, &third}) values->resize(columns);
}

// Least recently used goes first (Che et al. 2002).  A session stays for a time t after its last turn, by which all
// memory has been used anew; think times are taken as exponential with mean Z, and a session's last turn, one in N,
// leaves its memory, the longest that it had, until then.  With C tokens on average of those that come back, and D of
// those that do not: room = rate x (C Z (1 - 1/N) h + D t/N) with h = 1 - exp(-t/Z).  Room is what turns in service
// leave.
double kept_sessions(const Speed& speed, const Load& load, double rate) {
  if (!load.keeps()) return 1.0;
  const double work = load.output_tokens * speed.step[1];
  const double room = std::max(speed.kv_cache_tokens - 1.5 * rate * work * load.context_tokens, 0.0);
  const double think = std::max(load.think_seconds, kTiny), last = 1 / load.turns_per_session;
  const double kept = load.context_tokens + kBlockTokens / 2, growth = load.growth();
  const double back = (kept - growth / 2) * (1 - last);
  const double gone = (kept + growth * (load.turns_per_session - 1) / 2) * last;
  const double wanted = std::min(room / std::max(rate * think, kTiny), 50.0 * (back + gone));
  double time = wanted / (back + gone);  // t/Z; the equation is concave and rises: Newton from the left converges
  for (int i = 0; i < 6; ++i) {
    const double left = exp(-time);
    time = std::max(time - (back * (1 - left) + gone * time - wanted) / (back * left + gone), 0.0);
  }
  return -expm1(-time);
}

Work mixed(int kinds, const double* shares, const Work* works) {
  if (kinds == 1) return works[0];
  double mean = 0, second = 0, third = 0;
  for (int k = 0; k < kinds; ++k) {
    const Work& w = works[k];
    mean += shares[k] * w.mean;
    second += shares[k] * (w.variance + w.mean * w.mean);
    third += shares[k] * (w.third + 3 * w.variance * w.mean + w.mean * w.mean * w.mean);
  }
  return {mean, std::max(second - mean * mean, 0.0), third - 3 * second * mean + 2 * mean * mean * mean};
}

BERTH_CLONES void added_seconds(const Speed& speed, const Load& load, const Column& step, Column& added) {
  const int columns = speed.columns();
  added.resize(columns);
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i)
    added[i] =
        Bounds(speed.gap_p99[i], speed.step[i], step[i], load.gap, speed.prefill_tokens_per_second).added();
}

void Station::solve(const Speed& speed, const Load& load, int columns, double kept) {
  if (!load.keeps()) return solve_alike(speed, load, columns);
  const double turns = load.turns_per_session, growth = load.growth();
  kinds = kept == 1 ? 2 : 3;
  shares = {1 / turns, (1 - 1 / turns) * kept, (1 - 1 / turns) * (1 - kept)};
  works = {work_read(speed, load, -growth * (turns - 1) / 2, 1.0),
           work_read(speed, load, growth / 2, std::max(turns - 1, 1.0)), work_cold(speed, load)};
  solve(speed, load, columns);
}

void Station::solve_alike(const Speed& speed, const Load& load, int columns) {
  kinds = 1;
  shares[0] = 1.0;
  works[0] = work_read(speed, load, 0.0, load.turns_per_session);
  solve(speed, load, columns);
}

BERTH_CLONES void Station::solve(const Speed& given, const Load& load, int most) {
  work = mixed(kinds, shares.data(), works.data());
  finer(given, load, most);
  const int columns = speed_.columns();
  for (Column* values : {&chunk_, &rest_read_, &rest_step_, &last_read_, &last_step_, &stretch, &steals, &took, &reading,
                         &read, &there, &there_variance, &decoding, &step})
    values->resize(columns);
  for (int k = 0; k < kinds; ++k) own[k].resize(columns);
  every.resize(columns);
  bound(load);
  const Column &turns = speed_.turns, &alone_step = speed_.step, &idle = speed_.idle;

  // k and T of the last prompt
  const auto steps_of = [&](int i, double mean) { return turns[i] == 0 ? 1.0 : whole(mean / chunk_[i], varies_[i]); };
  const auto last = [&](int i, double mean, double steps) {
    const double free = turns[i] == 0 ? 0.0 : idle[i];
    return std::max((steps - 1) * added_[i], mean - steps * free) + steps * alone_step[i];
  };
  for (int i = 0; i < columns; ++i) {
    chunk_[i] = std::max(added_[i] + idle[i], kTiny);
    const bool alone = turns[i] == 0;
    steals[i] = alone || added_[i] <= 0 ? 1.0 : added_[i] / chunk_[i];
    stretch[i] = alone ? 1.0 : steals[i] + alone_step[i] / chunk_[i];
    const double steps = steps_of(i, work.mean), seconds = last(i, work.mean, steps);
    last_read_[i] = seconds;
    last_step_[i] = seconds / steps;
    rest_read_[i] = alone ? seconds : work.mean * stretch[i];
    rest_step_[i] = alone ? seconds : steals[i] * chunk_[i] + alone_step[i];
    std::array<Work, kKinds> varied;
    const double squared = stretch[i] * stretch[i];
    for (int k = 0; k < kinds; ++k) {
      own[k][i] = last(i, works[k].mean, steps_of(i, works[k].mean));
      varied[k] = {own[k][i], works[k].variance * squared, works[k].third * squared * stretch[i]};
    }
    const Work all = mixed(kinds, shares.data(), varied.data());
    every.mean[i] = all.mean;
    every.variance[i] = all.variance;
    every.third[i] = all.third;
  }
  chain(load);
  for (int i = 0; i < columns; ++i) {
    const double varies = every.variance[i] / (every.mean[i] * every.mean[i]);
    const double part = (1 + clip(varies, 1.0, 3.0)) / 2;
    const double even = 1 - clip(varies + load.output_spread / 2, 0.0, 1.0);
    there[i] = std::min(1 + part * (there[i] - 1), std::max(turns[i], 1.0));
    there_variance[i] *= part * part * (1 - kEven * reading[i] * even);
    decoding[i] = std::max(turns[i] - reading[i] * there[i], 0.0);
    const double chord = (alone_step[i] - alone_step[1]) / std::max(turns[i] - 1, 1.0);
    step[i] = alone_step[1] + chord * std::max(decoding[i] - 1, 0.0);
  }
  change([&](Column& values) {
    for (size_t i = 0; i < place_.size(); ++i) values[i] = values[place_[i]];  // ascending: none is overwritten before
  });
  first(static_cast<int>(place_.size()));
}

BERTH_CLONES void Station::bound(const Load& load) {
  const int columns = speed_.columns();
  added_.resize(columns);
  varies_.resize(columns);
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    const Bounds of(speed_.gap_p99[i], speed_.step[i], speed_.step[i], load.gap, speed_.prefill_tokens_per_second);
    added_[i] = of.added();
    varies_[i] = of.varies();
  }
}

void Station::first(int columns) {
  change([&](Column& values) { values.resize(columns); });
}

template <typename Change>
void Station::change(Change change) {
  for (int k = 0; k < kinds; ++k) change(own[k]);
  for (Column* values : {&every.mean, &every.variance, &every.third, &stretch, &steals, &took, &reading, &read, &there,
                         &there_variance, &decoding, &step})
    change(*values);
}

// With more columns where the chain is most of the time.
//
// While a step reads more prompts, c/S, than it ends turns, d/(O - 1), more and more turns decode: most of the time d
// is about where these are as many.  Near the promise between tokens chunks vanish within a few d, so that this may be
// anywhere between two columns.  About there w(d) is as a normal distribution, of which some points are added.
BERTH_CLONES void Station::finer(const Speed& given, const Load& load, int most) {
  const int columns = given.columns();
  constexpr int count = std::size(kPoints);
  const Column& turns = given.turns;
  const double steps = std::max(load.output_tokens - 1, 0.05) / work.mean;
  for (Column& values : bounds_) values.resize(columns);
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    const Bounds of(given.gap_p99[i], given.step[i], given.step[i], load.gap, given.prefill_tokens_per_second);
    bounds_[0][i] = steps * (of.usual + given.idle[i]) - turns[i] - 1;
    bounds_[1][i] = steps * (of.promised + given.idle[i]) - turns[i] - 1;
    bounds_[2][i] = steps * (of.least + given.idle[i]) - turns[i] - 1;
  }
  int left = columns - 1;
  while (left > 0 && std::max(std::min(bounds_[0][left], bounds_[1][left]), bounds_[2][left]) < 0) --left;
  const int right = std::min(left + 1, columns - 1);
  const double start = turns[left], width = turns[right] - start;
  double crossings[3], slopes[3];
  for (int k = 0; k < 3; ++k) {
    const double here = bounds_[k][left], there = bounds_[k][right];
    crossings[k] = there < 0 ? std::max(here, 0.0) / std::max(here - there, kTiny) : 1.0;
    slopes[k] = (here - there) / std::max(width, 1.0);
  }
  const double first = std::max(std::min(crossings[0], crossings[1]), crossings[2]);
  const double middle = start + width * std::min(first, 1.0);
  const double slope = crossings[0] < crossings[1] ? slopes[0] : slopes[1];
  const double deviation = std::sqrt((middle + 1) / std::max(slope, 0.25));

  place_.resize(most);
  for (Column* values : {&speed_.turns, &speed_.step, &speed_.gap_p99, &speed_.idle}) values->resize(most + count);
  speed_.prefill_tokens_per_second = given.prefill_tokens_per_second;
  int k = 0;
  for (int i = 0; i < most; ++i) {
    for (; i > 0 && k < count; ++k) {
      const double point = rint(clip(middle + deviation * kPoints[k], turns[1], turns[columns - 1]));
      if (!(turns[i] > point)) break;
      const double part = (point - turns[i - 1]) / std::max(turns[i] - turns[i - 1], 1.0);
      const auto between = [&](const Column& values) { return values[i - 1] + part * (values[i] - values[i - 1]); };
      speed_.turns[i + k] = point;
      speed_.step[i + k] = between(given.step);
      speed_.gap_p99[i + k] = between(given.gap_p99);
      speed_.idle[i + k] = between(given.idle);
    }
    place_[i] = i + k;
    speed_.turns[i + k] = turns[i];
    speed_.step[i + k] = given.step[i];
    speed_.gap_p99[i + k] = given.gap_p99[i];
    speed_.idle[i + k] = given.idle[i];
  }
  for (Column* values : {&speed_.turns, &speed_.step, &speed_.gap_p99, &speed_.idle}) values->resize(most + k);
}

// How many turns decode, and how long do they take?  The birth-death chain, summed over d for each n.
//
// Between columns chances are taken as geometric.  They differ by hundreds of decades: sums are told as multiples of
// the greatest chance so far.  `rest_`: while other prompts wait; `last_`: while none does.
BERTH_CLONES void Station::chain(const Load& load) {
  const Column& turns = speed_.turns;
  const int columns = speed_.columns();
  const double tokens = std::max(load.output_tokens, 1.0), answer = std::max(tokens - 1, 0.05);
  for (Column* values :
       {&up_, &down_, &chance_, &one_, &slope_, &part_, &middle_, &faster_, &scale_, &single_, &fades_})
    values->resize(columns);
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    up_[i] = -log(rest_read_[i]);
    down_[i] = log(std::max(turns[i], 0.5) / (answer * rest_step_[i]));
  }
  // at i: over the whole numbers from turns[i - 1] to below turns[i], the sum, and the mean of these numbers
  chance_[0] = one_[0] = scale_[0] = 0.0;
  for (int i = 1; i < columns; ++i) {
    const double width = turns[i] - turns[i - 1], here = (width + 1) / 2, beyond = (width - 1) / 2;
    const double rise = here * up_[i - 1] + beyond * up_[i] - beyond * down_[i - 1] - here * down_[i];
    chance_[i] = chance_[i - 1] + rise;
    const double slope = clip(rise, -500.0, 500.0) / std::max(width, 1.0);
    slope_[i] = std::abs(slope) < 1e-6 ? 1e-6 : slope;
  }
#pragma GCC ivdep
  for (int i = 1; i < columns; ++i) {
    const double width = turns[i] - turns[i - 1], length = std::max(width, 1.0);
    const double grown = expm1(length * slope_[i]), each = expm1(slope_[i]);
    const double past = clip(length / grown + (length - 1) - 1 / each, 0.0, width);
    part_[i] = width > 0 ? chance_[i - 1] + log(grown / each) : -1e300;
    middle_[i] = turns[i - 1] + past;
    faster_[i] = exp(up_[i - 1] + (up_[i] - up_[i - 1]) * past / length);
    one_[i] = std::max(chance_[i] - slope_[i], -1e300);
  }
  for (int i = 1; i < columns; ++i) scale_[i] = std::max(scale_[i - 1], std::max(part_[i], one_[i]));
  fades_[0] = single_[0] = 1.0;
#pragma GCC ivdep
  for (int i = 1; i < columns; ++i) {
    fades_[i] = exp(scale_[i - 1] - scale_[i]);
    single_[i] = exp(one_[i] - scale_[i]);
    part_[i] = exp(part_[i] - scale_[i]);
  }
  double some = 0, first = 0, second = 0, pace = 0;  // over all numbers below turns[i]
  for (int i = 0; i < columns; ++i) {
    double several = 0, one = 0, none = 1, alone = 1, mean = 0, square = 0, ended = 0;
    if (i > 0) {
      const auto before = [&, length = std::max(turns[i] - turns[i - 1], 1.0)](const Column& values) {  // at n - 1
        return values[i] + (values[i - 1] - values[i]) / length;
      };
      const double middle = middle_[i], at = turns[i] - 1, single = single_[i];
      some = some * fades_[i] + part_[i];
      first = first * fades_[i] + part_[i] * middle;
      second = second * fades_[i] + part_[i] * middle * middle;
      pace = pace * fades_[i] + part_[i] * faster_[i];
      if (i > 1) {
        several = std::max(some - single, 0.0);
        mean = std::max(first - single * at, 0.0);
        square = std::max(second - single * at * at, 0.0);
        ended = std::max(pace - single * exp(before(up_)), 0.0);
      }
      one = single * before(last_step_) / before(rest_step_);
      alone = before(last_read_);
      none = one / alone * answer * speed_.step[i] / std::max(turns[i], 0.5);
    }
    const double all = several + one + none, at = turns[i] - 1;
    several /= all, one /= all, none /= all, mean /= all, square /= all;
    mean += one * at + none * turns[i];
    square += one * at * at + none * turns[i] * turns[i];
    // however many prompts share a step, a turn is there for as many steps as it has tokens, and all prompts are read
    const double least = tokens * speed_.step[1] + std::max(turns[i] * work.mean - tokens * speed_.idle[1], 0.0);
    const double busy = several + one;
    const double flow = std::max(std::min(ended / all + one / alone, turns[i] / least), kTiny);
    const double waiting = std::max((turns[i] - mean) / std::max(busy, kTiny), 1.0);
    reading[i] = busy;
    there[i] = waiting;
    there_variance[i] = std::max(
        (turns[i] * turns[i] - 2 * turns[i] * mean + square) / std::max(busy, kTiny) - waiting * waiting, 0.0);
    took[i] = 1 / flow;
    read[i] = busy / flow;
  }
  took[0] = took[1];  // nobody leaves an empty replica
  read[0] = read[1];
}

}  // namespace berth
