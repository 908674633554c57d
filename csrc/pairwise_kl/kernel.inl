// Loss and gradient of the pairwise Kullback-Leibler similarity in one pass (METHOD 3, "The form to
// compute").
//
// With p_m = softmax(z_m) and n modalities present, one sample's loss is
//     1 / (n (n - 1)) * n * sum_i sum_m (p_mi - pbar_i) (u_mi - ubar_i)
// and its gradient  1 / (n (n - 1)) * n * (p_m (d_m - A_m) + p_m - pbar),  d_m = u_m - ubar,  A_m = <p_m,
// d_m>. u_m is the log-probability up to a constant per row, written as a difference from the first modality
// present, u_m = (z_m - z_first) - (max_m - max_first): where modalities nearly agree both differences are
// exact, so that nothing cancels; no logarithm is needed because constants drop out of every term.
//
// Two roundings would be larger than the result. Rows that lie far apart by a constant are moved together
// before they are subtracted (far_apart). And the p of a confident row are rounded to 1, so that p_m - pbar
// no longer sums to zero over the classes: what is left, R_m = sum_i (p_mi - pbar_i), is taken off the loss
// (A_m R_m) and the gradient (p_m R_m).
//
// Few classes: a vector holds one class of many samples ("lanes"), so that sums over classes need no
// shuffles. Many classes: a vector holds neighbouring classes of one sample ("rows").
#pragma once

#include "lanes.inl"
#include "rows.inl"

namespace dmmlkd {
namespace {

// A class whose logit is -inf in all present modalities is ignored. Such a sample, whose loss
// came out as NaN, is computed anew from its other classes; one that has none such stays NaN.
template <class T>
[[gnu::noinline, gnu::cold]] T pairwise_kl_of_allowed(const PairwiseKlSamples<T>& s, int64_t sample) {
  const T* logits = s.logits + sample * s.sample_stride;
  const bool* mask = s.mask ? s.mask + sample * s.mask_sample_stride : nullptr;
  const T lowest = -largest_finite<T>();
  const auto excluded = [&](int64_t i) {
    for (int64_t m = 0; m < s.modalities; ++m)
      if (!mask || mask[m * s.mask_modality_stride])
        if (!(logits[m * s.modality_stride + i] < lowest)) return false;
    return true;
  };
  int64_t allowed = 0;
  for (int64_t i = 0; i < s.classes; ++i) allowed += !excluded(i);
  const T nan = lowest * 0 / T(0);
  if (allowed == 0 || allowed == s.classes) return nan;
  const int64_t room = whole_vectors(s.modalities * s.classes);
  T *values = s.scratch, *gradient = values + room, loss;
  PairwiseKlSamples<T> part = s;
  part.samples = 1, part.classes = part.modality_stride = part.gradient_modality_stride = allowed;
  part.logits = values, part.readable_end = gradient, part.mask = mask, part.loss = &loss;
  part.gradient = s.gradient ? gradient : nullptr, part.scratch = gradient + room;
  for (int64_t m = 0; m < s.modalities; ++m)
    for (int64_t i = 0, k = 0; i < s.classes; ++i)
      if (!excluded(i)) values[m * allowed + k++] = logits[m * s.modality_stride + i];
  pairwise_kl_by_rows<T>(part);
  for (int64_t m = 0; s.gradient && m < s.modalities; ++m) {
    T* out = s.gradient + sample * s.gradient_sample_stride + m * s.gradient_modality_stride;
    for (int64_t i = 0, k = 0; i < s.classes; ++i) out[i] = excluded(i) ? T(0) : gradient[m * allowed + k++];
  }
  return loss;
}

template <class T>
double pairwise_kl(const PairwiseKlSamples<T>& s) {
  return uses_lanes(s.modalities, s.classes) ? pairwise_kl_by_lanes<T>(s) : pairwise_kl_by_rows<T>(s);
}

}  // namespace
}  // namespace dmmlkd
