// orthogonality_forward on CPU tensors: shares out many pairs of matrices, or the rows of a few large ones,
// or leaves the largest to the GEMM library.
//
// With rows H = common and S = specific of B samples, || H^T S ||_F^2 = sum of squares of the d x d matrix
// H^T S, and also <H H^T, S S^T>, B x B. Whichever form costs less is taken, for the loss and for
//     d/dH = 2 S (H^T S)^T = 2 (S S^T) H,    d/dS = 2 H (H^T S) = 2 (H H^T) S.

#include <algorithm>
#include <cstring>
#include <vector>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"
#include "../stable/parallel.h"
#include "cpu.h"
#include "form.h"

namespace dmmlkd {
namespace {

double run(const OrthogonalityPair<float>& o, OrthogonalityStep step, int64_t begin, int64_t end) {
  return kernels().orthogonality_float(o, step, begin, end);
}
double run(const OrthogonalityPair<double>& o, OrthogonalityStep step, int64_t begin, int64_t end) {
  return kernels().orthogonality_double(o, step, begin, end);
}

using Losses = std::vector<double>;

// One pair, its rows shared out where this is not already one of many threads.
template <class T>
double compute(const OrthogonalityPair<T>& o, bool shared) {
  const auto over = [&](OrthogonalityStep step, int64_t rows) {
    if (!shared) return void(run(o, step, 0, rows));
    constexpr int64_t unit = 48;  // whole tiles and whole vectors
    parallel_for(0, (rows + unit - 1) / unit, 1,
                 [&](int64_t begin, int64_t end) { run(o, step, begin * unit, std::min(rows, end * unit)); });
  };
  over(OrthogonalityStep::prepare, o.samples);
  over(OrthogonalityStep::gram, o.by_samples ? 2 * o.samples : o.common_features);
  const double loss = run(o, OrthogonalityStep::loss, 0, 0);
  if (loss == untrusted_form) {
    const Scratch<T> scratch(orthogonality_scratch(o.samples, o.common_features, o.specific_features, false));
    OrthogonalityPair<T> by_features = o;
    by_features.by_samples = false, by_features.scratch = scratch.data();
    return compute<T>(by_features, shared);
  }
  if (o.common_gradient || o.specific_gradient) over(OrthogonalityStep::gradient, o.samples);
  return loss;
}

// Losses of all pairs; gradients go to where they are defined, multiplied by `scale`.
template <class T>
Losses compute_all(const Tensor& common, const Tensor& specific, const Tensor& mask, bool normalize,
                   double scale, const Tensor& common_gradient, const Tensor& specific_gradient) {
  const int64_t samples = common.size(-2), d = common.size(-1), e = specific.size(-1);
  const int64_t pairs = common.numel() / (samples * d);
  const bool by_samples = native_by_samples(samples, d, e);
  Losses losses(static_cast<size_t>(pairs));
  const auto pair_at = [&](int64_t index, T* scratch) {
    OrthogonalityPair<T> o{};
    o.common = common.const_data_ptr<T>() + index * samples * d;
    o.specific = specific.const_data_ptr<T>() + index * samples * e;
    o.mask = mask.defined() ? mask.const_data_ptr<bool>() + index * samples : nullptr;
    o.samples = samples, o.common_features = d, o.specific_features = e;
    o.common_stride = d, o.specific_stride = e;
    o.by_samples = by_samples, o.normalize = normalize;
    if (common_gradient.defined())
      o.common_gradient = common_gradient.mutable_data_ptr<T>() + index * samples * d;
    if (specific_gradient.defined())
      o.specific_gradient = specific_gradient.mutable_data_ptr<T>() + index * samples * e;
    o.scale = static_cast<T>(scale), o.scratch = scratch, o.exact = true;
    return o;
  };
  const int64_t work = samples * d * e, threads = num_threads();
  const bool shared = threads > 1 && pairs < 4 * threads && work > 4 * 1024 * 1024;
  const auto range = [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(orthogonality_scratch(samples, d, e, by_samples));
    for (int64_t index = begin; index < end; ++index)
      losses[static_cast<size_t>(index)] = compute<T>(pair_at(index, scratch.data()), shared);
  };
  if (shared)
    range(0, pairs);
  else
    parallel_for(0, pairs, std::max<int64_t>(1, 65536 / work), range);
  return losses;
}

Tensor reduced(const Losses& losses, int64_t reduction, Sizes leading, ScalarType type) {
  const bool whole = reduction != reduction_none;
  double sum = 0;
  for (const double loss : losses) sum += loss;
  if (reduction == reduction_mean) sum /= static_cast<double>(losses.size());
  const Tensor result = recycled_empty(whole ? Sizes{} : leading, type);
  const double* values = whole ? &sum : losses.data();
  if (type == kDouble)
    std::copy_n(values, result.numel(), result.mutable_data_ptr<double>());
  else
    std::copy_n(values, result.numel(), result.mutable_data_ptr<float>());
  return result;
}

}  // namespace

LossAndGradients orthogonality_cpu(const Tensor& common, const Tensor& specific,
                                   const std::optional<Tensor>& mask, bool normalize, int64_t reduction,
                                   bool with_common, bool with_specific) {
  check_orthogonality(common, specific, mask, reduction);
  const auto type = common.scalar_type();
  if (type != kFloat && type != kDouble) {  // half precisions accumulate in float32
    auto [loss, common_gradient, specific_gradient] = orthogonality_cpu(
        common.to(kFloat), specific.to(kFloat), mask, normalize, reduction, with_common, with_specific);
    return {loss.to(type), common_gradient.to(type), specific_gradient.to(type)};
  }
  const auto leading = common.sizes().slice(0, common.dim() - 2);
  if (common.numel() > 0 && !prefers_native(common.size(-2), common.size(-1), specific.size(-1), normalize))
    return orthogonality_by_library(common, specific, mask, normalize, reduction, with_common, with_specific);
  if (common.numel() == 0) {
    const bool whole = reduction != reduction_none;
    return {common.new_zeros(whole ? Sizes{} : leading),
            with_common ? common.new_zeros(common.sizes()) : common.new_empty({0}),
            with_specific ? specific.new_zeros(specific.sizes()) : common.new_empty({0})};
  }
  const Tensor h = common.contiguous(), s = specific.contiguous();
  const Tensor present =
      mask ? mask->expand(common.sizes().slice(0, common.dim() - 1)).contiguous() : Tensor();
  const Tensor h_gradient = with_common ? recycled_empty(common.sizes(), type) : Tensor(),
               s_gradient = with_specific ? recycled_empty(specific.sizes(), type) : Tensor();
  const double scale = reduction == reduction_mean ? 1.0 / static_cast<double>(numel(leading)) : 1.0;
  const Losses losses = type == kDouble
                            ? compute_all<double>(h, s, present, normalize, scale, h_gradient, s_gradient)
                            : compute_all<float>(h, s, present, normalize, scale, h_gradient, s_gradient);
  return {reduced(losses, reduction, leading, type), with_common ? h_gradient : common.new_empty({0}),
          with_specific ? s_gradient : common.new_empty({0})};
}

bool prefers_native(int64_t b, int64_t d, int64_t e, bool normalize) {
  const bool by_samples = native_by_samples(b, d, e);
#if defined(__x86_64__)
  const auto is = [](const char* name) { return std::strcmp(kernels().name, name) == 0; };
  // SSE2 has no fused product. With AVX2, only half of a product or what comes with it makes up for the rest.
  const int64_t largest = is("base") ? 64 : is("avx2") && !by_samples && !normalize ? 256 : 512;
#else
  const int64_t largest = 256;
#endif
  return (by_samples ? b : std::max(d, e)) <= largest;
}

}  // namespace dmmlkd
