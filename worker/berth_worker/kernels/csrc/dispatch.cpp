// Which instruction set runs?  Asked of the processor once; BERTH_ISA overrides it, and is refused if it cannot run here.
#if defined(BERTH_X86)
#include <cpuid.h>
#endif
#if defined(BERTH_AARCH64)
#include <sys/auxv.h>
#include <sys/prctl.h>
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

#if defined(BERTH_AARCH64)
// Bits of getauxval, from Linux's asm/hwcap.h: the C library's header may be older than the kernel.
constexpr unsigned long kDotprod = 1ul << 20, kSve = 1ul << 22;          // AT_HWCAP: ASIMDDP, SVE
constexpr unsigned long kSveI8mm = 1ul << 9, kI8mm = 1ul << 13;          // AT_HWCAP2: SVEI8MM, I8MM
constexpr int kGetVectorLength = 51, kLengthMask = 0xffff;               // prctl PR_SVE_GET_VL, PR_SVE_VL_LEN_MASK

// Best first, by llvm-mca over the inner loops (benchmarks/arm_static.py).  Matrix instructions come before dot products.  With vectors
// of 256 bits or more SVE reads more weights a cycle than NEON (Neoverse V1: 2 x 32 bytes against 3 x 16); with 128 bits the two are
// alike in the pipes, and NEON's loops have fewer instructions and keep more granules in registers.
void detect_arm(std::vector<const Isa*>& sets) {
  const unsigned long caps = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
  const bool dotprod = (caps & kDotprod) != 0, i8mm = dotprod && (more & kI8mm) != 0, sve = (caps & kSve) != 0;
  const bool both = sve && i8mm && (more & kSveI8mm) != 0, wide = sve && (prctl(kGetVectorLength) & kLengthMask) >= 32;
  if (wide && both) sets.push_back(&sve_i8mm_isa);
  if (i8mm) sets.push_back(&i8mm_isa);
  if (!wide && both) sets.push_back(&sve_i8mm_isa);
  if (wide) sets.push_back(&sve_isa);
  if (dotprod) sets.push_back(&dotprod_isa);
  if (sve && !wide) sets.push_back(&sve_isa);
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
#if defined(BERTH_AARCH64)
  detect_arm(sets);
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
