"""Encoders of one's own: any module, made once for each device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dmmlkd_ext.model.modules import make_module_encoder, register_encoder
from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.training.learn import why_reference
from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.training.population import Population


class Recurrent(nn.Module):
    """A network that `torch.func.vmap` cannot batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.GRU(channels, 4, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs.transpose(1, 2))[1][0]


def attention(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[-1], 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))


FACTORIES = {
    "cnn": lambda shape: nn.Sequential(nn.Conv1d(shape[0], 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten()),
    "recurrent": lambda shape: Recurrent(shape[0]),
    "attention": attention,
    "flatten": lambda shape: nn.Flatten(),
}


@pytest.fixture(autouse=True)
def registered() -> None:
    for name, factory in FACTORIES.items():
        register_encoder(name, factory)


@pytest.mark.parametrize("name", FACTORIES)
def test_each_device_has_parameters_of_its_own(name):
    network = MultiModalNetwork({"wave": (3, 9)}, 4, 5, 7, {"wave": name})
    layout, encoder = network.layouts["wave"], network.encoders["wave"]
    rows = torch.stack([layout.initialize(torch.Generator().manual_seed(seed)) for seed in range(3)]).double()
    inputs = torch.randn(3, 6, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = layout.views(rows.requires_grad_())
    outputs = encoder.forward(weights, inputs)
    assert outputs.shape == (3, 6, encoder.output_features)
    for device in range(3):
        module = FACTORIES[name]((3, 9)).double()
        with torch.no_grad():
            for key, value in module.named_parameters():
                value.copy_(weights[f"module.{key}"][device])
        torch.testing.assert_close(outputs[device], module(inputs[device]).flatten(1))
    if len(encoder.parameters()):
        (gradient,) = torch.autograd.grad(outputs[1].sum(), rows)
        assert gradient[1].any()
        assert not gradient[0].any()


def test_the_seed_initializes_as_the_module_does():
    network = MultiModalNetwork({"wave": (3, 9)}, 4, 5, 7, {"wave": "cnn"})
    first, again, other = (
        Population(network, np.ones((2, 1), dtype=bool), seed).blocks["wave"].start for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    views = network.layouts["wave"].views(first)
    assert (views["module.1.weight"] == 1).all()  # as GroupNorm begins


def test_constants_are_no_parameters():
    def frozen(shape: tuple[int, ...]) -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 2))
        module[1].requires_grad_(False)
        return module

    register_encoder("frozen", frozen)
    encoder = make_module_encoder("frozen", (3, 9))
    assert {name: spec.size for name, spec in encoder.parameters().items()} == {
        "module.3.weight": 12,
        "module.3.bias": 2,
    }
    weights = {name: torch.ones(2, *spec.shape) for name, spec in encoder.parameters().items()}
    assert encoder.forward(weights, torch.ones(2, 4, 3, 9)).shape == (2, 4, 2)
    assert encoder.forward_macs == 27 * 6 + 6 * 2


def test_the_tier_says_whose_encoder_it_does_not_know():
    network = MultiModalNetwork({"wave": (3, 9), "vector": (4,)}, 4, 5, 7, {"wave": "cnn"})
    population = Population(network, np.ones((2, 2), dtype=bool), 0)
    assert "the encoder of wave is a module of your own" in why_reference(population, get_method("dmml"))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (
            lambda shape: nn.Sequential(nn.BatchNorm1d(3), nn.Flatten()),
            "has batch statistics .* GroupNorm",
        ),
        (lambda shape: nn.Sequential(nn.Dropout(), nn.Flatten()), "draws random numbers .*training.input_noise"),
        (lambda shape: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "lazy"),
        (lambda shape: nn.Linear(5, 2), "must take samples of shape .2, 3, 9., got RuntimeError"),
        (lambda shape: 3, "must return a torch.nn.Module, got int"),
    ],
)
def test_what_cannot_be_an_encoder_is_refused(factory, words):
    register_encoder("bad", factory)
    with pytest.raises(ValueError, match=f"encoder 'bad'.* {words}|encoder 'bad' {words}"):
        make_module_encoder("bad", (3, 9))


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"encoder must be one of .*; got 'cn'"):
        make_module_encoder("cn", (3, 9))
    with pytest.raises(ValueError, match="encoders must be of wave; got one of image"):
        MultiModalNetwork({"wave": (3, 9)}, 4, 5, 7, {"image": "cnn"})
    with pytest.raises(ValueError, match="must be callable"):
        register_encoder("number", 3)
