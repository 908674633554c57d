// column_sums and squared_distances on CPU tensors: checks, then divides columns, or rows, among threads.
#include "cpu.h"

#include <algorithm>
#include <utility>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/rows.h"
#include "../stable/parallel.h"

namespace dmmlkd {
namespace {

void run(const ColumnSums<float>& c) { kernels().column_sums_float(c); }
void run(const ColumnSums<double>& c) { kernels().column_sums_double(c); }
double run(const SquaredDistance<float>& d) { return kernels().squared_distance_float(d); }
double run(const SquaredDistance<double>& d) { return kernels().squared_distance_double(d); }

constexpr int64_t grain_values = 65536;  // per thread: fewer cost more to start than to compute

// Calls body(begin, end) for parts of [0, count), each of `values` values.
template <class Body>
void share_out(int64_t count, int64_t values, const Body& body) {
  parallel_for(0, count, std::max<int64_t>(1, grain_values / std::max<int64_t>(1, values)), body);
}

template <class T>
void sum_columns(const Tensor& block, double* sums) {
  share_out(block.size(1), block.size(0), [&](int64_t begin, int64_t end) {
    run(ColumnSums<T>{row_of<T>(block, 0) + begin, block.stride(0), block.size(0), end - begin,
                      sums + begin});
  });
}

template <class T>
void measure_rows(const Tensor& block, const T* center, double* squares) {
  share_out(block.size(0), block.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      squares[row] = run(SquaredDistance<T>{row_of<T>(block, row), center, block.size(1)});
  });
}

// Checks blocks of one floating type; returns their numbers of rows and columns.
std::pair<int64_t, int64_t> check_blocks(const char* op, const std::vector<Tensor>& blocks) {
  CHECK_VALUE(!blocks.empty(), op, ": blocks must hold at least one tensor, got none");
  int64_t rows = 0, columns = 0;
  for (const Tensor& block : blocks) {
    check_float_rows(op, "blocks", block, blocks[0].scalar_type());
    rows += block.size(0), columns += block.size(1);
  }
  return {rows, columns};
}

}  // namespace

Tensor column_sums(const std::vector<Tensor>& blocks) {
  const auto [rows, columns] = check_blocks("column_sums", blocks);
  Tensor sums = blocks[0].new_empty({columns}, kDouble);
  auto* next = sums.mutable_data_ptr<double>();
  for (const Tensor& block : blocks) {
    block.scalar_type() == kDouble ? sum_columns<double>(block, next) : sum_columns<float>(block, next);
    next += block.size(1);
  }
  return sums;
}

Tensor squared_distances(const std::vector<Tensor>& blocks, const Tensor& center) {
  const char* op = "squared_distances";
  const auto [rows, columns] = check_blocks(op, blocks);
  check_shape(op, "center", center, blocks[0].scalar_type(), {columns});
  const Tensor dense_center = center.contiguous();
  Tensor squares = blocks[0].new_empty({rows}, kDouble);
  auto* next = squares.mutable_data_ptr<double>();
  int64_t column = 0;
  for (const Tensor& block : blocks) {
    if (block.scalar_type() == kDouble)
      measure_rows<double>(block, dense_center.const_data_ptr<double>() + column, next);
    else
      measure_rows<float>(block, dense_center.const_data_ptr<float>() + column, next);
    next += block.size(0), column += block.size(1);
  }
  return squares;
}

}  // namespace dmmlkd
