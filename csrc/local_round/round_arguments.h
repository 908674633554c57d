// The arguments of local_round_.
#pragma once

#include <string>
#include <vector>

#include "../encoder/device_arguments.h"

namespace dmmlkd {

constexpr int64_t loss_terms = 6;

struct RoundArguments : DeviceArguments {
  std::vector<Tensor> starts;   // read; of each block [rows, columns]; `parameters` are written
  std::vector<Tensor> momenta;  // written, likewise
  // Batches and their noise: a batch reads the table from its offset on, modulo the number of possible
  // places.
  Tensor indices;                       // int64 [iterations, devices, batch]: which samples
  Tensor noise;                         // [at least a batch's values], or undefined
  Tensor offsets;                       // int64 [iterations, modalities, devices]
  Tensor first_iterations, iterations;  // int64 [devices, modalities]: where training begins, how long
  // Guidance; all undefined without it.
  Tensor pool;   // [devices, classes, n, width]
  Tensor known;  // bool [devices, classes]
  Tensor draws;  // int64 [3, iterations, batch]: index in the pool; class rehearsed, and its index
  // Moments of the common features, written; all undefined if not wanted.
  Tensor count;    // [devices, classes]
  Tensor sum;      // [devices, classes, width]
  Tensor product;  // [devices, classes, width], or [devices, classes, width, width] for whole products
  std::vector<double> weights;  // of the loss terms after the first
  double strength;              // of the guidance
  bool by_distance;             // pull features, not predictions, to the pool's
  std::string modulation;       // of the modalities' gradients: none, ogm-ge or mmpareto
  double modulation_strength;
  // For OGM-GE alone: a table per modality [at least its block's columns], read as `noise` is.
  std::vector<Tensor> gradient_noise;
  Tensor gradient_offsets;  // int64 [iterations, modalities, devices]
  double clip_norm, learning_rate, momentum_factor, weight_decay, proximal;

  int64_t num_iterations() const { return indices.size(0); }
  int64_t num_devices() const { return indices.size(1); }
  int64_t batch() const { return indices.size(2); }

  // Raises if an argument does not fit, before anything is computed.
  void check(const char* op) const;

 private:
  void check_parameters(const char* op) const;
  void check_batches(const char* op) const;
  void check_iterations(const char* op) const;
  void check_guidance(const char* op) const;
  void check_modulation(const char* op) const;
};

}  // namespace dmmlkd
