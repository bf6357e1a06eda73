// How do the threads of a step share its work, and what if one of them is late?
//
// One pool a process.  A step is one region: every thread runs the same function, a sequence of phases.  The items of a phase are taken
// from a counter, and a phase ends when its items are done, not when all threads have come: a thread that sleeps, was preempted or is
// throttled by a CPU quota holds up nobody (unless in the middle of an item), and skips what the others did without it.  Waiting spins
// for a bounded time and then sleeps (futex), so that an idle worker costs nothing.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace berth {

// Spins for at most spin_microseconds while `word` equals `seen`, then sleeps until it changes.
void wait_while_equal(const std::atomic<uint32_t>& word, uint32_t seen, int spin_microseconds);

// What the threads share: the number of the current phase, its next item, and how many items are done.
struct Team {
  const int threads;
  alignas(64) std::atomic<uint64_t> state{0};  // phase in the high 32 bits, next item in the low
  alignas(64) std::atomic<uint32_t> done{0};
  alignas(64) std::atomic<uint32_t> phase{0};  // as in state, or a moment behind; what waiting threads sleep on
};

// One thread's way through a region.
class Member {
 public:
  Member(Team& team, uint32_t first_phase) : team_(team), phase_(first_phase) {}
  int threads() const { return team_.threads; }

  // Runs work(item) for items 0..count-1, shared among the threads; the thread that finishes the last item runs `serial`, then the next
  // phase begins.  Every member must come with the same arguments; one that comes after the end returns at once.
  template <class Work, class Serial>
  void phase(int64_t count, Work&& work, Serial&& serial) {
    const uint32_t mine = phase_++;
    const uint32_t items = count > 0 ? static_cast<uint32_t>(count) : 1;  // an empty phase still has a serial part
    for (;;) {
      uint64_t state = team_.state.load(std::memory_order_acquire);
      if (static_cast<uint32_t>(state >> 32) != mine) return;
      const auto item = static_cast<uint32_t>(state);
      if (item >= items) break;
      if (!team_.state.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_relaxed)) continue;
      if (item < count) work(static_cast<int64_t>(item));
      if (team_.done.fetch_add(1, std::memory_order_acq_rel) + 1 == items) {
        serial();
        team_.done.store(0, std::memory_order_relaxed);
        team_.state.store(static_cast<uint64_t>(mine + 1) << 32, std::memory_order_release);
        team_.phase.fetch_add(1, std::memory_order_release);  // not a store: a delayed one would take it back, and wake nobody
        if (team_.threads > 1) team_.phase.notify_all();
        return;
      }
    }
    // `state` decides, `phase` only wakes
    while (static_cast<uint32_t>(team_.state.load(std::memory_order_acquire) >> 32) == mine)
      wait_while_equal(team_.phase, mine, kSpinMicroseconds);
  }
  template <class Work>
  void phase(int64_t count, Work&& work) { phase(count, work, [] {}); }

 private:
  static constexpr int kSpinMicroseconds = 200;
  Team& team_;
  uint32_t phase_;
};

class Pool {
 public:
  // The process's pool, with `threads` threads, the caller's included.  Made on first use, remade when the number changes, and after a
  // fork in the child, which has none of the parent's threads.  Regions must not run at the same time.
  static Pool& get(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return team_.threads; }
  // Runs region(member) on the threads; returns when its phases are done.  A late thread may still be skipping through the region then,
  // so what the arguments of its phases read must belong to the region; what its items read need not.  It must not throw.
  void run(std::function<void(Member&)> region);

 private:
  struct Region {
    std::function<void(Member&)> function;
    uint32_t first_phase;
  };

  explicit Pool(int threads);
  void worker();

  static constexpr int kIdleSpinMicroseconds = 100;
  Team team_;
  std::mutex mutex_;
  std::shared_ptr<const Region> region_;  // guarded by mutex_
  alignas(64) std::atomic<uint32_t> started_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace berth
