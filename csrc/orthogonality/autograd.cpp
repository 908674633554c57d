// orthogonality_difference with its derivative in closed form, on any device: by kernels of our own, or by
// products that go to the GEMM library.
//
// With rows H = common and S = specific of B samples, || H^T S ||_F^2 = sum of squares of the d x d matrix
// H^T S, and also <H H^T, S S^T>, B x B. Whichever form costs less is taken, for the loss and for
//     d/dH = 2 S (H^T S)^T = 2 (S S^T) H,    d/dS = 2 H (H^T S) = 2 (H H^T) S.
// By the library only the small matrices are kept for the backward pass, and the upstream scale is put on
// them.
#include <ATen/autocast_mode.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "../check.h"
#include "../simd/functorch.h"
#include "../simd/upstream.h"
#include "form.h"

namespace dmmlkd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A conversion that would hand back its input is no operator that torch lets a kernel call.
at::Tensor converted(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.scalar_type() == type ? tensor : tensor.to(type);
}

at::Tensor transposed(const at::Tensor& matrices) { return matrices.transpose(-2, -1); }

// On a CPU most sizes have kernels of their own.
bool has_kernel(const at::Tensor& common, const at::Tensor& specific, bool normalize) {
  if (!common.device().is_cpu() && !common.is_meta()) return false;
  return prefers_native(common.sym_size(-2).guard_int(__FILE__, __LINE__),
                        common.sym_size(-1).guard_int(__FILE__, __LINE__),
                        specific.sym_size(-1).guard_int(__FILE__, __LINE__), normalize);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_op(const at::Tensor& common,
                                                          const at::Tensor& specific,
                                                          const std::optional<at::Tensor>& mask,
                                                          bool normalize, int64_t reduction,
                                                          bool common_gradient, bool specific_gradient) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("dmmlkd::orthogonality_forward", "")
                       .typed<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
                           const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, bool,
                           int64_t, bool, bool)>();
  return op.call(common, specific, mask, normalize, reduction, common_gradient, specific_gradient);
}

// Rows ready for the product: absent ones zero, scaled to unit length on demand.
struct Rows {
  at::Tensor values, inverse_length;  // inverse_length is undefined unless normalized

  Rows(const at::Tensor& features, const std::optional<at::Tensor>& mask, bool normalize) {
    values = converted(features, features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    if (mask) values = at::where(mask->unsqueeze(-1), values, at::zeros({}, values.options()));
    if (!normalize) return;
    // The peak is taken out first, so that the squares of tiny or huge rows neither under- nor overflow. A
    // zero row stays zero, and one that holds NaN stays NaN.
    const at::Tensor zero = at::zeros({}, values.options()), one = at::ones({}, values.options());
    const at::Tensor peak = values.detach().abs().amax(-1, true), empty = peak == 0;
    const at::Tensor divisor = at::where(empty, one, peak), scaled = values / divisor;
    const at::Tensor inverse =
        at::where(empty, zero, at::where(empty, one, scaled.square().sum(-1, true)).rsqrt());
    values = scaled * inverse;
    inverse_length = inverse / divisor;
  }
};

at::Tensor inverse_samples_squared(const at::Tensor& common, const std::optional<at::Tensor>& mask) {
  const auto options = common.options().dtype(common.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const auto leading = common.sym_sizes().slice(0, common.dim() - 2);
  const auto shape = common.sym_sizes().slice(0, common.dim() - 1);
  const at::Tensor samples = mask ? mask->expand_symint(shape).sum(-1).to(options.dtype())
                                  : at::full_symint(leading, common.sym_size(-2), options);
  return samples.clamp_min(1).square().reciprocal();
}

// The mean of none is zero, not NaN.
at::Tensor reduced(const at::Tensor& losses, int64_t reduction) {
  if (reduction == reduction_none) return losses;
  if (reduction == reduction_sum) return losses.sum();
  return losses.sum() / std::max<int64_t>(1, losses.numel());
}

at::Tensor composite(const at::Tensor& common, const at::Tensor& specific,
                     const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction) {
  const Rows h(common, mask, normalize), s(specific, mask, normalize);
  at::Tensor loss;
  if (by_samples(common, specific))
    loss = (at::matmul(h.values, transposed(h.values)) * at::matmul(s.values, transposed(s.values)))
               .sum({-2, -1})
               .clamp_min(0);
  else
    loss = at::matmul(transposed(h.values), s.values).square().sum({-2, -1});
  if (normalize) loss = loss * inverse_samples_squared(common, mask);
  return converted(reduced(loss, reduction), common.scalar_type());
}

// Through the scaling of a row to unit length: the part of the gradient along the row drops out.
at::Tensor through_length(const at::Tensor& gradient, const Rows& rows) {
  if (!rows.inverse_length.defined()) return gradient;
  return (gradient - rows.values * (gradient * rows.values).sum(-1, true)) * rows.inverse_length;
}

// Both gradients in closed form; a Gram matrix that is not at hand is computed anew, as a part of the graph.
variable_list gradients(const at::Tensor& common, const at::Tensor& specific,
                        const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction,
                        const at::Tensor& upstream, at::Tensor first, at::Tensor second) {
  const Rows h(common, mask, normalize), s(specific, mask, normalize);
  at::Tensor factor = 2 * converted(upstream, h.values.scalar_type());
  if (normalize) factor = factor * inverse_samples_squared(common, mask);
  if (reduction == reduction_mean)
    factor = factor /
             std::max<int64_t>(1, common.numel() / std::max<int64_t>(1, common.size(-2) * common.size(-1)));
  factor = factor.unsqueeze(-1).unsqueeze(-1);
  at::Tensor common_gradient, specific_gradient;
  if (by_samples(common, specific)) {
    if (!first.defined()) first = at::matmul(s.values, transposed(s.values));
    if (!second.defined()) second = at::matmul(h.values, transposed(h.values));
    common_gradient = at::matmul(first * factor, h.values);
    specific_gradient = at::matmul(second * factor, s.values);
  } else {
    if (!first.defined()) first = at::matmul(transposed(h.values), s.values);
    const at::Tensor product = first * factor;
    common_gradient = at::matmul(s.values, transposed(product));
    specific_gradient = at::matmul(h.values, product);
  }
  return {converted(through_length(common_gradient, h), common.scalar_type()),
          converted(through_length(specific_gradient, s), specific.scalar_type()), at::Tensor(), at::Tensor(),
          at::Tensor()};
}

std::optional<at::Tensor> given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// The forward pass computes the gradients while the operands are in the cache; the backward pass scales them.
class NativeOrthogonality : public torch::autograd::Function<NativeOrthogonality> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& common, const at::Tensor& specific,
                            const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto wide = common.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    auto [loss, common_gradient, specific_gradient] =
        forward_op(converted(common, wide), converted(specific, wide), mask, normalize, reduction,
                   common.requires_grad(), specific.requires_grad());
    context->save_for_backward(
        {common, specific, mask.value_or(at::Tensor()), common_gradient, specific_gradient});
    context->saved_data["normalize"] = normalize;
    context->saved_data["reduction"] = reduction;
    return converted(loss, common.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const int64_t reduction = context->saved_data["reduction"].toInt();
    if (at::GradMode::is_enabled())  // a derivative of this derivative may be asked for
      return gradients(saved[0], saved[1], given(saved[2]), context->saved_data["normalize"].toBool(),
                       reduction, upstream[0], {}, {});
    const bool one = is_one(upstream[0]);
    const auto scaled = [&](const at::Tensor& gradient, const at::Tensor& features) {
      if (gradient.dim() == 1) return at::Tensor();  // not asked for
      at::Tensor result = gradient;
      if (!one) {
        const at::Tensor factor = converted(upstream[0], gradient.scalar_type());
        result = gradient * (reduction == reduction_none ? factor.unsqueeze(-1).unsqueeze(-1) : factor);
      }
      return converted(result, features.scalar_type());
    };
    return {scaled(saved[3], saved[0]), scaled(saved[4], saved[1]), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

class LibraryOrthogonality : public torch::autograd::Function<LibraryOrthogonality> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& common, const at::Tensor& specific,
                            const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Rows h(common, mask, normalize), s(specific, mask, normalize);
    at::Tensor first, second, loss;  // H^T S; or S S^T and H H^T
    if (by_samples(common, specific)) {
      first = at::matmul(s.values, transposed(s.values)), second = at::matmul(h.values, transposed(h.values));
      loss = (first * second).sum({-2, -1}).clamp_min(0);
    } else {
      first = at::matmul(transposed(h.values), s.values);
      loss = first.square().sum({-2, -1});
    }
    if (normalize) loss = loss * inverse_samples_squared(common, mask);
    context->save_for_backward({common, specific, mask.value_or(at::Tensor()), first, second});
    context->saved_data["normalize"] = normalize;
    context->saved_data["reduction"] = reduction;
    return converted(reduced(loss, reduction), common.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const bool again = at::GradMode::is_enabled();
    return gradients(saved[0], saved[1], given(saved[2]), context->saved_data["normalize"].toBool(),
                     context->saved_data["reduction"].toInt(), upstream[0], again ? at::Tensor() : saved[3],
                     again ? at::Tensor() : saved[4]);
  }
};

at::Tensor without_gradient(const at::Tensor& common, const at::Tensor& specific,
                            const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction) {
  if (!has_kernel(common, specific, normalize))
    return composite(common, specific, mask, normalize, reduction);
  return std::get<0>(forward_op(common, specific, mask, normalize, reduction, false, false));
}

at::Tensor difference(const at::Tensor& common, const at::Tensor& specific,
                      const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction) {
  check_orthogonality(common, specific, mask, reduction);
  return without_gradient(common, specific, mask, normalize, reduction);
}

at::Tensor difference_autograd(const at::Tensor& common, const at::Tensor& specific,
                               const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction) {
  check_orthogonality(common, specific, mask, reduction);
  if (inside_functorch()) return composite(common, specific, mask, normalize, reduction);
  if (at::GradMode::is_enabled() && (common.requires_grad() || specific.requires_grad()))
    return has_kernel(common, specific, normalize)
               ? NativeOrthogonality::apply(common, specific, mask, normalize, reduction)
               : LibraryOrthogonality::apply(common, specific, mask, normalize, reduction);
  at::AutoDispatchBelowADInplaceOrView guard;
  return without_gradient(common, specific, mask, normalize, reduction);
}

at::Tensor difference_autocast(const at::Tensor& common, const at::Tensor& specific,
                               const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("dmmlkd::orthogonality_difference", "")
                       .typed<at::Tensor(const at::Tensor&, const at::Tensor&,
                                         const std::optional<at::Tensor>&, bool, int64_t)>();
  const auto device = common.device().type();
  return op.call(at::autocast::cached_cast(at::kFloat, common, device),
                 at::autocast::cached_cast(at::kFloat, specific, device), mask, normalize, reduction);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CompositeExplicitAutograd, m) { m.impl("orthogonality_difference", difference); }
TORCH_LIBRARY_IMPL(dmmlkd, Autograd, m) { m.impl("orthogonality_difference", difference_autograd); }
TORCH_LIBRARY_IMPL(dmmlkd, AutocastCPU, m) { m.impl("orthogonality_difference", difference_autocast); }
TORCH_LIBRARY_IMPL(dmmlkd, AutocastCUDA, m) { m.impl("orthogonality_difference", difference_autocast); }

}  // namespace dmmlkd
