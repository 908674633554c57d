"""The command `data`, as a dataclass: its fields are the options."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dmmlkd_ext.data import FILES, ChecksumError, DataUnavailableError, available_datasets, load_dataset
from dmmlkd_ext.experiments.commands.command import UnavailableError, UserError
from dmmlkd_ext.experiments.config.presets import PRESETS, preset
from dmmlkd_ext.experiments.config.settings import override_settings
from dmmlkd_ext.plugins import import_modules


@dataclass(frozen=True)
class DataCommand:
    """List the datasets, fetch some of them now, or show what one gives to each device.

    `dmmlkd data show watch --set data.num_devices=14 -o watch.png` shows devices, classes, modalities and links.
    """

    action: tyro.conf.Positional[Literal["list", "fetch", "show"]] = "list"
    """What to do."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of datasets to fetch, or of one to show."""
    module: tuple[str, ...] = ()
    """Python files or modules of your own to import first, which register a dataset for instance; may be repeated."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """`show`: settings that differ from the recommended ones: `data.num_devices=4 data.options.file=robots.npz`."""
    seed: int = 0
    """`show`: the run's seed, which decides who gets what."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """`show`: file of a picture, such as `watch.png`."""

    def execute(self) -> int:
        """List, fetch or show; return 1 if a dataset is not available."""
        try:
            import_modules(*self.module)
        except ValueError as error:
            raise UserError(str(error)) from error
        known = available_datasets()
        if self.action == "list":
            for name in known:
                about = "  (has recommended settings)" if name in PRESETS else ""
                print(name + ("  (a file of yours, by --data.options file FILE)" if name in FILES else about))
            return 0
        unknown = [name for name in self.names if name not in known]
        if unknown or not self.names:
            raise UserError(f"names must be some of {', '.join(known)}; got {', '.join(unknown) or 'none'}")
        return max(_fetch(name) for name in self.names) if self.action == "fetch" else self._show()

    def _show(self) -> int:
        from dmmlkd_ext.experiments.overview import describe, draw, survey

        if len(self.names) != 1:
            raise UserError(f"names must be one dataset to show, got {', '.join(self.names)}")
        try:
            config = dataclasses.replace(preset(self.names[0], seed=self.seed), module=self.module)
            overview = survey(override_settings(config, self.settings))
            print(describe(overview))
            if self.output is not None:
                draw(overview, self.output)
                print(f"picture: {self.output}")
        except ValueError as error:
            raise UserError(str(error)) from error
        except (DataUnavailableError, ChecksumError, ImportError) as error:
            raise UnavailableError(str(error)) from error
        return 0


def _fetch(name: str) -> int:
    try:
        dataset = load_dataset(name)
    except (DataUnavailableError, ChecksumError, ImportError, OSError, ValueError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    counts = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    sizes = ", ".join(f"{len(counts[side])} {side}" for side in ("train", "validation", "test"))
    print(f"{name}: {sizes} samples; {dataset.num_classes} classes; {', '.join(dataset.modalities)}")
    return 0
