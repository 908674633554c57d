// The parameters of all devices, block by block: the shared head, then one block of each modality.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../check.h"
#include "../simd/rows.h"
#include "device_encoder.h"

namespace dmmlkd {

// How the encoders are made, as the operators get it: kernel, stride and number of layers of each modality,
// and the widths of all layers.
struct EncoderNumbers {
  at::ArrayRef<int64_t> kernels, strides, layers, widths;
};

struct DeviceBlocks {
  std::vector<at::Tensor> parameters;      // rows are contiguous
  std::vector<std::vector<int64_t>> rows;  // of each device in each block, or -1
  std::vector<BlockPlaces> places;         // of each modality
  int64_t classes, width;                  // of the shared head

  DeviceBlocks(const char* op, at::TensorList blocks, at::TensorList devices, at::TensorList values,
               const EncoderNumbers& encoders, int64_t num_classes, int64_t num_devices)
      : parameters(blocks.vec()), classes(num_classes) {
    check_device_blocks(op, blocks, devices, values, classes);
    check_encoders(op, values, encoders.kernels, encoders.strides, encoders.layers, encoders.widths);
    width = blocks[0].size(1) / classes;
    size_t first = 0;
    for (size_t m = 0; m < values.size(); ++m) {
      const auto count = static_cast<size_t>(encoders.layers[m]);
      places.emplace_back(values[m].sizes().slice(1).vec(), encoders.kernels[m], encoders.strides[m],
                          encoders.widths.slice(first, count), 2 * width, classes);
      first += count;
      TORCH_CHECK_VALUE(blocks[m + 1].size(1) == places[m].size, op, ": parameters of block ", m + 1,
                        " must have ", places[m].size, " columns, got ", blocks[m + 1].size(1));
    }
    for (const at::Tensor& own : devices)
      rows.push_back(rows_of(op, "devices", own.contiguous(), num_devices));
  }

  size_t modalities() const { return places.size(); }
  at::ScalarType type() const { return parameters[0].scalar_type(); }
  int64_t row(int64_t device, size_t block) const { return rows[block][static_cast<size_t>(device)]; }
};

}  // namespace dmmlkd
