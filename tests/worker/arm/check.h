// Random numbers, aligned arrays with a guarded end, and comparing them bit by bit.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

namespace check {

inline uint64_t state = 1;
inline uint64_t draw() {  // xorshift64*
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return state * 2685821657736338717ull >> 16;
}
inline int64_t below(int64_t n) { return static_cast<int64_t>(draw() % static_cast<uint64_t>(n)); }
inline float uniform() { return static_cast<float>(below(1 << 24)) / (1 << 23) - 1.0f; }

// 64-byte aligned, with a margin of known bytes that nothing may touch.
template <class T>
class Array {
 public:
  explicit Array(int64_t n) : n_(n), bytes_(static_cast<size_t>(n) * sizeof(T)) {
    p_.reset(static_cast<T*>(std::aligned_alloc(64, (bytes_ + 2 * kMargin) / 64 * 64)));
    std::memset(static_cast<void*>(p_.get()), kUntouched, (bytes_ + 2 * kMargin) / 64 * 64);
  }
  T* get() const { return p_.get(); }
  T& operator[](int64_t i) const { return p_.get()[i]; }
  int64_t size() const { return n_; }
  size_t bytes() const { return bytes_; }
  bool same(const Array& other) const { return std::memcmp(p_.get(), other.p_.get(), bytes_ + kMargin) == 0; }

 private:
  static constexpr size_t kMargin = 128;
  static constexpr int kUntouched = 0x5A;
  struct Free { void operator()(T* p) const { std::free(p); } };
  int64_t n_;
  size_t bytes_;
  std::unique_ptr<T, Free> p_;
};

inline int compared = 0, different = 0;
inline uint64_t digest = 1469598103934665603ull;  // FNV-1a

template <class T>
void expect_same(const std::string& what, const Array<T>& expected, const Array<T>& found) {
  ++compared;
  for (size_t i = 0; i < expected.bytes(); ++i)
    digest = (digest ^ reinterpret_cast<const uint8_t*>(expected.get())[i]) * 1099511628211ull;
  if (expected.same(found)) return;
  if (++different > 20) return;
  for (int64_t i = 0; i < expected.size(); ++i)
    if (std::memcmp(&expected[i], &found[i], sizeof(T)) != 0) {
      std::printf("%s: element %lld: expected %g, found %g\n", what.c_str(), static_cast<long long>(i),
                  static_cast<double>(expected[i]), static_cast<double>(found[i]));
      return;
    }
  std::printf("%s: wrote past the end\n", what.c_str());
}

}  // namespace check
