// Every operator's schema, and nothing else.
#include <torch/library.h>

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

  // momentum = momentum_factor momentum + weight_decay parameters + scale gradient; parameters -=
  // learning_rate momentum.
  m.def(
      "sgd_step_(Tensor(a!) parameters, Tensor(b!) momentum, Tensor gradient, Tensor scale, float "
      "learning_rate, "
      "float momentum_factor, float weight_decay) -> ()");
}
