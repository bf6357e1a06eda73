// How are many independent questions shared between two threads?
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>

namespace berth {

// answer(state, i) for each i below `count`, in any order, each thread with a `State` of its own: what it writes must be
// i's alone, and must not depend on what the state was used for before.  `alone`: the questions are so few or so small
// that another thread would take longer to start, some 50 microseconds.
template <typename State, typename Answer>
void each(int64_t count, bool alone, Answer answer) {
  std::atomic<int64_t> next{0};
  const auto some = [&] {
    State state;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) answer(state, i);
  };
  std::thread other;
  if (!alone && count > 1) try {
      other = std::thread(some);
    } catch (const std::system_error&) {  // no thread is to be had: then this one answers all
    }
  some();
  if (other.joinable()) other.join();
}

}  // namespace berth
