// The cheapest pattern of one pool at given prices.  pricing.py has the equations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "cover.hpp"
#include "lanes.hpp"
#include "serving.hpp"
#include "useful.hpp"

namespace berth {

struct Question {
  const double* node_price;  // [option] USD/h
  double penalty, missing_price, ceiling, lacking;
  int64_t units;         // Q - 1
  int most_prices = 20;  // of a unit on spot that are tried where vendors' shares bind
};

class Pricer {
 public:
  // The least cost of a pattern, and `nodes` [option] of one where that is below the ceiling; whether it is.
  bool price(const Lane& lane, const Question& question, double* bound, int64_t* nodes) {
    begin(lane, question);
    *bound = solve(nodes);
    if (!below(*bound)) return false;
    if (lane.vendor_share < 1) {
      pattern_of(nodes, lane.options, pattern_);
      if (serving_.served(lane, pattern_).unserved > kTolerance) {
        std::fill_n(nodes, lane.options, 0);
        *bound = std::max(*bound, solve_by_vendor(nodes));
      }
    }
    return below(*bound);
  }

 private:
  static constexpr double kEdge = 5e-5;       // by which D is above a whole number, relative: far above kTolerance
  static constexpr double kNotAll = 0.95;     // spot shares up to which a rest is sure to be far above tolerances
  static constexpr double kRounding = 1e-7;   // of units
  static constexpr double kHair = 1e-9;
  static constexpr int64_t kMostWanted = 4;   // replicas that are counted; of a greater floor the bound knows no more
  static constexpr int64_t kSeveral = 2;      // small options from which they are a fluid

  void begin(const Lane& lane, const Question& question) {
    lane_ = &lane, ask_ = &question;
    need_ = question.units + 1, exactly_ = static_cast<double>(question.units) * (1 + kEdge);
    times_.resize(lane.options);
    useful_.nodes(lane, question.node_price, question.penalty, question.ceiling, times_.data());
    // What is rounded up to a unit at the end is steady: spot keeps to its share, of whole units and of D.
    const double most = std::min(std::ceil(lane.spot_share * exactly_ - kRounding), static_cast<double>(need_));
    const double rest = std::ceil((1 - lane.spot_share - 2 * kTolerance) * exactly_ - kRounding);
    spot_units_ = static_cast<int64_t>(std::min(most, static_cast<double>(need_) - std::max(rest, 0.0)));
    unserved_.resize(need_ + 1);
    // Of v units missing, all but a hair of one may be rounding, and yet something is missing.
    for (int64_t v = 1; v <= need_; ++v)
      unserved_[v] = question.penalty * std::max(static_cast<double>(v - 1) / exactly_, question.lacking);
    unserved_[0] = 0.0;
    want();
  }

  // Replicas that the second coordinate counts: none where what carries the demand is as many anyway.
  void want() {
    double steady = 0.0, most = 0.0;
    for (int64_t k = 0; k < lane_->options; ++k) {
      if (times_[k] <= 0) continue;
      const double replica = std::min(lane_->share[k], 1.0) / static_cast<double>(lane_->per_node[k]);
      most = std::max(most, replica);
      if (!lane_->spot[k]) steady = std::max(steady, replica);
    }
    floor_ = lane_->uses_spot() ? lane_->floor : 0, least_ = lane_->least;
    if (static_cast<double>(floor_ - 1) * steady < 1 - lane_->spot_share - kHair) floor_ = 0;
    if (static_cast<double>(least_ - 1) * most < 1 - kHair) least_ = 0;
    wanted_ = std::clamp<int64_t>(std::max(floor_, least_), 0, kMostWanted);
    floor_ = std::min(lane_->floor, wanted_), least_ = std::min(lane_->least, wanted_);
  }

  bool below(double cost) const { return cost < ask_->ceiling * (1 - 1e-9); }  // by more than the order of a sum can do

  // Units of a share of the traffic that spot may carry.  Shares of which D is a hair above a whole number of units are
  // that number: n classes full to their share a lose n a of the hair between D and Q - 1, and what carries the rest
  // makes a unit of what is left of it, as long as there is a rest.
  double spot_units(double alone) const {
    const double share = std::min(alone, lane_->spot_share), units = share * static_cast<double>(ask_->units);
    const double whole = std::nearbyint(units);
    return std::abs(units - whole) < kHair && lane_->spot_share <= kNotAll ? whole : share * exactly_;
  }

  // Options of one kind, of `vendor` or, below 0, of all, bought onto what `cover` has begun with.
  void buy(Cover& cover, bool spot, int64_t vendor, int64_t levels) {
    small_.clear(), large_.clear();
    for (int64_t k = 0; k < lane_->options; ++k) {
      if (times_[k] <= 0 || lane_->spot[k] != spot || (vendor >= 0 && lane_->vendor[k] != vendor)) continue;
      const double cap = spot ? spot_units(lane_->most_lost(k)) : std::numeric_limits<double>::infinity();
      const Nodes of{k, times_[k], lane_->per_node[k], lane_->share[k] * exactly_, ask_->node_price[k], cap};
      (of.carried <= 1 && levels == 1 ? small_ : large_).push_back(of);
    }
    if (static_cast<int64_t>(small_.size()) >= kSeveral)
      cover.add_fluid(small_);
    else
      large_.insert(large_.begin(), small_.begin(), small_.end());
    for (const Nodes& of : large_) {
      units_.resize(of.times);
      for (int64_t j = 1; j <= of.times; ++j) {
        const double most = lane_->kind[of.option] > 0 && spot
                                ? spot_units(lane_->loss_share * lane_->spread(of.option, j))
                                : of.cap;
        units_[j - 1] = std::min(static_cast<double>(j) * of.carried, most);
      }
      cover.add(of, units_);
    }
  }

  // Bound and pattern, vendors' shares left aside.
  double solve(int64_t* nodes) {
    const int64_t width = need_ + 1;
    double* first = steady_.begin(wanted_ + 1, width);
    for (int64_t level = 0; level <= wanted_; ++level)
      for (int64_t v = 0; v < width; ++v)
        first[level * width + v] = unserved_[v] + static_cast<double>(level) * ask_->missing_price;
    buy(steady_, false, -1, wanted_ + 1);
    const double* f = steady_.costs();
    double best = f[least_ * width + need_];
    int64_t t = 0, counted = 0;
    first = spot_.begin(wanted_ + 1, spot_units_ + 1);
    std::fill_n(first, (wanted_ + 1) * (spot_units_ + 1), kHuge);
    first[0] = 0.0;
    buy(spot_, true, -1, wanted_ + 1);
    const double* g = spot_.costs();
    for (int64_t level = 0; level <= wanted_ && !spot_.empty(); ++level, g += spot_units_ + 1)
      for (int64_t x = 0; x <= spot_units_; ++x) {
        const int64_t want = std::max(x > 0 ? floor_ : 0, least_ - level);
        const double cost = f[want * width + need_ - x] + g[x];
        if (cost < best) best = cost, t = x, counted = level;
      }
    if (!below(best)) return best;
    // What is rounded up to Q units lacks a hair of one: it is left to the steady nodes.
    const int64_t want = std::max(t > 0 ? floor_ : 0, least_ - counted);
    steady_.trace(want, need_ - t, static_cast<double>(need_ - t - 1), nodes);
    if (t > 0 || counted > 0) spot_.trace(counted, t, static_cast<double>(t), nodes);
    return best;
  }

  // Bound and pattern with every vendor within its share, vendor by vendor,
  //
  //     E_v(y) = min over x <= vendor share of E_(v-1)(y - x) + H_v(x),   H_v(x) = min over t of F_v(x - t) + G_v(t).
  //
  // The spot share of all vendors together is kept by a price of each unit on spot (Lagrange), the best that there is:
  // the bound is a concave function of it, of straight pieces.  Replicas wanted are left aside: `solve` knows of those.
  double solve_by_vendor(int64_t* nodes) {
    cover_by_vendor();
    // Flows f and p of each vendor's steady nodes and spot are ceil(f) and ceil(f + p) - ceil(f) units or fewer: of Q
    // units in all, no more are on spot than the steady nodes leave.
    const double rest = std::ceil((1 - lane_->spot_share - 2 * kTolerance) * exactly_ - kRounding);
    const double most = static_cast<double>(need_) - std::max(rest, 0.0);
    const auto over = [&](const Split& one) { return static_cast<double>(one.spot()) - most; };
    Split low = split_at(0.0, most), chosen = low;
    double bound = low.value;
    if (over(low) > 0) {
      double price = std::max(bound, 1.0) / static_cast<double>(need_);
      Split high = split_at(price, most);
      for (int doubling = 0; over(high) > 0 && doubling < ask_->most_prices; ++doubling) {
        low = high, bound = std::max(bound, low.value);
        high = split_at(price *= 2, most);
      }
      chosen = high, bound = std::max(bound, high.value);
      for (int i = 0; i < ask_->most_prices && over(low) > over(high); ++i) {
        // Where the lines of both meet, which nothing is above.
        price = (high.value - high.price * over(high) - low.value + low.price * over(low)) / (over(low) - over(high));
        const double above = low.value + (price - low.price) * over(low);
        const Split found = split_at(price, most);
        bound = std::max(bound, found.value);
        if (over(found) <= 0 && found.value - found.price * over(found) < chosen.value - chosen.price * over(chosen))
          chosen = found;
        if (found.value >= above - kHair * std::abs(above)) break;
        (over(found) > 0 ? low : high) = found;
      }
    }
    for (size_t v = 0; v < vendors_.size(); ++v) {
      const auto& [steady, spot] = of_vendor_[v];
      const auto [x, t] = chosen.units[v];
      steady.trace(0, x - t, static_cast<double>(x - t), nodes);
      spot.trace(0, t, static_cast<double>(t), nodes);
    }
    return bound;
  }

  // What each vendor carries at a price of a unit on spot.
  struct Split {
    double price, value;                             // USD/h; what is paid for more than `most` units included
    std::vector<std::pair<int64_t, int64_t>> units;  // [vendor] all and on spot
    int64_t spot() const {
      int64_t total = 0;
      for (const auto& [x, t] : units) total += t;
      return total;
    }
  };

  void cover_by_vendor() {
    vendors_.clear();
    for (int64_t k = 0; k < lane_->options; ++k)
      if (times_[k] > 0) vendors_.push_back(lane_->vendor[k]);
    std::sort(vendors_.begin(), vendors_.end());
    vendors_.erase(std::unique(vendors_.begin(), vendors_.end()), vendors_.end());
    const double share = std::ceil(lane_->vendor_share * exactly_ - kRounding);
    of_each_ = static_cast<int64_t>(std::min(share, static_cast<double>(need_)));
    if (of_vendor_.size() < vendors_.size()) of_vendor_.resize(vendors_.size());
    for (size_t v = 0; v < vendors_.size(); ++v)
      for (const bool on_spot : {false, true}) {
        Cover& cover = on_spot ? of_vendor_[v].second : of_vendor_[v].first;
        const int64_t width = (on_spot ? std::min(spot_units_, of_each_) : of_each_) + 1;
        double* first = cover.begin(1, width);
        std::fill_n(first, width, kHuge);
        first[0] = 0.0;
        buy(cover, on_spot, vendors_[v], 1);
      }
  }

  Split split_at(double price, double most) {
    const int64_t width = need_ + 1, each = of_each_ + 1, on_spot = std::min(spot_units_, of_each_) + 1;
    const size_t count = vendors_.size();
    reached_.resize(width * (count + 1)), together_.resize(each * count), priced_.resize(on_spot * count);
    std::copy(unserved_.begin(), unserved_.end(), reached_.begin());
    for (size_t v = 0; v < count; ++v) {
      const auto& [steady, spot] = of_vendor_[v];
      double *h = &together_[v * each], *g = &priced_[v * on_spot];
      for (int64_t t = 0; t < on_spot; ++t) g[t] = spot.costs()[t] + price * static_cast<double>(t);
      min_plus(steady.costs(), g, each, on_spot, h);
      min_plus(&reached_[v * width], h, width, each, &reached_[(v + 1) * width]);
    }
    Split found{price, reached_[count * width + need_] - price * most, {}};
    found.units.resize(count);
    int64_t y = need_;
    for (size_t v = count; v-- > 0;) {
      const int64_t x = taken(&reached_[v * width], &together_[v * each], y, each);
      found.units[v] = {x, taken(of_vendor_[v].first.costs(), &priced_[v * on_spot], x, on_spot)};
      y -= x;
    }
    return found;
  }

  // x that attains the least left[total - x] + right[x].
  static int64_t taken(const double* left, const double* right, int64_t total, int64_t right_width) {
    int64_t best = 0;
    for (int64_t x = 1; x < right_width && x <= total; ++x)
      if (left[total - x] + right[x] < left[total - best] + right[best]) best = x;
    return best;
  }

  const Lane* lane_ = nullptr;
  const Question* ask_ = nullptr;
  int64_t need_ = 0, spot_units_ = 0, of_each_ = 0, wanted_ = 0, floor_ = 0, least_ = 0;
  double exactly_ = 0.0;  // D: Q is `need_`; `of_each_` are units of a vendor's share
  Useful useful_;
  Serving serving_;
  Pattern pattern_;
  Cover steady_, spot_;
  std::vector<std::pair<Cover, Cover>> of_vendor_;
  std::vector<Nodes> small_, large_;
  std::vector<int64_t> times_, vendors_;
  std::vector<double> units_, unserved_;    // unserved_ [unit]: price of units that nothing carries
  std::vector<double> reached_, together_, priced_;  // [vendor, unit] E, H and G
};

}  // namespace berth
