// How does a divided choice of patterns become a whole one?  rounding.py says it.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "api.hpp"

namespace berth {

// Known patterns [column], as rounding.py has them.
struct Patterns {
  int64_t columns, rows, pools;
  const int64_t* pool;
  const double *cost, *reduced;
  const double *use, *caps;  // [column, row], [row]
};

namespace {

constexpr double kGain = 1e-6, kFits = 1e-9;
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int64_t kNone = -1;

class Choice {
 public:
  // `chosen` [pool] column, changed in place.
  Choice(const Patterns& patterns, int64_t* chosen)
      : p_(patterns), chosen_(chosen), left_(p_.caps, p_.caps + p_.rows), more_(p_.rows), begin_{0} {
    begin_.reserve(p_.columns + 1);
    for (int64_t c = 0; c < p_.columns; ++c) {
      for (int64_t r = 0; r < p_.rows; ++r)
        if (const double units = p_.use[c * p_.rows + r]; units != 0.0) uses_.push_back({r, units});
      begin_.push_back(uses_.size());
    }
    for (int64_t i = 0; i < p_.pools; ++i) change(chosen_[i], -1.0, left_);
    least_.assign(p_.pools, kNever);
    for (int64_t c = 0; c < p_.columns; ++c) least_[p_.pool[c]] = std::min(least_[p_.pool[c]], p_.reduced[c]);
  }

  // Where rows are overfull, whoever gives way cheapest does, of patterns near the best if they do.
  void relieve(const double* weight, int64_t most_patterns) {
    const auto near = nearest(most_patterns, kNever), all = nearest(p_.columns, kNever);
    while (lacking(left_, weight) > kFits) {
      int64_t best = cheapest_relief(near, weight);
      if (best == kNone) best = cheapest_relief(all, weight);
      if (best == kNone) return;
      take(best);
    }
  }

  void make_room(const double* weight, int64_t most_patterns, int64_t most_wishes, int64_t wishes_each,
                 int64_t most_moves, int64_t most_passes) {
    const auto movable = nearest(most_patterns, kNever);
    const auto rank = ranks();
    std::vector<int64_t> wishes;
    for (int64_t pass = 0; pass < most_passes; ++pass) {
      wishes.clear();
      for (int64_t c = 0; c < p_.columns; ++c)
        if (rank[c] < wishes_each && saved(c) > kGain && hope(c) > kGain) wishes.push_back(c);
      std::stable_sort(wishes.begin(), wishes.end(), [&](int64_t a, int64_t b) { return hope(a) > hope(b); });
      wishes.resize(std::min<size_t>(wishes.size(), most_wishes));
      bool granted = false;
      for (const int64_t wish : wishes) granted |= grant(wish, movable, weight, most_moves);
      if (!granted) break;
    }
    take_what_fits();
  }

  // Exchanges of one pattern or of two, the best first.  `gain`: what there can be to gain at most.
  void exchange(int64_t most_patterns, int64_t most_exchanges, double gain) {
    const auto tried = nearest(most_patterns, gain + kGain);
    for (int64_t step = 0; step < most_exchanges; ++step) {
      const auto [one, other] = best_exchange(tried);
      if (one == kNone) return;
      take(one);
      if (other != kNone) take(other);
    }
  }

 private:
  struct Use {
    int64_t row;
    double units;
  };

  double saved(int64_t c) const { return p_.cost[chosen_[p_.pool[c]]] - p_.cost[c]; }
  double hope(int64_t c) const { return p_.reduced[chosen_[p_.pool[c]]] - p_.reduced[c]; }

  void change(int64_t column, double times, std::vector<double>& rows) const {
    for (size_t i = begin_[column]; i < begin_[column + 1]; ++i) rows[uses_[i].row] += times * uses_[i].units;
  }

  void take(int64_t column) {
    int64_t& now = chosen_[p_.pool[column]];
    change(now, 1.0, left_), change(column, -1.0, left_);
    now = column;
  }

  double lacking(const std::vector<double>& left, const double* weight) const {
    double total = 0.0;
    for (int64_t r = 0; r < p_.rows; ++r) total += std::max(-left[r], 0.0) * weight[r];
    return total;
  }

  // Calls `visit(row, units)` of what `column` takes more of each row than `now`; leaves `more_` zero.
  template <class Visit>
  void compare(int64_t now, int64_t column, Visit&& visit) {
    change(column, 1.0, more_), change(now, -1.0, more_);
    for (const int64_t c : {column, now})
      for (size_t i = begin_[c]; i < begin_[c + 1]; ++i)
        if (const double units = more_[uses_[i].row]; units != 0.0) {
          visit(uses_[i].row, units);
          more_[uses_[i].row] = 0.0;
        }
  }

  // By how much less is lacking once its pool takes `column`.
  double helps(int64_t column, const std::vector<double>& left, const double* weight) {
    double less = 0.0;
    compare(chosen_[p_.pool[column]], column, [&](int64_t r, double units) {
      less += (std::max(-left[r], 0.0) - std::max(units - left[r], 0.0)) * weight[r];
    });
    return less;
  }

  // Columns of no more than `excess` above their pool's best: each pool's best, and so many others of least excess.
  std::vector<int64_t> nearest(int64_t most, double excess) const {
    const auto above = [&](int64_t c) { return p_.reduced[c] - least_[p_.pool[c]]; };
    std::vector<int64_t> found(p_.columns);
    std::iota(found.begin(), found.end(), 0);
    const int64_t count = std::min(most + p_.pools, p_.columns);
    std::stable_sort(found.begin(), found.end(), [&](int64_t a, int64_t b) { return above(a) < above(b); });
    found.resize(count);
    std::erase_if(found, [&](int64_t c) { return above(c) > excess; });
    std::sort(found.begin(), found.end());
    return found;
  }

  // [column] how many of its pool have a lower reduced cost.
  std::vector<int64_t> ranks() const {
    std::vector<int64_t> order(p_.columns), rank(p_.columns), count(p_.pools, 0);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p_.reduced[a] < p_.reduced[b]; });
    for (const int64_t c : order) rank[c] = count[p_.pool[c]]++;
    return rank;
  }

  int64_t cheapest_relief(const std::vector<int64_t>& columns, const double* weight) {
    int64_t best = kNone;
    double least = kNever;
    for (const int64_t c : columns) {
      const double less = helps(c, left_, weight);
      if (less <= kFits) continue;
      const double rate = (std::max(-hope(c), 0.0) + kGain) / less;
      if (rate < least) least = rate, best = c;
    }
    return best;
  }

  // `wish` and the patterns that make room for it are taken, if all together are cheaper than what they replace.
  bool grant(int64_t wish, const std::vector<int64_t>& movable, const double* weight, int64_t most_moves) {
    double gain = saved(wish);
    if (gain <= kGain) return false;
    left_then_ = left_, moves_.assign(1, wish), touched_.assign(p_.pools, false);
    const auto move = [&](int64_t c) {
      change(chosen_[p_.pool[c]], 1.0, left_then_), change(c, -1.0, left_then_);
      touched_[p_.pool[c]] = true;
    };
    move(wish);
    for (int64_t i = 0; lacking(left_then_, weight) > kFits; ++i) {
      if (i == most_moves) return false;
      int64_t best = kNone;
      double least = kNever;
      for (const int64_t c : movable) {
        const double dearer = -saved(c);
        if (touched_[p_.pool[c]] || dearer >= gain - kGain) continue;
        const double less = helps(c, left_then_, weight);
        if (less <= kFits) continue;
        const double rate = dearer > 0 ? dearer / less : dearer;
        if (rate < least) least = rate, best = c;
      }
      if (best == kNone) return false;
      gain += saved(best);
      move(best), moves_.push_back(best);
    }
    for (const int64_t c : moves_) take(c);
    return true;
  }

  bool fits(int64_t column) {
    bool all = true;
    compare(chosen_[p_.pool[column]], column, [&](int64_t r, double units) { all &= units <= left_[r] + kFits; });
    return all;
  }

  // Cheaper patterns that nobody has to make room for, those that save most first.
  void take_what_fits() {
    std::vector<int64_t> cheaper;
    for (int64_t c = 0; c < p_.columns; ++c)
      if (saved(c) > kGain) cheaper.push_back(c);
    std::vector<double> much(p_.columns);
    for (const int64_t c : cheaper) much[c] = saved(c);
    std::stable_sort(cheaper.begin(), cheaper.end(), [&](int64_t a, int64_t b) { return much[a] > much[b]; });
    for (const int64_t c : cheaper)
      if (saved(c) > kGain && fits(c)) take(c);
  }

  bool both_fit(int64_t one, int64_t other) {
    bool all = true;
    change(one, 1.0, more_), change(chosen_[p_.pool[one]], -1.0, more_);
    change(other, 1.0, more_), change(chosen_[p_.pool[other]], -1.0, more_);
    for (const int64_t c : {one, chosen_[p_.pool[one]], other, chosen_[p_.pool[other]]})
      for (size_t i = begin_[c]; i < begin_[c + 1]; ++i) {
        all &= more_[uses_[i].row] <= left_[uses_[i].row] + kFits;
        more_[uses_[i].row] = 0.0;
      }
    return all;
  }

  bool frees(int64_t column) {
    bool any = false;
    compare(chosen_[p_.pool[column]], column, [&](int64_t, double units) { any |= units < 0; });
    return any;
  }

  // One column, or two, that gain most; none if nothing does.
  std::pair<int64_t, int64_t> best_exchange(const std::vector<int64_t>& tried) {
    std::pair<int64_t, int64_t> step{kNone, kNone};
    double best = kGain;
    std::vector<int64_t> wishes, others;
    for (const int64_t c : tried) {
      if (saved(c) > kGain && !fits(c)) wishes.push_back(c);
      else if (saved(c) > best) best = saved(c), step = {c, kNone};
      if (frees(c)) others.push_back(c);
    }
    std::stable_sort(others.begin(), others.end(), [&](int64_t a, int64_t b) { return saved(a) > saved(b); });
    for (const int64_t wish : wishes)
      for (const int64_t other : others) {
        const double gain = saved(wish) + saved(other);
        if (gain <= best) break;
        if (p_.pool[wish] == p_.pool[other] || !both_fit(wish, other)) continue;
        best = gain, step = {wish, other};
        break;
      }
    return step;
  }

  const Patterns& p_;
  int64_t* chosen_;
  std::vector<double> left_, left_then_, more_, least_;  // [row], but least_ [pool]: reduced cost of its best
  std::vector<Use> uses_;
  std::vector<size_t> begin_;  // [column] of its uses
  std::vector<int64_t> moves_;
  std::vector<bool> touched_;
};

}  // namespace
}  // namespace berth

BERTH_API void berth_relieve(const berth::Patterns* patterns, const double* weight, int64_t most_patterns,
                             int64_t* chosen) {
  berth::Choice(*patterns, chosen).relieve(weight, most_patterns);
}

BERTH_API void berth_make_room(const berth::Patterns* patterns, const double* weight, int64_t most_patterns,
                               int64_t most_wishes, int64_t wishes_each, int64_t most_moves, int64_t most_passes,
                               int64_t* chosen) {
  berth::Choice(*patterns, chosen)
      .make_room(weight, most_patterns, most_wishes, wishes_each, most_moves, most_passes);
}

BERTH_API void berth_exchange(const berth::Patterns* patterns, int64_t most_patterns, int64_t most_exchanges,
                              double gain, int64_t* chosen) {
  berth::Choice(*patterns, chosen).exchange(most_patterns, most_exchanges, gain);
}
