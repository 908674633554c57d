// Chooses the instruction set once, at run time, so that one build runs on every processor.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace dmmlkd {
namespace {

bool supported(const Kernels& candidate) {
#if defined(__x86_64__)
  if (&candidate == &avx512_kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (&candidate == &avx2_kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &candidate == &base_kernels;
}

const Kernels* find(const char* name) {
  const bool any = std::strcmp(name, "auto") == 0;
  const Kernels* const best_first[] = {
#if defined(__x86_64__)
      &avx512_kernels, &avx2_kernels,
#endif
      &base_kernels};
  for (const Kernels* candidate : best_first)
    if ((any || std::strcmp(name, candidate->name) == 0) && supported(*candidate)) return candidate;
  return nullptr;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{find("auto")};
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool select_kernels(const char* name) {
  const Kernels* found = find(name);
  if (found) chosen() = found;
  return found;
}

}  // namespace dmmlkd
