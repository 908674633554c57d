// What dmmlkd_ext/ops/native.py asks the library, and sets, by plain C functions: the library knows nothing
// of Python.
#include <torch/headeronly/version.h>

#include "interface.h"
#include "simd/kernels.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int dmmlkd_interface() { return dmmlkd::interface_number; }

// The torch whose headers it was compiled with; it serves others as well.
EXPORTED const char* dmmlkd_built_for() { return TORCH_VERSION; }

EXPORTED const char* dmmlkd_compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

// The name of the instruction set whose kernels run: base, avx2 or avx512.
EXPORTED const char* dmmlkd_instruction_set() { return dmmlkd::kernels().name; }

// Uses the kernels of another, or of the best for "auto"; returns whether there are such and the processor
// knows them.
EXPORTED int dmmlkd_select_instruction_set(const char* name) { return dmmlkd::select_kernels(name); }
