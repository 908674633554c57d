// pairwise_kl_forward on CPU tensors: lays the samples out as runs of constant stride and shares them out.
#include "cpu.h"

#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"

namespace dmmlkd {
namespace {

using Strides = c10::SmallVector<int64_t, 6>;

// The leading dimensions, with neighbours merged where all tensors allow it; the last one is the run.
struct Leading {
  Strides sizes;
  Strides logits, gradient, mask;  // strides

  void push(int64_t size, int64_t logits_stride, int64_t gradient_stride, int64_t mask_stride) {
    if (size == 1) return;
    if (!sizes.empty() && logits.back() == size * logits_stride &&
        gradient.back() == size * gradient_stride && mask.back() == size * mask_stride) {
      sizes.back() *= size;
      logits.back() = logits_stride, gradient.back() = gradient_stride, mask.back() = mask_stride;
      return;
    }
    sizes.push_back(size);
    logits.push_back(logits_stride), gradient.push_back(gradient_stride), mask.push_back(mask_stride);
  }
};

Leading collapse(const at::Tensor& logits, const at::Tensor& gradient, const at::Tensor& mask) {
  Leading leading;
  for (int64_t dim = 0; dim < logits.dim() - 2; ++dim)
    leading.push(logits.size(dim), logits.stride(dim),
                 gradient.defined() ? gradient.stride(dim) : logits.stride(dim),
                 mask.defined() ? mask.stride(dim) : logits.stride(dim));
  if (leading.sizes.empty()) {
    leading.sizes = {1};
    leading.logits = leading.gradient = leading.mask = {0};
  }
  return leading;
}

int64_t offset(const Strides& sizes, const Strides& strides, int64_t index) {
  int64_t sum = 0;
  for (int64_t dim = static_cast<int64_t>(sizes.size()) - 2; dim >= 0; --dim) {
    sum += index % sizes[dim] * strides[dim];
    index /= sizes[dim];
  }
  return sum;
}

double run(const PairwiseKlSamples<float>& samples) { return kernels().pairwise_kl_float(samples); }
double run(const PairwiseKlSamples<double>& samples) { return kernels().pairwise_kl_double(samples); }

// Returns the sum of all losses; fills `loss` (contiguous) and `gradient` where they are defined.
template <class T>
double compute(const at::Tensor& logits, const at::Tensor& mask, const at::Tensor& loss,
               const at::Tensor& gradient, double scale) {
  const int64_t modalities = logits.size(-2), classes = logits.size(-1);
  const Leading leading = collapse(logits, gradient, mask);
  const int64_t length = leading.sizes.back();
  const int64_t total = logits.numel() / (modalities * classes);
  // Chunks do not depend on the number of threads, and their sums are added in order: the same bits on any
  // number.
  const int64_t wanted = std::max<int64_t>(1, 16384 / (modalities * classes));
  const int64_t chunk = std::min(length, (wanted + largest_vector - 1) / largest_vector * largest_vector);
  const int64_t chunks_a_run = (length + chunk - 1) / chunk, chunks = total / length * chunks_a_run;
  c10::SmallVector<double, 64> sums(chunks);
  const auto* readable_end = reinterpret_cast<const T*>(static_cast<const char*>(logits.storage().data()) +
                                                        logits.storage().nbytes());
  const int64_t grain = std::max<int64_t>(1, 32768 / (chunk * modalities * classes));
  const auto work = [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(pairwise_kl_scratch(modalities, classes));
    for (int64_t index = begin; index < end; ++index) {
      const int64_t outer = index / chunks_a_run, first = index % chunks_a_run * chunk;
      PairwiseKlSamples<T> s{};
      s.sample_stride = leading.logits.back(), s.modality_stride = logits.stride(-2);
      s.logits =
          logits.const_data_ptr<T>() + offset(leading.sizes, leading.logits, outer) + first * s.sample_stride;
      s.readable_end = readable_end;
      if (mask.defined()) {
        s.mask_sample_stride = leading.mask.back(), s.mask_modality_stride = mask.stride(-1);
        s.mask = mask.const_data_ptr<bool>() + offset(leading.sizes, leading.mask, outer) +
                 first * s.mask_sample_stride;
      }
      if (loss.defined()) s.loss = loss.mutable_data_ptr<T>() + outer * length + first;
      if (gradient.defined()) {
        s.gradient_sample_stride = leading.gradient.back(), s.gradient_modality_stride = gradient.stride(-2);
        s.gradient = gradient.mutable_data_ptr<T>() + offset(leading.sizes, leading.gradient, outer) +
                     first * s.gradient_sample_stride;
      }
      s.samples = std::min(chunk, length - first), s.modalities = modalities, s.classes = classes;
      s.scale = static_cast<T>(scale), s.scratch = scratch.data();
      sums[index] = run(s);
    }
  };
  if (chunks <= grain)
    work(0, chunks);
  else
    at::parallel_for(0, chunks, grain, work);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

at::Tensor scalar(double value, const at::TensorOptions& options) {
  at::Tensor result = recycled_empty({}, options);
  result.scalar_type() == at::kDouble ? void(*result.mutable_data_ptr<double>() = value)
                                      : void(*result.mutable_data_ptr<float>() = static_cast<float>(value));
  return result;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> pairwise_kl_cpu(const at::Tensor& logits,
                                                   const std::optional<at::Tensor>& mask, int64_t reduction,
                                                   bool with_gradient) {
  check_pairwise_kl(logits, mask, reduction);
  const auto type = logits.scalar_type();
  if (type != at::kFloat && type != at::kDouble) {  // half precisions accumulate in float32
    auto [loss, gradient] = pairwise_kl_cpu(logits.to(at::kFloat), mask, reduction, with_gradient);
    return {loss.to(type), gradient.to(type)};
  }
  const auto leading = logits.sizes().slice(0, logits.dim() - 2);
  const int64_t modalities = logits.size(-2), classes = logits.size(-1);
  const int64_t samples = logits.numel() / (modalities * classes);
  if (samples == 0 || modalities == 1) {
    at::Tensor loss = reduction == reduction_none ? logits.new_zeros(leading) : scalar(0, logits.options());
    return {loss, with_gradient ? recycled_empty_like(logits).zero_() : logits.new_empty({0})};
  }
  const at::Tensor rows = logits.stride(-1) == 1 || classes == 1 ? logits : logits.contiguous();
  const at::Tensor gradient = with_gradient ? recycled_empty_like(rows) : at::Tensor();
  at::Tensor loss = reduction == reduction_none ? logits.new_empty(leading) : at::Tensor();
  const at::Tensor present = mask ? mask->expand(logits.sizes().slice(0, logits.dim() - 1)) : at::Tensor();
  const double scale = reduction == reduction_mean ? 1.0 / static_cast<double>(samples) : 1.0;
  const double sum = type == at::kDouble ? compute<double>(rows, present, loss, gradient, scale)
                                         : compute<float>(rows, present, loss, gradient, scale);
  if (!loss.defined()) loss = scalar(sum * scale, logits.options());
  return {loss, with_gradient ? gradient : logits.new_empty({0})};
}

}  // namespace dmmlkd
