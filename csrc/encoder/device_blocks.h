// The parameters of all devices, block by block: the shared head, then one block of each modality.
#pragma once

#include <vector>

#include "../simd/rows.h"
#include "../stable/tensor.h"
#include "device_arguments.h"
#include "device_encoder.h"

namespace dmmlkd {

struct DeviceBlocks {
  std::vector<std::vector<int64_t>> rows;  // of each device in each block, or -1
  std::vector<BlockPlaces> places;         // of each modality
  int64_t classes, width;                  // of the heads

  // From checked arguments; the devices of the rows are checked here.
  DeviceBlocks(const char* op, const DeviceArguments& given, int64_t num_devices)
      : classes(given.classes), width(given.feature_width()) {
    size_t first = 0;
    for (size_t m = 0; m < given.modalities(); ++m) {
      const auto count = static_cast<size_t>(given.layers[m]);
      places.emplace_back(given.values[m].sizes().slice(1).vec(), given.kernels[m], given.strides[m],
                          Sizes(given.widths).slice(first, count), 2 * width, classes);
      first += count;
      CHECK_VALUE(given.parameters[m + 1].size(1) == places[m].size, op, ": parameters of block ", m + 1,
                  " must have ", places[m].size, " columns, got ", given.parameters[m + 1].size(1));
    }
    for (const Tensor& devices : given.devices) rows.push_back(rows_of(op, "devices", devices, num_devices));
    for (int64_t device = 0; device < num_devices; ++device)
      for (size_t m = 0; m < modalities(); ++m)
        CHECK_VALUE(row(device, m + 1) < 0 || row(device, 0) >= 0, op,
                    ": parameters[0], the shared block, must have a row for device ", device,
                    ", which has a modality");
  }

  size_t modalities() const { return places.size(); }
  int64_t row(int64_t device, size_t block) const { return rows[block][static_cast<size_t>(device)]; }
};

}  // namespace dmmlkd
