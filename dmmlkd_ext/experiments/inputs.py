"""What a run reads besides its configuration: files, code of the user, and the data.

The configuration holds names, and what lies behind a name may change. Files and code are hashed into the name of the
run, so that it is another run when they change. The data are too costly for that: their hash stands in the run's
`environment.json`, and is compared when the run goes on and when it is reused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.data.registry import load_dataset
from dmmlkd_ext.data.sources.fetch import DataUnavailableError
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.plugins import hash_sources, import_modules
from dmmlkd_ext.training.keep.files import RunChangedError

_log = logging.getLogger(__name__)

_known_data: dict[str, set[str]] = {}
"""Dataset with its options -> hashes that this process has loaded, of any seed."""


def hash_files_read(config: ExperimentConfig) -> dict[str, str]:
    """Return the SHA-256 of each file that a configuration names, by the name of the setting.

    Settings of files are called `path` or end in `_path`. A file that cannot be read is left out: whoever needs it says
    so.

    Example:
        >>> hash_files_read(ExperimentConfig())
        {}
    """
    found = {}
    for setting, path in _paths(config.to_dict()):
        try:
            found[setting] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            continue
    sources = hash_sources(*config.module)
    return {**found, "module": sources} if sources else found


def _paths(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if before + name != "data.options":  # whose meaning the loader alone knows: the data tell
                yield from _paths(value, f"{before}{name}.")
        elif isinstance(value, str) and (name == "path" or name.endswith("_path")):
            yield before + name, value


def load_data(config: ExperimentConfig) -> MultiModalDataset:
    """Load the dataset of a configuration.

    Raises:
        ValueError: there is no such module, dataset or option.
        DataUnavailableError: the dataset is neither at hand nor to be had.
    """
    import_modules(*config.module)
    return load_dataset(config.data.dataset, config.seed, **config.data.options)


def hash_data(dataset: MultiModalDataset) -> str:
    """Return a SHA-256 over all that a dataset holds but its name.

    Example:
        >>> import torch
        >>> from dmmlkd_ext.data import Split
        >>> part = Split({"a": torch.zeros(2, 3)}, torch.tensor([0, 1]), torch.ones(2, 1, dtype=torch.bool),
        ...              torch.tensor([-1, -1]))
        >>> hash_data(MultiModalDataset("tiny", ("a",), 2, ("no", "yes"), part, part, part))[:8]
        '...'
    """
    total = hashlib.sha256(json.dumps([dataset.modalities, dataset.class_names]).encode())
    for split in (dataset.train, dataset.validation, dataset.test):
        for tensor in (*split.features.values(), split.labels, split.present, split.groups):
            array = tensor.detach().cpu().contiguous().numpy()
            total.update(f"{array.dtype.str} {array.shape}\n".encode())
            total.update(array.reshape(-1).view("uint8").data)
    return total.hexdigest()


def require_same_data(config: ExperimentConfig, run: str, recorded: str) -> None:
    """Refuse a finished run whose data are not those that its configuration loads now.

    Where the data cannot be had, the run is believed. A hash that this process has loaded for one seed is not loaded
    again for another: data that do not depend on the seed are read once for all runs.

    Args:
        config: of the run.
        run: its name.
        recorded: the hash of the data that it was made from.

    Raises:
        RunChangedError: they differ.
        ValueError: the dataset cannot be loaded as the configuration says.
    """
    data = config.data
    known = _known_data.setdefault(json.dumps([config.module, data.dataset, data.options], sort_keys=True), set())
    if recorded in known:
        return
    try:
        now = hash_data(load_data(config))
    except DataUnavailableError:
        _log.warning("run %s is reused, its data are not here to compare", run)
        return
    known.add(now)
    if now != recorded:
        raise other_data(run, data.dataset, recorded, now)


def other_data(run: str, dataset: str, before: str, now: str) -> RunChangedError:
    """Return the error for a run of which the data changed."""
    return RunChangedError(
        f"run {run} was made from other data: dataset {dataset} had the SHA-256 {before[:12]} then and has {now[:12]} "
        "now; put the old data back, or take another folder of runs"
    )
