// How do pools that compete for too few nodes come to a better plan?  reseating.py says it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "api.hpp"
#include "lanes.hpp"
#include "neighbours.hpp"
#include "pricing.hpp"
#include "serving.hpp"

namespace berth {

// reseating.py fills it in.
struct Seats {
  int64_t pools, lanes, rows, ranks, columns;
  const Lanes* of;
  const int64_t *pool, *row, *weight;  // [lane], [lane, option]
  const double* price;                 // [lane, option]
  const bool* priced;                  // [lane] whether pricing knows its rules
  const int64_t* caps;                 // [row]
  const int64_t* rank;                 // [pool] 0: the most important
  const int64_t *column_lane, *column_nodes, *start;  // [column], [column, option], [pool] column
  const bool* settled;                                // [pool] is never taken out
  const double *dual, *unserved;                      // [row], [lane]
  double dollars, missing;
};

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kGain = 1e-9;
constexpr double kShares = 1e7;     // parts of a pool's demand that are counted
constexpr double kCents = 1e-6;     // USD/h that count
constexpr double kTimes[] = {0.0, 0.5, 0.8, 1.0, 1.25};  // the duals, at which whoever is not the last is priced
constexpr int64_t kContest = 4;     // pools, of which the one that has least of what it would have is taken out
constexpr int64_t kOthers = 4;      // pools that are taken out beside one, at most
constexpr int64_t kTries = 12;      // pools that are looked at for them
constexpr int64_t kAll = 16;        // one move in so many takes out all who stand in the way
constexpr int64_t kUnits = 60;      // of demand in pricing
constexpr int kPrices = 3;          // of a unit on spot that it tries
constexpr int64_t kMends = 8;       // steps from what it finds
constexpr size_t kHistory = 100;    // moves ago: what was good enough then is so now

// What a plan comes to, in order of weight.
struct Worth {
  std::vector<int64_t> short_of;  // [rank] parts of demand unserved, then replicas missing
  double dollars = 0.0;

  bool operator<(const Worth& other) const {
    return short_of != other.short_of ? short_of < other.short_of : dollars < other.dollars - kCents;
  }
};

class Reseating {
 public:
  Reseating(const Seats& seats, uint64_t seed)
      : s_(seats), patterns_(s_.pools), lanes_(s_.pools), now_(s_.pools), least_(s_.pools, kNever),
        left_(s_.caps, s_.caps + s_.rows), most_(s_.of->options), nodes_(s_.of->options), node_(s_.of->options),
        state_(seed) {
    for (int64_t lane = 0; lane < s_.lanes; ++lane)
      if (s_.priced[lane]) lanes_[s_.pool[lane]].push_back(lane);
    std::vector<size_t> where(s_.columns);
    for (int64_t c = 0; c < s_.columns; ++c) {
      pattern_of(s_.column_nodes + c * s_.of->options, s_.of->options, pattern_);
      where[c] = add(s_.column_lane[c], pattern_);
    }
    worth_.short_of.assign(s_.ranks + 1, 0);
    for (int64_t i = 0; i < s_.pools; ++i) seat(i, where[s_.start[i]]);
    for (int64_t i = 0; i < s_.pools; ++i)
      if (!s_.settled[i]) open_.push_back(i);
    best_ = now_, least_worth_ = worth_, history_.assign(kHistory, worth_);
  }

  // Up to so many moves, until `enough` of the ranks, the first ones, have all that they want.
  void run(int64_t moves, int64_t enough) {
    std::vector<size_t> before, known;
    for (int64_t move = 0; move < moves && !open_.empty() && !served(enough); ++move) {
      const Worth worth = worth_;
      take_out();
      before.clear(), known.clear();
      for (const int64_t i : out_) before.push_back(now_[i]), known.push_back(patterns_[i].size());
      const double times = kTimes[below(std::size(kTimes))];
      const bool pricing = below(2) == 0;
      for (const int64_t i : out_) seat(i, best_for(i, i == out_.back() ? 0.0 : times, pricing));
      Worth& earlier = history_[move % kHistory];
      if (worth_ < earlier || !(worth < worth_)) {
        if (worth_ < least_worth_) least_worth_ = worth_, best_ = now_;
      } else {
        for (const int64_t i : out_) leave(i);
        for (size_t i = 0; i < out_.size(); ++i) patterns_[out_[i]].resize(known[i]), seat(out_[i], before[i]);
        worth_ = worth;
      }
      if (worth_ < earlier) earlier = worth_;
    }
  }

  // Goes on from where another one is, by moves of its own.
  void follow(const Reseating& other) {
    patterns_ = other.patterns_, now_ = other.now_, least_ = other.least_, left_ = other.left_, worth_ = other.worth_;
    best_ = other.best_, least_worth_ = other.least_worth_, history_ = other.history_;
  }

  bool operator<(const Reseating& other) const { return least_worth_ < other.least_worth_; }

  void read(int64_t* lane, int64_t* nodes) const {
    for (int64_t i = 0; i < s_.pools; ++i, nodes += s_.of->options) {
      const Seat& seat = patterns_[i][best_[i]];
      lane[i] = seat.lane;
      for (const auto& [k, taken] : seat.nodes) nodes[k] = taken;
    }
  }

 private:
  // A pattern.
  struct Seat {
    int64_t lane;
    Pattern nodes, use;  // of options, of rows
    double dollars, cost, paid;  // USD/h; as the stage counts it; for what it uses at the duals
    int64_t unserved, missing;
    double reduced() const { return cost + paid; }
  };

  // splitmix64 (Steele et al. 2014): a number below `most`.
  int64_t below(int64_t most) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u, z = (z ^ (z >> 27)) * 0x94D049BB133111EBu, z ^= z >> 31;
    return static_cast<int64_t>((z >> 32) * static_cast<uint64_t>(most) >> 32);
  }

  bool served(int64_t ranks) const {
    const auto begin = least_worth_.short_of.begin();
    return ranks > 0 && std::all_of(begin, begin + ranks, [](int64_t parts) { return parts == 0; });
  }

  int64_t any() { return open_[below(static_cast<int64_t>(open_.size()))]; }

  const Seat& of(int64_t pool) const { return patterns_[pool][now_[pool]]; }

  void count(int64_t pool, int64_t times) {
    const Seat& mine = of(pool);
    worth_.short_of[s_.rank[pool]] += times * mine.unserved;
    worth_.short_of[s_.ranks] += times * mine.missing;
    worth_.dollars += static_cast<double>(times) * mine.dollars;
  }

  void leave(int64_t pool) {
    count(pool, -1);
    for (const auto& [row, units] : of(pool).use) left_[row] += units;
  }

  void seat(int64_t pool, size_t pattern) {
    now_[pool] = pattern;
    count(pool, 1);
    for (const auto& [row, units] : of(pool).use) left_[row] -= units;
  }

  bool fits(const Seat& one) const {
    return std::all_of(one.use.begin(), one.use.end(), [&](const Taken& of) { return of.count <= left_[of.option]; });
  }

  // What a pool's patterns cost that serves so much, in nodes at their own price.
  double shortage(int64_t lane, const Served& served) const {
    const double unserved = served.unserved > kTolerance ? served.unserved : 0.0;
    return unserved * s_.unserved[lane] + static_cast<double>(served.missing) * s_.missing;
  }

  // A pattern that keeps its lane's rules becomes one of its pool's; returns which.
  size_t add(int64_t lane, const Pattern& nodes) {
    const Served served = serving_.served(Lane(*s_.of, lane), nodes);
    Seat one{lane, nodes, {}, 0.0, 0.0, 0.0, 0, served.missing};
    for (const auto& [k, taken] : nodes) {
      const int64_t at = lane * s_.of->options + k, row = s_.row[at];
      one.dollars += static_cast<double>(taken) * s_.price[at];
      if (row >= s_.rows) continue;
      const auto same = std::find_if(one.use.begin(), one.use.end(), [&](const Taken& u) { return u.option == row; });
      if (same == one.use.end())
        one.use.push_back({row, taken * s_.weight[at]});
      else
        same->count += taken * s_.weight[at];
      one.paid += static_cast<double>(taken * s_.weight[at]) * s_.dual[row];
    }
    one.unserved = served.unserved > kTolerance ? std::llround(served.unserved * kShares) : 0;
    one.cost = s_.dollars * one.dollars + shortage(lane, served);
    std::vector<Seat>& mine = patterns_[s_.pool[lane]];
    least_[s_.pool[lane]] = std::min(least_[s_.pool[lane]], one.reduced());
    mine.push_back(std::move(one));
    return mine.size() - 1;
  }

  double excess(int64_t pool) const { return of(pool).reduced() - least_[pool]; }

  // Into `out_`: of some pools the one that is farthest from its best at the duals, and such as stand in its way.
  void take_out() {
    int64_t first = any();
    for (int64_t i = 1; i < kContest; ++i)
      if (const int64_t other = any(); excess(other) > excess(first)) first = other;
    const std::vector<Seat>& mine = patterns_[first];
    const auto better = [](const Seat& a, const Seat& b) { return a.reduced() < b.reduced(); };
    const auto wish = below(4) == 0 ? mine.begin() + below(static_cast<int64_t>(mine.size()))
                                    : std::min_element(mine.begin(), mine.end(), better);
    out_.assign(1, first), leave(first);
    if (below(kAll) == 0) {
      const size_t begin = below(static_cast<int64_t>(open_.size()));
      for (size_t i = 0; i < open_.size(); ++i)
        if (const int64_t pool = open_[(begin + i) % open_.size()]; pool != first && in_the_way(pool, wish->use))
          out_.push_back(pool), leave(pool);
    } else {
      const size_t most = 2 + below(kOthers);
      for (int64_t i = 0; i < kTries && out_.size() < most; ++i) {
        const int64_t pool = any();
        if (std::find(out_.begin(), out_.end(), pool) != out_.end()) continue;
        if (i < kTries - 1 && !in_the_way(pool, wish->use)) continue;
        out_.push_back(pool), leave(pool);
      }
    }
    for (size_t i = out_.size() - 1; i > 1; --i) std::swap(out_[i], out_[1 + below(static_cast<int64_t>(i))]);
    if (below(4) == 0) std::swap(out_[0], out_[below(static_cast<int64_t>(out_.size()))]);
  }

  bool in_the_way(int64_t pool, const Pattern& wanted) const {
    for (const auto& [row, units] : wanted)
      for (const Taken& mine : of(pool).use)
        if (mine.option == row && units > left_[row]) return true;
    return false;
  }

  // The pool's cheapest pattern within what is left, at so many times the duals; with `pricing` perhaps a new one.
  size_t best_for(int64_t pool, double times, bool pricing) {
    std::vector<Seat>& mine = patterns_[pool];
    size_t best = 0;
    double least = kNever;
    for (size_t i = 0; i < mine.size(); ++i)
      if (const double cost = mine[i].cost + times * mine[i].paid; cost < least && fits(mine[i])) least = cost, best = i;
    if (!pricing) return best;
    for (const int64_t lane : lanes_[pool]) {
      if (!price(lane, times, &least)) continue;
      const size_t found = add(lane, pattern_);
      if (fits(mine[found]))  // several options may be of one row
        best = found;
      else
        least = mine[best].cost + times * mine[best].paid;
    }
    return best;
  }

  // Most weights are 1, and dividing takes long.
  static int64_t units_of(int64_t left, int64_t weight) { return weight == 1 ? left : left / weight; }

  // Into `pattern_`: the lane's cheapest below `least`, which becomes what it costs; whether there is one.
  bool price(int64_t lane, double times, double* least) {
    Lane mine(*s_.of, lane);
    for (int64_t k = 0; k < mine.options; ++k) {
      const int64_t at = lane * mine.options + k, row = s_.row[at];
      most_[k] = row < s_.rows ? std::min(mine.most[k], units_of(left_[row], s_.weight[at])) : mine.most[k];
      node_[k] = s_.dollars * s_.price[at];
      if (row < s_.rows) node_[k] += times * s_.dual[row] * static_cast<double>(s_.weight[at]);
    }
    mine.most = most_.data();
    std::fill(nodes_.begin(), nodes_.end(), 0);
    const Question question{node_.data(), s_.unserved[lane], s_.missing, *least, 0.0, kUnits, kPrices};
    double bound;
    if (!pricer_.price(mine, question, &bound, nodes_.data())) return false;
    const Served served = kept_to_rules(mine);
    double cost = shortage(lane, served);
    for (const auto& [k, count] : pattern_) cost += static_cast<double>(count) * node_[k];
    neighbours_.better(mine, {node_.data(), s_.unserved[lane], s_.missing, 0.0}, nodes_.data(), &cost, kMends, true);
    if (cost >= *least - kGain) return false;
    *least = cost;
    pattern_of(nodes_.data(), mine.options, pattern_);
    return true;
  }

  // What `nodes_` serve, without those that carry least where they break a budget or maxReplicas; also in `pattern_`.
  Served kept_to_rules(const Lane& lane) {
    while (true) {
      pattern_of(nodes_.data(), lane.options, pattern_);
      const Served served = serving_.served(lane, pattern_);
      if (served.allowed) return served;
      const auto less = [&](const Taken& a, const Taken& b) { return lane.share[a.option] < lane.share[b.option]; };
      --nodes_[std::min_element(pattern_.begin(), pattern_.end(), less)->option];
    }
  }

  const Seats& s_;
  std::vector<std::vector<Seat>> patterns_;  // [pool]
  std::vector<std::vector<int64_t>> lanes_;  // [pool] that are priced
  std::vector<size_t> now_;                  // [pool] pattern
  std::vector<double> least_;                // [pool] reduced cost of the best
  std::vector<int64_t> left_;                // [row] units
  Worth worth_, least_worth_;                // of now, and of `best_`
  std::vector<size_t> best_;                 // [pool] pattern
  std::vector<Worth> history_;
  std::vector<int64_t> open_;                // pools that are not settled
  std::vector<int64_t> out_, most_, nodes_;  // pools that are taken out, in the order in which they come back
  std::vector<double> node_;
  Pattern pattern_;
  Pricer pricer_;
  Neighbours neighbours_;
  Serving serving_;
  uint64_t state_;
};

constexpr int64_t kParts = 32;  // after each of which both searches go on from the better one's plan

// Two searches side by side, each half of the moves.
void reseat(Reseating& one, Reseating& other, int64_t moves, int64_t enough) {
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t each = (moves * (part + 1) / kParts - moves * part / kParts + 1) / 2;
    const auto half = [&] { other.run(each, enough); };
    std::thread beside;
    try {
      beside = std::thread(half);
    } catch (const std::system_error&) {  // no thread can be had: one after the other, they come to the same plan
      half();
    }
    one.run(each, enough);
    if (beside.joinable()) beside.join();
    if (other < one)
      one.follow(other);
    else
      other.follow(one);
  }
}

}  // namespace
}  // namespace berth

// `lane` [pool] and `nodes` [pool, option], zero before, after so many moves; fewer where `enough` ranks, if that is
// above 0, have all that they want.
BERTH_API void berth_reseat(const berth::Seats* seats, int64_t moves, int64_t enough, int64_t* lane, int64_t* nodes) {
  berth::Reseating one(*seats, 1), other(*seats, 2);
  reseat(one, other, moves, enough);
  one.read(lane, nodes);
}
