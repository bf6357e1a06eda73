// How do the threads of a step share its work, and what if one of them is late?
//
// One pool a process.  A step is one region: every thread runs the same function, a sequence of phases.  Each thread has a part of a phase's
// items, consecutive ones, and takes what is left of the others' parts when its own is done.  A phase ends when its items are done, not
// when all threads have come: a thread that sleeps, was preempted or is throttled by a CPU quota holds up nobody (unless it did items of the
// phase, which it counts when it finds no more), and skips what the others did without it.  Who waits asks for the memory that its next part begins with; then it spins for a
// bounded time, and then sleeps (futex), so that an idle worker costs nothing.
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

// What the threads share: the number of the current phase, how many of its items are done, and which are taken.
struct Team {
  struct alignas(64) Part {
    std::atomic<uint64_t> taken{0};  // phase in the high 32 bits, items taken of this thread's part in the low
  };

  explicit Team(int count) : threads(count), parts(static_cast<size_t>(count)) {}
  const int threads;
  std::vector<Part> parts;
  alignas(64) std::atomic<uint32_t> done{0};
  alignas(64) std::atomic<uint32_t> phase{0};
};

// One thread's way through a region.
class Member {
 public:
  Member(Team& team, int index, uint32_t first_phase) : team_(team), index_(index), phase_(first_phase) {}
  int threads() const { return team_.threads; }

  // The first of `count` items that are this thread's own part.
  int64_t first_of(int64_t count) const { return first_of(count, index_); }

  // While it waits, the thread asks for the memory from `begin` to `end`, in place of what it was told before.
  void ask_for(const void* begin, const void* end) {
    ahead_ = static_cast<const char*>(begin);
    ahead_end_ = static_cast<const char*>(end);
  }

  // Runs work(item) for items 0..count-1, shared among the threads; the thread that finishes the last item runs `serial`, then the next
  // phase begins.  Every member must come with the same arguments; one that comes after the end returns at once.
  template <class Work, class Serial>
  void phase(int64_t count, Work&& work, Serial&& serial) {
    const uint32_t mine = phase_++;
    const int64_t items = count > 0 ? count : 1;  // an empty phase still has a serial part
    uint32_t finished = 0;
    for (int turn = 0, owner = index_; turn < team_.threads; ++turn, owner = owner + 1 < team_.threads ? owner + 1 : 0) {
      const int64_t first = first_of(items, owner), last = first_of(items, owner + 1);
      auto& taken = team_.parts[static_cast<size_t>(owner)].taken;
      uint64_t state = taken.load(std::memory_order_acquire);
      while (static_cast<uint32_t>(state >> 32) == mine) {
        const int64_t item = first + static_cast<uint32_t>(state);
        if (item >= last) break;
        if (!taken.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
        if (item < count) work(item);
        ++finished;
        state = taken.load(std::memory_order_acquire);
      }
    }
    // Counted once: the counter is in another core's cache.
    if (finished > 0 && team_.done.fetch_add(finished, std::memory_order_acq_rel) + finished == items) {
      ask();
      serial();
      team_.done.store(0, std::memory_order_relaxed);
      for (auto& part : team_.parts) part.taken.store(static_cast<uint64_t>(mine + 1) << 32, std::memory_order_release);
      team_.phase.store(mine + 1);  // in one order with the number of sleepers, which notify_all reads: else it could miss one
      if (team_.threads > 1) team_.phase.notify_all();
      return;
    }
    while (team_.phase.load(std::memory_order_acquire) == mine)
      if (!ask()) wait_while_equal(team_.phase, mine, kSpinMicroseconds);
  }
  template <class Work>
  void phase(int64_t count, Work&& work) { phase(count, work, [] {}); }

 private:
  static constexpr int kSpinMicroseconds = 200;
  static constexpr int kLine = 64, kLinesAtOnce = 32;

  int64_t first_of(int64_t count, int owner) const { return count * owner / team_.threads; }

  // Asks for some of the memory ahead; false if there is nothing left to ask for.
  bool ask() {
    for (int i = 0; i < kLinesAtOnce && ahead_ < ahead_end_; ++i, ahead_ += kLine) __builtin_prefetch(ahead_, 0, 2);
    return ahead_ < ahead_end_;
  }

  Team& team_;
  const int index_;
  uint32_t phase_;
  const char *ahead_ = nullptr, *ahead_end_ = nullptr;
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
  void worker(int index);

  static constexpr int kIdleSpinMicroseconds = 100;
  Team team_;
  std::mutex mutex_;
  std::shared_ptr<const Region> region_;  // guarded by mutex_
  alignas(64) std::atomic<uint32_t> started_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace berth
