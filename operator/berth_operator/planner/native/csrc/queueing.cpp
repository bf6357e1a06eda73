// How long do turns take on a replica at a given rate?  The model is told in ../../queueing.py.

#include "queueing.hpp"

#include <utility>

#include "clones.hpp"

namespace berth {
namespace {

// Correlation of the turns that come within a turn's time and of how many there are meanwhile, sqrt(3/8) where turns
// come at random and stay for as long.
constexpr double kTogether = 0.61;

// Prompts that are read in one step are counted up to here.
constexpr int kPromptsAStep = 3;

// By how many standard deviations the p99 of an exponential distribution is above its mean: ln 100 - 1.  Steps of the
// real worker on a shared machine: 3.0 to 4.7.
constexpr double kP99Deviations = 3.6;

// Beyond twice the mean, a p99 between tokens says something else than how the machine varies.
constexpr double kNoisiest = 1.0;

// Of the likeliest number of turns: numbers less likely say nothing of a p99.
constexpr double kSeldom = 1e-6;

// What stands for 0 in logarithms.
constexpr double kNever = 1e-200;

// Share of time that a replica has left from which on it keeps up.
constexpr double kFull = 1e-9;

// Seconds.  Of the real worker on a shared machine the correlation of steps was 0.7 of neighbours, 0.4 after 8 and 0.2
// after 20 steps of 10 ms.
constexpr double kNoiseLasts = 0.1;

struct Noise {
  double variance, third;

  // Of that many seconds of steps: of a mean over them, as noise comes and goes.
  BERTH_INLINE Noise(double deviation, double seconds) {
    const double lasting = std::max(seconds / kNoiseLasts, 1e-3);
    const double left = 2 * (lasting + expm1(-lasting)) / (lasting * lasting);
    variance = deviation * seconds * (deviation * seconds) * left;
    third = 2 * deviation * seconds * variance * left;
  }
};

// Chance of more than `limit`, of the gamma distribution with these cumulants (Pearson III, its tail after Wilson and
// Hilferty 1931).  The logistic form of the normal distribution function is Page's (1977), within 0.0002.
BERTH_INLINE double beyond(double mean, double variance, double third, double limit) {
  const double deviation = std::sqrt(std::max(variance, kTiny));
  const double half = clip(third / (2 * (deviation * deviation * deviation)), 5e-4, 2.0);
  const double base = 1 + half * (limit - mean) / deviation;
  const double z = 3 / half * expm1(log(std::max(base, 1e-300)) / 3) + half / 3;
  const double chance = 1 / (1 + exp(clip(z * (1.5976 + 0.070565988 * (z * z)), -600.0, 600.0)));
  return base > 0 ? chance : 1.0;
}

// The same of a uniform distribution with this mean and variance: a part of a step that runs.
BERTH_INLINE double beyond_even(double mean, double variance, double limit) {
  const double half = std::sqrt(3 * variance);
  return clip((mean + half - limit) / std::max(2 * half, kTiny), 0.0, 1.0);
}

}  // namespace

BERTH_CLONES void Ahead::set(const Speed& of_speed, const Load& of_load) {
  speed = &of_speed;
  load = &of_load;
  const int columns = speed->columns();
  for (Column* values : {&noise, &late, &usual, &base}) values->resize(columns);
  for (int k = 0; k < station.kinds; ++k)
    for (auto* times : {&free[k], &behind[k], &before[k]}) times->resize(columns);
  const Column& turns = speed->turns;
  const bool paced = speed->token_budget == 0;  // else prompts share steps
#pragma GCC ivdep
  for (int i = 0; i < columns; ++i) {
    // what the p99 between tokens says of noise, if the distribution is exponential
    noise[i] = clip(speed->gap_p99[i] / speed->step[i] - 1, 0.0, kNoisiest) / kP99Deviations;
    base[i] = log(std::max(station.took[i], kNever));
  }
  for (int k = 0; k < station.kinds; ++k) {
    const Work work = station.works[k];
    const double mean_work = station.work.mean;
    read_behind(station.own[k]);
#pragma GCC ivdep
    for (int i = 0; i < columns; ++i) {
      // for the prompts ahead, where one is: what is left of it, and those that wait
      const double size = std::max(station.every.mean[i], kTiny), varies = station.every.variance[i] / (size * size);
      const double left = (1 + varies) / 2;
      const double left_square = (station.every.third[i] / (size * size * size) + 3 * varies + 1) / 3;
      const double left_variance = std::max(left_square - left * left, 0.0);
      const double others = station.there[i] - 1;
      const double stretch = station.stretch[i], one = station.read[i], shared = std::min(one, mean_work * stretch);
      const double read = paced ? one : shared, usual_step = station.step[i];
      const double step = turns[i] > 0 ? usual_step : 0.0, residual = step * step / 12;
      const double ahead = read * (left + others) + step / 4;  // a prompt waits for a step before it is read
      // prompts that come while it waits, and are read in one step with it
      const double join = station.joining[i] / station.took[i], wait = ahead * (1 + join);
      const double wait_variance = read * read * (left_variance + station.there_variance[i] + others * varies) *
                                       ((1 + join) * (1 + join)) +
                                   ahead * join * station.joining[i];
      const double wait_third = 2 * (wait_variance * wait_variance) / std::max(wait, kTiny);  // a gamma distribution's

      const double own = station.own[k][i], then = read_behind_[i];
      const double varied = work.variance * (stretch * stretch), skewed = work.third * (stretch * stretch * stretch);
      const Noise alone(noise[i], own + step / 2), after(noise[i], then + wait);
      free[k].mean[i] = own + step / 2;
      free[k].variance[i] = varied + residual + alone.variance;
      free[k].third[i] = skewed + alone.third;
      behind[k].mean[i] = then + wait;
      behind[k].variance[i] = varied + wait_variance + after.variance;
      behind[k].third[i] = skewed + wait_third + after.third;

      // the wait of all arrivals, whether they find a prompt ahead or not
      const double reading = station.reading[i], queued = reading * wait;
      const double second = reading * (wait_variance + wait * wait);
      const double third = reading * (wait_third + 3 * wait_variance * wait + wait * wait * wait);
      before[k].mean[i] = own + reading * (then - own) + queued + step / 2;
      before[k].variance[i] = varied + residual + (second - queued * queued);
      before[k].third[i] = skewed + (third - 3 * queued * second + 2 * (queued * queued * queued));
    }
  }
  for (int i = columns - 1; i > 0; --i) {
    const double width = turns[i] - turns[i - 1];
    base[i] = (width - 1) / 2 * base[i - 1] + (width + 1) / 2 * base[i];
  }
  base[0] = 0.0;
  for (int i = 1; i < columns; ++i) base[i] += base[i - 1];
  first_tokens(load->first_token, late, usual);
}

// A prompt that others are read before is read beside those that decode then: of n + 1 turns all but the prompts.
void Ahead::read_behind(const Column& own) {
  const Column& turns = speed->turns;
  const int last = speed->columns() - 1;
  read_behind_.resize(last + 1);
  for (int i = 0, j = 1; i <= last; ++i) {
    const int next = std::min(i + 1, last);
    const double rise = (station.there[next] - station.there[i]) / std::max(turns[next] - turns[i], 1.0);
    const double decoding = clip(turns[i] + 1 - (station.there[i] + rise), 0.0, turns[i]);
    while (j < last && turns[j] < decoding) ++j;
    while (j > 1 && turns[j - 1] > decoding) --j;
    const double part = (decoding - turns[j - 1]) / (turns[j] - turns[j - 1]);
    read_behind_[i] = own[j - 1] + part * (own[j] - own[j - 1]);
  }
}

BERTH_CLONES void Ahead::first_tokens(double limit, Column& late_by, Column& usual_by) const {
  const int columns = speed->columns();
  late_by.assign(columns, 0.0);
  usual_by.assign(columns, 0.0);
  for (int k = 0; k < station.kinds; ++k) {
    const double share = station.shares[k];
    const Cumulants &now = free[k], &then = behind[k];
    const auto add = [&](auto unhindered) __attribute__((always_inline)) {
#pragma GCC ivdep
      for (int i = 0; i < columns; ++i) {
        const double reading = station.reading[i], late = unhindered(i);
        const double hindered = beyond(then.mean[i], then.variance[i], then.third[i], limit);
        late_by[i] += share * (late + reading * (hindered - late));
        usual_by[i] += share * (now.mean[i] + reading * (then.mean[i] - now.mean[i]));
      }
    };
    if (load->prompt_spread > 0)
      add([&](int i) { return beyond(now.mean[i], now.variance[i], now.third[i], limit); });
    else
      add([&](int i) { return beyond_even(now.mean[i], now.variance[i], limit); });
  }
}

BERTH_CLONES void Queue::set(const Ahead& ahead, double rate, int slots) {
  ahead_ = &ahead;
  rate_ = rate;
  columns_ = slots + 1;
  const Load& load = *ahead.load;
  const Column &turns = ahead.speed->turns, &took = ahead.station.took;
  chance_.resize(columns_);
  weights_.resize(columns_);
  between_.resize(columns_);
  if (std::isfinite(load.sessions)) {
    sessions_ = std::max(load.sessions, rate * (load.think_seconds + load.turn));
    away_ = std::max(sessions_ / rate - load.turn, kNever);
#pragma GCC ivdep
    for (int i = 0; i < columns_; ++i) {
      const double before = std::min(rate, std::max(sessions_ - turns[i], 0.0) / away_);
      weights_[i] = log(std::max(before * took[i], kNever));
    }
    chance_[0] = 0.0;
    for (int i = 1; i < columns_; ++i) {
      const double width = turns[i] - turns[i - 1];
      chance_[i] = chance_[i - 1] + (width - 1) / 2 * weights_[i - 1] + (width + 1) / 2 * weights_[i];
    }
  } else {
    const double logarithm = log(rate);
    for (int i = 0; i < columns_; ++i) chance_[i] = turns[i] * logarithm + ahead.base[i];
  }
  const double greatest = *std::max_element(chance_.begin(), chance_.end());
#pragma GCC ivdep
  for (int i = 0; i < columns_; ++i) chance_[i] = exp(chance_[i] - greatest);

  double all = 0;
  for (int i = 0; i < columns_; ++i) {  // whole numbers between columns, where chances are linear
    const double from = i > 0 ? (turns[i] - turns[i - 1] - 1) / 2 : 0.0;
    const double to = i < slots ? (turns[i + 1] - turns[i] + 1) / 2 : 0.0;
    between_[i] = chance_[i] * (from + to);
    const bool waits = i == slots && stable(i);
    weights_[i] = between_[i] + (waits ? chance_[i] / std::max(1 - coming(i) * took[i], kFull) : 0.0);
    all += weights_[i];
  }
  for (double& weight : weights_) weight /= std::max(all, kTiny);
}

// Turns/s that others bring while so many are inside.
double Queue::coming(int column) const {
  if (std::isinf(ahead_->load->sessions)) return rate_;
  return std::min(rate_, std::max(sessions_ - 1 - ahead_->speed->turns[column], 0.0) / away_);
}

bool Queue::stable(int column) const { return coming(column) * ahead_->station.took[column] < 1 - kFull; }

// Share of turns that are late, from the share of those that find i turns.
//
// `slack`: seconds that a turn may wait for a slot, if all else takes it as long as on average.  The wait over that
// with exponential service times, where all answers are equally long: 1/2 with one slot (Pollaczek and Khinchine); with
// 4 and 16 the engine's own scheduler showed 0.6 to 0.8, as steps and prompts still differ.
double Queue::late(int column, const Column& by_state, double slack) const {
  if (!stable(column)) return 1.0;
  const Column& turns = ahead_->speed->turns;
  const double took = ahead_->station.took[column], others = coming(column);
  const double spare = std::max(1 / took - others, kTiny);
  const double equal = 0.75 - 0.25 / std::sqrt(std::max(turns[column], 1.0));
  const double wait = (equal + (1 - equal) * std::min(ahead_->load->output_spread, 1.0)) / spare;
  const double waiting = std::max(let_in(by_state, column), exp(-std::max(slack, 0.0) / wait));
  const double waits = chance_[column] / std::max(1 - others * took, kFull);  // all states from there on
  const double below = column > 0 ? chance_[column] * ((turns[column] - turns[column - 1] - 1) / 2) : 0.0;
  double found = waits * waiting + below * by_state[column], all = waits + below;
  for (int i = 0; i < column; ++i) {
    found += between_[i] * by_state[i];
    all += between_[i];
  }
  return found / std::max(all, kTiny);
}

// For a turn that has waited for a slot and takes that of one that ended, from the values of those that find i turns.
double Queue::let_in(const Column& by_state, int column) const {
  const Column& turns = ahead_->speed->turns;
  return by_state[column] - (by_state[column] - by_state[column - 1]) / (turns[column] - turns[column - 1]);
}

double Queue::first_late(int column) const {
  return late(column, ahead_->late, ahead_->load->first_token - let_in(ahead_->usual, column));
}

double Queue::first_late(int column, double limit) {
  ahead_->first_tokens(limit, late_, usual_);
  return late(column, late_, limit - let_in(usual_, column));
}

BERTH_CLONES void Queue::turns() {
  const Load& load = *ahead_->load;
  const Station& station = ahead_->station;
  const Column& inside = ahead_->speed->turns;
  double rate = rate_;  // that others bring on average while a turn is inside
  if (std::isfinite(load.sessions)) {
    rate = 0;
    for (int i = 0; i < columns_; ++i) rate += weights_[i] * coming(i);
  }
  double steals = 0, mean_inside = 0, decoding = 0, step = 0;
  for (int i = 0; i < columns_; ++i) {
    steals += weights_[i] * station.steals[i];
    mean_inside += weights_[i] * inside[i];
    decoding += weights_[i] * station.decoding[i];
    step += weights_[i] * station.step[i];
  }
  // the line through the states, weighed by their chance: seconds by which one more stream lengthens a step
  double spread = 0, variance = 0, rise = 0;
  for (int i = 0; i < columns_; ++i) {
    const double offset = inside[i] - mean_inside, weighed = weights_[i] * offset;
    spread += weighed * offset;
    variance += weighed * station.decoding[i];
    rise += weighed * station.step[i];
  }
  const double slope = variance > 1e-6 ? std::max(rise / variance, 0.0) : 0.0;
  // decoding: from the concurrency that is found back to the mean one
  const Work& work = station.work;
  const double squared = steals * steals;  // of what a prompt takes streams only see what lengthens steps
  const double second = squared * (work.variance + work.mean * work.mean);
  const double third =
      squared * steals * (work.third + 3 * work.variance * work.mean + work.mean * work.mean * work.mean);
  const double stolen = std::min(rate * work.mean * steals, 0.98), left = 1 - stolen;
  const double steps = std::max(load.output_tokens - 1, 0.0), output = load.output_spread;
  const double relaxing = std::max(1 - rate * load.output_tokens * slope / left, 0.02);
  const double kept = -expm1(-relaxing) / relaxing;
  const double wandering =
      std::max(2 * (relaxing + expm1(-relaxing)) / (relaxing * relaxing) - kept * kept, 0.0);
  const double swing = steps * slope / left, crowded = swing * swing * spread * wandering;
  const double prefilled_each = rate * second / (left * left * left);
  const double skewed_each =
      rate * third / (left * left * left * left) +
      3 * (rate * second * (rate * second)) / (left * left * left * left * left);
  const double more = (1 + stolen) * (1 + stolen), most = more * (1 + stolen), least_step = station.step[1];
  for (int k = 0; k < station.kinds; ++k) {
    turn_[k].resize(columns_);
    Cumulants& turn = turn_[k];
    const Cumulants& before = ahead_->before[k];
#pragma GCC ivdep
    for (int i = 0; i < columns_; ++i) {
      const double usual = step + slope * (1 + kept * (station.decoding[i] - decoding));
      const double base = steps * std::max(usual, least_step), decode = base / left;
      const double prefilled = base * prefilled_each;
      const double decode_variance = prefilled + crowded + 2 * kTogether * std::sqrt(prefilled * crowded) +
                                     output * (decode * decode);
      const double decode_third = base * skewed_each + 2 * (output * output) * (decode * decode * decode);
      // prompts that come while a turn waits are read while it decodes: what it waits more, it decodes longer
      const double taken = before.mean[i] + decode;
      const Noise jitter(ahead_->noise[i], taken);
      turn.mean[i] = taken;
      turn.variance[i] = before.variance[i] * more + decode_variance + jitter.variance;
      turn.third[i] = before.third[i] * most + decode_third + jitter.third;
    }
  }
}

BERTH_CLONES double Queue::turn_late(int column, double limit) {
  const Station& station = ahead_->station;
  late_.assign(columns_, 0.0);
  double usual = 0;
  for (int k = 0; k < station.kinds; ++k) {
    const double share = station.shares[k];
    const Cumulants& turn = turn_[k];
#pragma GCC ivdep
    for (int i = 0; i < columns_; ++i)
      late_[i] += share * beyond(turn.mean[i], turn.variance[i], turn.third[i], limit);
    usual += share * let_in(turn.mean, column);
  }
  return late(column, late_, limit - usual);
}

BERTH_CLONES double Queue::gap_p99(int column) const {
  const Station& station = ahead_->station;
  const Speed& speed = *ahead_->speed;
  double work = 0;
  for (int k = 0; k < station.kinds; ++k) work += station.shares[k] * station.works[k].mean;
  Column most;
  added_seconds(speed, station.step, most);
  // tokens that come in steps of a kind, mean and deviation of these steps, seconds
  Column tokens, seconds, deviations;
  double all = 0, low = 0, high = 0;
  const auto add = [&](double count, double mean, double noise) {
    tokens.push_back(count);
    seconds.push_back(mean);
    deviations.push_back(std::max(mean * noise, kTiny));
    all += count;
    high = std::max(high, mean * (1 + noise * kP99Deviations));
  };
  for (int i = 0; i <= column; ++i) {
    const double states = i < column ? chance_[i] * (speed.turns[i + 1] - speed.turns[i])
                                     : chance_[i] / std::max(1 - coming(i) * station.took[i], kFull);
    if (states < kSeldom) continue;
    const double noise = std::max(speed.gap_p99[i] / speed.step[i] - 1, 0.0) / kP99Deviations;
    const double streams = station.decoding[i] * states, step = station.step[i], reading = station.reading[i];
    add(streams * (1 - reading) / step, step, noise);
    double waiting = reading;  // chance that as many prompts wait; they are read together, as far as the chunk goes
    for (int prompts = 1; prompts <= kPromptsAStep; ++prompts) {
      const double more = prompts < kPromptsAStep ? waiting * (1 - 1 / station.there[i]) : 0.0;
      const double chunk = std::min(most[i], std::max(prompts * work - speed.idle[i], 0.0));
      const double longer = step + (speed.turns[i] > 1 ? chunk : 0.0);
      add(streams * (waiting - more) / longer, longer, noise);
      waiting = more;
    }
  }
  const int kinds = static_cast<int>(tokens.size());
  Column late(kinds);
  for (int halving = 0; halving < 20; ++halving) {
    const double limit = (low + high) / 2;
#pragma GCC ivdep
    for (int i = 0; i < kinds; ++i)  // of an exponential distribution, as the p99 is taken
      late[i] = tokens[i] * exp(clip((seconds[i] - limit) / deviations[i] - 1, -600.0, 0.0));
    double later = 0;
    for (double some : late) later += some;
    (later > kLate * all ? low : high) = limit;
  }
  return std::max(high, speed.gap_p99[1]);
}

}  // namespace berth
