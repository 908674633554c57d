"""A simulation on the fake GPU with the CUDA kernels, emulated: the CPU's up to rounding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dmmlkd_ext.ops import backend, native, pairwise_kl
from dmmlkd_ext.training.exchange import weights
from tests.fake_gpu import device
from tests.fake_gpu.twins import TRAINING, simulate

pytestmark = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")

KERNELS = ("pairwise_kl_forward", "pairwise_kl_backward", "gossip_mix_", "orthogonality_forward")


@pytest.fixture
def gpu_with_kernels(emulated_library: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    device.start()
    uses_native = native.uses_native
    for module in (native, weights):
        monkeypatch.setattr(module, "uses_native", lambda tensor: tensor.device.type == "gpu" or uses_native(tensor))
    library = torch.library.Library("dmmlkd", "IMPL")
    monkeypatch.setattr(pairwise_kl, "_gradient_comes_later", lambda logits: logits.device.type == "gpu")
    for name in KERNELS:
        library.impl(name, getattr(torch.ops.dmmlkd_emulated, name).default, "PrivateUse1")
    with torch.autograd.set_multithreading_enabled(False):
        yield
    library._destroy()


@pytest.mark.parametrize("name", ["dmml-kd", "dmml-kd-tb"])
def test_records_and_parameters_are_the_cpus_up_to_rounding(name: str, gpu_with_kernels: None) -> None:
    there, here = (simulate(name, where) for where in ("gpu", "cpu"))
    for _ in range(TRAINING.rounds):
        with device.watching() as counts:
            found = there.run_round()
        expected = here.run_round()
        assert counts.launches["gossip_mix_"] == len(there.population.blocks)
        assert counts.launches["pairwise_kl_forward"] == counts.launches["pairwise_kl_backward"] > 0
        assert counts.launches["orthogonality_forward"] > 0
        for term, loss in expected["loss"].items():
            assert found["loss"][term] == pytest.approx(loss, rel=1e-5)
        assert found["local_iterations"] == expected["local_iterations"]
    for block, own in zip(there.population.blocks.values(), here.population.blocks.values(), strict=True):
        distance = (block.start.cpu() - own.start).norm() / own.start.norm()
        assert float(distance) < 1e-5
