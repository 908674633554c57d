// The generator's operators on CPU tensors (METHOD 3).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernel.h"

namespace dmmlkd {

// The arguments of generator_round_. Real tensors have the type of the parameters.
struct GeneratorRound {
  at::Tensor parameters, first_moment, second_moment;  // [devices, theta]; rows of the learners are updated
  at::Tensor learners;                                 // int64 [n], different devices
  at::Tensor steps_taken;                              // float64 [devices]
  at::Tensor noise;                                    // [steps, classes, samples of a class, noise width]
  at::Tensor heads;                                    // [devices at hand, width, classes]
  at::Tensor row_pointers, columns;  // int64 [devices + 1], [received]: whose head a device received
  at::Tensor seen;                   // [devices at hand, classes]: weights of heads; undefined: equal
  at::Tensor count, sum, product;    // [devices, classes], [devices, classes, width] twice
  int64_t hidden;
  double learning_rate;
  std::vector<double> decays;  // of Adam's two moments
  double epsilon, moment_weight, mode_seeking;

  GeneratorShape shape() const { return {noise.size(3), heads.size(2), hidden, heads.size(1)}; }
};

void generator_round(const GeneratorRound& round);

at::Tensor generate_features(const at::Tensor& parameters, const at::Tensor& noise, int64_t hidden,
                             int64_t width);

}  // namespace dmmlkd
