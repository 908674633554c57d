"""Trackers by name: TensorBoard, a CSV file, MLflow and Weights & Biases, all of them without a network.

Each gets the numbers of every record by names such as `accuracy/test`; lists over devices are given as their mean.
What they write lies outside of the runs' folders, as it holds the time. A run that was killed and goes on from its
checkpoint is one run of the tracker; the rounds that are computed again replace those from before, or are written
twice where the tracker cannot take anything back (MLflow, Weights & Biases; with the same values).
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from dmmlkd_ext.registry import Registry
from dmmlkd_ext.training.keep.callbacks import Callback, RunningSimulation, mean_of
from dmmlkd_ext.training.keep.files import write_text

_PROJECT = "dmmlkd"


class Tracker(Callback):
    """Base of the trackers.

    Args:
        folder: of all runs; the tracker writes into a folder in it that has its name.
        run: the run's name.
        settings: of the run, as nested tables, for trackers that show them.
    """

    needs: ClassVar[tuple[str, str] | None] = None
    """The module that it imports, and the package that brings it."""

    def __init__(self, folder: Path, run: str, settings: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.run = run
        self.settings = settings


class TensorBoard(Tracker):
    """Writes events for `tensorboard --logdir RUNS/tensorboard`."""

    needs = ("tensorboard", "tensorboard")

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Open the writer; events that a killed run wrote after its checkpoint are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        path = self.folder / "tensorboard" / self.run
        self._writer = SummaryWriter(str(path), purge_step=simulation.round + 1)

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Write the round's numbers."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, simulation.round)

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Close the writer."""
        self._writer.close()


class Csv(Tracker):
    """Writes `RUNS/csv/<run>.csv` with the columns round, name and value."""

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Keep the rounds of the checkpoint."""
        path = self.folder / "csv" / f"{self.run}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in before[1:] if int(line.partition(",")[0]) <= simulation.round]
        write_text(path, "".join(f"{line}\n" for line in ("round,name,value", *kept)))
        self._file = path.open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Append the round's numbers."""
        self._rows.writerows((simulation.round, name, value) for name, value in scalars(record))
        self._file.flush()

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Close the file."""
        self._file.close()


class MLflow(Tracker):
    """Writes a run into the folder `RUNS/mlflow`, for `mlflow ui --backend-store-uri RUNS/mlflow`."""

    needs = ("mlflow", "mlflow-skinny")

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Begin the run, or go on with the one of this name."""
        # A folder is the only store that several processes write without a server; newer versions ask before.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        store = (self.folder / "mlflow").resolve()
        store.mkdir(parents=True, exist_ok=True)
        self._client, self._metric = MlflowClient(tracking_uri=store.as_uri()), Metric
        try:
            experiment = self._client.create_experiment(_PROJECT)
        except MlflowException:  # there is one
            experiment = self._client.get_experiment_by_name(_PROJECT).experiment_id
        found = self._client.search_runs([experiment], f"tags.mlflow.runName = '{self.run}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(experiment, run_name=self.run).info.run_id
        for name, value in _flatten(self.settings):
            self._client.log_param(self._id, name, str(value)[:500])

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Write the round's numbers; its number is the step."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, simulation.round) for name, value in scalars(record)]
        self._client.log_batch(self._id, metrics=[metric for metric in metrics if math.isfinite(metric.value)])

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """End the run."""
        self._client.set_terminated(self._id)


class WeightsAndBiases(Tracker):
    """Writes a run of Weights & Biases in offline mode into `RUNS/wandb`; `wandb sync` sends it, if you wish."""

    needs = ("wandb", "wandb")

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Begin the run; one that was killed goes on under the same identity."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=_PROJECT,
            id=self.run,
            name=self.run,
            config=self.settings,
            dir=str(self.folder.resolve()),
            mode="offline",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Write the round's numbers; its number is the step."""
        self._run.log(dict(scalars(record)), step=simulation.round)

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """End the run."""
        self._run.finish()


TRACKERS: Registry[type[Tracker]] = Registry(
    "tracker", {"csv": Csv, "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}
)


def read_trackers(text: str) -> tuple[str, ...]:
    """Return the trackers that are named, separated by commas.

    Raises:
        ValueError: there is no tracker of a name.

    Example:
        >>> read_trackers("csv,mlflow"), read_trackers("")
        (('csv', 'mlflow'), ())
        >>> read_trackers("cvs")
        Traceback (most recent call last):
        ...
        ValueError: tracker must be one of csv, tensorboard, mlflow, wandb; got 'cvs'; did you mean 'csv'?
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        TRACKERS.check(name)
    return names


def make_trackers(names: Sequence[str], folder: Path, run: str, settings: dict[str, Any]) -> list[Callback]:
    """Return the trackers of some names; arguments are those of `Tracker`.

    Raises:
        ValueError: there is no tracker of a name.
        ImportError: a tracker's package is not installed.
    """
    require_trackers(names)
    return [TRACKERS[name](folder, run, settings) for name in names]


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed.

    Raises:
        ImportError: the message names the package.
    """
    for name in names:
        needed = TRACKERS[name].needs
        if needed is not None and importlib.util.find_spec(needed[0]) is None:
            raise ImportError(f"the tracker {name} needs a package that is not installed: pip install {needed[1]}")


def scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record by name, and the means of its lists; not the round, nor matrices.

    Example:
        >>> list(scalars({"round": 3, "accuracy": {"test": [0.5, None, 0.7]}, "confusion": [[1, 0]], "probe": None}))
        [('accuracy/test', 0.6)]
    """
    for name, value in _flatten({key: value for key, value in record.items() if key != "round"}, "/"):
        if isinstance(value, (list, tuple)):
            if any(isinstance(item, (list, tuple)) for item in value):
                continue
            value = mean_of(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def _flatten(table: dict[str, Any], between: str = ".", before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, between, f"{before}{key}{between}")
        else:
            yield before + key, value
