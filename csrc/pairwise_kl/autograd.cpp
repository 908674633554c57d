// Derivatives of pairwise_kl_similarity: the forward pass computes the gradient, the backward pass scales it.
#include <ATen/autocast_mode.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../check.h"
#include "../simd/functorch.h"
#include "../simd/upstream.h"

namespace dmmlkd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<at::Tensor, at::Tensor> forward_op(const at::Tensor& logits, const std::optional<at::Tensor>& mask,
                                              int64_t reduction, bool with_gradient) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("dmmlkd::pairwise_kl_forward", "")
                       .typed<std::tuple<at::Tensor, at::Tensor>(
                           const at::Tensor&, const std::optional<at::Tensor>&, int64_t, bool)>();
  return op.call(logits, mask, reduction, with_gradient);
}

// The terms of METHOD 3 in differentiable ATen operations.
struct Terms {
  at::Tensor present, count, probability, deviation, distance, active;

  Terms(const at::Tensor& logits, const std::optional<at::Tensor>& mask) {
    at::Tensor values = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
    const auto shape = logits.sym_sizes().slice(0, logits.dim() - 1);
    const at::Tensor held = mask ? mask->expand_symint(shape).unsqueeze(-1)
                                 : at::ones_like(values.select(-1, 0), at::kBool).unsqueeze(-1);
    values = at::where(held, values, at::zeros({}, values.options()));
    present = held.to(values.scalar_type());
    count = present.sum(-2, true);
    active = count > 1;
    const at::Tensor divisor = count.clamp_min(1);
    const at::Tensor log_probability = values.log_softmax(-1);
    probability = log_probability.exp() * present;
    distance = (log_probability - (log_probability * present).sum(-2, true) / divisor) * present;
    deviation = (probability - probability.sum(-2, true) / divisor) * present;
  }

  at::Tensor weight() const { return active.to(count.scalar_type()) / (count - 1).clamp_min(1); }
};

at::Tensor reduced(const at::Tensor& loss, int64_t reduction) {
  if (reduction == reduction_none) return loss;
  if (reduction == reduction_sum) return loss.sum();
  return loss.sum() / std::max<int64_t>(1, loss.numel());
}

at::Tensor composite(const at::Tensor& logits, const std::optional<at::Tensor>& mask, int64_t reduction) {
  const Terms t(logits, mask);
  at::Tensor loss = (t.weight() * t.deviation * t.distance).sum({-2, -1});
  const at::Tensor zero = at::zeros({}, loss.options());
  loss = at::where(t.active.squeeze(-1).squeeze(-1), loss.clamp_min(0), zero);
  loss = loss + at::where(at::isfinite(loss), zero, loss - loss);
  return reduced(loss, reduction).to(logits.scalar_type());
}

// d loss / d logits for a loss that is not reduced, itself differentiable.
at::Tensor composite_gradient(const at::Tensor& logits, const std::optional<at::Tensor>& mask) {
  const Terms t(logits, mask);
  const at::Tensor moment = (t.probability * t.distance).sum(-1, true);
  return t.weight() * (t.probability * (t.distance - moment) + t.deviation);
}

at::Tensor scaled_like_loss(const at::Tensor& gradient, const at::Tensor& upstream, int64_t reduction,
                            const at::Tensor& logits) {
  if (reduction == reduction_none) return gradient * upstream.unsqueeze(-1).unsqueeze(-1);
  if (reduction == reduction_sum) return gradient * upstream;
  const auto samples = logits.numel() / (logits.size(-1) * logits.size(-2));
  return gradient * (upstream / std::max<int64_t>(1, samples));
}

class PairwiseKl : public torch::autograd::Function<PairwiseKl> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& logits,
                            const std::optional<at::Tensor>& mask, int64_t reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, gradient] = forward_op(logits, mask, reduction, true);
    context->save_for_backward({logits, gradient, mask.value_or(at::Tensor())});
    context->saved_data["reduction"] = reduction;
    return loss;
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const int64_t reduction = context->saved_data["reduction"].toInt();
    at::Tensor result;
    if (at::GradMode::is_enabled()) {  // a derivative of this derivative may be asked for
      const auto mask = saved[2].defined() ? std::optional<at::Tensor>(saved[2]) : std::nullopt;
      result = scaled_like_loss(composite_gradient(saved[0], mask), upstream[0], reduction, saved[0])
                   .to(saved[0].scalar_type());
    } else if (is_one(upstream[0])) {
      result = saved[1];
    } else if (reduction == reduction_none) {
      result = saved[1] * upstream[0].unsqueeze(-1).unsqueeze(-1);
    } else {
      result = saved[1] * upstream[0];
    }
    return {result, at::Tensor(), at::Tensor()};
  }
};

at::Tensor similarity_autograd(const at::Tensor& logits, const std::optional<at::Tensor>& mask,
                               int64_t reduction) {
  if (inside_functorch()) {
    check_pairwise_kl(logits, mask, reduction);
    return composite(logits, mask, reduction);
  }
  if (at::GradMode::is_enabled() && logits.requires_grad()) return PairwiseKl::apply(logits, mask, reduction);
  at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<0>(forward_op(logits, mask, reduction, false));
}

at::Tensor similarity(const at::Tensor& logits, const std::optional<at::Tensor>& mask, int64_t reduction) {
  return std::get<0>(forward_op(logits, mask, reduction, false));
}

// Under autocast the loss is computed and returned in float32, like the losses of torch.
at::Tensor similarity_autocast(const at::Tensor& logits, const std::optional<at::Tensor>& mask,
                               int64_t reduction) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("dmmlkd::pairwise_kl_similarity", "")
                       .typed<at::Tensor(const at::Tensor&, const std::optional<at::Tensor>&, int64_t)>();
  return op.call(at::autocast::cached_cast(at::kFloat, logits, logits.device().type()), mask, reduction);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CompositeExplicitAutograd, m) { m.impl("pairwise_kl_similarity", similarity); }
TORCH_LIBRARY_IMPL(dmmlkd, Autograd, m) { m.impl("pairwise_kl_similarity", similarity_autograd); }
TORCH_LIBRARY_IMPL(dmmlkd, AutocastCPU, m) { m.impl("pairwise_kl_similarity", similarity_autocast); }
TORCH_LIBRARY_IMPL(dmmlkd, AutocastCUDA, m) { m.impl("pairwise_kl_similarity", similarity_autocast); }

}  // namespace dmmlkd
