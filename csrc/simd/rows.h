// Rows of devices: a block of parameters has rows for some devices only.
#pragma once

#include <vector>

#include "../refuse.h"

namespace dmmlkd {

// A device's part of a tensor [devices, ...], whose devices may lie at any distance, also at none. Null where
// there is no tensor.
template <class T>
const T* row_of(const Tensor& tensor, int64_t device) {
  return tensor.defined() ? tensor.const_data_ptr<T>() + device * tensor.stride(0) : nullptr;
}

template <class T>
T* written_row(const Tensor& tensor, int64_t device) {
  return tensor.mutable_data_ptr<T>() + device * tensor.stride(0);
}

// The row that each device has, -1 where it has none; positions [rows], the argument `name`, say whose a row
// is.
inline std::vector<int64_t> rows_of(const char* op, const char* name, const Tensor& positions,
                                    int64_t devices) {
  std::vector<int64_t> rows(static_cast<size_t>(devices), -1);
  const int64_t* device = positions.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < positions.numel(); ++row) {
    CHECK_VALUE(device[row] >= 0 && device[row] < devices && rows[static_cast<size_t>(device[row])] < 0, op,
                ": ", name, " must be different and in [0, ", devices, "), got ", device[row],
                " at position ", row);
    rows[static_cast<size_t>(device[row])] = row;
  }
  return rows;
}

}  // namespace dmmlkd
