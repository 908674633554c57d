// orthogonality_forward by products that go to the GEMM library.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../check.h"
#include "form.h"

namespace dmmlkd {
namespace {

at::Tensor transposed(const at::Tensor& matrices) { return matrices.transpose(-2, -1); }

// Rows ready for the product: absent ones zero, scaled to unit length on demand.
struct Rows {
  at::Tensor values, inverse_length;  // inverse_length is undefined unless normalized

  Rows(const at::Tensor& features, const std::optional<at::Tensor>& mask, bool normalize) : values(features) {
    const at::Tensor zero = at::zeros({}, values.options()), one = at::ones({}, values.options());
    if (mask) values = at::where(mask->unsqueeze(-1), values, zero);
    if (!normalize) return;
    // The peak is taken out first, so that the squares of tiny or huge rows neither under- nor overflow. A
    // zero row stays zero, and one that holds NaN stays NaN.
    const at::Tensor peak = values.abs().amax(-1, true), empty = peak == 0;
    const at::Tensor divisor = at::where(empty, one, peak), scaled = values / divisor;
    const at::Tensor inverse =
        at::where(empty, zero, at::where(empty, one, scaled.square().sum(-1, true)).rsqrt());
    values = scaled * inverse;
    inverse_length = inverse / divisor;
  }

  // Through the scaling of a row to unit length: the part of the gradient along the row drops out.
  at::Tensor through_length(const at::Tensor& gradient) const {
    if (!inverse_length.defined()) return gradient;
    return (gradient - values * (gradient * values).sum(-1, true)) * inverse_length;
  }
};

at::Tensor inverse_samples_squared(const at::Tensor& common, const std::optional<at::Tensor>& mask) {
  const auto sizes = common.sizes();
  const at::Tensor samples =
      mask ? mask->expand(sizes.slice(0, common.dim() - 1)).sum(-1).to(at::kDouble)
           : at::full(sizes.slice(0, common.dim() - 2), common.size(-2), common.options().dtype(at::kDouble));
  return samples.clamp_min(1).square().reciprocal();
}

at::Tensor inner_product(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) * b.to(at::kDouble)).sum({-2, -1});
}

// Multiplications of a loss and its gradient by the library: 2 B^2 (d + e) by samples, 3 B d e by features.
bool by_samples(int64_t b, int64_t d, int64_t e) { return 2 * b * (d + e) < 3 * d * e; }

// The loss of each pair in float64, and the matrices of the gradients 2 first H and 2 second S by samples;
// else first = H^T S alone.
struct Products {
  at::Tensor loss, first, second;

  Products(const at::Tensor& h, const at::Tensor& s) {
    // On a GPU the question whether to trust it would wait for the device.
    if (h.is_cpu() && by_samples(h.size(-2), h.size(-1), s.size(-1))) {
      first = at::matmul(s, transposed(s)), second = at::matmul(h, transposed(h));
      loss = inner_product(first, second);
      // Where little is left of larger numbers, or a product left the range of its type, by features.
      const double least = h.scalar_type() == at::kDouble ? 1e-280 : 1e-60, enough = 1.0 / 64;
      const at::Tensor p = inner_product(second, second), q = inner_product(first, first);
      const at::Tensor trusted = (p > least) & (p < 1 / least) & (q > least) & (q < 1 / least) &
                                 (loss > p.sqrt() * q.sqrt() * enough);
      if (trusted.all().item<bool>()) return;
      second = at::Tensor();
    }
    first = at::matmul(transposed(h), s);
    loss = inner_product(first, first);
  }
};

at::Tensor reduced(const at::Tensor& losses, int64_t reduction) {
  if (reduction == reduction_none) return losses;
  if (reduction == reduction_sum) return losses.sum();
  return losses.sum() / losses.numel();
}

}  // namespace

LossAndGradients orthogonality_by_library(const at::Tensor& common, const at::Tensor& specific,
                                          const std::optional<at::Tensor>& mask, bool normalize,
                                          int64_t reduction, bool with_common, bool with_specific) {
  const auto type = common.scalar_type();
  const Rows h(common, mask, normalize), s(specific, mask, normalize);
  Products products(h.values, s.values);
  const at::Tensor none = at::empty({0}, common.options());
  at::Tensor loss = products.loss, common_gradient = none, specific_gradient = none;
  at::Tensor factor = at::full({}, 2.0, loss.options());
  if (normalize) {
    const at::Tensor weight = inverse_samples_squared(common, mask);
    loss = loss * weight, factor = factor * weight;
  }
  if (reduction == reduction_mean) factor = factor / products.loss.numel();
  factor = factor.to(type).unsqueeze(-1).unsqueeze(-1);
  const at::Tensor first = products.first * factor;
  if (with_common)
    common_gradient = h.through_length(products.second.defined() ? at::matmul(first, h.values)
                                                                 : at::matmul(s.values, transposed(first)));
  if (with_specific)
    specific_gradient =
        s.through_length(products.second.defined() ? at::matmul(products.second * factor, s.values)
                                                   : at::matmul(h.values, first));
  return {reduced(loss, reduction).to(type), common_gradient, specific_gradient};
}

}  // namespace dmmlkd
