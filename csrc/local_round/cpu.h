// local_round_ on CPU tensors; called boxed, its many arguments are read by name (arguments.h).
#pragma once

#include <ATen/core/stack.h>

namespace c10 {
class OperatorHandle;
}

namespace dmmlkd {

void local_round(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace dmmlkd
