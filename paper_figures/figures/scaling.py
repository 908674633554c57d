"""Seconds per round and memory over the number of devices, and speed-up over ranks."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dmmlkd_ext.experiments.show import style, words
from paper_figures.collect import benchmarks
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions

EXPERIMENTS: tuple[str, ...] = ()
TITLE = "Scale"
POPULATION, DISTRIBUTED = "population_scale.json", "distributed_scaling.json"
NEEDS = (
    f"{POPULATION} or {DISTRIBUTED} with rows in the results of the benchmarks; `python -m "
    "tests.benchmarks.population.scale --write` writes the first, `python -m tests.benchmarks.distributed.scaling "
    "--write` the second"
)
FLOAT_BYTES = 4
_MODES = {"strong": ("#0072B2", "o"), "weak": ("#D55E00", "D")}


def transform(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the measurements over numbers of devices, and over ranks."""
    population, distributed = (benchmarks.load_json(results.benchmarks / name) for name in (POPULATION, DISTRIBUTED))
    return over_devices(population), over_ranks(distributed)


def over_devices(content: dict[str, Any]) -> pd.DataFrame:
    """Return columns measure, devices, seconds_per_round, memory_bytes of `population_scale.json`.

    Memory is the peak above what the process held before: floats per parameter, parameters per device, devices.
    """
    columns = ["measure", "devices", "seconds_per_round", "memory_bytes"]
    found = [
        (
            "devices",
            int(row["devices"]),
            row["seconds_a_round"],
            FLOAT_BYTES * row["peak_floats_a_parameter"] * row["parameters_a_device"] * row["devices"],
        )
        for row in content.get("rows", [])
    ]
    return pd.DataFrame(found, columns=columns).sort_values("devices", ignore_index=True)


def over_ranks(content: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of `distributed_scaling.json` with their speed-up over one rank.

    Strong scaling keeps the devices, and its ideal speed-up is the number of ranks; weak scaling keeps the devices per
    rank, and its speed-up is the work done in the same time: ranks times seconds of one rank over seconds.

    Returns:
        Columns measure, mode, ranks, devices, seconds_per_round, bytes_sent_per_round, communication_share, speed_up;
        the speed-up is not a number where one rank was not measured.
    """
    names = ["mode", "ranks", "devices", "seconds_per_round", "bytes_sent_per_round", "communication_share"]
    rows = pd.DataFrame(content.get("rows", []), columns=names)
    rows = rows.sort_values(["mode", "ranks"], ignore_index=True).assign(measure="ranks")
    single = rows[rows["ranks"] == 1].drop_duplicates("mode").set_index("mode")["seconds_per_round"]
    factor = rows["ranks"].where(rows["mode"] == "weak", 1)
    return rows.assign(speed_up=factor * rows["mode"].map(single).astype(float) / rows["seconds_per_round"])


def draw(devices: pd.DataFrame, ranks: pd.DataFrame) -> Figure:
    """Draw seconds and memory over devices, and speed-up over ranks; what is not there has no panel."""
    panels = [name for name in ("seconds_per_round", "memory_bytes") if len(devices)]
    panels += ["speed_up"] if ranks["speed_up"].notna().any() else []
    figure, axes = style.panels(1, max(1, len(panels)), 1.9)
    for axis, name in zip(axes[0], panels, strict=False):
        if name == "speed_up":
            _draw_ranks(axis, ranks)
        else:
            _draw_devices(axis, devices, name)
    return figure


def _draw_devices(axis: Axes, devices: pd.DataFrame, name: str) -> None:
    scale, label = (1.0, "Seconds a round") if name == "seconds_per_round" else (2.0**-20, "Peak memory (MiB)")
    places, values = devices["devices"].to_numpy(dtype=float), scale * devices[name].to_numpy(dtype=float)
    axis.plot(places, values, color="#0072B2", marker="o", markeredgecolor="white")
    if len(places) > 1:
        linear = values[-1] * places / places[-1]
        axis.plot(places, linear, color="#7F7F7F", linestyle=":", linewidth=1.0, label="in proportion")
        axis.legend(fontsize=7, loc="upper left")
    axis.set(xscale="log", yscale="log", xlabel="Devices", ylabel=label)
    axis.xaxis.set_major_locator(FixedLocator(list(places)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_ranks(axis: Axes, ranks: pd.DataFrame) -> None:
    most = int(ranks["ranks"].max())
    axis.plot([1, most], [1, most], color="#7F7F7F", linestyle=":", linewidth=1.0, label="ideal")
    for mode, rows in ranks.dropna(subset=["speed_up"]).groupby("mode"):
        colour, marker = _MODES.get(str(mode), ("#7F7F7F", "s"))
        axis.plot(rows["ranks"], rows["speed_up"], color=colour, marker=marker, markeredgecolor="white", label=mode)
    axis.set(xlabel="Ranks", ylabel="Speed-up over one rank")
    axis.set_xticks(sorted(ranks["ranks"].unique()))
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, loc="upper left")


def caption(results: Results, devices: pd.DataFrame, ranks: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, what is not, the numbers, the machine."""
    shown = (
        "Seconds per round and peak memory, above what the process held before, of the stacked population over the "
        "number of devices, logarithmic axes; the dotted line is in proportion to the last point. "
        "Speed-up over one rank: strong scaling keeps the number of devices, weak scaling keeps the devices per rank "
        "and counts the work done in the same time; the dotted line is ideal. "
        "Each point is one measurement without an interval."
    )
    shown += captions.absent({POPULATION: len(devices) > 0, DISTRIBUTED: len(ranks) > 0})
    lines = [
        f"- {row['devices']:,} devices: {words.quantity(row['seconds_per_round'], 's')} per round, peak of "
        f"{row['memory_bytes'] / 2**20:,.0f} MiB"
        for row in devices.to_dict("records")
    ]
    lines += [
        f"- {row['mode']} scaling, {row['ranks']} rank{'s' if row['ranks'] > 1 else ''}, {row['devices']} devices: "
        f"{words.quantity(row['seconds_per_round'], 's')} per round, speed-up {row['speed_up']:.2f}, "
        f"{words.quantity(row['bytes_sent_per_round'], 'B')} sent per round, {row['communication_share']:.0%} of "
        "the time in communication"
        for row in ranks.to_dict("records")
    ]
    provenance = []
    for name, rows in ((POPULATION, devices), (DISTRIBUTED, ranks)):
        if len(rows):
            machine = benchmarks.load_json(results.benchmarks / name).get("machine", {})
            provenance += [f"- `{name}`", *(f"  {line}" for line in benchmarks.describe_machine(machine))]
    return shown, {"What was found": lines, "Provenance": provenance}
