"""Features of a frozen network, computed once and kept: the data of devices that train what comes after it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dmmlkd_ext.data.sources.derived import derived

_VERSION = "1"
"""Of this recipe; another one makes the kept features be computed again."""


@torch.no_grad()
def frozen_features(
    backbone: nn.Module, inputs: npt.NDArray[Any] | torch.Tensor, batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """Return what a network makes of inputs, from the cache if this network has seen these inputs.

    The cache is the folder of derived files (`dmmlkd_ext.data.sources.fetch`). Its key is the network's text and
    parameters and the inputs: a network with other weights computes anew.

    Args:
        backbone: any module; it is used in evaluation mode, on the device of its parameters, and left as it was.
        inputs: real numbers ``[samples, *shape]``, given to the module as float32. A sample of NaN alone, which lacks
            the modality, is NaN in the result.
        batch_size: samples at a time; the last bits may depend on it.

    Returns:
        float32 ``[samples, *shape of a result]``.

    Raises:
        ValueError: `batch_size` is below 1, or there is no sample with values.

    Example:
        >>> import os, tempfile
        >>> from unittest import mock
        >>> images = np.random.default_rng(0).normal(size=(5, 1, 8, 8))
        >>> backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        ...     frozen_features(backbone, images).shape
        (5, 4)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    values = torch.as_tensor(inputs).detach().to("cpu", torch.float32).contiguous()
    has = ~torch.isnan(values.flatten(1)).all(1)
    if not bool(has.any()):
        raise ValueError(f"inputs must hold at least one sample with values, got shape {list(values.shape)}")
    relative = f"features/{_key(backbone, values, batch_size)}.npz"
    kept = derived(relative, lambda: {"features": _apply(backbone, values, has, batch_size)})
    features: npt.NDArray[np.float32] = kept["features"]
    return features


def _apply(backbone: nn.Module, values: torch.Tensor, has: torch.Tensor, batch_size: int) -> npt.NDArray[np.float32]:
    training = {module: module.training for module in backbone.modules()}
    first = next(backbone.parameters(), values)
    backbone.eval()
    try:
        found = torch.cat([backbone(batch.to(first.device)).cpu().float() for batch in values[has].split(batch_size)])
    finally:
        for module, was in training.items():
            module.training = was
    features = torch.full((len(values), *found.shape[1:]), torch.nan)
    features[has] = found
    return features.numpy()


def _key(backbone: nn.Module, values: torch.Tensor, batch_size: int) -> str:
    """Return 32 hexadecimal digits of all that the features depend on."""
    total = hashlib.sha256(f"{_VERSION} {torch.__version__} {batch_size} {backbone!r}".encode())
    for name, tensor in [*backbone.state_dict().items(), ("inputs", values)]:
        array = tensor.detach().cpu().contiguous()
        total.update(f"\0{name} {array.dtype} {tuple(array.shape)}\0".encode())
        total.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:32]
