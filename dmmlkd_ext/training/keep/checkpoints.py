"""Checkpoints: one file of one process, or one file per rank and a file that makes them valid.

`checkpoint.pt` holds the state. With several ranks it holds the common part, and the names and hashes of the ranks'
files, each with the rows of one rank's devices. Their names hold the round, so none is overwritten, and
`checkpoint.pt` is renamed into place when all are on the disk: a crash leaves the last checkpoint or the new one
complete. Any number of ranks can load it; each reads the rows of its devices.

torch.distributed.checkpoint is not used: it overwrites its files and pickles its metadata, so an interrupted save can
destroy a checkpoint, and equal states can give different bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.training.exchange.ranks import Ranks
from dmmlkd_ext.training.keep.files import check_state, load_state, read_seal, save_state


def save_checkpoint(path: Path, state: dict[str, Any], ranks: Ranks | None = None) -> None:
    """Save the state of a simulation; every rank calls it.

    Args:
        path: the file that makes the checkpoint valid, in an existing folder that all ranks see.
        state: `round`, `rows` (of this rank's devices) and further entries.
        ranks: the processes; None is this process alone.

    Raises:
        OSError: a file cannot be written.
    """
    if ranks is None or ranks.size == 1:
        save_state(path, state)
        remove_shards(path)  # of an earlier start on several ranks
        return
    names = [f"{path.stem}-{state['round']}-{rank + 1}-of-{ranks.size}{path.suffix}" for rank in range(ranks.size)]
    ranks.together(lambda: save_state(path.with_name(names[ranks.rank]), {"rows": state["rows"]}))
    if ranks.rank == 0:
        shards = {name: read_seal(path.with_name(name)) for name in names}
        save_state(path, {**state, "rows": [], "shards": shards})
        remove_shards(path, names)


def load_checkpoint(path: Path, ranks: Ranks | None = None) -> dict[str, Any]:
    """Return the saved state with the rows of all ranks, of which only the used parts are read.

    Args:
        path: the file that makes the checkpoint valid.
        ranks: the processes that load it; None is this process alone. They share the check of the hashes, so the
            result is valid only if none of them raises.

    Raises:
        OSError: a file cannot be read.
        ValueError: the file, or one that it names, does not hold the state that was saved.
    """
    ranks = ranks or Ranks()
    state = load_state(path)
    shards = state.pop("shards", {})
    for number, name in enumerate(shards):
        shard = path.with_name(name)
        try:
            if number % ranks.size == ranks.rank:
                _check_shard(shard, shards)
            state["rows"] += load_state(shard, mapped=True)["rows"]
        except FileNotFoundError as error:
            raise ValueError(f"path holds no saved state: {path} (it names {name}, which is missing)") from error
    return state


def _check_shard(shard: Path, shards: Mapping[str, str] | Sequence[str]) -> None:
    """Refuse a damaged shard, and one of another state."""
    found = check_state(shard)
    # Before shards had hashes, `checkpoint.pt` held a list of names.
    if isinstance(shards, Mapping) and found != shards[shard.name]:
        raise ValueError(f"path holds no saved state: {shard} (it is of another checkpoint)")


def shard_paths(path: Path) -> list[Path]:
    """Return the existing files of ranks, whether `checkpoint.pt` names them or not."""
    return sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))


def remove_shards(path: Path, kept: Sequence[str] = ()) -> None:
    """Remove the files of ranks except `kept`, which `checkpoint.pt` names."""
    for shard in shard_paths(path):
        if shard.name not in kept:
            shard.unlink()


def select_rows(parts: Sequence[Mapping[str, Any]], name: str, devices: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the rows of some devices, collected from several parts.

    Args:
        parts: each with `devices` [n] and matrices of n rows under `name`.
        name: the block.
        devices: the devices wanted, increasing.

    Returns:
        The matrices by name, without the rows of devices that no part holds; None where a part has None.

    Example:
        >>> parts = [{"shared": {"devices": np.array([3]), "start": torch.tensor([[0.3]])}},
        ...          {"shared": {"devices": np.array([1, 2]), "start": torch.tensor([[0.1], [0.2]])}}]
        >>> select_rows(parts, "shared", np.array([1, 3]))["start"]
        tensor([[0.1000], [0.3000]])
    """
    chosen: dict[str, list[Any]] = {}
    found: list[npt.NDArray[np.int64]] = []
    for part in parts:
        held = part.get(name)
        if held is None:
            continue
        here = np.isin(held["devices"], devices)
        found.append(held["devices"][here])
        for key, rows in held.items():
            if key != "devices":
                chosen.setdefault(key, []).append(None if rows is None else rows[torch.from_numpy(here)])
    if not found:
        return {}
    order = torch.from_numpy(np.argsort(np.concatenate(found)))
    return {key: None if any(row is None for row in rows) else torch.cat(rows)[order] for key, rows in chosen.items()}
