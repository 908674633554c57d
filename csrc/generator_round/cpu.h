// The generator's operators on CPU tensors (METHOD 3).
#pragma once

#include <vector>

#include "../stable/tensor.h"
#include "kernel.h"

namespace dmmlkd {

// The arguments of generator_round_. Real tensors have the type of the parameters.
struct GeneratorRound {
  Tensor parameters, first_moment, second_moment;  // [devices, theta]; rows of the learners are updated
  Tensor learners;                                 // int64 [n], different devices
  Tensor steps_taken;                              // float64 [devices]
  Tensor noise;                                    // [steps, classes, samples of a class, noise width]
  Tensor heads;                                    // [devices at hand, width, classes]
  Tensor row_pointers, columns;  // int64 [devices + 1], [received]: whose head a device received
  Tensor seen;                   // [devices at hand, classes]: weights of heads; undefined: equal
  Tensor count, sum, product;    // [devices, classes], [devices, classes, width] twice
  int64_t hidden;
  double learning_rate;
  std::vector<double> decays;  // of Adam's two moments
  double epsilon, moment_weight, mode_seeking;

  GeneratorShape shape() const { return {noise.size(3), heads.size(2), hidden, heads.size(1)}; }
};

void generator_round(const GeneratorRound& round);

Tensor generate_features(const Tensor& parameters, const Tensor& noise, int64_t hidden, int64_t width);

}  // namespace dmmlkd
