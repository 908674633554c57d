// local_round_ on CPU tensors.
#pragma once

#include <utility>

#include "round_arguments.h"

namespace dmmlkd {

// Returns each device's sums of the loss terms, float64 [terms, devices], and in how many iterations it
// trained, int64 [devices].
std::pair<Tensor, Tensor> local_round(const RoundArguments& given);

}  // namespace dmmlkd
