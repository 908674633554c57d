from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.learn.optimizer import StepRows, StepSettings, sgd_step, sgd_step_reference
from tests.ops.instruction_sets import instruction_sets, kernels_of

PLAIN = StepSettings(clip_norm=1e9, learning_rate=0.1, momentum=0.9, weight_decay=0.01)


def draw_blocks(columns: tuple[int, ...], devices: int, dtype: torch.dtype = torch.float32) -> list[StepRows]:
    """A block that all devices have, then blocks that all but one have, in an order of their own."""
    generator, blocks = torch.Generator().manual_seed(0), []
    for number, width in enumerate(columns):
        position = torch.arange(devices) if number == 0 else torch.randperm(devices, generator=generator)[1:]
        values = torch.randn(3, len(position), width + 5, generator=generator, dtype=dtype)
        blocks.append(StepRows(*values[..., 2 : 2 + width], position))
    return blocks


@pytest.mark.parametrize("kernels", instruction_sets())
@pytest.mark.parametrize("step", [sgd_step, sgd_step_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 1000])
@pytest.mark.parametrize("clip_norm", [1e9, 0.5])
def test_it_clips_and_steps_as_torch_does(step, dtype, columns, clip_norm, kernels):
    blocks = draw_blocks((columns, 33, columns), 4, dtype)
    for block in blocks:
        block.momentum.zero_()
    outside = [block.parameters._base.clone() for block in blocks]
    devices = [
        [(block, row) for block in blocks for row in range(len(block.position)) if block.position[row] == device]
        for device in range(4)
    ]
    twins = [[torch.nn.Parameter(block.parameters[row].clone()) for block, row in own] for own in devices]
    optimizers = [torch.optim.SGD(own, lr=0.1, momentum=0.9, weight_decay=0.01) for own in twins]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for block in blocks:
            block.gradient.copy_(torch.randn(block.gradient.shape, generator=generator, dtype=dtype))
        with kernels_of(kernels):
            step(blocks, 4, StepSettings(clip_norm, 0.1, 0.9, 0.01))
        for own, copies, optimizer in zip(devices, twins, optimizers, strict=True):
            for (block, row), twin in zip(own, copies, strict=True):
                twin.grad = block.gradient[row].clone()
            torch.nn.utils.clip_grad_norm_(copies, clip_norm)
            optimizer.step()
    for own, copies in zip(devices, twins, strict=True):
        for (block, row), twin in zip(own, copies, strict=True):
            torch.testing.assert_close(block.parameters[row], twin.detach())
    for block, before in zip(blocks, outside, strict=True):
        inside = block.parameters.shape[1]
        assert torch.equal(block.parameters._base[..., :2], before[..., :2])
        assert torch.equal(block.parameters._base[..., 2 + inside :], before[..., 2 + inside :])


@pytest.mark.parametrize("step", [sgd_step, sgd_step_reference])
def test_a_device_that_has_no_row_and_no_device_at_all(step):
    rows = StepRows(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([3]))
    step([rows], 5, PLAIN)
    torch.testing.assert_close(rows.parameters, torch.full((1, 2), 1 - 0.1 * 1.01))
    empty = torch.empty(0, 2)
    step([StepRows(empty, empty.clone(), empty.clone(), torch.empty(0, dtype=torch.int64))], 0, PLAIN)
    step([], 2, PLAIN)


@pytest.mark.parametrize("step", [sgd_step, sgd_step_reference])
def test_a_gradient_that_is_no_number_is_seen(step):
    rows = StepRows(torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2, 2), torch.arange(2))
    rows.gradient[0, 1] = float("nan")
    step([rows], 2, PLAIN)
    assert rows.parameters[0].isnan().all()
    assert rows.parameters[1].isfinite().all()


@pytest.mark.parametrize(("columns", "devices"), [((30_000, 20_000), 7), ((200_000,), 1), ((11, 7), 3000)])
def test_the_same_bits_on_any_number_of_threads(columns, devices):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        blocks = draw_blocks(columns, devices)
        sgd_step(blocks, devices, StepSettings(0.5, 0.1, 0.9, 0.01))
        results.append([value for block in blocks for value in (block.parameters, block.momentum)])
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], other, strict=True))


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"momentum": torch.zeros(2, 3)}, "momenta must be Float of shape"),
        ({"gradient": torch.zeros(2, 4, dtype=torch.float64)}, "gradients must be Float of shape"),
        ({"position": torch.zeros(3, dtype=torch.int64)}, "positions must be Long of shape"),
        ({"position": torch.tensor([1, 1])}, "positions must be different and in"),
        ({"position": torch.tensor([0, 2])}, r"positions must be different and in \[0, 2\), got 2 at position 1"),
        ({"gradient": torch.zeros(4, 2).T}, "rows must be contiguous"),
        ({"parameters": torch.ones(2, 4, dtype=torch.float16)}, "parameters must be all float32 or all float64"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(change, words):
    good = StepRows(torch.ones(2, 4), torch.ones(2, 4), torch.ones(2, 4), torch.arange(2))
    bad = good._replace(**change)
    with pytest.raises(ValueError, match=words):
        sgd_step([good, bad], 2, PLAIN)
    assert (good.parameters == 1).all()
    assert (bad.parameters == 1).all()


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
def test_momentum_in_the_memory_of_the_parameters_is_refused():
    values = torch.ones(2, 4)
    with pytest.raises(ValueError, match="momenta must not share memory with parameters, those of block 0 do"):
        sgd_step([StepRows(values, values, torch.ones(2, 4), torch.arange(2))], 2, PLAIN)
    assert (values == 1).all()
