// What local_round_ is given.
#pragma once

#include <string>
#include <vector>

#include "../encoder/device_arguments.h"

namespace dmmlkd {

constexpr int64_t loss_terms = 6;

enum class Modulation { none, ogm_ge, mmpareto };

struct RoundArguments : DeviceArguments {
  std::vector<at::Tensor> starts;   // read; of each block [rows, columns]; `parameters` are written
  std::vector<at::Tensor> momenta;  // written, likewise
  // Batches and their noise: each batch reads the table from its offset on, modulo the places that there are.
  at::Tensor indices;                       // int64 [iterations, devices, batch]: which samples
  at::Tensor noise;                         // [at least a batch's values], or undefined
  at::Tensor offsets;                       // int64 [iterations, modalities, devices]
  at::Tensor first_iterations, iterations;  // int64 [devices, modalities]: where training begins, how long
  // What guides; all undefined where nothing does.
  at::Tensor pool;   // [devices, classes, n, width]
  at::Tensor known;  // bool [devices, classes]
  at::Tensor draws;  // int64 [3, iterations, batch]: which of the pool, the class rehearsed, by which of it
  // Moments of the common features, written; all undefined where nobody asks for them.
  at::Tensor count;    // [devices, classes]
  at::Tensor sum;      // [devices, classes, width]
  at::Tensor product;  // [devices, classes, width], or [devices, classes, width, width] for whole products
  std::vector<double> weights;  // of the loss terms but the first
  double strength;              // of what guides
  bool by_distance;             // features are pulled to the pool's, instead of predictions
  Modulation modulation;        // of the gradients of the modalities' blocks
  double modulation_strength;
  std::vector<at::Tensor>
      gradient_noise;           // OGM-GE: of each modality [at least its block's columns], else none
  at::Tensor gradient_offsets;  // int64 [iterations, modalities, devices]: where they are read
  double clip_norm, learning_rate, momentum_factor, weight_decay, proximal;

  explicit RoundArguments(const Arguments& given);

  int64_t num_iterations() const { return indices.size(0); }
  int64_t num_devices() const { return indices.size(1); }
  int64_t batch() const { return indices.size(2); }

  // Refuses whatever does not fit, before anything is computed.
  void check(const char* op) const;

 private:
  void check_parameters(const char* op) const;
  void check_batches(const char* op) const;
  void check_iterations(const char* op) const;
  void check_guidance(const char* op) const;
  void check_modulation(const char* op) const;
};

}  // namespace dmmlkd
