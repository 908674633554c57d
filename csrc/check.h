// The one place where arguments of the operators are checked. Each message names the argument, what it got
// and what it needs. Shapes that torch.compile left symbolic pass through: only what is read here is fixed.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "refuse.h"

namespace dmmlkd {

enum Reduction : int64_t { reduction_none = 0, reduction_mean = 1, reduction_sum = 2 };

inline bool is_floating(ScalarType type) {
  return type == kHalf || type == kBFloat16 || type == kFloat || type == kDouble;
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  CHECK_VALUE(is_floating(tensor.scalar_type()), op, ": ", name,
              " must be float16, bfloat16, float32 or float64, got ", tensor.scalar_type());
}

inline void check_mask(const char* op, const Tensor& mask, Sizes shape, const char* meaning) {
  CHECK_VALUE(mask.scalar_type() == kBool, op, ": mask must be bool, got ", mask.scalar_type());
  const auto sizes = mask.sizes();
  bool fits = sizes.size() <= shape.size();
  for (size_t i = 1; fits && i <= sizes.size(); ++i)
    fits = sizes[sizes.size() - i] == 1 || sizes[sizes.size() - i] == shape[shape.size() - i];
  CHECK_VALUE(fits, op, ": mask must broadcast to ", shape, " (", meaning, "), got ", sizes);
}

inline void check_reduction(const char* op, int64_t reduction) {
  CHECK_VALUE(reduction >= reduction_none && reduction <= reduction_sum, op,
              ": reduction must be 0 (none), 1 (mean) or 2 (sum), got ", reduction);
}

inline void check_pairwise_kl(const Tensor& logits, const std::optional<Tensor>& mask, int64_t reduction) {
  const char* op = "pairwise_kl_similarity";
  check_floating(op, "logits", logits);
  CHECK_VALUE(logits.dim() >= 2, op, ": logits must have shape [..., modalities, classes], got ",
              logits.sizes());
  CHECK_VALUE(logits.size(-2) >= 1 && logits.size(-1) >= 1, op,
              ": logits must hold at least one modality and one class, got shape ", logits.sizes());
  check_reduction(op, reduction);
  if (!mask) return;
  check_mask(op, *mask, logits.sizes().slice(0, logits.dim() - 1), "[..., modalities] of logits");
  CHECK_VALUE(mask->device() == logits.device(), op, ": mask must be on ", logits.device(),
              " like logits, got ", mask->device());
}

// The gradient of the loss: as wide as its dtype, or wider.
inline void check_upstream(const Tensor& upstream, const Tensor& logits, int64_t reduction) {
  const char* op = "pairwise_kl_similarity";
  const auto leading = logits.sizes().slice(0, reduction == reduction_none ? logits.dim() - 2 : 0);
  CHECK_VALUE(is_floating(upstream.scalar_type()) && upstream.sizes() == leading, op,
              ": upstream must be floating, of the loss's shape ", leading, ", got ", upstream.scalar_type(),
              " of shape ", upstream.sizes());
  CHECK_VALUE(upstream.device() == logits.device(), op, ": upstream must be on ", logits.device(),
              " like logits, got ", upstream.device());
}

inline void check_orthogonality(const Tensor& common, const Tensor& specific,
                                const std::optional<Tensor>& mask, int64_t reduction) {
  const char* op = "orthogonality_difference";
  check_floating(op, "common", common);
  CHECK_VALUE(common.dim() >= 2, op, ": common must have shape [..., samples, features], got ",
              common.sizes());
  CHECK_VALUE(common.dim() == specific.dim() &&
                  common.sizes().slice(0, common.dim() - 1) == specific.sizes().slice(0, common.dim() - 1),
              op, ": specific must have the leading shape of common, ", common.sizes(), ", got ",
              specific.sizes());
  CHECK_VALUE(common.scalar_type() == specific.scalar_type() && common.device() == specific.device(), op,
              ": specific must have the dtype and device of common, ", common.scalar_type(), " on ",
              common.device(), ", got ", specific.scalar_type(), " on ", specific.device());
  CHECK_VALUE(common.size(-1) >= 1 && specific.size(-1) >= 1, op,
              ": common and specific must hold at least one feature, got shapes ", common.sizes(), " and ",
              specific.sizes());
  check_reduction(op, reduction);
  if (!mask) return;
  check_mask(op, *mask, common.sizes().slice(0, common.dim() - 1), "[..., samples] of common");
  CHECK_VALUE(mask->device() == common.device(), op, ": mask must be on ", common.device(),
              " like common, got ", mask->device());
}

// Types and sizes of the compressed rows; their values are checked by check_compressed_rows, on a CPU.
inline void check_weights(const char* op, const Tensor& local, const Tensor& row_pointers,
                          const Tensor& columns, const Tensor& values) {
  check_floating(op, "local", local);
  CHECK_VALUE(local.dim() == 2, op, ": local must have shape [rows, parameters], got ", local.sizes());
  CHECK_VALUE(row_pointers.scalar_type() == kLong && row_pointers.dim() == 1 && row_pointers.size(0) >= 1, op,
              ": row_pointers must be int64 of shape [rows + 1], got ", row_pointers.scalar_type(),
              " of shape ", row_pointers.sizes());
  CHECK_VALUE(columns.scalar_type() == kLong && columns.dim() == 1, op,
              ": columns must be int64 of shape [nonzeros], got ", columns.scalar_type(), " of shape ",
              columns.sizes());
  const auto wanted = local.scalar_type() == kDouble ? kDouble : kFloat;
  CHECK_VALUE(values.scalar_type() == wanted && values.sizes() == columns.sizes(), op, ": values must be ",
              wanted, " for local of ", local.scalar_type(), ", of the shape of columns ", columns.sizes(),
              ", got ", values.scalar_type(), " of shape ", values.sizes());
  for (const auto* tensor : {&row_pointers, &columns, &values})
    CHECK_VALUE(tensor->device() == local.device(), op, ": the weights must be on ", local.device(),
                " like local, got ", tensor->device());
}

// Raises if weights index outside of `rows_in` rows; reads host memory.
inline void check_compressed_rows(const char* op, const int64_t* row_pointers, int64_t rows_out,
                                  const int64_t* columns, int64_t nonzeros, int64_t rows_in) {
  CHECK_VALUE(row_pointers[0] == 0 && row_pointers[rows_out] == nonzeros, op,
              ": row_pointers must begin with 0 and end with the number of nonzeros, ", nonzeros, ", got ",
              row_pointers[0], " and ", row_pointers[rows_out]);
  for (int64_t row = 0; row < rows_out; ++row)
    CHECK_VALUE(row_pointers[row] <= row_pointers[row + 1], op, ": row_pointers must not decrease, got ",
                row_pointers[row], " before ", row_pointers[row + 1], " at row ", row);
  for (int64_t i = 0; i < nonzeros; ++i)
    CHECK_VALUE(columns[i] >= 0 && columns[i] < rows_in, op, ": columns must be in [0, ", rows_in,
                "), the rows of local, got ", columns[i], " at position ", i);
}

// Whether two matrices with contiguous rows share memory: exact where their rows lie at one distance, as
// blocks of columns of a wider matrix do; else whether their address ranges meet.
inline bool rows_share_memory(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const int64_t bytes = a.element_size(), width = a.size(1) * bytes;
  const int64_t offset =
      static_cast<const char*>(b.const_data_ptr()) - static_cast<const char*>(a.const_data_ptr());
  const int64_t a_length = (a.size(0) - 1) * a.stride(0) * bytes,
                b_length = (b.size(0) - 1) * b.stride(0) * bytes;
  if (offset >= a_length + width || -offset >= b_length + width) return false;
  const int64_t stride = (a.size(0) > 1 ? a : b).stride(0) * bytes;
  if (stride == 0 || (a.size(0) > 1 && b.size(0) > 1 && a.stride(0) != b.stride(0))) return true;
  // Row i of a and row j of b begin offset + (j - i) stride apart; the closest pair decides.
  const auto apart = [&](int64_t rows) {
    return std::abs(offset + std::clamp<int64_t>(rows, 1 - a.size(0), b.size(0) - 1) * stride);
  };
  return std::min(apart(-offset / stride),
                  std::min(apart(-offset / stride - 1), apart(-offset / stride + 1))) < width;
}

inline void check_gossip_out(const char* op, const Tensor& local, const Tensor& row_pointers,
                             const Tensor& out, int64_t column_begin, int64_t column_end, bool measure) {
  CHECK_VALUE(out.scalar_type() == local.scalar_type() && out.device() == local.device(), op,
              ": out must have the dtype and device of local, ", local.scalar_type(), " on ", local.device(),
              ", got ", out.scalar_type(), " on ", out.device());
  CHECK_VALUE(out.dim() == 2 && out.size(1) == local.size(1) && out.size(0) == row_pointers.size(0) - 1, op,
              ": out must have shape [rows of the weights, columns of local] = [", row_pointers.size(0) - 1,
              ", ", local.size(1), "], got ", out.sizes());
  CHECK_VALUE((local.stride(1) == 1 || local.size(1) <= 1) && (out.stride(1) == 1 || out.size(1) <= 1), op,
              ": local and out must be contiguous in their rows, got strides ", local.strides(), " and ",
              out.strides());
  CHECK_VALUE(0 <= column_begin && column_begin <= column_end && column_end <= local.size(1), op,
              ": the column range must lie in [0, ", local.size(1), "], got [", column_begin, ", ",
              column_end, ")");
  CHECK_VALUE(out.size(0) <= 1 || out.stride(0) >= out.size(1), op,
              ": the rows of out must not overlap, got strides ", out.strides());
  CHECK_VALUE(!measure || local.size(0) >= out.size(0), op,
              ": to measure, local must hold a row for each row of out, ", out.size(0), ", got ",
              local.size(0));
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor, ScalarType type,
                        Sizes shape) {
  CHECK_VALUE(tensor.scalar_type() == type && tensor.sizes() == shape, op, ": ", name, " must be ", type,
              " of shape ", shape, ", got ", tensor.scalar_type(), " of shape ", tensor.sizes());
}

// For free sizes; `names` say what each dimension counts.
inline void check_dimensions(const char* op, const char* name, const Tensor& tensor, ScalarType type,
                             std::initializer_list<const char*> names) {
  std::string shape;
  for (const char* dimension : names) shape += (shape.empty() ? "" : ", ") + std::string(dimension);
  CHECK_VALUE(tensor.scalar_type() == type && tensor.dim() == static_cast<int64_t>(names.size()), op, ": ",
              name, " must be ", type, " of shape [", shape, "], got ", tensor.scalar_type(), " of shape ",
              tensor.sizes());
}

// A table of at least `values` numbers.
inline void check_table(const char* op, const char* name, const Tensor& table, ScalarType type,
                        int64_t values) {
  CHECK_VALUE(table.dim() == 1 && table.scalar_type() == type && table.size(0) >= values, op, ": ", name,
              " must be ", type, " of shape [at least ", values, "], got ", table.scalar_type(), " of shape ",
              table.sizes());
}

inline void check_count(const char* op, const char* name, size_t got, const char* what, size_t wanted) {
  CHECK_VALUE(got == wanted, op, ": ", name, " must hold one per ", what, " = ", wanted, ", got ", got);
}

// Arguments that must be given together; undefined if not given.
inline void check_together(const char* op,
                           std::initializer_list<std::pair<const char*, const Tensor*>> arguments) {
  std::string names;
  bool alike = true;
  for (const auto& [name, tensor] : arguments) {
    alike &= tensor->defined() == arguments.begin()->second->defined();
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  CHECK_VALUE(alike, op, ": these must be given together: ", names);
}

// Raises if a number is outside of [0, end); reads host memory.
inline void check_range(const char* op, const char* name, const Tensor& numbers, int64_t end) {
  const int64_t* number = numbers.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < numbers.numel(); ++i)
    CHECK_VALUE(number[i] >= 0 && number[i] < end, op, ": ", name, " must be in [0, ", end, "), got ",
                number[i], " at position ", i);
}

// Whether each device's values are contiguous, as in a view of a row of parameters.
inline bool rows_are_contiguous(const Tensor& tensor) {
  int64_t stride = 1;
  for (int64_t dim = tensor.dim() - 1; dim > 0; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != stride) return false;
    stride *= tensor.size(dim);
  }
  return true;
}

inline Tensor with_contiguous_rows(const Tensor& tensor) {
  return rows_are_contiguous(tensor) ? tensor : tensor.contiguous();
}

// For one or several devices, each with contiguous values.
inline void check_written(const char* op, const char* name, const Tensor& tensor, ScalarType type,
                          Sizes shape) {
  check_shape(op, name, tensor, type, shape);
  CHECK_VALUE(rows_are_contiguous(tensor), op, ": ", name, " must be contiguous in each device, got strides ",
              tensor.strides());
}

// Whether two tensors, each of which fills its range of memory, share some of it.
inline bool ranges_meet(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || !a.is_dense() || !b.is_dense()) return false;
  const auto *first = static_cast<const char*>(a.const_data_ptr()),
             *second = static_cast<const char*>(b.const_data_ptr());
  return first < second + b.numel() * b.element_size() && second < first + a.numel() * a.element_size();
}

// Rows that are written must not overlap each other or any other argument.
inline void check_apart(const char* op, size_t block, const Tensor& parameters, const char* name,
                        const Tensor& other) {
  CHECK_VALUE(parameters.size(0) <= 1 || parameters.stride(0) >= parameters.size(1), op,
              ": rows of parameters must not overlap, those of block ", block, " do: strides ",
              parameters.strides());
  CHECK_VALUE(other.size(0) <= 1 || other.stride(0) >= other.size(1), op, ": rows of ", name,
              " must not overlap, those of block ", block, " do: strides ", other.strides());
  CHECK_VALUE(!ranges_meet(parameters, other), op, ": ", name,
              " must not share memory with parameters, those of block ", block, " do");
}

// Rows of float32 or float64 values, `type` being the type of all of them.
inline void check_float_rows(const char* op, const char* name, const Tensor& rows, ScalarType type) {
  CHECK_VALUE(rows.dim() == 2 && rows.scalar_type() == type && (type == kFloat || type == kDouble), op, ": ",
              name, " must be all float32 or all float64 of shape [rows, columns], got ", rows.scalar_type(),
              " of shape ", rows.sizes());
  check_written(op, name, rows, type, rows.sizes());
}

}  // namespace dmmlkd
