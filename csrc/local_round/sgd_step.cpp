// sgd_step_ on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/rows.h"

namespace dmmlkd {
namespace {

void run(const SgdDevice<float>& d) { kernels().sgd_step_float(d); }
void run(const SgdDevice<double>& d) { kernels().sgd_step_double(d); }

constexpr int64_t grain_values = 32768;  // parameters worth a thread

template <class T>
void step(at::TensorList parameters, at::TensorList momenta, at::TensorList gradients,
          const std::vector<std::vector<int64_t>>& rows, const SgdDevice<T>& settings) {
  int64_t values = 1;
  for (const at::Tensor& block : parameters) values += block.size(1);
  const auto devices = static_cast<int64_t>(rows[0].size());
  at::parallel_for(0, devices, std::max<int64_t>(1, grain_values / values), [&](int64_t begin, int64_t end) {
    std::vector<SgdRow<T>> own;
    for (int64_t device = begin; device < end; ++device) {
      own.clear();
      for (size_t block = 0; block < parameters.size(); ++block) {
        const int64_t row = rows[block][static_cast<size_t>(device)];
        if (row >= 0)
          own.push_back({written_row<T>(parameters[block], row), written_row<T>(momenta[block], row),
                         row_of<T>(gradients[block], row), parameters[block].size(1)});
      }
      SgdDevice<T> d = settings;
      d.rows = own.data(), d.num_rows = static_cast<int64_t>(own.size());
      run(d);
    }
  });
}

void sgd_step(at::TensorList parameters, at::TensorList momenta, at::TensorList gradients,
              at::TensorList positions, int64_t devices, double clip_norm, double learning_rate,
              double momentum_factor, double weight_decay) {
  check_sgd_step(parameters, momenta, gradients, positions, devices);
  std::vector<std::vector<int64_t>> rows;
  for (size_t block = 0; block < parameters.size(); ++block) {
    check_apart("sgd_step", block, parameters[block], "momenta", momenta[block]);
    rows.push_back(rows_of("sgd_step", "positions", positions[block].contiguous(), devices));
  }
  if (parameters.empty()) return;
  if (parameters[0].scalar_type() == at::kDouble)
    step<double>(parameters, momenta, gradients, rows,
                 {nullptr, 0, clip_norm, learning_rate, momentum_factor, weight_decay});
  else
    step<float>(parameters, momenta, gradients, rows,
                {nullptr, 0, clip_norm, static_cast<float>(learning_rate),
                 static_cast<float>(momentum_factor), static_cast<float>(weight_decay)});
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) { m.impl("sgd_step_", sgd_step); }

}  // namespace dmmlkd
