"""What torch is told of the operators without running them: tags, and shapes and strides of the results."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmmlkd_ext.ops import backend

pytestmark = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")


@pytest.mark.parametrize("name", ["gossip_mix", "gossip_mix_", "gossip_mix_inplace_"])
def test_mixing_stays_out_of_cuda_graphs(name):
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.dmmlkd, name).default.tags


def test_the_loss_does_not():
    assert torch.Tag.cudagraph_unsafe not in torch.ops.dmmlkd.pairwise_kl_forward.default.tags


VIEWS = {
    "contiguous": lambda: torch.randn(4, 3, 5),
    "classes apart": lambda: torch.randn(4, 5, 3).transpose(1, 2),
    "one class of several": lambda: torch.randn(4, 3, 5)[:, :, 2:3],
    "one class, transposed": lambda: torch.randn(3, 4, 5).transpose(0, 1)[:, :, 1:2],
    "one modality": lambda: torch.randn(5, 4, 1).permute(1, 2, 0),
    "modalities first": lambda: torch.randn(3, 4, 5).transpose(0, 1),
    "expanded": lambda: torch.randn(1, 3, 5).expand(4, 3, 5),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("machine", ["cpu", "emulated"])
def test_fake_results_lie_as_those_of_the_kernels(request, name, machine):
    if machine == "emulated":
        request.getfixturevalue("emulated_library")
    ops = torch.ops.dmmlkd if machine == "cpu" else torch.ops.dmmlkd_emulated
    for reduction, with_gradient in itertools.product((0, 1, 2), (False, True)):
        logits = VIEWS[name]()
        real = ops.pairwise_kl_forward(logits, None, reduction, with_gradient)
        with FakeTensorMode() as mode:
            fake = torch.ops.dmmlkd.pairwise_kl_forward(mode.from_tensor(logits), None, reduction, with_gradient)
        for one, other in zip(real, fake, strict=True):
            assert one.shape == other.shape
            assert one.stride() == other.stride()
            assert one.dtype == other.dtype


@pytest.mark.parametrize("name", VIEWS)
def test_fake_gradients_lie_as_those_of_the_kernel(emulated_library, name):
    logits = VIEWS[name]()
    real = torch.ops.dmmlkd_emulated.pairwise_kl_backward(torch.ones(()), logits, None, 1)
    with FakeTensorMode() as mode:
        same = mode.from_tensor(logits)
        fake = torch.ops.dmmlkd.pairwise_kl_backward(same.new_ones(()), same, None, 1)
    assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


@pytest.mark.parametrize("machine", ["cpu", "emulated"])
@pytest.mark.parametrize("width", [5, 20, 200])
def test_fake_orthogonality_lies_as_that_of_the_kernels(request, machine, width):
    if machine == "emulated":
        request.getfixturevalue("emulated_library")
    ops = torch.ops.dmmlkd if machine == "cpu" else torch.ops.dmmlkd_emulated
    features = torch.randn(3, width, 7).mT, torch.randn(7, 3, 4).transpose(0, 1)
    for reduction, *wanted in itertools.product((0, 1, 2), (False, True), (False, True)):
        real = ops.orthogonality_forward(*features, None, True, reduction, *wanted)
        with FakeTensorMode() as mode:
            same = [mode.from_tensor(x) for x in features]
            fake = torch.ops.dmmlkd.orthogonality_forward(*same, None, True, reduction, *wanted)
        for one, other in zip(real, fake, strict=True):
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_a_mask_on_another_device_is_refused_by_the_fake_too():
    with FakeTensorMode():
        logits, mask = torch.empty(4, 3, 5, device="cuda"), torch.ones(4, 3, dtype=torch.bool, device="cpu")
        with pytest.raises(ValueError, match="mask must be on cuda:0 like logits, got cpu"):
            torch.ops.dmmlkd.pairwise_kl_forward(logits, mask, 1, True)
        with pytest.raises(ValueError, match="mask must be on cuda:0 like logits, got cpu"):
            torch.ops.dmmlkd.pairwise_kl_backward(logits.sum(), logits, mask, 1)
        with pytest.raises(ValueError, match="mask must be on cuda:0 like common, got cpu"):
            torch.ops.dmmlkd.orthogonality_forward(logits, logits, mask, True, 1, True, True)
