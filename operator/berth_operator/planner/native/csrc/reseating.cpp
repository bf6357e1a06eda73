// How do pools that compete for too few nodes come to a better plan?  reseating.py says it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
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

// Rows as bits: the last one stands for all rows from there on.
constexpr int64_t kBits = 63;
uint64_t bit(int64_t row) { return uint64_t{1} << std::min(row, kBits); }

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
      : s_(seats), patterns_(s_.pools), brief_(s_.pools), lanes_(s_.pools), offers_(s_.lanes), now_(s_.pools),
        least_(s_.pools, kNever), left_(s_.caps, s_.caps + s_.rows), there_(s_.of->options), state_(seed) {
    for (int64_t row = 0; row < s_.rows; ++row) left(row, 0);
    for (int64_t lane = 0; lane < s_.lanes; ++lane)
      if (s_.priced[lane]) lanes_[s_.pool[lane]].push_back(lane);
    for (int64_t lane = 0; lane < s_.lanes; ++lane)
      for (int64_t k = 0; k < s_.of->options; ++k)
        if (const int64_t at = lane * s_.of->options + k; s_.of->most[at] > 0)
          offers_[lane].push_back({k, s_.row[at], s_.row[at] < s_.rows ? bit(s_.row[at]) : 0});
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
        for (size_t i = 0; i < out_.size(); ++i) forget(out_[i], known[i]), seat(out_[i], before[i]);
        worth_ = worth;
      }
      if (worth_ < earlier) earlier = worth_;
    }
  }

  // Goes on from where another one is, by moves of its own.
  void follow(const Reseating& other) {
    patterns_ = other.patterns_, brief_ = other.brief_, now_ = other.now_, least_ = other.least_;
    left_ = other.left_, full_ = other.full_, worth_ = other.worth_;
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
    double dollars;
    int64_t unserved, missing;
  };

  // What is looked at of all patterns of a pool, again and again.
  struct Brief {
    double cost, paid;  // as the stage counts it; for what it uses at the duals
    uint64_t rows;      // that it uses
    double reduced() const { return cost + paid; }
  };

  // An option of which a lane may have any.
  struct Offer {
    int64_t option, row;
    uint64_t rows;
  };

  // What nodes there are for a lane: its options of which any are left.
  struct There {
    explicit There(int64_t options)
        : share(options), usd(options), node(options), option(options), per_node(options), most(options),
          parts(options), vendor(options), zones(options), kind(options), nodes(options), spot(new bool[options]) {}
    Lane of(Lane all, int64_t count) const {
      all.options = count, all.share = share.data(), all.usd = usd.data(), all.per_node = per_node.data();
      all.most = most.data(), all.parts = parts.data(), all.vendor = vendor.data(), all.zones = zones.data();
      all.kind = kind.data(), all.spot = spot.get();
      return all;
    }
    std::vector<double> share, usd, node;  // `node`: at so many times the duals
    std::vector<int64_t> option, per_node, most, parts, vendor, zones, kind, nodes;  // `nodes`: of the cheapest pattern
    std::unique_ptr<bool[]> spot;
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
    for (const auto& [row, units] : of(pool).use) left(row, units);
  }

  void seat(int64_t pool, size_t pattern) {
    now_[pool] = pattern;
    count(pool, 1);
    for (const auto& [row, units] : of(pool).use) left(row, -units);
  }

  // So many more are left.
  void left(int64_t row, int64_t more) {
    left_[row] += more;
    if (row < kBits) full_ = left_[row] > 0 ? full_ & ~bit(row) : full_ | bit(row);
  }

  bool fits(int64_t pool, size_t pattern) const {
    if (brief_[pool][pattern].rows & full_) return false;
    const Pattern& use = patterns_[pool][pattern].use;
    return std::all_of(use.begin(), use.end(), [&](const Taken& of) { return of.count <= left_[of.option]; });
  }

  // What a pool's patterns cost that serves so much, in nodes at their own price.
  double shortage(int64_t lane, const Served& served) const {
    const double unserved = served.unserved > kTolerance ? served.unserved : 0.0;
    return unserved * s_.unserved[lane] + static_cast<double>(served.missing) * s_.missing;
  }

  // A pattern that keeps its lane's rules becomes one of its pool's; returns which.
  size_t add(int64_t lane, const Pattern& nodes) {
    const Served served = serving_.served(Lane(*s_.of, lane), nodes);
    Seat one{lane, nodes, {}, 0.0, 0, served.missing};
    Brief brief{0.0, 0.0, 0};
    for (const auto& [k, taken] : nodes) {
      const int64_t at = lane * s_.of->options + k, row = s_.row[at];
      one.dollars += static_cast<double>(taken) * s_.price[at];
      if (row >= s_.rows) continue;
      const auto same = std::find_if(one.use.begin(), one.use.end(), [&](const Taken& u) { return u.option == row; });
      if (same == one.use.end())
        one.use.push_back({row, taken * s_.weight[at]});
      else
        same->count += taken * s_.weight[at];
      brief.rows |= bit(row);
      brief.paid += static_cast<double>(taken * s_.weight[at]) * s_.dual[row];
    }
    one.unserved = served.unserved > kTolerance ? std::llround(served.unserved * kShares) : 0;
    brief.cost = s_.dollars * one.dollars + shortage(lane, served);
    const int64_t pool = s_.pool[lane];
    least_[pool] = std::min(least_[pool], brief.reduced());
    patterns_[pool].push_back(std::move(one)), brief_[pool].push_back(brief);
    return patterns_[pool].size() - 1;
  }

  // All patterns of a pool but the first ones.
  void forget(int64_t pool, size_t known) { patterns_[pool].resize(known), brief_[pool].resize(known); }

  double excess(int64_t pool) const { return brief_[pool][now_[pool]].reduced() - least_[pool]; }

  // Into `out_`: of some pools the one that is farthest from its best at the duals, and such as stand in its way.
  void take_out() {
    int64_t first = any();
    for (int64_t i = 1; i < kContest; ++i)
      if (const int64_t other = any(); excess(other) > excess(first)) first = other;
    const std::vector<Brief>& mine = brief_[first];
    const auto better = [](const Brief& a, const Brief& b) { return a.reduced() < b.reduced(); };
    const size_t wished = below(4) == 0 ? below(static_cast<int64_t>(mine.size()))
                                        : std::min_element(mine.begin(), mine.end(), better) - mine.begin();
    const Pattern& wish = patterns_[first][wished].use;
    out_.assign(1, first), leave(first);
    if (below(kAll) == 0) {
      const size_t begin = below(static_cast<int64_t>(open_.size()));
      for (size_t i = 0; i < open_.size(); ++i)
        if (const int64_t pool = open_[(begin + i) % open_.size()]; pool != first && in_the_way(pool, wish))
          out_.push_back(pool), leave(pool);
    } else {
      const size_t most = 2 + below(kOthers);
      for (int64_t i = 0; i < kTries && out_.size() < most; ++i) {
        const int64_t pool = any();
        if (std::find(out_.begin(), out_.end(), pool) != out_.end()) continue;
        if (i < kTries - 1 && !in_the_way(pool, wish)) continue;
        out_.push_back(pool), leave(pool);
      }
    }
    for (size_t i = out_.size() - 1; i > 1; --i) std::swap(out_[i], out_[1 + below(static_cast<int64_t>(i))]);
    if (below(4) == 0) std::swap(out_[0], out_[below(static_cast<int64_t>(out_.size()))]);
  }

  bool in_the_way(int64_t pool, const Pattern& wanted) const {
    const uint64_t rows = brief_[pool][now_[pool]].rows;
    for (const auto& [row, units] : wanted) {
      if (units <= left_[row] || !(rows & bit(row))) continue;
      if (row < kBits) return true;
      for (const Taken& mine : of(pool).use)
        if (mine.option == row) return true;
    }
    return false;
  }

  // The pool's cheapest pattern within what is left, at so many times the duals; with `pricing` perhaps a new one.
  size_t best_for(int64_t pool, double times, bool pricing) {
    const auto cost = [&](size_t i) { return brief_[pool][i].cost + times * brief_[pool][i].paid; };
    size_t best = 0;
    double least = kNever;
    for (size_t i = 0; i < brief_[pool].size(); ++i)
      if (const double mine = cost(i); mine < least && fits(pool, i)) least = mine, best = i;
    if (!pricing) return best;
    for (const int64_t lane : lanes_[pool]) {
      if (!price(lane, times, &least)) continue;
      const size_t found = add(lane, pattern_);
      if (fits(pool, found))  // several options may be of one row
        best = found;
      else
        least = cost(best);
    }
    return best;
  }

  // Most weights are 1, and dividing takes long.
  static int64_t units_of(int64_t left, int64_t weight) { return weight == 1 ? left : left / weight; }

  // Into `pattern_`: the lane's cheapest below `least`, which becomes what it costs; whether there is one.
  bool price(int64_t lane, double times, double* least) {
    const Lane mine = what_is_there(lane, times);
    double* node = there_.node.data();
    int64_t* nodes = there_.nodes.data();
    std::fill_n(nodes, mine.options, 0);
    const Question question{node, s_.unserved[lane], s_.missing, *least, 0.0, kUnits, kPrices};
    double bound;
    if (!pricer_.price(mine, question, &bound, nodes)) return false;
    const Served served = kept_to_rules(mine);
    double cost = shortage(lane, served);
    for (const auto& [k, count] : pattern_) cost += static_cast<double>(count) * node[k];
    neighbours_.better(mine, {node, s_.unserved[lane], s_.missing, 0.0}, nodes, &cost, kMends, true);
    if (cost >= *least - kGain) return false;
    *least = cost;
    pattern_of(nodes, mine.options, pattern_);
    for (Taken& one : pattern_) one.option = there_.option[one.option];
    return true;
  }

  // Into `there_`, which it points into.
  Lane what_is_there(int64_t lane, double times) {
    const Lane all(*s_.of, lane);
    There& t = there_;
    int64_t count = 0;
    for (const auto& [k, row, rows] : offers_[lane]) {
      if (rows & full_) continue;
      const int64_t at = lane * all.options + k;
      const int64_t most = row < s_.rows ? std::min(all.most[k], units_of(left_[row], s_.weight[at])) : all.most[k];
      if (most <= 0) continue;
      t.option[count] = k, t.most[count] = most, t.node[count] = s_.dollars * s_.price[at];
      if (row < s_.rows) t.node[count] += times * s_.dual[row] * static_cast<double>(s_.weight[at]);
      t.share[count] = all.share[k], t.usd[count] = all.usd[k], t.per_node[count] = all.per_node[k];
      t.parts[count] = all.parts[k], t.vendor[count] = all.vendor[k], t.zones[count] = all.zones[k];
      t.kind[count] = all.kind[k], t.spot[count] = all.spot[k];
      ++count;
    }
    return t.of(all, count);
  }

  // What `there_.nodes` serve, without those that carry least where they break a budget or maxReplicas; also in
  // `pattern_`.
  Served kept_to_rules(const Lane& lane) {
    while (true) {
      pattern_of(there_.nodes.data(), lane.options, pattern_);
      const Served served = serving_.served(lane, pattern_);
      if (served.allowed) return served;
      const auto less = [&](const Taken& a, const Taken& b) { return lane.share[a.option] < lane.share[b.option]; };
      --there_.nodes[std::min_element(pattern_.begin(), pattern_.end(), less)->option];
    }
  }

  const Seats& s_;
  std::vector<std::vector<Seat>> patterns_;  // [pool]
  std::vector<std::vector<Brief>> brief_;    // of each
  std::vector<std::vector<int64_t>> lanes_;  // [pool] that are priced
  std::vector<std::vector<Offer>> offers_;   // [lane]
  std::vector<size_t> now_;                  // [pool] pattern
  std::vector<double> least_;                // [pool] reduced cost of the best
  std::vector<int64_t> left_;                // [row] units
  uint64_t full_ = 0;                        // rows of which none are left, the first `kBits`
  Worth worth_, least_worth_;                // of now, and of `best_`
  std::vector<size_t> best_;                 // [pool] pattern
  std::vector<Worth> history_;
  std::vector<int64_t> open_;                // pools that are not settled
  std::vector<int64_t> out_;                 // pools that are taken out, in the order in which they come back
  Pattern pattern_;
  There there_;
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
