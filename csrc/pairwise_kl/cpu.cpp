// pairwise_kl_forward on CPU tensors: lays the samples out as runs of constant stride and shares them out.
#include "cpu.h"

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"
#include "../stable/parallel.h"

namespace dmmlkd {
namespace {

struct Dimension {
  int64_t size, logits, gradient, mask;  // strides of each tensor

  bool continues(const Dimension& inner) const {
    return logits == inner.size * inner.logits && gradient == inner.size * inner.gradient &&
           mask == inner.size * inner.mask;
  }
};

// The leading dimensions, with neighbours merged where all tensors allow it; the last one is the run.
std::vector<Dimension> collapse(const Tensor& logits, const Tensor& gradient, const Tensor& mask) {
  std::vector<Dimension> leading;
  for (int64_t dim = 0; dim < logits.dim() - 2; ++dim) {
    const int64_t stride = logits.stride(dim);
    Dimension next{logits.size(dim), stride, gradient.defined() ? gradient.stride(dim) : stride,
                   mask.defined() ? mask.stride(dim) : stride};
    if (next.size == 1) continue;
    if (!leading.empty() && leading.back().continues(next)) {
      next.size *= leading.back().size;
      leading.pop_back();
    }
    leading.push_back(next);
  }
  if (leading.empty()) leading.push_back({1, 0, 0, 0});
  return leading;
}

// Where the run `index` begins, by the strides of one tensor.
int64_t offset(const std::vector<Dimension>& leading, int64_t Dimension::* stride, int64_t index) {
  int64_t sum = 0;
  for (size_t outer = leading.size() - 1; outer-- > 0;) {
    sum += index % leading[outer].size * leading[outer].*stride;
    index /= leading[outer].size;
  }
  return sum;
}

double run(const PairwiseKlSamples<float>& samples) { return kernels().pairwise_kl_float(samples); }
double run(const PairwiseKlSamples<double>& samples) { return kernels().pairwise_kl_double(samples); }

// Returns the sum of all losses; fills `loss` (contiguous) and `gradient` where they are defined.
template <class T>
double compute(const Tensor& logits, const Tensor& mask, const Tensor& loss, const Tensor& gradient,
               double scale) {
  const int64_t modalities = logits.size(-2), classes = logits.size(-1);
  const std::vector<Dimension> leading = collapse(logits, gradient, mask);
  const Dimension& along = leading.back();
  const int64_t length = along.size;
  const int64_t total = logits.numel() / (modalities * classes);
  // Chunks do not depend on the number of threads, and their sums are added in order: the same bits on any
  // number.
  const int64_t wanted = std::max<int64_t>(1, 16384 / (modalities * classes));
  const int64_t chunk = std::min(length, (wanted + largest_vector - 1) / largest_vector * largest_vector);
  const int64_t chunks_a_run = (length + chunk - 1) / chunk, chunks = total / length * chunks_a_run;
  std::vector<double> sums(static_cast<size_t>(chunks));
  const auto* readable_end = static_cast<const T*>(logits.storage_end());
  const int64_t grain = std::max<int64_t>(1, 32768 / (chunk * modalities * classes));
  const auto work = [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(pairwise_kl_scratch(modalities, classes));
    for (int64_t index = begin; index < end; ++index) {
      const int64_t outer = index / chunks_a_run, first = index % chunks_a_run * chunk;
      PairwiseKlSamples<T> s{};
      s.sample_stride = along.logits, s.modality_stride = logits.stride(-2);
      s.logits =
          logits.const_data_ptr<T>() + offset(leading, &Dimension::logits, outer) + first * s.sample_stride;
      s.readable_end = readable_end;
      if (mask.defined()) {
        s.mask_sample_stride = along.mask, s.mask_modality_stride = mask.stride(-1);
        s.mask = mask.const_data_ptr<bool>() + offset(leading, &Dimension::mask, outer) +
                 first * s.mask_sample_stride;
      }
      if (loss.defined()) s.loss = loss.mutable_data_ptr<T>() + outer * length + first;
      if (gradient.defined()) {
        s.gradient_sample_stride = along.gradient, s.gradient_modality_stride = gradient.stride(-2);
        s.gradient = gradient.mutable_data_ptr<T>() + offset(leading, &Dimension::gradient, outer) +
                     first * s.gradient_sample_stride;
      }
      s.samples = std::min(chunk, length - first), s.modalities = modalities, s.classes = classes;
      s.scale = static_cast<T>(scale), s.scratch = scratch.data();
      sums[static_cast<size_t>(index)] = run(s);
    }
  };
  if (chunks <= grain)
    work(0, chunks);
  else
    parallel_for(0, chunks, grain, work);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

Tensor scalar(double value, ScalarType type) {
  Tensor result = empty_cpu({}, type);
  type == kDouble ? void(*result.mutable_data_ptr<double>() = value)
                  : void(*result.mutable_data_ptr<float>() = static_cast<float>(value));
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor> pairwise_kl_cpu(const Tensor& logits, const std::optional<Tensor>& mask,
                                           int64_t reduction, bool with_gradient) {
  check_pairwise_kl(logits, mask, reduction);
  const auto type = logits.scalar_type();
  if (type != kFloat && type != kDouble) {  // half precisions accumulate in float32
    auto [loss, gradient] = pairwise_kl_cpu(logits.to(kFloat), mask, reduction, with_gradient);
    return {loss.to(type), gradient.to(type)};
  }
  const auto leading = logits.sizes().slice(0, logits.dim() - 2);
  const int64_t modalities = logits.size(-2), classes = logits.size(-1);
  const int64_t samples = logits.numel() / (modalities * classes);
  if (samples == 0 || modalities == 1) {
    Tensor loss = reduction == reduction_none ? logits.new_zeros(leading) : scalar(0, type);
    return {loss, with_gradient ? recycled_empty_like(logits).zero_() : logits.new_empty({0})};
  }
  const Tensor rows = logits.stride(-1) == 1 || classes == 1 ? logits : logits.contiguous();
  const Tensor gradient = with_gradient ? recycled_empty_like(rows) : Tensor();
  Tensor loss = reduction == reduction_none ? logits.new_empty(leading) : Tensor();
  const Tensor present = mask ? mask->expand(logits.sizes().slice(0, logits.dim() - 1)) : Tensor();
  const double scale = reduction == reduction_mean ? 1.0 / static_cast<double>(samples) : 1.0;
  const double sum = type == kDouble ? compute<double>(rows, present, loss, gradient, scale)
                                     : compute<float>(rows, present, loss, gradient, scale);
  if (!loss.defined()) loss = scalar(sum * scale, type);
  return {loss, with_gradient ? gradient : logits.new_empty({0})};
}

}  // namespace dmmlkd
