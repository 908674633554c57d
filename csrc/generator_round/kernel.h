// The arguments of the generator's kernels for one device: plain pointers and numbers, no ATen.
#pragma once

#include <cstdint>

namespace dmmlkd {

// G(e, y; theta), a two-layer perceptron (METHOD 3). A row of theta holds weight1 [noise + classes, hidden],
// bias1 [hidden], weight2 [hidden, width], bias2 [width].
struct GeneratorShape {
  int64_t noise, classes, hidden, width;
  int64_t inputs() const { return noise + classes; }
  int64_t parameters() const { return (inputs() + 1) * hidden + (hidden + 1) * width; }
};

struct GeneratorSettings {
  double learning_rate, first_decay, second_decay, epsilon;  // of Adam
  double moment_weight, mode_seeking;                        // weights of the loss terms
};

// Adam's steps of one device. Its samples are `copies` of each class, sorted by class.
template <class T>
struct GeneratorSteps {
  GeneratorShape shape;
  GeneratorSettings settings;
  int64_t copies, steps;
  double taken;     // steps before these
  const T* inputs;  // [steps, samples, whole_vectors(shape.inputs())]: noise, then the label's unit vector
  const T*
      noise_apart;  // [steps, classes, copies / 2]: mean distance of the noise of samples j, copies / 2 + j
  const T* heads;   // [at hand, width, classes], each contiguous
  int64_t head_stride;      // between heads
  const int64_t* received;  // [num_heads]: which of the heads
  int64_t num_heads;
  const T* seen;                   // [at hand, classes]: weight of a head for each class; null: equal
  const T *count, *sum, *product;  // [classes], [classes, width] twice: moments of the device's features
  T *parameters, *first_moment, *second_moment;  // [parameters()], updated
  T* scratch;                                    // generator_steps_scratch() values
};

// Features of one device.
template <class T>
struct GeneratorFeatures {
  GeneratorShape shape;
  int64_t samples;
  const T* inputs;      // [samples, whole_vectors(shape.inputs())], as above
  const T* parameters;  // [parameters()]
  T* features;          // [samples, width], overwritten
  T* scratch;           // generator_features_scratch() values
};

}  // namespace dmmlkd
