// Every operator's schema, and the function that computes it on a CPU. torch/library.h takes longer to
// compile than an operator's file, so it is included here alone.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/enum_tag.h>
#include <torch/library.h>

#include <vector>

#include "arguments.h"
#include "check.h"
#include "consensus/cpu.h"
#include "generator_round/cpu.h"
#include "gossip_mix/cpu.h"
#include "orthogonality/cpu.h"
#include "pairwise_kl/cpu.h"

// On CUDA tensors the gossip operators check weights on the host when they see them first, which a CUDA graph
// cannot hold: torch.compile must leave them out of its graphs.
static const std::vector<at::Tag> waits_for_the_device = {at::Tag::cudagraph_unsafe};

TORCH_LIBRARY(dmmlkd, m) {
  // The loss of each sample in the leading dimensions, or reduced (0 none, 1 mean, 2 sum), and its gradient
  // for an upstream gradient of 1 (empty unless asked for), in one pass.
  m.def(
      "pairwise_kl_forward(Tensor logits, Tensor? mask, int reduction, bool with_gradient) -> (Tensor, "
      "Tensor)");
  // The gradient of that loss times an upstream gradient of the loss's shape, on CUDA alone.
  m.def("pairwise_kl_backward(Tensor upstream, Tensor logits, Tensor? mask, int reduction) -> Tensor");

  // One value per pair of matrices in the leading dimensions, or reduced, and the gradients for an upstream
  // gradient of 1 (each empty unless asked for).
  m.def(
      "orthogonality_forward(Tensor common, Tensor specific, Tensor? mask, bool normalize, int reduction, "
      "bool common_gradient, bool specific_gradient) -> (Tensor, Tensor, Tensor)");

  // Weights are compressed rows. The derivative in local mixes by the transposed weights, which have as many
  // rows as `transposed` says.
  m.def(
      "gossip_mix(Tensor local, Tensor row_pointers, Tensor columns, Tensor values, SymInt? transposed=None) "
      "-> Tensor",
      waits_for_the_device);
  // Writes the columns [column_begin, column_end) of out. With measure, out holds the rows at the round's
  // start, and the result is float64 [2, rows]: ||local - start||^2 and ||start||^2 over those columns; else
  // it is empty.
  m.def(
      "gossip_mix_(Tensor local, Tensor row_pointers, Tensor columns, Tensor values, Tensor(a!) out, "
      "int column_begin, int column_end, bool measure) -> Tensor",
      waits_for_the_device);
  // In place, with a scratch of one tile of columns, to save memory.
  m.def(
      "gossip_mix_inplace_(Tensor(a!) local, Tensor row_pointers, Tensor columns, Tensor values, "
      "int column_begin, int column_end) -> ()",
      waits_for_the_device);

  // Of blocks [rows, columns], all of one type: the sums of all columns, one block after the other, in
  // float64; and the squared Euclidean distance of all rows from the center [all columns], likewise.
  m.def("column_sums(Tensor[] blocks) -> Tensor");
  m.def("squared_distances(Tensor[] blocks, Tensor center) -> Tensor");

  // A round's steps of Adam of the devices `learners` on their generators G(e, y; theta), one step each
  // noise (METHOD 3). Rows of parameters and of both moments, [devices, theta], are updated; steps_taken
  // [devices], float64: before this round; noise [steps, classes, n, noise width]. heads [at hand, width,
  // classes]: device i received those of columns[row_pointers[i] : row_pointers[i + 1]]; seen [at hand,
  // classes]: their weights by class, else equal. count [devices, classes], sum and product [devices,
  // classes, width]: moments of a device's features. decays: of Adam's two moments.
  m.def(
      "generator_round_(Tensor(a!) parameters, Tensor(b!) first_moment, Tensor(c!) second_moment, "
      "Tensor learners, Tensor steps_taken, Tensor noise, Tensor heads, Tensor row_pointers, "
      "Tensor columns, Tensor? seen, Tensor count, Tensor sum, Tensor product, int hidden, "
      "float learning_rate, float[] decays, float epsilon, float moment_weight, float mode_seeking) -> ()");
  // Features [devices, classes, n, width] of generators [devices, theta] for noise [classes, n, noise width].
  m.def("generate_features(Tensor parameters, Tensor noise, int hidden, int width) -> Tensor");

  // A round's local iterations of all devices (METHOD 3, 5 and 7), device by device: reads `starts`, the
  // parameters at the round's start, and writes all rows of `parameters`; those of a block that does not
  // train are copies. Returns each device's sums of the loss terms, float64 [terms, devices], and in how many
  // iterations it trained, int64 [devices]. csrc/local_round/round_arguments.h says what each argument is.
  m.def(
      "local_round_(Tensor[] starts, Tensor(a!)[] parameters, Tensor(b!)[] momenta, Tensor[] devices, "
      "Tensor[] values, Tensor labels, Tensor present, "
      "int[] kernels, int[] strides, int[] layers, int[] widths, int classes, "
      "Tensor indices, Tensor? noise, Tensor? offsets, Tensor first_iterations, Tensor iterations, "
      "Tensor? pool, Tensor? known, Tensor? draws, "
      "Tensor(c!)? count, Tensor(d!)? sum, Tensor(e!)? product, "
      "float[] weights, float strength, bool by_distance, "
      "str modulation, float modulation_strength, Tensor[] gradient_noise, Tensor? gradient_offsets, "
      "float clip_norm, float learning_rate, float momentum_factor, float weight_decay, float proximal) "
      "-> (Tensor, Tensor)");

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

// Autograd must detect that a tensor which it has saved was overwritten. The argument at
// `place` is the one that is written.
template <size_t place>
void note_writing(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const at::Tensor written = torch::jit::peek(*stack, place, op.schema().arguments().size()).toTensor();
  at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  written.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("local_round_",
         torch::CppFunction::makeFromBoxedFunction<call_boxed<RoundArguments, local_round>>());
  m.impl("count_right",
         torch::CppFunction::makeFromBoxedFunction<call_boxed<EvaluationArguments, count_right>>());
  m.impl("generator_round_", generator_round_by_name);
  m.impl("generate_features", generate_features);
  m.impl("pairwise_kl_forward", pairwise_kl_cpu);
  m.impl("orthogonality_forward", orthogonality_cpu);
  m.impl("gossip_mix", gossip_mix_cpu);
  m.impl("gossip_mix_", gossip_mix_into_cpu);
  m.impl("gossip_mix_inplace_", gossip_mix_inplace_cpu);
  m.impl("column_sums", column_sums);
  m.impl("squared_distances", squared_distances);
}

// The simulation's operators compute gradients themselves and take no part in autograd: their results require
// no gradient.
TORCH_LIBRARY_IMPL(dmmlkd, Autograd, m) {
  for (const char* name : {"column_sums", "count_right", "generate_features", "generator_round_",
                           "local_round_", "squared_distances"})
    m.impl(name, torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(dmmlkd, ADInplaceOrView, m) {
  m.impl("gossip_mix_", torch::CppFunction::makeFromBoxedFunction<note_writing<4>>());
  m.impl("gossip_mix_inplace_", torch::CppFunction::makeFromBoxedFunction<note_writing<0>>());
}

}  // namespace dmmlkd
