// Arguments common to the operators that run the devices' networks: parameters, samples, encoders.
#pragma once

#include <cstdint>
#include <vector>

#include "../stable/tensor.h"

namespace dmmlkd {

// Blocks: the shared one, then one per modality.
struct DeviceArguments {
  std::vector<Tensor> parameters;                 // of each block [rows, columns], rows contiguous
  std::vector<Tensor> devices;                    // of each block int64 [rows]: the device of each row
  std::vector<Tensor> values;                     // of each modality [samples, *shape]
  Tensor labels;                                  // int64 [samples]
  Tensor present;                                 // bool [samples, modalities]
  std::vector<int64_t> kernels, strides, layers;  // of each modality; kernel 0: linear layers
  std::vector<int64_t> widths;                    // of all layers, one modality after the other
  int64_t classes;

  size_t blocks() const { return parameters.size(); }
  size_t modalities() const { return values.size(); }
  int64_t samples() const { return labels.size(0); }
  ScalarType type() const { return parameters[0].scalar_type(); }
  // Of the common and of the specific feature each.
  int64_t feature_width() const { return parameters[0].size(1) / classes; }

  // Raises if an argument does not fit, before anything is computed.
  void check(const char* op) const;

 private:
  void check_blocks(const char* op) const;
  void check_encoders(const char* op) const;
  void check_samples(const char* op) const;
};

}  // namespace dmmlkd
