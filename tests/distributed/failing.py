"""The command line on a small dataset, on ranks of which one fails once in the middle of a round.

`python -m tests.distributed.failing HOW RANK ROUND MARKER run METHOD synthetic ...`: HOW is SIGKILL, SIGSTOP,
SIGTERM, `sleep` or `memory`; nothing fails where the file MARKER is already there, to which the process writes its id.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dmmlkd_ext import cli
from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.data.registry import register_dataset
from dmmlkd_ext.experiments.provenance import Identity, adopt_identity
from dmmlkd_ext.training.exchange import mix as exchange
from tests.training.synthetic import make_dataset

OPTIONS = (
    *("--data.num-devices", "7", "--training.rounds", "8", "--training.local-iterations", "2"),
    *("--training.evaluate-every", "2", "--failures.link-probability", "0.1", "--quiet", "--checkpoint-every", "2"),
)


def load_alike(seed: int) -> MultiModalDataset:
    return make_dataset({"vector": (6,), "wave": (11,)}, seed=seed)


def load_on_rank_0(seed: int) -> MultiModalDataset:
    if os.environ["RANK"] != "0":
        raise ValueError("the data folder must exist, got '/nope'")
    return load_alike(seed)


def load_unseeded(seed: int) -> MultiModalDataset:
    return load_alike(int(os.environ["RANK"]))


def fail(how: str) -> None:
    """Fail in one of the ways that a process can."""
    if how == "memory":
        raise MemoryError("no memory left for 4 GiB")
    if how == "sleep":
        time.sleep(3600)
    os.kill(os.getpid(), signal.Signals[how])


def fail_once(how: str, rank: str, round_number: int, marker: Path) -> None:
    """Let the exchange of one round fail on one rank, unless the marker tells that it has."""
    mix, rounds = exchange.mix, iter(range(1, 1000))

    def failing_mix(*arguments: Any) -> Any:
        # Rounds of this process: after a restart they are not the simulation's, but then the marker is there.
        if next(rounds) == round_number and os.environ.get("RANK") == rank and not marker.exists():
            marker.write_text(str(os.getpid()))
            fail(how)
        return mix(*arguments)

    exchange.mix = failing_mix


if __name__ == "__main__":
    how, rank, round_number, marker, *arguments = sys.argv[1:]
    adopt_identity(Identity("version-of-the-tests", "commit-of-the-tests", False))
    register_dataset("synthetic", load_alike)
    register_dataset("on-rank-0", load_on_rank_0)
    register_dataset("unseeded", load_unseeded)
    fail_once(how, rank, int(round_number), Path(marker))
    given = arguments if OPTIONS[0] in arguments else [*arguments, *OPTIONS]  # a rank's own come after these
    sys.exit(cli.main(given))
