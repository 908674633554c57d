// The kernels that an instruction-set shell offers: plain functions on raw pointers, no ATen, no threads.
#pragma once

#include <cstdint>

#include "../generator_round/kernel.h"

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
  int64_t fetch_end;     // columns up to here are wanted soon
  double* norms;         // [2, rows_out], overwritten; null: nothing is measured
  bool past_cache;       // all columns of out exceed the cache
  Accumulator* scratch;  // gossip_scratch() values
};

// One pair of matrices, rows being samples. Rows lie side by side, unless they are scaled or masked.
template <class T>
struct OrthogonalityPair {
  const T *common, *specific;
  int64_t common_stride, specific_stride;
  const bool* mask;  // which samples count; null: all
  int64_t samples, common_features, specific_features;
  bool by_samples, normalize;
  T *common_gradient, *specific_gradient;  // null: not wanted
  T scale;                                 // the gradients are multiplied by it
  T* scratch;                              // orthogonality_scratch() values
  // By samples the loss suffers from cancellation. True: where few digits are left, the loss step computes it
  // by features, and where a product overflowed T, it returns untrusted_form. False in local_round, to keep
  // the bits of its recorded results.
  bool exact;
};

constexpr double untrusted_form = -1;

// In this order, each over all of its rows before the next: prepare over samples, from a multiple of 16; gram
// over common_features, or twice the samples where the form is by samples; loss, which returns it, over
// nothing; gradient over samples.
enum class OrthogonalityStep { prepare, gram, loss, gradient };

// One device's row of a block.
template <class T>
struct SgdRow {
  T *parameters, *momentum;
  const T* gradient;
  int64_t columns;
  const T* start = nullptr;  // the proximal term pulls the parameters to it; null: no such term
};

// A step of gradient descent on all rows of a device, whose gradient is scaled down to `clip_norm` at most.
template <class T>
struct SgdDevice {
  const SgdRow<T>* rows;
  int64_t num_rows;
  double clip_norm;
  T learning_rate, momentum_factor, weight_decay;
  T proximal = 0;  // factor of the pull
};

// Sums over the rows of some columns, whose values lie side by side.
template <class T>
struct ColumnSums {
  const T* rows;
  int64_t row_stride, num_rows, columns;
  double* sums;  // [columns], overwritten
};

template <class T>
struct SquaredDistance {
  const T *row, *center;
  int64_t columns;
};

// One device's linear layer on its samples; all matrices are contiguous.
template <class T>
struct LinearLayer {
  const T *inputs, *weight, *bias;  // bias: null: none
  int64_t samples, inputs_width, outputs_width;
  bool rectify;
  T* outputs;
  T* scratch;  // linear_scratch() values
};

template <class T>
struct LinearGradient {
  const T *inputs, *weight, *gradient;
  const T* outputs;  // of a rectified layer; null: the layer is not rectified
  int64_t samples, inputs_width, outputs_width;
  T *weight_gradient, *bias_gradient, *input_gradient;  // overwritten; null: not wanted, but for the first
  T* scratch;                                           // linear_scratch() values
};

// One modality's inputs to a device's objective, and its gradients. All are contiguous.
template <class T>
struct ModalityOutputs {
  const T* features;  // [samples, 2 width]: common, specific; null: the device does not train it
  const T* head;      // [width, classes]
  T *feature_gradient, *head_gradient;
};

// A device's objective for one batch (METHOD 3). All is contiguous; a term whose pointer is null is left out.
template <class T>
struct DeviceObjective {
  const ModalityOutputs<T>* modalities;
  int64_t num_modalities, samples, width, classes;
  const T* shared_head;  // [width, classes]
  T* shared_head_gradient;
  const int64_t* labels;  // [samples]
  const bool* present;    // [samples, modalities]
  const T* target;        // [samples, width]
  const bool* known;
  const T* rehearsal;  // [rehearsed, width]
  const int64_t* rehearsal_labels;
  const bool* rehearsal_known;
  int64_t rehearsed;
  bool by_distance, by_samples;
  T classification, similarity, difference, generator, rehearsing, strength;  // weights; 0: left out
  T losses[6];  // written: task, classification, similarity, difference, generator, rehearsal
  T* scratch;   // objective_scratch() values
};

// The gradient of a modality's block, as it is modulated (METHOD 7): the encoder's parameter tensors, one
// behind the other, then the head.
template <class T>
struct ModulatedRow {
  T* gradient;          // changed
  const T* other;       // OGM-GE: normal numbers; MMPareto: the gradient of the unimodal loss
  const int64_t* ends;  // [tensors]: where each of the encoder's ends
  int64_t tensors, columns;
  T factor;  // OGM-GE: on the gradient; MMPareto: on the merged gradient
};

// Where a row of lanes is read and where it is written, in values.
struct ConvolutionPlace {
  int32_t in, out;
};

// The values of a place's window lie at these offsets from it, `run` by `run` one after the other.
struct ConvolutionWindow {
  const int32_t* offsets;
  int64_t size, run;
};

// out[place.out + lane] = bias[lane] + sum over the window of in[place.in + ...] * weights[..., lane]
template <class T>
struct ConvolutionGather {
  const T* in;
  T* out;
  const ConvolutionPlace* places;
  int64_t count;
  ConvolutionWindow window;
  const T *weights, *bias;  // [window.size, convolution_lanes(lanes)] and such a row
  int64_t lanes;
  bool rectify;
};

// sums[..., lane] += sum over places of in[place.in + ...] * upstream[place.out + lane]
template <class T>
struct ConvolutionOuter {
  const T *in, *upstream;
  const ConvolutionPlace* places;
  int64_t count;
  ConvolutionWindow window;
  T *sums, *bias_sums;  // like the weights and the bias
  int64_t lanes;
};

// target[place.out + lane] = upstream where outputs > 0; outputs are contiguous, null: everywhere
template <class T>
struct ConvolutionMask {
  const T *upstream, *outputs;
  int64_t samples, height, width, lanes;
  int64_t sample_stride, height_stride, width_stride, lane_stride;  // of upstream
  const ConvolutionPlace* places;
  T* target;
};

// Adds one device's features to its moments. The feature stride is 1; the moments are contiguous.
template <class T>
struct ClassMoments {
  const T* features;
  int64_t feature_stride;  // between samples
  const int64_t* labels;
  const bool* present;
  int64_t samples, width;
  bool full;                 // whole products instead of squares
  T *count, *sum, *product;  // [classes], [classes, width], [classes, width (, width)]
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
  void (*sgd_step_float)(const SgdDevice<float>&);
  void (*sgd_step_double)(const SgdDevice<double>&);
  void (*column_sums_float)(const ColumnSums<float>&);
  void (*column_sums_double)(const ColumnSums<double>&);
  double (*squared_distance_float)(const SquaredDistance<float>&);
  double (*squared_distance_double)(const SquaredDistance<double>&);
  void (*linear_forward_float)(const LinearLayer<float>&);
  void (*linear_forward_double)(const LinearLayer<double>&);
  void (*linear_backward_float)(const LinearGradient<float>&);
  void (*linear_backward_double)(const LinearGradient<double>&);
  void (*objective_float)(DeviceObjective<float>&);
  void (*objective_double)(DeviceObjective<double>&);
  void (*generator_steps_float)(const GeneratorSteps<float>&);
  void (*generator_steps_double)(const GeneratorSteps<double>&);
  void (*generator_features_float)(const GeneratorFeatures<float>&);
  void (*generator_features_double)(const GeneratorFeatures<double>&);
  // Instead of the device's objective, the sum of its unimodal losses, whose gradients are written if
  // asked for. Scores [modalities]: the mean probability of the true class by each, 0 where it has no sample.
  void (*modality_objectives_float)(DeviceObjective<float>&, float* scores, bool with_gradients);
  void (*modality_objectives_double)(DeviceObjective<double>&, double* scores, bool with_gradients);
  void (*ogm_ge_float)(const ModulatedRow<float>&);
  void (*ogm_ge_double)(const ModulatedRow<double>&);
  void (*mmpareto_float)(const ModulatedRow<float>&);
  void (*mmpareto_double)(const ModulatedRow<double>&);
  void (*convolution_gather_float)(const ConvolutionGather<float>&);
  void (*convolution_gather_double)(const ConvolutionGather<double>&);
  void (*convolution_outer_float)(const ConvolutionOuter<float>&);
  void (*convolution_outer_double)(const ConvolutionOuter<double>&);
  void (*convolution_mask_float)(const ConvolutionMask<float>&);
  void (*convolution_mask_double)(const ConvolutionMask<double>&);
  void (*class_moments_float)(const ClassMoments<float>&);
  void (*class_moments_double)(const ClassMoments<double>&);
};

extern const Kernels base_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

// The best that the processor supports, or the one chosen by select_kernels().
const Kernels& kernels();
// "auto", "base", "avx2" or "avx512"; returns false where the processor lacks it.
bool select_kernels(const char* name);

constexpr int64_t largest_vector = 16;          // values
constexpr int64_t gossip_tile = 64;             // columns
constexpr int64_t generator_feature_rows = 96;  // generated at once

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
  const int64_t small = 8 * modalities * largest_vector;  // a few vectors and pointers per modality
  if (uses_lanes(modalities, classes))
    return 3 * (modalities * classes + largest_vector) * largest_vector + small;
  return 4 * modalities * whole_vectors(classes) + small;
}

// From one row to the next where a few columns of many rows are to stay in the first-level cache: rows of
// 128, 192, 256, ... values would share a few of its lines.
inline int64_t spread_stride(int64_t columns, int64_t rows) {
  const int64_t whole = whole_vectors(columns);
  return rows >= 64 && whole >= 128 && whole % 64 == 0 ? whole + largest_vector : whole;
}

constexpr int64_t product_rows = 48;  // of H^T S, at a time

inline int64_t orthogonality_scratch(int64_t samples, int64_t d, int64_t e, bool by_samples) {
  const int64_t rows =
      samples * (spread_stride(d, samples) + spread_stride(e, samples)) + 2 * whole_vectors(samples);
  if (by_samples)
    return rows + (2 * samples + d + e) * spread_stride(samples, samples) +
           product_rows * spread_stride(e, samples);
  return rows + d * spread_stride(e, samples) + e * spread_stride(d, samples);
}

// Of the forward or of the backward pass, whichever is more.
inline int64_t linear_scratch(int64_t samples, int64_t inputs, int64_t outputs) {
  return (2 * inputs + samples + 1) * whole_vectors(outputs) + (outputs + samples) * whole_vectors(inputs);
}

// Whether the difference term of an objective is computed by samples.
inline bool objective_by_samples(int64_t samples, int64_t width) {
  return 4 * samples * width < 3 * width * width;
}

inline int64_t objective_scratch(int64_t samples, int64_t rehearsed, int64_t modalities, int64_t width,
                                 int64_t classes, bool by_samples) {
  const int64_t lanes = whole_vectors(samples), more = whole_vectors(rehearsed), row = whole_vectors(width);
  const int64_t heads = 4 * classes * row, logits = (2 * modalities + 1) * classes * lanes;
  const int64_t vectors = 2 * modalities * classes + 5 * modalities + 3 * classes;
  const int64_t between = width * (lanes > more ? lanes : more) + classes * more;
  const int64_t rows = (4 * samples + rehearsed) * row + 2 * whole_vectors(samples * width) + lanes;
  return heads + logits + vectors * largest_vector + between + rows +
         orthogonality_scratch(samples, width, width, by_samples);
}

inline int64_t generator_weights_scratch(const GeneratorShape& shape) {
  return (shape.inputs() + 1) * whole_vectors(shape.hidden) + (shape.hidden + 1) * whole_vectors(shape.width);
}

inline int64_t generator_steps_scratch(const GeneratorShape& shape, int64_t copies, int64_t num_heads) {
  const int64_t samples = shape.classes * copies, row = whole_vectors(shape.width);
  const int64_t rows = 2 * samples * (whole_vectors(shape.hidden) + row);
  const int64_t columns = (3 * shape.width + shape.classes + num_heads) * whole_vectors(samples);
  const int64_t targets = 2 * shape.classes * row + whole_vectors(shape.classes);
  return 4 * generator_weights_scratch(shape) + rows + columns + targets +
         shape.width * whole_vectors(shape.hidden);
}

inline int64_t generator_features_scratch(const GeneratorShape& shape) {
  return generator_weights_scratch(shape) +
         generator_feature_rows * (whole_vectors(shape.hidden) + whole_vectors(shape.width));
}

// Lanes of a row in scratch: whole vectors, of which an instruction set may also use halves.
inline int64_t convolution_lanes(int64_t lanes) { return (lanes + 7) / 8 * 8; }

inline int64_t gossip_scratch(int64_t rows_in, int64_t rows_out) {
  return rows_in * gossip_tile + 2 * rows_out * largest_vector;
}

}  // namespace dmmlkd
