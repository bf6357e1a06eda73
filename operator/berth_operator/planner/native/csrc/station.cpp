// What do n turns in a replica do to each other?  The model is told in ../../queueing.py.

#include "station.hpp"

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

// By what share chunks differ where a step has a token budget: streams take more or less of it.
constexpr double kBudgetVaries = 0.1;

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

// What Berth's engine takes of a prompt in a step by itself, within what its pace leaves, but always the least.
struct Paced {
  double added;   // e
  double varies;  // by what share chunks differ from that

  BERTH_INLINE Paced(double gap_p99, double own_step, double step, double pace, double prefill) {
    const double lateness = clip(kOff * exp(kBeyondP99 * log(gap_p99 / own_step)), kLeastLateness, kMostLateness);
    const double most = std::min(std::max(kStepFactor * step, kLeastPace), pace) / lateness - step;
    added = std::max(most, kLeastChunk / prefill);
    varies = std::min(kVaries * (lateness - 1) * (1 + step / added), 0.9);
  }
};

// c where a step has a token budget: what its streams leave.
BERTH_INLINE double budgeted(const Speed& speed, int column) {
  return std::max(speed.token_budget - speed.turns[column], kLeastChunk) / speed.prefill_tokens_per_second;
}

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

// Share of the growth that is not cached either: 0 where only what is new is read, 1 where everything is; never more
// than leaves a token to read in the first prompt.
double Load::reread() const {
  const double first = std::max(most_growth() - output_tokens, 0.0);  // what is new where growth is greatest
  const double shorter = growth() * (turns_per_session - 1) / 2;      // the first prompt, than all on average
  const double most = std::min((new_tokens() - 1) / std::max(shorter, kTiny), 1.0);
  return keeps() ? clip((new_tokens() - first) / std::max(prompt_tokens - first, kTiny), 0.0, most) : 0.0;
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

BERTH_CLONES void added_seconds(const Speed& speed, const Column& step, Column& added) {
  const int columns = speed.columns();
  const double prefill = speed.prefill_tokens_per_second;
  added.resize(columns);
  if (speed.token_budget > 0) {
#pragma GCC ivdep
    for (int i = 0; i < columns; ++i) added[i] = std::max(budgeted(speed, i) - speed.idle[i], 0.0);
  } else {
#pragma GCC ivdep
    for (int i = 0; i < columns; ++i)
      added[i] = Paced(speed.gap_p99[i], speed.step[i], step[i], speed.pace, prefill).added;
  }
}

std::pair<double, double> pace_range(const Speed& speed) {
  const auto [least, most] = std::minmax_element(speed.step.begin(), speed.step.end());
  return {kLeastLateness * *least, std::max(kStepFactor * *most, kLeastPace)};
}

// k of a prompt beside so many, what it takes from streams, and T.
struct Station::Prompt {
  const double *turns, *alone_step, *idle, *added, *chunk, *varies;
  bool paced;  // which leaves a prompt that is beside nobody whole

  Prompt(const Station& of, const Speed& speed)
      : turns(speed.turns.data()), alone_step(speed.step.data()), idle(speed.idle.data()), added(of.added_.data()),
        chunk(of.chunk_.data()), varies(of.varies_.data()), paced(speed.token_budget == 0) {}

  BERTH_INLINE bool by_itself(int i) const { return paced && turns[i] == 0; }
  BERTH_INLINE double steps(int i, double mean) const {
    const double several = whole(mean / chunk[i], varies[i]);
    return by_itself(i) ? 1.0 : several;
  }
  BERTH_INLINE double stolen(int i, double mean, double steps) const {
    const double beside = std::max((steps - 1) * added[i], mean - steps * idle[i]);
    return by_itself(i) ? mean : beside;
  }
  BERTH_INLINE double last(int i, double mean, double steps) const {
    return stolen(i, mean, steps) + steps * alone_step[i];
  }
};

void Station::solve(const Speed& speed, const Load& load, int columns, double kept) {
  ends(speed, load, columns, kept);
  times(speed, load, columns);
}

void Station::ends(const Speed& speed, const Load& load, int columns, double kept) {
  if (!load.keeps()) return ends_alike(speed, load, columns);
  const double turns = load.turns_per_session, growth = load.growth();
  kinds = kept == 1 ? 2 : 3;
  shares = {1 / turns, (1 - 1 / turns) * kept, (1 - 1 / turns) * (1 - kept)};
  works = {work_read(speed, load, -growth * (turns - 1) / 2, 1.0),
           work_read(speed, load, growth / 2, std::max(turns - 1, 1.0)), work_cold(speed, load)};
  ends(speed, load, columns);
}

void Station::ends_alike(const Speed& speed, const Load& load, int columns) {
  kinds = 1;
  shares[0] = 1.0;
  works[0] = work_read(speed, load, 0.0, load.turns_per_session);
  ends(speed, load, columns);
}

BERTH_CLONES void Station::ends(const Speed& speed, const Load& load, int columns) {
  work = mixed(kinds, shares.data(), works.data());
  for (Column* values : {&rest_read_, &rest_step_, &last_read_, &last_step_, &stretch, &took, &reading, &read, &there,
                         &there_variance})
    values->resize(columns);
  bound(speed, columns);
  const Prompt prompt(*this, speed);
  const double mean = work.mean;
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    const bool alone = prompt.by_itself(i);
    const double step = added_[i] + speed.step[i], longer = step / chunk_[i];
    const double steps = prompt.steps(i, mean), seconds = prompt.last(i, mean, steps);
    stretch[i] = alone ? 1.0 : longer;
    last_read_[i] = seconds;
    last_step_[i] = seconds / steps;
    rest_read_[i] = alone ? seconds : mean * longer;
    rest_step_[i] = alone ? seconds : step;
  }
  chain(speed, load, columns);
}

// Of a turn of any kind, as `mixed`.
template <int kMixed>
BERTH_INLINE void Station::mix(int columns) {
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    const double squared = stretch[i] * stretch[i];
    double mean = 0, second = 0, third = 0;
    for (int k = 0; k < kMixed; ++k) {
      const double one = own[k][i], variance = works[k].variance * squared, skew = works[k].third * squared * stretch[i];
      mean += shares[k] * one;
      second += shares[k] * (variance + one * one);
      third += shares[k] * (skew + 3 * variance * one + one * one * one);
    }
    every.mean[i] = mean;
    every.variance[i] = std::max(second - mean * mean, 0.0);
    every.third[i] = third - 3 * second * mean + 2 * mean * mean * mean;
  }
}

BERTH_CLONES void Station::times(const Speed& speed, const Load& load, int columns) {
  for (Column* values : {&steals, &decoding, &step, &joining}) values->resize(columns);
  for (Column* values : {&stretch, &took, &reading, &read, &there, &there_variance}) values->resize(columns);
  every.resize(columns);
  const Prompt prompt(*this, speed);
  for (int k = 0; k < kinds; ++k) {
    own[k].resize(columns);
    const double mean = works[k].mean;
    double* const times = own[k].data();
#pragma GCC ivdep
    for (int i = 0; i < columns; ++i) times[i] = prompt.last(i, mean, prompt.steps(i, mean));
  }
  if (kinds == 1) {
#pragma GCC ivdep
    for (int i = 0; i < columns; ++i) {
      const double squared = stretch[i] * stretch[i];
      every.mean[i] = own[0][i];
      every.variance[i] = works[0].variance * squared;
      every.third[i] = works[0].third * squared * stretch[i];
    }
  } else if (kinds == 2) {
    mix<2>(columns);
  } else {
    mix<3>(columns);
  }
  const double first_step = speed.step[1], mean = work.mean, spread = load.output_spread / 2;
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    const double turns = speed.turns[i];
    const double varies = every.variance[i] / (every.mean[i] * every.mean[i]);
    const double part = (1 + clip(varies, 1.0, 3.0)) / 2;
    const double even = 1 - clip(varies + spread, 0.0, 1.0);
    const double waiting = std::min(1 + part * (there[i] - 1), std::max(turns, 1.0));
    there[i] = waiting;
    there_variance[i] *= part * part * (1 - kEven * reading[i] * even);
    const double decode = std::max(turns - reading[i] * waiting, 0.0);
    decoding[i] = decode;
    const double all = mean * waiting;  // that wait are read in one go
    steals[i] = std::min(prompt.stolen(i, all, prompt.steps(i, all)) / all, 1.0);
    const double chord = (speed.step[i] - first_step) / std::max(turns - 1, 1.0);
    step[i] = first_step + chord * std::max(decode - 1, 0.0);
    const double room = std::min(mean, std::max(chunk_[i] - mean, 0.0));
    joining[i] = prompt.paced ? 0.0 : room;
  }
}

BERTH_CLONES void Station::bound(const Speed& speed, int columns) {
  for (Column* values : {&added_, &chunk_, &varies_}) values->resize(columns);
  const Column& idle = speed.idle;
  if (speed.token_budget > 0) {
#pragma GCC ivdep
    for (int i = 0; i < columns; ++i) {
      chunk_[i] = budgeted(speed, i);
      added_[i] = std::max(chunk_[i] - idle[i], 0.0);
      varies_[i] = kBudgetVaries;
    }
  } else {
#pragma GCC ivdep
    for (int i = 0; i < columns; ++i) {
      const Paced of(speed.gap_p99[i], speed.step[i], speed.step[i], speed.pace, speed.prefill_tokens_per_second);
      added_[i] = of.added;
      chunk_[i] = std::max(of.added + idle[i], kTiny);
      varies_[i] = of.varies;
    }
  }
}

// How many turns decode, and how long do they take?  The birth-death chain, summed over d for each n.
//
// Between columns up(d) and down(d) are taken as linear, which they are where the promise bounds chunks, and nearly so
// elsewhere; and w(d) as geometric.  Chances differ by hundreds of decades: sums are told as multiples of the greatest
// one so far.  `rest_`: while other prompts wait; `last_`: while none does.
BERTH_CLONES void Station::chain(const Speed& speed, const Load& load, int columns) {
  const Column& turns = speed.turns;
  const double tokens = std::max(load.output_tokens, 1.0), answer = std::max(tokens - 1, 0.05);
  for (Column* values : {&up_, &down_, &chance_, &one_, &part_, &middle_, &ended_, &scale_, &single_, &fades_,
                         &ends_one_, &only_, &by_itself_, &several_, &mean_, &square_})
    values->resize(columns);
  const double *const down = down_.data(), *const last_step = last_step_.data(), *const rest_step = rest_step_.data(),
                     *const last_read = last_read_.data();
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    up_[i] = 1 / rest_read_[i];
    down_[i] = turns[i] / (answer * rest_step_[i]);
  }
  // logarithms, beside w(turns[i - 1]): w(turns[i]), w(turns[i] - 1), and the sum over the whole numbers below that;
  // the mean of these, and the turns that end there
#pragma GCC ivdep
  for (int i = 1; i < columns; ++i) {
    const double width = std::max(turns[i] - turns[i - 1], 1.0), count = std::max(width - 1, 1.0);
    const auto rise = [&](double d) {  // from so many beyond turns[i - 1] to one more
      const double up = up_[i - 1] + (up_[i] - up_[i - 1]) * (d / width);
      return log(up / (down_[i - 1] + (down_[i] - down_[i - 1]) * ((d + 1) / width)));
    };
    const double last = rise(width - 1);
    chance_[i] = width * (rise(0) + last) / 2;
    one_[i] = chance_[i] - last;
    const double each = clip(one_[i], -500.0, 500.0) / count, slope = std::abs(each) < 1e-6 ? 1e-6 : each;
    const double step = expm1(slope), grown = expm1(count * slope);
    const double past = clip(count / grown + (count - 1) - 1 / step, 0.0, width);
    part_[i] = width > 1 ? log(grown / step) : -1e300;
    middle_[i] = turns[i - 1] + past;
    ended_[i] = down_[i - 1] + (down_[i] - down_[i - 1]) * (past / width);
  }
  chance_[0] = scale_[0] = 0.0;
  for (int i = 1; i < columns; ++i) {
    part_[i] += chance_[i - 1];
    one_[i] += chance_[i - 1];
    chance_[i] += chance_[i - 1];
    scale_[i] = std::max(scale_[i - 1], std::max(part_[i], one_[i]));
  }
  fades_[0] = single_[0] = 1.0;
#pragma GCC ivdep
  for (int i = 1; i < columns; ++i) {
    fades_[i] = exp(scale_[i - 1] - scale_[i]);
    single_[i] = exp(one_[i] - scale_[i]);
    part_[i] = exp(part_[i] - scale_[i]);
  }
#pragma GCC ivdep
  for (int i = 1; i < columns; ++i) {
    const double length = std::max(turns[i] - turns[i - 1], 1.0);
    const auto before = [&](const double* values) { return values[i] + (values[i - 1] - values[i]) / length; };  // at n - 1
    ended_[i] = part_[i] * ended_[i];
    ends_one_[i] = single_[i] * before(down);
    only_[i] = single_[i] * before(last_step) / before(rest_step);
    by_itself_[i] = before(last_read);
  }
  double some = 0, first = 0, second = 0, pace = 0;  // over all numbers below turns[i]
  for (int i = 1; i < columns; ++i) {
    const double part = part_[i], middle = middle_[i], single = single_[i], fades = fades_[i], at = turns[i] - 1;
    const double several = some * fades + part, mean = first * fades + part * middle;
    const double square = second * fades + part * middle * middle;
    several_[i] = several, mean_[i] = mean, square_[i] = square;
    some = several + single;
    first = mean + single * at;
    second = square + single * at * at;
    // in balance as many prompts are read below n - 1 as turns end from there down
    ended_[i] = pace = pace * fades + ended_[i] + ends_one_[i];
  }
  // nobody is there
  reading[0] = 0.0, there[0] = 1.0, there_variance[0] = 0.0;
  const double first_step = speed.step[1], read_each = work.mean, ridden = tokens * speed.idle[1];
#pragma GCC ivdep
  for (int i = 1; i < columns; ++i) {
    const double n = turns[i], at = n - 1, alone = by_itself_[i], ends_alone = only_[i] / alone;
    const double nobody = ends_alone * answer * speed.step[i] / std::max(n, 0.5);
    const double all = several_[i] + only_[i] + nobody, one = only_[i] / all, none = nobody / all;
    const double mean = mean_[i] / all + (one * at + none * n);
    const double square = square_[i] / all + (one * at * at + none * n * n);
    // however many prompts share a step, a turn is there for as many steps as it has tokens, and all prompts are read
    const double least = tokens * first_step + std::max(n * read_each - ridden, 0.0);
    const double busy = several_[i] / all + one, some = std::max(busy, kTiny);
    const double flow = std::max(std::min(ended_[i] / all + one / alone, n / least), kTiny);
    const double waiting = std::max((n - mean) / some, 1.0);
    reading[i] = busy;
    there[i] = waiting;
    there_variance[i] = std::max((n * n - 2 * n * mean + square) / some - waiting * waiting, 0.0);
    took[i] = 1 / flow;
    read[i] = busy / flow;
  }
  took[0] = took[1];  // nobody leaves an empty replica
  read[0] = read[1];
}

}  // namespace berth
