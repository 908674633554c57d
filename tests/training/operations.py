"""What three ranks do for the tests of their operations: `python -m tests.training.operations FOLDER`.

Each writes down what it got; what it should have got is in `test_ranks.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmmlkd_ext.training.exchange.ranks import FailedElsewhereError, Ranks, Slice, joined_ranks

OWNER = np.array([2, 0, 1, 2, 2, 0])


def fail_on(ranks: Ranks, *failing: int) -> str:
    """Return a word, or fail on some ranks."""
    if ranks.rank in failing:
        raise ValueError(f"rank {ranks.rank} cannot")
    return f"done by {ranks.rank}"


def attempt(ranks: Ranks, way: str, *failing: int) -> str:
    """Return what `together` or `first` return, or the error and its message."""
    try:
        return str(getattr(ranks, way)(lambda: fail_on(ranks, *failing)))
    except (ValueError, FailedElsewhereError) as error:
        return f"{type(error).__name__}: {error}"


def exchange(ranks: Ranks) -> dict[str, list]:
    """Send rows to both others, more to the following one, in two exchanges that are under way at once."""
    following, preceding = (ranks.rank + 1) % 3, (ranks.rank + 2) % 3
    arrived, waits = [], []
    for tag in range(2):
        values = torch.arange(4.0) + 10 * ranks.rank + 100 * tag
        two, one = torch.full((2, 4), -1.0), torch.full((1, 4), -1.0)
        sends = [(following, torch.stack([values, values + 0.5])), (preceding, values[None].clone())]
        waits.append(ranks.exchange(sends, [(preceding, two), (following, one)], tag))
        arrived.append((two, one))
    for wait in reversed(waits):
        wait()
    return {"of preceding": [two.tolist() for two, _ in arrived], "of following": [one.tolist() for _, one in arrived]}


def operate(ranks: Ranks) -> dict[str, Any]:
    """Do all that ranks can."""
    part = Slice(ranks, OWNER)
    found: dict[str, Any] = {"devices": part.devices.tolist()}
    own = part.devices.astype(float)
    found["slice"] = {name: column.tolist() for name, column in part.gather({"a": own, "b": -own / 3}).items()}
    found["gathered bytes"] = ranks.collective_bytes
    values = np.arange(2.0 * part.counts[ranks.rank]).reshape(-1, 2) + 100 * ranks.rank
    found["parts"] = [values.tolist() for values in ranks.gather(values, part.counts)]
    before = ranks.collective_bytes
    total = torch.tensor([1.0, 10.0 * ranks.rank], dtype=torch.float64)
    found["sum"] = [ranks.sum(total).tolist(), total.tolist(), ranks.collective_bytes - before]
    found["exchange"] = exchange(ranks)
    found["sent bytes"] = ranks.sent_bytes
    ranks.exchange([], [], tag=5)()
    found["everyone"] = ranks.everyone({"rank": ranks.rank})
    found["together"] = [attempt(ranks, "together", *failing) for failing in ((), (1, 2), (0,))]
    found["first"] = [attempt(ranks, "first", *failing) for failing in ((), (1, 2), (0,))]
    found["seconds"] = ranks.seconds
    return found


if __name__ == "__main__":
    with joined_ranks(timeout_s=30) as joined:
        Path(sys.argv[1], f"{joined.rank}.json").write_text(json.dumps(operate(joined)))
