// column_sums and squared_distances on CPU tensors: checks, then shares out columns, or rows.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/rows.h"

namespace dmmlkd {
namespace {

void run(const ColumnSums<float>& c) { kernels().column_sums_float(c); }
void run(const ColumnSums<double>& c) { kernels().column_sums_double(c); }
double run(const SquaredDistance<float>& d) { return kernels().squared_distance_float(d); }
double run(const SquaredDistance<double>& d) { return kernels().squared_distance_double(d); }

constexpr int64_t grain_values = 65536;  // worth a thread

// Calls body(begin, end) for parts of [0, count), each of `values` values.
template <class Body>
void share_out(int64_t count, int64_t values, const Body& body) {
  at::parallel_for(0, count, std::max<int64_t>(1, grain_values / std::max<int64_t>(1, values)), body);
}

template <class T>
void sum_columns(const at::Tensor& block, double* sums) {
  share_out(block.size(1), block.size(0), [&](int64_t begin, int64_t end) {
    run(ColumnSums<T>{row_of<T>(block, 0) + begin, block.stride(0), block.size(0), end - begin,
                      sums + begin});
  });
}

template <class T>
void measure_rows(const at::Tensor& block, const T* center, double* squares) {
  share_out(block.size(0), block.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      squares[row] = run(SquaredDistance<T>{row_of<T>(block, row), center, block.size(1)});
  });
}

at::Tensor column_sums(at::TensorList blocks) {
  const auto [rows, columns] = check_blocks("column_sums", blocks);
  at::Tensor sums = at::empty({columns}, at::kDouble);
  auto* next = sums.mutable_data_ptr<double>();
  for (const at::Tensor& block : blocks) {
    block.scalar_type() == at::kDouble ? sum_columns<double>(block, next) : sum_columns<float>(block, next);
    next += block.size(1);
  }
  return sums;
}

at::Tensor squared_distances(at::TensorList blocks, const at::Tensor& center) {
  const char* op = "squared_distances";
  const auto [rows, columns] = check_blocks(op, blocks);
  check_real(op, "center", center, blocks[0].scalar_type(), {columns});
  const at::Tensor own = center.contiguous();
  at::Tensor squares = at::empty({rows}, at::kDouble);
  auto* next = squares.mutable_data_ptr<double>();
  int64_t column = 0;
  for (const at::Tensor& block : blocks) {
    if (block.scalar_type() == at::kDouble)
      measure_rows<double>(block, own.const_data_ptr<double>() + column, next);
    else
      measure_rows<float>(block, own.const_data_ptr<float>() + column, next);
    next += block.size(0), column += block.size(1);
  }
  return squares;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("column_sums", column_sums);
  m.impl("squared_distances", squared_distances);
}

}  // namespace dmmlkd
