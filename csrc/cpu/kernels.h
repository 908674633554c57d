// What an instruction-set shell offers: plain functions on raw pointers, no ATen, no threads.
#pragma once

#include <cstdint>

namespace dmmlkd {

// A run of samples at a constant stride. Strides count values, not bytes; the class stride is 1.
template <class T>
struct PairwiseKlSamples {
  const T* logits;
  int64_t sample_stride, modality_stride;
  const T* readable_end;  // vectors may read past a row, never past this
  const bool* mask;       // null: every modality is present
  int64_t mask_sample_stride, mask_modality_stride;
  T* loss;      // contiguous; null: only the sum is wanted
  T* gradient;  // null: only the loss is wanted
  int64_t gradient_sample_stride, gradient_modality_stride;
  int64_t samples, modalities, classes;
  T scale;     // the gradient is multiplied by it
  T* scratch;  // pairwise_kl_scratch() values
};

// Mixing of the columns [begin, end) of all rows. Row strides count values.
template <class T, class Accumulator>
struct GossipColumns {
  const T* local;
  int64_t local_stride;
  T* out;
  int64_t out_stride;
  const int64_t* row_pointers;
  const int64_t* columns;
  const Accumulator* values;
  int64_t rows_in, rows_out, begin, end;
  double* norms;         // [2, rows_out], overwritten; null: nothing is measured
  Accumulator* scratch;  // gossip_scratch() values
};

// One pair of matrices, rows being samples, all contiguous.
template <class T>
struct OrthogonalityPair {
  const T *common, *specific;
  const bool* mask;  // which samples count; null: all
  int64_t samples, common_features, specific_features;
  bool by_samples, normalize;
  T *common_gradient, *specific_gradient;  // null: not wanted
  T scale;                                 // the gradients are multiplied by it
  T* scratch;                              // orthogonality_scratch() values
};

// In this order, each over all of its rows before the next: prepare over samples, from a multiple of 16; gram
// over common_features, or twice the samples where the form is by samples; loss, which returns it, over
// nothing; gradient over samples.
enum class OrthogonalityStep { prepare, gram, loss, gradient };

// Rows [begin, end) of a step of gradient descent. Row strides count values.
template <class T>
struct SgdRows {
  T *parameters, *momentum;
  const T *gradient, *scale;  // scale: a factor a row on the gradient
  int64_t parameter_stride, momentum_stride, gradient_stride;
  int64_t begin, end, columns;
  T learning_rate, momentum_factor, weight_decay;
};

struct bfloat16_bits {
  uint16_t bits;
};
struct float16_bits {
  uint16_t bits;
};

struct Kernels {
  const char* name;
  // Each returns the sum of the samples' losses.
  double (*pairwise_kl_float)(const PairwiseKlSamples<float>&);
  double (*pairwise_kl_double)(const PairwiseKlSamples<double>&);
  double (*orthogonality_float)(const OrthogonalityPair<float>&, OrthogonalityStep, int64_t, int64_t);
  double (*orthogonality_double)(const OrthogonalityPair<double>&, OrthogonalityStep, int64_t, int64_t);
  void (*gossip_float)(const GossipColumns<float, float>&);
  void (*gossip_double)(const GossipColumns<double, double>&);
  void (*gossip_bfloat16)(const GossipColumns<bfloat16_bits, float>&);
  void (*gossip_float16)(const GossipColumns<float16_bits, float>&);
  void (*sgd_step_float)(const SgdRows<float>&);
  void (*sgd_step_double)(const SgdRows<double>&);
};

extern const Kernels base_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

// The best of these that the processor has, or the one that was asked for by select_kernels().
const Kernels& kernels();
// "auto", "base", "avx2" or "avx512"; returns false where the processor lacks it.
bool select_kernels(const char* name);

constexpr int64_t largest_vector = 16;  // values
constexpr int64_t gossip_tile = 64;     // columns

// Up to 128 classes a vector holds one class of many samples, as long as its samples fit the second-level
// cache.
inline bool uses_lanes(int64_t modalities, int64_t classes) {
  return classes <= 128 && modalities * classes <= 1536;
}

inline int64_t whole_vectors(int64_t classes) {
  return (classes + largest_vector - 1) / largest_vector * largest_vector;
}

// Values of scratch, to begin at a multiple of 64 bytes.
inline int64_t pairwise_kl_scratch(int64_t modalities, int64_t classes) {
  const int64_t small = 8 * modalities * largest_vector;  // a few vectors and pointers a modality
  if (uses_lanes(modalities, classes))
    return 3 * (modalities * classes + largest_vector) * largest_vector + small;
  return 2 * modalities * whole_vectors(classes) + small;
}

inline int64_t orthogonality_scratch(int64_t samples, int64_t d, int64_t e, bool by_samples) {
  const int64_t rows = samples * (whole_vectors(d) + whole_vectors(e)) + 2 * whole_vectors(samples);
  if (by_samples) return rows + (2 * samples + d + e) * whole_vectors(samples);
  return rows + d * whole_vectors(e) + e * whole_vectors(d);
}

inline int64_t gossip_scratch(int64_t rows_in, int64_t rows_out) {
  return rows_in * gossip_tile + 2 * rows_out * largest_vector;
}

}  // namespace dmmlkd
