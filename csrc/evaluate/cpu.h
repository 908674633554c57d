// count_right on CPU tensors.
#pragma once

#include <utility>
#include <vector>

#include "../encoder/device_arguments.h"

namespace dmmlkd {

struct EvaluationArguments : DeviceArguments {
  int64_t num_devices;
  Tensor chosen;               // int64 [devices, n]: the samples that judge each; undefined: all
  std::vector<Tensor> common;  // written: of each modality [rows, n, width] common features; or none

  // The number of samples that judge a device, and their indices.
  int64_t judged() const { return chosen.defined() ? chosen.size(1) : samples(); }
  int64_t sample(int64_t device, int64_t i) const {
    return chosen.defined() ? chosen.const_data_ptr<int64_t>()[device * chosen.size(1) + i] : i;
  }

  // Raises if an argument does not fit, before anything is computed.
  void check(const char* op) const;
};

// Returns the numbers of right predictions and of samples that count, int64 [modalities + 1, devices].
std::pair<Tensor, Tensor> count_right(const EvaluationArguments& given);

}  // namespace dmmlkd
