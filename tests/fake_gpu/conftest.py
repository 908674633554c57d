from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.fake_gpu import device


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    """The fake GPU, whose gradients are computed by the thread that asks for them."""
    device.start()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.autograd.set_multithreading_enabled(False):
        yield torch.device("gpu", 0)
    torch.set_num_threads(threads)
