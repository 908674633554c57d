"""What a run reads besides its configuration: files, the user's code, and the data.

The hash of files and code is part of the run's name: a change of them makes another run. The data take too long to read
for that: their hash is in the run's `environment.json`, and is compared when the run is resumed or reused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.data.registry import load_dataset, read_options
from dmmlkd_ext.data.sources.fetch import DataUnavailableError
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.plugins import hash_sources, import_modules
from dmmlkd_ext.training.keep.files import RunChangedError

_log = logging.getLogger(__name__)

_known_data: dict[str, set[str]] = {}
"""Dataset with its options -> hashes of the data that this process has loaded, for any seed."""


def hash_files_read(config: ExperimentConfig) -> dict[str, str]:
    """Return the SHA-256 of each file that a configuration names, by the name of the setting.

    Settings of files are called `path` or end in `_path`. A file that cannot be read is left out; its user raises.

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
            if before + name != "data.options":  # only the loader knows its meaning; the hash of the data covers it
                yield from _paths(value, f"{before}{name}.")
        elif isinstance(value, str) and (name == "path" or name.endswith("_path")):
            yield before + name, value


def load_data(config: ExperimentConfig) -> MultiModalDataset:
    """Load the dataset of a configuration.

    Raises:
        ValueError: there is no such module, dataset or option.
        DataUnavailableError: the dataset is neither cached nor can be fetched.
    """
    import_modules(*config.module)
    options = read_options(config.data.dataset, config.data.options)  # refuses `seed`, which is no option of data
    return load_dataset(config.data.dataset, config.seed, **options)


def hash_data(dataset: MultiModalDataset) -> str:
    """Return a SHA-256 over everything in a dataset except its name.

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
    """Refuse a finished run whose recorded hash of the data is not that of the data which its configuration loads now.

    If the data are not available, the run is accepted. Data whose hash this process knows from another seed are not
    loaded again: most data do not depend on the seed.

    Raises:
        RunChangedError: the hashes differ.
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
    """Return the error for a run whose data changed."""
    return RunChangedError(
        f"run {run} was made from other data: dataset {dataset} had the SHA-256 {before[:12]} then and has {now[:12]} "
        "now; put the old data back, or take another folder of runs"
    )
