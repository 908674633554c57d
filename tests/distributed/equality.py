"""What each rank does for the tests of equality; started by torchrun: `python -m tests.distributed.equality FOLDER`.

Every method runs to its end. On two ranks it also leaves a checkpoint, from which four go on. Each rank writes what it
came to: records, and the parameters of its devices.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmmlkd_ext.training.exchange.ranks import Ranks, joined_ranks
from dmmlkd_ext.training.keep.checkpoints import load_checkpoint, save_checkpoint
from dmmlkd_ext.training.round import Simulation
from tests.distributed.worlds import OWNERS, SAVED_ROUND, SPREAD_METHODS, build


def outcome(simulation: Simulation, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is to be equal: the records and, of each device and block, parameters and momentum."""
    rows = {}
    for name, block in simulation.population.blocks.items():
        for row, device in enumerate(simulation.part.devices[block.devices].tolist()):
            rows[f"{name} of device {device}"] = torch.stack([block.start[row], block.momentum[row]])
    return {"records": records, "rows": rows}


def run_from(simulation: Simulation) -> dict[str, Any]:
    """Run what is left of a simulation."""
    return outcome(simulation, [simulation.run_round() for _ in range(simulation.round, simulation.total_rounds)])


def run_and_save(name: str, ranks: Ranks, path: Path) -> dict[str, Any]:
    """Run a simulation and leave a checkpoint on the way."""
    simulation = build(name, ranks)
    records = [simulation.run_round() for _ in range(SAVED_ROUND)]
    save_checkpoint(path, simulation.state_dict(), ranks)
    rest = run_from(simulation)
    return {**rest, "records": records + rest["records"]}


def load_and_run(name: str, ranks: Ranks, path: Path) -> dict[str, Any]:
    """Go on from a checkpoint, whichever number of ranks left it."""
    simulation = build(name, ranks)
    simulation.load_state_dict(load_checkpoint(path))
    return run_from(simulation)


def main(folder: Path) -> None:
    """Run all methods on the ranks that there are."""
    torch.set_num_threads(1)
    with joined_ranks(timeout_s=60) as ranks:
        came: dict[str, Any] = {}
        for name in SPREAD_METHODS:
            assert np.array_equal(build(name, ranks).part.owner, OWNERS[ranks.size])
            if ranks.size == 2:
                (folder / name).mkdir(exist_ok=True)
                came[name] = run_and_save(name, ranks, folder / name / "checkpoint.pt")
            else:
                came[name] = run_from(build(name, ranks))
                came[f"{name}, resumed"] = load_and_run(name, ranks, folder / name / "checkpoint.pt")
        torch.save(came, folder / f"{ranks.size} ranks, rank {ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
