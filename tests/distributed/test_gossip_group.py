"""Four ranks with one module each give the parameters of one process with four, to the bit."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.gossip_training import MODULES, run
from tests.distributed.processes import torchrun

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("ranks")]


def test_ranks_equal_one_process(tmp_path):
    done = torchrun(MODULES, "tests.distributed.gossip_training", str(tmp_path))
    assert done.returncode == 0, done.stdout
    torch.set_num_threads(1)
    for number, expected in enumerate(run(list(range(MODULES)), one_per_rank=False)):
        found = torch.load(tmp_path / f"{number}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), (number, name)
