// Regions of short phases on a pool of threads: each item must be done once, and each serial part once, in order.
// usage: pool_stress THREADS REGIONS; prints the number of wrong results.
#include "pool.h"

#include <cstdio>
#include <cstdlib>

int main(int, char** argv) {
  const int threads = std::atoi(argv[1]), regions = std::atoi(argv[2]);
  constexpr long kPhases = 40, kMostItems = 7;
  long wrong = 0;
  for (int region = 0; region < regions; ++region) {
    long* sums = new long[kMostItems + 1]();  // freed while a late thread may still be on its way through the region
    berth::Pool::get(threads).run([=](berth::Member& member) {
      for (long phase = 0; phase < kPhases; ++phase)
        member.phase(phase % kMostItems, [=](long item) { sums[item] += phase; }, [=] { sums[kMostItems] = sums[kMostItems] * 3 % 1000003 + phase; });
    });
    long serial = 0;
    for (long phase = 0; phase < kPhases; ++phase) serial = serial * 3 % 1000003 + phase;
    wrong += sums[kMostItems] != serial;
    for (long item = 0; item < kMostItems; ++item) {
      long expected = 0;
      for (long phase = 0; phase < kPhases; ++phase) expected += item < phase % kMostItems ? phase : 0;
      wrong += sums[item] != expected;
    }
    delete[] sums;
  }
  std::printf("%ld\n", wrong);
}
