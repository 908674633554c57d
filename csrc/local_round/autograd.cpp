// The operators of the training loop write gradients themselves, and take no part in automatic
// differentiation: what they return needs no gradient, whatever goes in.
#include <torch/library.h>

TORCH_LIBRARY_IMPL(dmmlkd, Autograd, m) {
  for (const char* name :
       {"class_moments_", "column_sums", "count_right", "convolve_layers", "convolve_layers_backward_",
        "gather_samples", "generate_features", "generator_round_", "linear_layers", "linear_layers_backward_",
        "local_round_", "objective_", "sgd_step_", "squared_distances"})
    m.impl(name, torch::CppFunction::makeFallthrough());
}
