from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.learn.gather import SharedNoise, gather_samples, gather_samples_reference


def draw(shape: tuple[int, ...], dtype: torch.dtype):
    """Data, and the batches of six devices."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, *shape, generator=generator, dtype=torch.float64).to(dtype)
    indices = torch.randint(50, (6, 9), generator=generator)
    noise = torch.randn(9 * max(1, torch.Size(shape).numel()) + 20, generator=generator, dtype=torch.float64).to(dtype)
    return values, indices, noise, torch.randint(10**6, (6,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (216,), (3, 17), (1, 8, 8), (0,)])
@pytest.mark.parametrize("devices", [[], [4], [5, 0, 2, 2], list(range(6))])
def test_it_reads_the_rows_and_adds_the_noise_of_each_device(shape, devices, dtype):
    values, indices, noise, offsets = draw(shape, dtype)
    chosen = torch.tensor(devices, dtype=torch.int64)
    expected = torch.stack([values[indices[device]] for device in devices]) if devices else values[:0][None][:0]
    assert torch.equal(gather_samples(values, indices, chosen), expected.reshape(len(devices), 9, *shape))
    noisy = gather_samples(values, indices, chosen, SharedNoise(noise, offsets))
    assert torch.equal(noisy, gather_samples_reference(values, indices, chosen, SharedNoise(noise, offsets)))
    for row, device in enumerate(devices):
        size = torch.Size(shape).numel()
        begin = int(offsets[device]) % (len(noise) - 9 * size + 1)
        window = noise[begin : begin + 9 * size].view(9, *shape)
        assert torch.equal(noisy[row], expected[row] + window)


def test_values_of_any_strides_and_the_same_bits_on_any_number_of_threads():
    values, indices, *noise = draw((40, 30), torch.float32)
    shared = SharedNoise(*noise)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(gather_samples(values.mT, indices, torch.arange(6), shared))
    assert torch.equal(*results)
    assert torch.equal(results[0], gather_samples_reference(values.mT, indices, torch.arange(6), shared))


@pytest.mark.skipif(backend() == "reference", reason="what torch says is torch's own")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indices": torch.tensor([[0, 50]])}, r"indices must be in \[0, 50\), got 50 at position 1"),
        ({"indices": torch.tensor([[-1]])}, r"indices must be in \[0, 50\), got -1"),
        ({"indices": torch.tensor([0])}, r"indices must be int64 of shape \[devices, batch\]"),
        ({"devices": torch.tensor([6])}, r"devices must be in \[0, 6\), got 6"),
        ({"devices": torch.tensor([0], dtype=torch.int32)}, r"devices must be int64 of shape \[n\]"),
        ({"noise": torch.ones(17)}, r"noise must be Float of shape \[at least 18\], got Float of shape \[17\]"),
        ({"noise": None}, "noise and offsets must be given together"),
        ({"offsets": torch.tensor([0, -3, 0, 0, 0, 0])}, r"offsets must be in \[0"),
    ],
)
def test_bad_input_is_named(change, words):
    values, indices, noise, offsets = draw((2,), torch.float32)
    arguments = {"values": values, "indices": indices, "devices": torch.tensor([1, 0])}
    arguments |= {"noise": noise, "offsets": offsets} | change
    if "indices" in change:
        arguments |= {"devices": torch.tensor([0]), "offsets": offsets[:1]}
    with pytest.raises(ValueError, match=words):
        torch.ops.dmmlkd.gather_samples(**arguments)
