// gossip_mix as a differentiable function: its derivative mixes by the transposed weights.
#include <ATen/TensorOperators.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../check.h"
#include "../simd/functorch.h"

namespace dmmlkd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Mix = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);

at::Tensor mix_op(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                  const at::Tensor& values) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("dmmlkd::gossip_mix", "").typed<Mix>();
  return op.call(local, row_pointers, columns, values);
}

using MixInto = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           at::Tensor&, int64_t, int64_t, bool);

const c10::TypedOperatorHandle<MixInto>& into_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("dmmlkd::gossip_mix_", "").typed<MixInto>();
  return op;
}

at::Tensor gossip_mix(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                      const at::Tensor& values) {
  check_weights("gossip_mix", local, row_pointers, columns, values);
  at::Tensor out = at::empty({row_pointers.size(0) - 1, local.size(1)}, local.options());
  const at::Tensor rows = local.stride(1) == 1 ? local : local.contiguous();
  into_op().call(rows, row_pointers, columns, values, out, 0, local.size(1), false);
  return out;
}

// The compressed rows of the transposed weights.
std::tuple<at::Tensor, at::Tensor, at::Tensor> transposed(const at::Tensor& row_pointers,
                                                          const at::Tensor& columns, const at::Tensor& values,
                                                          int64_t rows_in) {
  const at::Tensor order = at::argsort(columns, /*stable=*/true);
  const at::Tensor rows = at::repeat_interleave(row_pointers.diff());
  at::Tensor pointers = at::zeros({rows_in + 1}, row_pointers.options());
  pointers.slice(0, 1).copy_(at::bincount(columns, {}, rows_in).cumsum(0));
  return {pointers, rows.index_select(0, order), values.index_select(0, order)};
}

// The same in differentiable ATen operations. They copy a row for each weight, so that a row that is not
// weighed, NaN or not, stays out.
at::Tensor composite(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                     const at::Tensor& values) {
  const at::Tensor rows = at::repeat_interleave(row_pointers.diff());
  const at::Tensor weighed = local.to(values.scalar_type()).index_select(0, columns) * values.unsqueeze(1);
  return at::zeros({row_pointers.size(0) - 1, local.size(1)}, values.options())
      .index_add(0, rows, weighed)
      .to(local.scalar_type());
}

class GossipMix : public torch::autograd::Function<GossipMix> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& local, const at::Tensor& row_pointers,
                            const at::Tensor& columns, const at::Tensor& values) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({row_pointers, columns, values});
    context->saved_data["rows_in"] = local.size(0);
    return mix_op(local, row_pointers, columns, values);
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto [pointers, columns, values] =
        transposed(saved[0], saved[1], saved[2], context->saved_data["rows_in"].toInt());
    return {mix_op(upstream[0], pointers, columns, values), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor gossip_mix_autograd(const at::Tensor& local, const at::Tensor& row_pointers,
                               const at::Tensor& columns, const at::Tensor& values) {
  TORCH_CHECK_VALUE(
      !values.requires_grad(),
      "gossip_mix: values must not require a gradient: mixing is differentiable in local alone");
  check_weights("gossip_mix", local, row_pointers, columns, values);
  if (inside_functorch()) return composite(local, row_pointers, columns, values);
  if (at::GradMode::is_enabled() && local.requires_grad())
    return GossipMix::apply(local, row_pointers, columns, values);
  at::AutoDispatchBelowADInplaceOrView guard;
  return mix_op(local, row_pointers, columns, values);
}

// Writing over a tensor that autograd has saved must be noticed when its graph is run.
at::Tensor gossip_mix_versioned(c10::DispatchKeySet keys, const at::Tensor& local,
                                const at::Tensor& row_pointers, const at::Tensor& columns,
                                const at::Tensor& values, at::Tensor& out, int64_t begin, int64_t end,
                                bool measure) {
  at::AutoDispatchBelowADInplaceOrView guard;
  at::Tensor norms = into_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, local, row_pointers,
                                          columns, values, out, begin, end, measure);
  torch::autograd::impl::bump_version(out);
  return norms;
}

void gossip_mix_inplace_versioned(c10::DispatchKeySet keys, at::Tensor& local, const at::Tensor& row_pointers,
                                  const at::Tensor& columns, const at::Tensor& values, int64_t begin,
                                  int64_t end) {
  using MixInplace =
      void(at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t);
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("dmmlkd::gossip_mix_inplace_", "").typed<MixInplace>();
  at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatch(keys & c10::after_ADInplaceOrView_keyset, local, row_pointers, columns, values, begin, end);
  torch::autograd::impl::bump_version(local);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CompositeExplicitAutograd, m) { m.impl("gossip_mix", gossip_mix); }
TORCH_LIBRARY_IMPL(dmmlkd, Autograd, m) { m.impl("gossip_mix", gossip_mix_autograd); }
TORCH_LIBRARY_IMPL(dmmlkd, ADInplaceOrView, m) {
  m.impl("gossip_mix_", gossip_mix_versioned);
  m.impl("gossip_mix_inplace_", gossip_mix_inplace_versioned);
}

}  // namespace dmmlkd
