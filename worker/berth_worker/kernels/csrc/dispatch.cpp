// Which instruction set runs?  Asked of the processor once; BERTH_ISA overrides it, and is refused if it cannot run here.
#if defined(BERTH_X86)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"

namespace berth {
namespace {

#if defined(BERTH_X86)
// CPUID leaf 7: AMX-TILE and AMX-INT8 are bits 24 and 25 of EDX (GCC 12's __builtin_cpu_supports does not know them).
bool has_amx() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 3) == 3;
}
#endif

std::vector<const Isa*> detect() {
  std::vector<const Isa*> sets;
#if defined(BERTH_X86)
  const auto avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const auto vnni = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (vnni && has_amx() && amx_permitted()) sets.push_back(&amx_isa);
  if (vnni) sets.push_back(&avx512vnni_isa);
  if (avx2) sets.push_back(&avx2_isa);
#endif
  sets.push_back(&scalar_isa);
  return sets;
}

}  // namespace

const std::vector<const Isa*>& all_isas() {
  static const std::vector<const Isa*> sets = detect();
  return sets;
}

const char* available_isas() {
  static const std::string names = [] {
    std::string all;
    for (const Isa* isa : all_isas()) {
      if (!all.empty()) all += ' ';
      all += isa->name;
    }
    return all;
  }();
  return names.c_str();
}

const Isa& select_isa() {
  const char* wanted = std::getenv("BERTH_ISA");
  const auto& sets = all_isas();
  if (wanted == nullptr || *wanted == '\0') return *sets.front();
  for (const Isa* isa : sets)
    if (wanted == std::string(isa->name)) return *isa;
  throw std::runtime_error("BERTH_ISA: found '" + std::string(wanted) + "'; this build on this machine has: " + available_isas());
}

}  // namespace berth
