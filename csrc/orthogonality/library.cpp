// orthogonality_forward by products that go to the GEMM library.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>

#include <algorithm>

#include "../check.h"
#include "../stable/call.h"
#include "form.h"

namespace dmmlkd {
namespace {

using Dimensions = std::vector<int64_t>;

Tensor operator*(const Tensor& a, const Tensor& b) { return call("aten::mul", "Tensor", a, b); }
Tensor operator/(const Tensor& a, const Tensor& b) { return call("aten::div", "Tensor", a, b); }
Tensor operator>(const Tensor& a, const Tensor& b) { return call("aten::gt", "Tensor", a, b); }
Tensor operator<(const Tensor& a, const Tensor& b) { return call("aten::lt", "Tensor", a, b); }
Tensor operator&(const Tensor& a, const Tensor& b) { return call("aten::bitwise_and", "Tensor", a, b); }
Tensor operator-(const Tensor& a, const Tensor& b) {
  AtenTensorHandle difference = nullptr;
  check_torch(aoti_torch_aten_subtract_Tensor(a.handle(), b.handle(), 1, &difference), "subtract");
  return Tensor(difference);
}
Tensor matmul(const Tensor& a, const Tensor& b) { return call("aten::matmul", "", a, b); }
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  return call("aten::where", "self", condition, a, b);
}
Tensor sum(const Tensor& a, const Dimensions& dimensions, bool keep) {
  return call("aten::sum", "dim_IntList", a, std::optional(dimensions), keep, std::nullopt);
}

// On the device of `like`.
Tensor number(double value, ScalarType type, const Tensor& like) {
  const Tensor made = like.new_empty({}, type);
  check_torch(aoti_torch_aten_fill__Scalar(made.handle(), value), "fill_");
  return made;
}

Tensor transposed(const Tensor& matrices) {
  Dimensions sizes = matrices.sizes().vec(), strides = matrices.strides().vec();
  std::swap(sizes.end()[-1], sizes.end()[-2]), std::swap(strides.end()[-1], strides.end()[-2]);
  return matrices.strided(sizes, strides);
}

Tensor with_last_dimension(const Tensor& values) {
  Dimensions sizes = values.sizes().vec(), strides = values.strides().vec();
  sizes.push_back(1), strides.push_back(1);
  return values.strided(sizes, strides);
}

// Rows ready for the product: absent ones zero, scaled to unit length on demand.
struct Rows {
  Tensor values, inverse_length;  // inverse_length is undefined unless normalized

  Rows(const Tensor& features, const std::optional<Tensor>& mask, bool normalize) : values(features) {
    const auto type = values.scalar_type();
    const Tensor zero = number(0, type, values), one = number(1, type, values);
    if (mask) values = where(with_last_dimension(*mask), values, zero);
    if (!normalize) return;
    // The peak is taken out first, so that the squares of tiny or huge rows neither under- nor overflow. A
    // zero row stays zero, and one that holds NaN stays NaN.
    const Tensor peak = call("aten::amax", "", call("aten::abs", "", values), Dimensions{-1}, true);
    const Tensor empty = call("aten::eq", "Tensor", peak, zero);
    const Tensor divisor = where(empty, one, peak), scaled = values / divisor;
    const Tensor squares = where(empty, one, sum(call("aten::square", "", scaled), {-1}, true));
    const Tensor inverse = where(empty, zero, call("aten::rsqrt", "", squares));
    values = scaled * inverse;
    inverse_length = inverse / divisor;
  }

  // Through the scaling of a row to unit length: the part of the gradient along the row drops out.
  Tensor through_length(const Tensor& gradient) const {
    if (!inverse_length.defined()) return gradient;
    return (gradient - values * sum(gradient * values, {-1}, true)) * inverse_length;
  }
};

// One value, or one of each pair under a mask.
Tensor inverse_samples_squared(const Tensor& common, const std::optional<Tensor>& mask) {
  Tensor samples = number(static_cast<double>(common.size(-2)), kDouble, common);
  if (mask) {
    const Tensor held = mask->expand(common.sizes().slice(0, static_cast<size_t>(common.dim() - 1)));
    samples = sum(held, {-1}, false).to(kDouble);
  }
  const Tensor counted = call("aten::clamp_min", "Tensor", samples, number(1, kDouble, samples));
  return call("aten::reciprocal", "", call("aten::square", "", counted));
}

Tensor inner_product(const Tensor& a, const Tensor& b) {
  return sum(a.to(kDouble) * b.to(kDouble), {-2, -1}, false);
}

// Multiplications of a loss and its gradient by the library: 2 B^2 (d + e) by samples, 3 B d e by features.
bool by_samples(int64_t b, int64_t d, int64_t e) { return 2 * b * (d + e) < 3 * d * e; }

// The loss of each pair in float64, and the matrices of the gradients 2 first H and 2 second S by samples;
// else first = H^T S alone.
struct Products {
  Tensor loss, first, second;

  Products(const Tensor& h, const Tensor& s) {
    // On a GPU the question whether to trust it would wait for the device.
    const bool asks = h.device().type == aoti_torch_device_type_cpu();
    if (asks && by_samples(h.size(-2), h.size(-1), s.size(-1))) {
      first = matmul(s, transposed(s)), second = matmul(h, transposed(h));
      loss = inner_product(first, second);
      if (trusted(h.scalar_type())) return;
      second = Tensor();
    }
    first = matmul(transposed(h), s);
    loss = inner_product(first, first);
  }

  // Not where little is left of larger numbers, or where a product left the range of its type.
  bool trusted(ScalarType type) const {
    const double tiny = type == kDouble ? 1e-280 : 1e-60;
    const Tensor least = number(tiny, kDouble, loss), most = number(1 / tiny, kDouble, loss);
    const Tensor p = inner_product(second, second), q = inner_product(first, first);
    const Tensor larger =
        call("aten::sqrt", "", p) * call("aten::sqrt", "", q) * number(1.0 / 64, kDouble, loss);
    const Tensor all =
        call("aten::all", "", (p > least) & (p < most) & (q > least) & (q < most) & (loss > larger));
    bool is = false;
    check_torch(aoti_torch_item_bool(all.handle(), &is), "item");
    return is;
  }
};

Tensor reduced(const Tensor& losses, int64_t reduction) {
  if (reduction == reduction_none) return losses;
  const Tensor total = call("aten::sum", "", losses, std::nullopt);
  return reduction == reduction_sum ? total
                                    : total / number(static_cast<double>(losses.numel()), kDouble, losses);
}

}  // namespace

LossAndGradients orthogonality_by_library(const Tensor& common, const Tensor& specific,
                                          const std::optional<Tensor>& mask, bool normalize,
                                          int64_t reduction, bool with_common, bool with_specific) {
  const auto type = common.scalar_type();
  const Rows h(common, mask, normalize), s(specific, mask, normalize);
  Products products(h.values, s.values);
  const Tensor none = common.new_empty({0});
  Tensor loss = products.loss, common_gradient = none, specific_gradient = none;
  Tensor factor = number(2, kDouble, loss);
  if (normalize) {
    const Tensor weight = inverse_samples_squared(common, mask);
    loss = loss * weight, factor = factor * weight;
  }
  if (reduction == reduction_mean)
    factor = factor / number(static_cast<double>(products.loss.numel()), kDouble, factor);
  factor = factor.to(type);
  if (factor.dim() > 0) factor = with_last_dimension(with_last_dimension(factor));
  const Tensor first = products.first * factor;
  if (with_common)
    common_gradient = h.through_length(products.second.defined() ? matmul(first, h.values)
                                                                 : matmul(s.values, transposed(first)));
  if (with_specific)
    specific_gradient = s.through_length(
        products.second.defined() ? matmul(products.second * factor, s.values) : matmul(h.values, first));
  return {reduced(loss, reduction).to(type), common_gradient, specific_gradient};
}

}  // namespace dmmlkd
