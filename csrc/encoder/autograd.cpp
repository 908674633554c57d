// Derivatives of convolve. The gradient of inputs that need none, as of data, is left out.
#include <ATen/ops/convolution.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../check.h"
#include "../simd/functorch.h"

namespace dmmlkd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor convolve_op(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& bias,
                       int64_t kernel, int64_t stride, bool rectify) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("dmmlkd::convolve", "")
                       .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                                         int64_t, bool)>();
  return op.call(inputs, weight, bias, kernel, stride, rectify);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_op(const at::Tensor& upstream,
                                                           const at::Tensor& inputs, const at::Tensor& weight,
                                                           const at::Tensor& outputs, int64_t kernel,
                                                           int64_t stride, bool rectify, bool with_inputs) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("dmmlkd::convolve_backward", "")
                       .typed<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
                           const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           int64_t, int64_t, bool, bool)>();
  return op.call(upstream, inputs, weight, outputs, kernel, stride, rectify, with_inputs);
}

// One grouped convolution of ATen, a group a device: differentiable any number of times.
at::Tensor composite(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& bias,
                     int64_t kernel, int64_t stride, bool rectify) {
  const int64_t space = inputs.dim() - 3, devices = inputs.size(0);
  std::vector<int64_t> window(static_cast<size_t>(space), kernel);
  window.push_back(inputs.size(-1));
  const at::Tensor grouped = inputs.movedim(-1, 2).transpose(0, 1).flatten(1, 2);
  const at::Tensor filters = weight.unflatten(1, window).movedim(-2, 1).movedim(-1, 1).flatten(0, 1);
  const std::vector<int64_t> steps(static_cast<size_t>(space), stride),
      padding(static_cast<size_t>(space), kernel / 2), ones(static_cast<size_t>(space), 1),
      none(static_cast<size_t>(space), 0);
  at::Tensor outputs =
      at::convolution(grouped, filters, bias.flatten(), steps, padding, ones, false, none, devices);
  outputs = outputs.unflatten(1, {devices, -1}).transpose(0, 1).movedim(2, -1);
  return rectify ? outputs.relu() : outputs;
}

class Convolve : public torch::autograd::Function<Convolve> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& inputs, const at::Tensor& weight,
                            const at::Tensor& bias, int64_t kernel, int64_t stride, bool rectify) {
    at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor outputs = convolve_op(inputs, weight, bias, kernel, stride, rectify);
    context->save_for_backward({inputs, weight, outputs});
    context->saved_data["kernel"] = kernel, context->saved_data["stride"] = stride;
    context->saved_data["rectify"] = rectify;
    return outputs;
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled(),
        "convolve: derivatives of derivatives are not implemented; leave create_graph False, or use "
        "convolve_reference");
    const auto saved = context->get_saved_variables();
    const bool with_inputs = context->needs_input_grad(0);
    auto [inputs, weight, bias] = backward_op(
        upstream[0], saved[0], saved[1], saved[2], context->saved_data["kernel"].toInt(),
        context->saved_data["stride"].toInt(), context->saved_data["rectify"].toBool(), with_inputs);
    return {with_inputs ? inputs : at::Tensor(), weight, bias, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor convolve_autograd(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& bias,
                             int64_t kernel, int64_t stride, bool rectify) {
  if (inside_functorch()) {
    check_convolution(inputs, weight, kernel, stride);
    check_convolution_bias(weight, bias);
    return composite(inputs, weight, bias, kernel, stride, rectify);
  }
  if (at::GradMode::is_enabled() &&
      (inputs.requires_grad() || weight.requires_grad() || bias.requires_grad()))
    return Convolve::apply(inputs, weight, bias, kernel, stride, rectify);
  at::AutoDispatchBelowADInplaceOrView guard;
  return convolve_op(inputs, weight, bias, kernel, stride, rectify);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, Autograd, m) { m.impl("convolve", convolve_autograd); }

}  // namespace dmmlkd
