#include "pool.h"

#include <pthread.h>

#include <chrono>
#include <mutex>

namespace berth {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // about as long as x86's pause; `yield` is a no-op on most cores
#endif
}

// The pool lives in a raw pointer: in a forked child its threads do not exist, and neither joining nor destroying them is possible there,
// so the child forgets it.  In the parent an exit handler ends the threads.
Pool* current = nullptr;
std::mutex current_mutex;

void forget_in_child() {
  current = nullptr;
  new (&current_mutex) std::mutex;  // may have been held by a thread that does not exist here
}

struct AtExit {
  AtExit() { pthread_atfork(nullptr, nullptr, forget_in_child); }
  ~AtExit() {
    delete current;
    current = nullptr;
  }
} at_exit;

}  // namespace

void wait_while_equal(const std::atomic<uint32_t>& word, uint32_t seen, int spin_microseconds) {
  using clock = std::chrono::steady_clock;
  for (int i = 0; i < 64; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return;
    relax();
  }
  const auto end = clock::now() + std::chrono::microseconds(spin_microseconds);
  do {
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != seen) return;
      relax();
    }
  } while (clock::now() < end);
  while (word.load(std::memory_order_acquire) == seen) word.wait(seen, std::memory_order_acquire);
}

Pool& Pool::get(int threads) {
  const std::lock_guard<std::mutex> lock(current_mutex);
  if (current == nullptr || current->threads() != threads) {
    delete current;
    current = nullptr;
    current = new Pool(threads);
  }
  return *current;
}

Pool::Pool(int threads) : team_(threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker(i); });
}

Pool::~Pool() {
  stop_.store(true, std::memory_order_relaxed);
  started_.fetch_add(1);
  started_.notify_all();
  for (auto& thread : workers_) thread.join();
}

void Pool::worker(int index) {
  for (uint32_t seen = 0;;) {
    wait_while_equal(started_, seen, kIdleSpinMicroseconds);
    seen = started_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    std::shared_ptr<const Region> region;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      region = region_;
    }
    if (region == nullptr) continue;  // it ended before this thread woke
    Member member(team_, index, region->first_phase);
    region->function(member);
  }
}

void Pool::run(std::function<void(Member&)> function) {
  const uint32_t first_phase = team_.phase.load(std::memory_order_acquire);
  const auto region = std::make_shared<const Region>(Region{std::move(function), first_phase});
  if (!workers_.empty()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      region_ = region;
    }
    started_.fetch_add(1);
    started_.notify_all();
  }
  Member member(team_, 0, region->first_phase);
  region->function(member);
  if (!workers_.empty()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    region_ = nullptr;
  }
}

}  // namespace berth
