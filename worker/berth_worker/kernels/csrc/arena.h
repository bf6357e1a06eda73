// Where does a step keep its intermediate results?  In one allocation, kept from step to step.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace berth {

// Gives 64-byte aligned pieces.
class Arena {
 public:
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    if (used_ + bytes > size_) {
      blocks_.emplace_back(static_cast<char*>(std::aligned_alloc(64, bytes + (1 << 16))));
      if (!blocks_.back()) throw std::bad_alloc();
      size_ = bytes + (1 << 16), used_ = 0;
    }
    T* p = reinterpret_cast<T*>(blocks_.back().get() + used_);
    used_ += bytes;
    all_ += bytes;
    return p;
  }
  // Forgets what was taken; one allocation then holds as much as the largest step so far took.
  void reset() {
    if (blocks_.size() > 1) {
      blocks_.clear();
      size_ = all_ + (1 << 16);
      blocks_.emplace_back(static_cast<char*>(std::aligned_alloc(64, (size_ + 63) / 64 * 64)));
      if (!blocks_.back()) throw std::bad_alloc();
    }
    used_ = all_ = 0;
  }

 private:
  struct Free { void operator()(char* p) const { std::free(p); } };
  std::vector<std::unique_ptr<char, Free>> blocks_;
  size_t size_ = 0, used_ = 0, all_ = 0;
};

}  // namespace berth
