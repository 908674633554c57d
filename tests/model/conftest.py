from __future__ import annotations

import pytest
import torch

from tests.ops.conftest import instruction_set

__all__ = ["instruction_set", "one_thread"]


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and on a busy machine threads wait for each other for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
