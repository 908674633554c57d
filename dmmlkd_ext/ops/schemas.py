"""What the native operators take and return: the schemas by which torch calls them, and how autograd treats them.

csrc/ops.cpp reads the arguments in the order given here; who changes a schema raises `INTERFACE` on both sides.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch.autograd.graph import increment_version

INTERFACE = 6
"""Version of the schemas, equal to that in csrc/interface.h; increase both when a schema changes."""

LOSSES = (
    # The loss of each sample in the leading dimensions, or reduced (0 none, 1 mean, 2 sum), and its gradient for an
    # upstream gradient of 1 (empty unless asked for), in one pass.
    "pairwise_kl_forward(Tensor logits, Tensor? mask, int reduction, bool with_gradient) -> (Tensor, Tensor)",
    # The gradient of that loss times an upstream gradient of the loss's shape, on CUDA alone.
    "pairwise_kl_backward(Tensor upstream, Tensor logits, Tensor? mask, int reduction) -> Tensor",
    # One value per pair of matrices in the leading dimensions, or reduced, and the gradients for an upstream gradient
    # of 1 (each empty unless asked for).
    "orthogonality_forward(Tensor common, Tensor specific, Tensor? mask, bool normalize, int reduction, "
    "bool common_gradient, bool specific_gradient) -> (Tensor, Tensor, Tensor)",
)
GOSSIP = (
    # Weights are compressed rows. The derivative in local mixes by the transposed weights, which have as many rows as
    # `transposed` says.
    "gossip_mix(Tensor local, Tensor row_pointers, Tensor columns, Tensor values, SymInt? transposed=None) -> Tensor",
    # Writes the columns [column_begin, column_end) of out. With measure, out holds the rows at the round's start, and
    # the result is float64 [2, rows]: ||local - start||^2 and ||start||^2 over those columns; else it is empty.
    "gossip_mix_(Tensor local, Tensor row_pointers, Tensor columns, Tensor values, Tensor(a!) out, "
    "int column_begin, int column_end, bool measure) -> Tensor",
    # In place, with a scratch of one tile of columns, to save memory.
    "gossip_mix_inplace_(Tensor(a!) local, Tensor row_pointers, Tensor columns, Tensor values, "
    "int column_begin, int column_end) -> ()",
)
SIMULATION = (
    # Of blocks [rows, columns], all of one type: the sums of all columns, one block after the other, in float64; and
    # the squared Euclidean distance of all rows from the center [all columns], likewise.
    "column_sums(Tensor[] blocks) -> Tensor",
    "squared_distances(Tensor[] blocks, Tensor center) -> Tensor",
    # A round's steps of Adam of the devices `learners` on their generators G(e, y; theta), one step each noise
    # (METHOD 3). Rows of parameters and of both moments, [devices, theta], are updated; steps_taken [devices], float64:
    # before this round; noise [steps, classes, n, noise width]. heads [at hand, width, classes]: device i received
    # those of columns[row_pointers[i] : row_pointers[i + 1]]; seen [at hand, classes]: their weights by class, else
    # equal. count [devices, classes], sum and product [devices, classes, width]: moments of a device's features.
    # decays: of Adam's two moments.
    "generator_round_(Tensor(a!) parameters, Tensor(b!) first_moment, Tensor(c!) second_moment, "
    "Tensor learners, Tensor steps_taken, Tensor noise, Tensor heads, Tensor row_pointers, "
    "Tensor columns, Tensor? seen, Tensor count, Tensor sum, Tensor product, int hidden, "
    "float learning_rate, float[] decays, float epsilon, float moment_weight, float mode_seeking) -> ()",
    # Features [devices, classes, n, width] of generators [devices, theta] for noise [classes, n, noise width].
    "generate_features(Tensor parameters, Tensor noise, int hidden, int width) -> Tensor",
    # A round's local iterations of all devices (METHOD 3, 5 and 7), device by device: reads `starts`, the parameters
    # at the round's start, and writes all rows of `parameters`; those of a block that does not train are copies.
    # Returns each device's sums of the loss terms, float64 [terms, devices], and in how many iterations it trained,
    # int64 [devices]. csrc/local_round/round_arguments.h says what each argument is.
    "local_round_(Tensor[] starts, Tensor(a!)[] parameters, Tensor(b!)[] momenta, Tensor[] devices, "
    "Tensor[] values, Tensor labels, Tensor present, "
    "int[] kernels, int[] strides, int[] layers, int[] widths, int classes, "
    "Tensor indices, Tensor? noise, Tensor? offsets, Tensor first_iterations, Tensor iterations, "
    "Tensor? pool, Tensor? known, Tensor? draws, "
    "Tensor(c!)? count, Tensor(d!)? sum, Tensor(e!)? product, "
    "float[] weights, float strength, bool by_distance, "
    "str modulation, float modulation_strength, Tensor[] gradient_noise, Tensor? gradient_offsets, "
    "float clip_norm, float learning_rate, float momentum_factor, float weight_decay, float proximal) "
    "-> (Tensor, Tensor)",
    # How many samples each device predicts rightly, by each modality alone and, in the last line, by all that it has,
    # and how many count: those that have the modality, or any of them. int64 [modalities + 1, devices]. Arguments as
    # in local_round_; samples [devices, n]: which of them a device is judged by, else all; common [rows, n, width] of
    # each modality, if given: the common features are written there.
    "count_right(Tensor[] parameters, Tensor[] devices, int num_devices, Tensor[] values, Tensor labels, "
    "Tensor present, int[] kernels, int[] strides, int[] layers, int[] widths, int classes, "
    "Tensor? samples, Tensor(a!)[] common) -> (Tensor, Tensor)",
)
# The argument that each of these writes, by its place.
_WRITTEN = {"gossip_mix_": 4, "gossip_mix_inplace_": 0}


@cache
def define() -> torch.library.Library:
    """Declare the operators to torch, once in a process; return what keeps them declared."""
    library = torch.library.Library("dmmlkd", "DEF")
    for schema in LOSSES:
        library.define(schema)
    for schema in GOSSIP:
        # On CUDA tensors they check weights on the host when they see them first, which a CUDA graph cannot hold:
        # torch.compile must leave them out of its graphs.
        library.define(schema, tags=torch.Tag.cudagraph_unsafe)
    for schema in SIMULATION:
        # They compute gradients themselves and take no part in autograd: their results require no gradient.
        library.impl(library.define(schema), torch.library.fallthrough_kernel, "Autograd")
    for name, place in _WRITTEN.items():
        library.impl(name, partial(_note_writing, name, place), "ADInplaceOrView", with_keyset=True)
    return library


def _note_writing(name: str, place: int, keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
    """Let autograd detect that a tensor which it has saved was overwritten."""
    operator = getattr(torch.ops.dmmlkd, name).default
    with torch._C._AutoDispatchBelowADInplaceOrView():
        result = operator.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *arguments)
    increment_version(arguments[place])
    return result
