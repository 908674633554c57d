"""Folders of finished runs with records made by hand, whose comparison is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.config.settings import override_settings

VERSION = "0123456789abcdef"


def make_record(number: int, accuracy: Sequence[float | None] | None, **further: Any) -> dict[str, Any]:
    """Return a record of two devices: it took 2 s, each sent 100 and 300 bits, and they spent 1 and 3 J a round."""
    return {
        "round": number,
        "accuracy": None if accuracy is None else {"test": list(accuracy), "validation": list(accuracy)},
        "simulated_time_s": 2.0,
        "sent_bits": [100.0, 300.0],
        "energy_spent_joule": [1.0 * number, 3.0 * number],
        "local_iterations": {"fac": [4, 2], "mor": [None, 6]},
        **further,
    }


def make_run(
    folder: Path,
    method: str = "dmml",
    seed: int = 0,
    accuracies: Sequence[float] = (0.5,),
    settings: Sequence[str] = (),
    *,
    version: str | None = VERSION,
    finished: bool = True,
    records: Sequence[dict[str, Any]] | None = None,
    inputs: dict[str, str] | None = None,
) -> Path:
    """Write a run whose two devices are 0.1 above and below each round's accuracy, and return its folder."""
    config: ExperimentConfig = override_settings(preset("mfeat", method, seed), tuple(settings))
    if records is None:
        records = [make_record(place + 1, (value - 0.1, value + 0.1)) for place, value in enumerate(accuracies)]
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "environment.json").write_text(json.dumps({"code_version": version, "inputs": inputs or {}}))
    (folder / "metrics.jsonl").write_bytes(content)
    if finished:
        (folder / "result.json").write_text(json.dumps({"metrics_sha256": hashlib.sha256(content).hexdigest()}))
    return folder


GAINS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of DMML-KD over DMML by seed: mean 0.3, half of the 95% Student interval 0.19632, p of the t test 0.01324."""


def make_pair(folder: Path, seeds: int = 5, settings: Sequence[str] = ()) -> Path:
    """Write runs of DMML, with 0.3 in every round, and of DMML-KD, with half of the gain and then all of it."""
    for seed, gain in enumerate(GAINS[:seeds]):
        make_run(folder / f"dmml-{seed}", "dmml", seed, (0.3, 0.3), settings)
        make_run(folder / f"dmml-kd-{seed}", "dmml-kd", seed, (0.3 + gain / 2, 0.3 + gain), settings)
    return folder
