// Every operator's schema.
#include <torch/library.h>

#include "check.h"
#include "generator_round/cpu.h"

TORCH_LIBRARY(dmmlkd, m) {
  // Differentiable. Losses of all samples in the leading dimensions; reduction: 0 none, 1 mean, 2 sum.
  m.def("pairwise_kl_similarity(Tensor logits, Tensor? mask, int reduction) -> Tensor");
  // The loss and its gradient for an upstream gradient of 1 (empty unless asked for), in one pass.
  m.def(
      "pairwise_kl_forward(Tensor logits, Tensor? mask, int reduction, bool with_gradient) -> (Tensor, "
      "Tensor)");

  // Differentiable. One value a matrix in the leading dimensions, or, with a reduction, of them all.
  m.def(
      "orthogonality_difference(Tensor common, Tensor specific, Tensor? mask, bool normalize, int "
      "reduction=0) "
      "-> Tensor");
  // On a CPU, by kernels of its own: the loss, and the gradients for an upstream gradient of 1 (each empty
  // unless asked for).
  m.def(
      "orthogonality_forward(Tensor common, Tensor specific, Tensor? mask, bool normalize, int reduction, "
      "bool common_gradient, bool specific_gradient) -> (Tensor, Tensor, Tensor)");

  // Differentiable in local. Weights are compressed rows.
  m.def("gossip_mix(Tensor local, Tensor row_pointers, Tensor columns, Tensor values) -> Tensor");
  // Writes the columns [column_begin, column_end) of out. With measure, out holds the rows at the round's
  // start, and the result is float64 [2, rows]: ||local - start||^2 and ||start||^2 over those columns; else
  // it is empty.
  m.def(
      "gossip_mix_(Tensor local, Tensor row_pointers, Tensor columns, Tensor values, Tensor(a!) out, "
      "int column_begin, int column_end, bool measure) -> Tensor");
  // Over itself, with a scratch of one tile of columns: for when memory is what is short.
  m.def(
      "gossip_mix_inplace_(Tensor(a!) local, Tensor row_pointers, Tensor columns, Tensor values, "
      "int column_begin, int column_end) -> ()");

  // Differentiable once. Each device's own convolution, channels last, in one or two dimensions, with "same"
  // zero padding; rectify: followed by a rectifier.
  m.def(
      "convolve(Tensor inputs, Tensor weight, Tensor bias, int kernel, int stride, bool rectify) -> Tensor");
  // The gradients in inputs (empty unless asked for), weight and bias; outputs: those of convolve.
  m.def(
      "convolve_backward(Tensor upstream, Tensor inputs, Tensor weight, Tensor outputs, int kernel, int "
      "stride, "
      "bool rectify, bool with_inputs) -> (Tensor, Tensor, Tensor)");
  // Some such layers, each rectified, on top of each other: the outputs of each and, if asked for, the last
  // outputs' means over space.
  m.def(
      "convolve_layers(Tensor inputs, Tensor[] weights, Tensor[] biases, int kernel, int stride, bool "
      "with_means) -> Tensor[]");
  // Writes the gradients of the layers' parameters for one of the last outputs.
  m.def(
      "convolve_layers_backward_(Tensor upstream, Tensor inputs, Tensor[] weights, Tensor[] outputs, "
      "Tensor(a!)[] weight_gradients, Tensor(b!)[] bias_gradients, int kernel, int stride) -> ()");

  // On the rows of some blocks, that belong to the devices at `positions`: each device's gradient over all
  // its rows is scaled down to clip_norm, then momentum = momentum_factor momentum + weight_decay parameters
  // + gradient; parameters -= learning_rate momentum.
  m.def(
      "sgd_step_(Tensor(a!)[] parameters, Tensor(b!)[] momenta, Tensor[] gradients, Tensor[] positions, int "
      "devices, float clip_norm, float learning_rate, float momentum_factor, float weight_decay) -> ()");

  // Of blocks [rows, columns], all of one type: the sums of all columns, one block after the other, in
  // float64; and the squared Euclidean distance of all rows from the center [all columns], likewise.
  m.def("column_sums(Tensor[] blocks) -> Tensor");
  m.def("squared_distances(Tensor[] blocks, Tensor center) -> Tensor");

  // Rows of values [samples, *shape] for the batches of `devices`: indices [all devices, batch]. A device's
  // batch is read together with the values of noise from its offset on, modulo the number of places that
  // there are, which are added.
  m.def(
      "gather_samples(Tensor values, Tensor indices, Tensor devices, Tensor? noise, Tensor? offsets) -> "
      "Tensor");

  // Each device's own linear layers on top of each other: inputs [devices, samples, in], weights [devices,
  // in, out], biases [devices, out] of the first layers; the first `rectified` are followed by a rectifier.
  // The outputs of each.
  m.def("linear_layers(Tensor inputs, Tensor[] weights, Tensor[] biases, int rectified) -> Tensor[]");
  // Writes the gradients of the layers' parameters for one of the last outputs, and returns that of the
  // inputs (empty unless asked for).
  m.def(
      "linear_layers_backward_(Tensor upstream, Tensor inputs, Tensor[] weights, Tensor[] outputs, "
      "Tensor(a!)[] weight_gradients, Tensor(b!)[] bias_gradients, int rectified, bool with_inputs) -> "
      "Tensor");

  // The loss terms of all devices [terms, devices] and the gradients of their weighted sum (METHOD 3): those
  // of the heads are written, those of each modality's features come back. Terms of weight 0 are left out.
  m.def(
      "objective_(Tensor[] features, Tensor[] heads, Tensor[] positions, Tensor shared_head, Tensor labels, "
      "Tensor present, Tensor? waiting_logits, Tensor? waiting_count, Tensor? target, Tensor? known, Tensor? "
      "rehearsal, Tensor? rehearsal_labels, Tensor? rehearsal_known, float[] weights, float strength, bool "
      "by_distance, Tensor(a!)[] head_gradients, Tensor(b!) shared_head_gradient) -> (Tensor, Tensor[])");

  // A round's steps of Adam of the devices `learners` on their generators G(e, y; theta), one step each
  // noise (METHOD 3). Rows of parameters and of both moments, [devices, theta], are updated; steps_taken
  // [devices], float64: before this round; noise [steps, classes, n, noise width]. heads [at hand, width,
  // classes]: device i received those of columns[row_pointers[i] : row_pointers[i + 1]]; seen [at hand,
  // classes]: what they count by class, else alike. count [devices, classes], sum and product [devices,
  // classes, width]: moments of a device's features. decays: of Adam's two moments.
  m.def(
      "generator_round_(Tensor(a!) parameters, Tensor(b!) first_moment, Tensor(c!) second_moment, "
      "Tensor learners, Tensor steps_taken, Tensor noise, Tensor heads, Tensor row_pointers, "
      "Tensor columns, Tensor? seen, Tensor count, Tensor sum, Tensor product, int hidden, "
      "float learning_rate, float[] decays, float epsilon, float moment_weight, float mode_seeking) -> ()");
  // Features [devices, classes, n, width] of generators [devices, theta] for noise [classes, n, noise width].
  m.def("generate_features(Tensor parameters, Tensor noise, int hidden, int width) -> Tensor");

  // Adds features [n, samples, width] to the moments of `devices`, all different: count [devices, classes],
  // sum [devices, classes, width], product likewise (squares) or [devices, classes, width, width].
  m.def(
      "class_moments_(Tensor features, Tensor labels, Tensor present, Tensor devices, Tensor(a!) count, "
      "Tensor(b!) sum, Tensor(c!) product) -> ()");

  // A round's local iterations of all devices (METHOD 3 and 5), device by device. Blocks: the shared one,
  // then one of each modality, each [rows, columns] with the devices that its rows belong to. Data: values
  // [samples, *shape] of each modality, labels [samples], present [samples, modalities]; indices [iterations,
  // devices, batch], offsets [iterations, modalities, devices] as in gather_samples. In iteration i a
  // modality trains if start <= i < start + iterations, both [devices, modalities]. Encoders: kernel (0:
  // linear), stride and number of layers of each modality, the layers' widths one modality after the other; a
  // row holds each layer's weight and bias, the projection, the head. Guidance: pool [devices, classes, n,
  // width], known [devices, classes], draws [3, iterations, batch]: which of the pool guides a sample, which
  // class is rehearsed, by which of the pool. count, sum and product: as in class_moments_. The rest: as in
  // objective_ and sgd_step_. Returns each device's sums of the loss terms, float64 [terms, devices], and in
  // how many iterations it trained, int64 [devices].
  m.def(
      "local_round_(Tensor(a!)[] parameters, Tensor(b!)[] momenta, Tensor[] starts, Tensor[] devices, "
      "Tensor[] values, Tensor labels, Tensor present, Tensor indices, Tensor? noise, Tensor? offsets, "
      "Tensor start, Tensor iterations, int[] kernels, int[] strides, int[] layers, int[] widths, "
      "int classes, Tensor? pool, Tensor? known, Tensor? draws, Tensor(c!)? count, Tensor(d!)? sum, "
      "Tensor(e!)? product, float[] weights, float strength, bool by_distance, float clip_norm, "
      "float learning_rate, float momentum_factor, float weight_decay, float proximal) -> (Tensor, Tensor)");

  // How many samples each device predicts rightly, by each modality alone and, in the last line, by all that
  // it has, and how many count: those that have the modality, or any of them. int64 [modalities + 1,
  // devices]. Arguments as in local_round_; samples [devices, n]: which of them a device is judged by, else
  // all; common [rows, n, width] of each modality, if given: the common features are written there.
  m.def(
      "count_right(Tensor[] parameters, Tensor[] devices, int num_devices, Tensor[] values, Tensor labels, "
      "Tensor present, int[] kernels, int[] strides, int[] layers, int[] widths, int classes, "
      "Tensor? samples, Tensor(a!)[] common) -> (Tensor, Tensor)");
}

namespace dmmlkd {
namespace {

void generator_round_by_name(const at::Tensor& parameters, const at::Tensor& first_moment,
                             const at::Tensor& second_moment, const at::Tensor& learners,
                             const at::Tensor& steps_taken, const at::Tensor& noise, const at::Tensor& heads,
                             const at::Tensor& row_pointers, const at::Tensor& columns,
                             const std::optional<at::Tensor>& seen, const at::Tensor& count,
                             const at::Tensor& sum, const at::Tensor& product, int64_t hidden,
                             double learning_rate, at::ArrayRef<double> decays, double epsilon,
                             double moment_weight, double mode_seeking) {
  generator_round({
      .parameters = parameters,
      .first_moment = first_moment,
      .second_moment = second_moment,
      .learners = learners.contiguous(),
      .steps_taken = steps_taken.contiguous(),
      .noise = noise.contiguous(),
      .heads = rows_are_contiguous(heads) ? heads : heads.contiguous(),
      .row_pointers = row_pointers.contiguous(),
      .columns = columns.contiguous(),
      .seen = seen ? seen->contiguous() : at::Tensor(),
      .count = count.contiguous(),
      .sum = sum.contiguous(),
      .product = product.contiguous(),
      .hidden = hidden,
      .learning_rate = learning_rate,
      .decays = decays.vec(),
      .epsilon = epsilon,
      .moment_weight = moment_weight,
      .mode_seeking = mode_seeking,
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("generator_round_", generator_round_by_name);
  m.impl("generate_features", generate_features);
}

}  // namespace dmmlkd
