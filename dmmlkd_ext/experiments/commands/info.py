"""`dmmlkd info`: versions, what runs natively, and where data are looked for."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from dmmlkd_ext.data import DataUnavailableError, available_datasets
from dmmlkd_ext.data.sources.fetch import data_folders
from dmmlkd_ext.experiments.commands.command import UnavailableError, UserError
from dmmlkd_ext.experiments.config import processor
from dmmlkd_ext.experiments.provenance import describe_environment
from dmmlkd_ext.ops import backend, build_info
from dmmlkd_ext.plugins import import_modules
from dmmlkd_ext.training.methods import METHODS, get_method, method_names


@dataclass(frozen=True)
class InfoCommand:
    """Show versions, the native extension, methods and what trains them, datasets and where data are looked for."""

    module: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Python file or module of your own to import first; may be repeated."""

    def execute(self) -> int:
        """Print it."""
        try:
            import_modules(*self.module)
        except ValueError as error:
            raise UserError(str(error)) from error
        environment = describe_environment(threads=1)
        try:
            folders = data_folders()
        except ValueError as error:
            raise UserError(str(error)) from error
        except DataUnavailableError as error:
            raise UnavailableError(str(error)) from error
        lines = {
            **{key: value for key, value in environment.items() if key not in ("build", "threads")},
            **build_info(),
            "gpus": processor.describe_gpus(),
            "methods": ", ".join(method_names()),
            "local training": _local_training(),
            "datasets": ", ".join(available_datasets()),
            "data folders": ", ".join(map(str, folders)),
        }
        width = max(map(len, lines)) + 2
        for name, value in lines.items():
            print(f"{name:{width}}{value}")
        return 0


def _local_training() -> str:
    """Return which tier trains the methods, and why."""
    if backend() == "reference":
        return f"reference: {build_info()['reason']}"
    on_gpus = "; on a GPU reference: native code trains on a CPU" if processor.name_gpus() else ""
    further = [name for name in method_names() if name not in METHODS and "<" not in name]
    left = [name for name in further if any(get_method(name).losses.further.values())]
    return "native" + (f", but for {', '.join(left)}: loss terms of one's own" if left else "") + on_gpus
