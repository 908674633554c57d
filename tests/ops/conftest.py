from __future__ import annotations

import pytest

from tests.ops.instruction_sets import instruction_sets, kernels_of


@pytest.fixture(params=instruction_sets())
def instruction_set(request):
    """Run the test once with the kernels of each instruction set."""
    with kernels_of(request.param):
        yield request.param
