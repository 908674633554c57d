from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.learn import tiers

TIERS = ["reference"] if backend() == "reference" else ["reference", "native"]


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and on a busy machine threads wait for each other for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64():
    """Let every new tensor be float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=TIERS)
def tier(request, monkeypatch):
    """Let the test run once by each tier that is here: the same cases hold for both."""
    if request.param == "reference":
        monkeypatch.setattr(tiers, "why_reference", lambda *_: "this is about the reference")
    return request.param
