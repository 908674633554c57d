"""Shapes of the native convolution, an operator that `dmmlkd_ext.model.convolution` alone calls."""

from __future__ import annotations

import torch

from dmmlkd_ext.ops import native as _native


def _register() -> None:
    """Tell torch the operators' shapes (fake tensors)."""

    @torch.library.register_fake("dmmlkd::convolve")
    def _(
        inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, kernel: int, stride: int, rectify: bool
    ) -> torch.Tensor:
        space = [(size + stride - 1) // stride for size in inputs.shape[2:-1]]
        return inputs.new_empty((*inputs.shape[:2], *space, weight.shape[2]))

    @torch.library.register_fake("dmmlkd::convolve_backward")
    def _(
        upstream: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        outputs: torch.Tensor,
        kernel: int,
        stride: int,
        rectify: bool,
        with_inputs: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gradient = inputs.new_empty(inputs.shape if with_inputs else 0)
        return gradient, weight.new_empty(weight.shape), weight.new_empty((weight.shape[0], weight.shape[2]))


if _native.backend() == "native":
    _register()
