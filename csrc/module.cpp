// The Python module: build information and the choice of instruction set. The operators are reached through
// torch.ops once this library is loaded.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

#include "interface.h"
#include "simd/kernels.h"

namespace {

// dmmlkd_ext/ops/native.py also looks for this text in a library that another torch cannot load.
[[gnu::used]] const char built_for[] = "dmmlkd_ext was built for torch " TORCH_VERSION ";";

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of dmmlkd_ext";
  m.def(
      "instruction_set", [] { return std::string(dmmlkd::kernels().name); },
      "Name of the instruction set whose kernels run: base, avx2 or avx512.");
  m.def(
      "select_instruction_set",
      [](const std::string& name) {
        if (!dmmlkd::select_kernels(name.c_str()))
          throw pybind11::value_error(
              "instruction_set must be auto, base, avx2 or avx512 and known to this processor, got " + name);
      },
      pybind11::arg("name"),
      "Use the kernels of one instruction set; raises ValueError where the processor lacks it.");
  m.attr("built_for") = TORCH_VERSION;
  m.attr("interface") = dmmlkd::interface_number;
  m.attr("compiler") = std::string(
#if defined(__clang__)
      "clang " __clang_version__
#else
      "gcc " __VERSION__
#endif
  );
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
