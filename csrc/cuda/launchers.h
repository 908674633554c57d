// The border between ATen and the CUDA kernels: plain structs and C functions, so that the .cu files need no
// header of torch and the emulated build needs none of CUDA.
#pragma once

#include <cstdint>

namespace dmmlkd::cuda {

enum class Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16 };
enum class Reduction : int { kNone, kMean, kSum };

// Leading dimensions that do not merge into fewer than this many are made contiguous by the caller.
constexpr int kMaxBatchDims = 6;

// A reduced loss goes through one double per block; this many blocks at most are started.
constexpr int64_t kMaxPartials = 65536;

// Element (sample, modality, class) lies at batch offset + modality * modality + class * classes, in
// elements.
struct Strides {
  int64_t batch[kMaxBatchDims];
  int64_t modality;
  int64_t classes;
};

struct PairwiseKlArguments {
  const void* logits;
  const bool* mask;  // null: every modality is present
  // What the gradient is multiplied by, float or for float64 double: one per sample, or a single one if
  // reduced; null: 1.
  const void* upstream;
  void* gradient;    // null: not wanted
  void* loss;        // one element per sample, or a single one if reduced; null: not wanted
  double* partials;  // min(samples, kMaxPartials) doubles for a reduced loss, else null
  Dtype dtype;
  Reduction reduction;
  int64_t samples;
  int64_t modalities;
  int64_t classes;
  int batch_dims;  // at least 1
  int64_t batch_sizes[kMaxBatchDims];
  Strides logits_strides;
  Strides gradient_strides;
  Strides mask_strides;  // `classes` is not used
};

struct OrthogonalityArguments {
  const void* common;       // [problems, samples, common_features]
  const void* specific;     // [problems, samples, specific_features]
  const bool* mask;         // [problems, samples]; null: every sample counts
  void* common_gradient;    // like common; null: not wanted
  void* specific_gradient;  // like specific; null: not wanted
  void* loss;               // one element per problem, or a single one if reduced
  double* partials;         // of a reduced loss, one per problem
  void* products;           // float, or for float64 double, as many as orthogonality_plan says
  Dtype dtype;
  Reduction reduction;
  double scale;  // 1 / problems for the mean, else 1
  int64_t problems;
  int samples, common_features, specific_features;
  bool normalize;
};

struct GossipMixArguments {
  const void* local;
  void* out;  // equal to local for the in-place form
  const int64_t* row_pointers;
  const int64_t* columns;
  const void* values;  // double if dtype is kFloat64, else float
  double* partials;    // null: the norms are not wanted; else as many as gossip_mix_partials says
  double* norms;       // [2, rows_out]
  Dtype dtype;
  int64_t rows_in;
  int64_t rows_out;
  int64_t nonzeros;
  int64_t local_stride;
  int64_t out_stride;
  int64_t column_begin;
  int64_t column_end;
};

}  // namespace dmmlkd::cuda

// Each returns null, or a message that says what failed. `stream` is a cudaStream_t.
extern "C" {
const char* dmmlkd_cuda_pairwise_kl(const dmmlkd::cuda::PairwiseKlArguments* arguments, int device,
                                    void* stream);

// Whether the kernels take features as wide as these, and how many numbers `products` needs.
const char* dmmlkd_cuda_orthogonality_plan(const dmmlkd::cuda::OrthogonalityArguments* arguments, int device,
                                           bool* fits, int64_t* products);
const char* dmmlkd_cuda_orthogonality(const dmmlkd::cuda::OrthogonalityArguments* arguments, int device,
                                      void* stream);

// How many doubles `partials` needs, and whether the rows fit into shared memory, as the in-place form needs.
const char* dmmlkd_cuda_gossip_mix_partials(const dmmlkd::cuda::GossipMixArguments* arguments, int device,
                                            int64_t* partials, bool* staged);
const char* dmmlkd_cuda_gossip_mix(const dmmlkd::cuda::GossipMixArguments* arguments, int device,
                                   void* stream);
}
