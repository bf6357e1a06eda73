// How do all threads of a step start together, split the work, and meet again?
//
// One pool a process.  A step is one region: every thread runs the same function, takes items of each phase from a shared counter, and
// meets the others at the phase's end.  Waiting spins for a bounded time and then sleeps (futex), so that an idle worker costs nothing.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace berth {

// Spins for at most spin_microseconds while `word` equals `seen`, then sleeps until it changes.
void wait_while_equal(const std::atomic<uint32_t>& word, uint32_t seen, int spin_microseconds);

class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}
  int threads() const { return threads_; }

  // Runs work(item) for items 0..count-1, shared among the threads; when all are done, the last thread to arrive runs `serial`
  // and then all go on.  Every thread of the team must call it with the same arguments.
  template <class Work, class Serial>
  void phase(int64_t count, Work&& work, Serial&& serial) {
    const uint32_t round = round_.load(std::memory_order_acquire);
    for (int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < count;) work(item);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      serial();
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      if (threads_ > 1) round_.notify_all();
    } else {
      wait_while_equal(round_, round, kSpinMicroseconds);
    }
  }
  template <class Work>
  void phase(int64_t count, Work&& work) { phase(count, work, [] {}); }

 private:
  static constexpr int kSpinMicroseconds = 200;
  const int threads_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

class Pool {
 public:
  // The process's pool, with `threads` threads, the caller's included.  Made on first use, remade when the number changes, and after a
  // fork in the child, which has none of the parent's threads.  Steps must not run at the same time.
  static Pool& get(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return team_.threads(); }
  // Runs region(team) on every thread; returns when all have finished.  The region must not throw.
  void run(const std::function<void(Team&)>& region);

 private:
  explicit Pool(int threads);
  void worker();

  static constexpr int kIdleSpinMicroseconds = 100;
  Team team_;
  const std::function<void(Team&)>* region_ = nullptr;
  alignas(64) std::atomic<uint32_t> started_{0};
  alignas(64) std::atomic<uint32_t> running_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace berth
