"""Encoders of the user: any `torch.nn.Module`, batched over devices by `torch.func`.

An encoder is a function from a sample's shape to a module that maps [samples, *shape] to [samples, width]; further
dimensions are flattened:

    >>> from torch import nn
    >>> from dmmlkd_ext.model.modules import make_module_encoder, register_encoder
    >>> def small_cnn(shape: tuple[int, ...]) -> nn.Module:
    ...     return nn.Sequential(nn.Conv2d(shape[0], 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(),
    ...                          nn.AdaptiveAvgPool2d(2), nn.Flatten())
    >>> register_encoder("small-cnn", small_cnn)
    >>> make_module_encoder("small-cnn", (1, 28, 28)).output_features
    32

In a file that `--module` names, it is then chosen by `--training.encoders image small-cnn`. Its parameters are trained,
mixed and charged like those of built-in encoders; parameters without gradient, and buffers, are constants, which are
not exchanged. On a GPU all of them are there; a tensor that is neither a parameter nor a buffer stays on the CPU. The
module's initialization is drawn by the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from dmmlkd_ext.model.layout import ParameterSpec
from dmmlkd_ext.registry import Registry

EncoderFactory = Callable[[tuple[int, ...]], nn.Module]

_FACTORIES: Registry[EncoderFactory] = Registry("encoder")


def register_encoder(name: str, factory: EncoderFactory) -> None:
    """Register an encoder; see the module's text for an example.

    Args:
        name: its name in `training.encoders`.
        factory: maps the shape of one sample of the modality to a module.

    Raises:
        ValueError: `name` is no identifier, or `factory` is not callable.
    """
    _FACTORIES.add(name, factory)


def make_module_encoder(name: str, shape: tuple[int, ...]) -> ModuleEncoder:
    """Return the registered encoder for samples of a shape.

    Raises:
        ValueError: there is no encoder `name`, or its module cannot be an encoder; the message says why.
    """
    factory = _FACTORIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for constants; trained parameters are drawn again by the run's seed
        module = factory(shape)
    if not isinstance(module, nn.Module):
        raise ValueError(f"encoder {name!r} must return a torch.nn.Module, got {type(module).__name__}")
    _check_layers(name, module)
    module.train()  # not eval, whose fused kernels cannot be differentiated; nothing else differs
    inputs = torch.zeros(2, *shape)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs = module(inputs)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(
            f"encoder {name!r} must take samples of shape [2, {', '.join(map(str, shape))}], "
            f"got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.dim() < 2 or len(outputs) != 2:
        got = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"encoder {name!r} must return [samples, width], got {got} for two samples")
    macs = max(1, counter.get_total_flops() // 4)  # two samples, two operations per multiply-accumulate
    return ModuleEncoder(name, shape, factory, module, outputs.flatten(1).shape[1], macs)


def _check_layers(name: str, module: nn.Module) -> None:
    """Refuse layers whose encoding of a sample depends on more than that sample and the parameters."""
    for place, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _NormBase) and (layer.track_running_stats or kind.startswith(("Batch", "SyncBatch"))):
            raise ValueError(
                f"encoder {name!r} has batch statistics ({place}: {kind}), which make a sample's encoding depend on "
                "its batch and are no parameters that could be mixed; use GroupNorm or LayerNorm"
            )
        if isinstance(layer, _DropoutNd) and layer.p:
            raise ValueError(
                f"encoder {name!r} draws random numbers ({place}: {kind}), which no stream of the run's seed gives; "
                "leave them out and set training.input_noise"
            )
        if any(isinstance(value, nn.UninitializedParameter) for value in layer.parameters(recurse=False)):
            raise ValueError(f"encoder {name!r} must have parameters of known shape, got a lazy one ({place}: {kind})")


@dataclass(frozen=True, eq=False)
class ModuleEncoder:
    """A module as the encoder of one modality, with separate parameters per device."""

    name: str
    shape: tuple[int, ...]
    factory: EncoderFactory
    module: nn.Module
    output_features: int
    """Width of the encoding z."""
    forward_macs: int
    """Multiply-accumulates of a forward pass of one sample, as torch counts them."""
    _moved: dict[tuple[torch.device, torch.dtype], dict[str, torch.Tensor]] = field(default_factory=dict, repr=False)
    """The constants, where and as they were needed."""

    @property
    def layers(self) -> None:
        """Return None: native code cannot run it."""
        return

    def parameters(self) -> dict[str, ParameterSpec]:
        """Return the trained parameters of one device."""
        return {_key(name): ParameterSpec(tuple(value.shape), 0.0) for name, value in _trained(self.module)}

    def initialize(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return initial values of one device's parameters, as the module draws them, with a seed from `generator`."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.factory(self.shape)
        return {_key(name): value.detach().float() for name, value in _trained(module)}

    def forward(self, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return z [devices, samples, output_features] of inputs [devices, samples, *shape]."""
        if not len(inputs):
            return inputs.new_zeros(0, inputs.shape[1], self.output_features)
        stacked = {name: weights[_key(name)] for name, _ in _trained(self.module)}
        constants = self._constants(inputs.device, inputs.dtype)

        def encode(parameters: dict[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
            encoded: torch.Tensor = functional_call(self.module, {**constants, **parameters}, (values,))
            return encoded.flatten(1)

        try:
            outputs: torch.Tensor = vmap(encode)(stacked, inputs)
        except RuntimeError:  # a layer that cannot be batched over devices, such as a recurrent one
            outputs = torch.stack(
                [
                    encode({name: value[row] for name, value in stacked.items()}, values)
                    for row, values in enumerate(inputs)
                ]
            )
        return outputs

    def _constants(self, torch_device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return parameters without gradient and buffers; floating ones in `dtype`."""
        key = torch_device, dtype
        if key not in self._moved:
            frozen = [
                (name, value.detach()) for name, value in self.module.named_parameters() if not value.requires_grad
            ]
            self._moved[key] = {
                name: value.to(torch_device, dtype if value.is_floating_point() else value.dtype)
                for name, value in (*frozen, *self.module.named_buffers())
            }
        return self._moved[key]


def _key(name: str) -> str:
    """Return a name that differs from all other parameters of a block."""
    return f"module.{name}"


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]
