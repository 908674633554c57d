"""What a million devices would take on 64 GPUs, by calculation from what was measured on this machine.

Run with `python -m tests.benchmarks.distributed.projection`; `--help` lists the options, `--write` puts the tables into
SCALE.md. It reads `distributed_scaling.json` and `population_scale.json`, and divides a graph of the full size as a run
would. Nothing of the GPUs is measured: what they and their network can do is assumed, and the table says so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.exchange.slices import links_cut, slice_devices
from dmmlkd_ext.training.keep.files import write_text
from dmmlkd_ext.wireless.topology import build_topology
from tests.benchmarks.distributed.rank import DOUBLE_BYTES, FLOAT_BYTES, boundary_rows
from tests.benchmarks.distributed.scaling import NAME
from tests.benchmarks.population.workloads import TOPOLOGY
from tests.benchmarks.results import FOLDER

PAGE = Path(__file__).parents[1] / "SCALE.md"
BEGIN, END = "<!-- what projection --write prints begins -->", "<!-- and ends -->"


@dataclass(frozen=True)
class Assumptions:
    """What nobody measured here; bytes and operations a second are what is reached, not what a data sheet says."""

    memory_bytes: float = 80e9
    """Of a GPU."""
    memory_bandwidth: float = 2.0e12
    """Bytes a second of a GPU's memory."""
    operations: float = 20e12
    """Single-precision operations a second of a GPU."""
    row_bandwidth: float = 20e9
    """Bytes a second that a rank sends while it receives as much, by nccl."""
    number_bandwidth: float = 1e9
    """Bytes a second that a rank receives in a gathering, by gloo between hosts."""
    training_floats: float = 9.0
    """Floats that move a parameter and local iteration: weights twice, gradient written and read twice, parameter and
    momentum read and written."""
    batch_size: float = 32.0
    """Samples of a local iteration; each takes 6 operations a parameter: forward, and backward twice as much."""
    degree: float = 4.0
    """Neighbours of a device; a row is taken from memory once for each of them."""


@dataclass(frozen=True)
class Boundary:
    """How a graph falls apart over ranks."""

    links: int
    links_cut: int
    rows_sent: int
    """Rows of a block that all devices have, over all ranks, of one exchange."""
    most_received: int
    """Of the rank that receives most."""
    most_sent: int
    most_devices: int


@dataclass(frozen=True)
class Measured:
    """Of one device, where it is not said otherwise; seconds are of a core."""

    parameters: float
    peak_floats: float
    """Floats that are held at the peak of a round, a parameter."""
    iterations: int
    training_s: float
    """A local iteration."""
    mixing_s: float
    replicated_s: float
    """Of what every rank computes for all devices, a device."""
    gathered_numbers: float
    summed_numbers: float
    """Of a whole round, not of a device."""


@dataclass(frozen=True)
class Projection:
    """Of the fullest rank and one round."""

    memory_bytes: float
    halo_bytes: float
    sent_bytes: float
    checkpoint_bytes: float
    """Parameters and momentum."""
    gathered_bytes: float
    training_s: float
    mixing_s: float
    exchange_s: float
    gathering_s: float
    replicated_s: float

    @property
    def seconds(self) -> float:
        """Nothing overlaps."""
        return self.training_s + self.mixing_s + self.exchange_s + self.gathering_s + self.replicated_s


def divide(devices: int, ranks: int) -> Boundary:
    """Divide a graph of the benchmarks' kind as a run would.

    Example:
        >>> divide(12, 1)
        Boundary(links=24, links_cut=0, rows_sent=0, most_received=0, most_sent=0, most_devices=12)
    """
    edges = build_topology(TOPOLOGY, devices, numpy_generator(0, "topology")).edges
    return boundary(edges, slice_devices(edges, devices, ranks), ranks)


def boundary(edges: npt.NDArray[np.int64], owner: npt.NDArray[np.int64], ranks: int) -> Boundary:
    """Count the rows that pass between ranks: each once to each rank that needs it.

    Example:
        >>> star = np.array([[0, 1], [0, 2], [0, 3]])
        >>> boundary(star, np.array([0, 1, 1, 1]), 2)
        Boundary(links=3, links_cut=3, rows_sent=4, most_received=3, most_sent=3, most_devices=3)
    """
    rows = boundary_rows(edges, owner)
    received = np.bincount(rows[:, 1], minlength=ranks)
    sent = np.bincount(owner[rows[:, 0]], minlength=ranks)
    most = int(np.bincount(owner).max())
    return Boundary(len(edges), links_cut(edges, owner), len(rows), int(received.max()), int(sent.max()), most)


def project(devices: int, graph: Boundary, measured: Measured, assumed: Assumptions, on_gpus: bool) -> Projection:
    """Return what a round takes on the fullest rank, which is a GPU or a core as it was measured.

    Example:
        >>> core = Measured(1000, 4.0, iterations=10, training_s=1e-4, mixing_s=1e-5, replicated_s=1e-6,
        ...                 gathered_numbers=10, summed_numbers=0)
        >>> half = Boundary(20, 4, rows_sent=10, most_received=5, most_sent=5, most_devices=50)
        >>> found = project(100, half, core, Assumptions(row_bandwidth=1e6), on_gpus=False)
        >>> round(found.memory_bytes), found.sent_bytes, found.gathered_bytes
        (820000, 20000, 8000)
        >>> round(found.training_s, 6), round(found.exchange_s, 6), round(found.replicated_s, 6)
        (0.05, 0.02, 0.0001)
    """
    row = FLOAT_BYTES * measured.parameters
    own, halo = graph.most_devices, graph.most_received
    training_s, mixing_s = own * measured.iterations * measured.training_s, own * measured.mixing_s
    if on_gpus:
        parameters = own * measured.iterations * measured.parameters
        moving = FLOAT_BYTES * assumed.training_floats * parameters / assumed.memory_bandwidth
        training_s = max(moving, 6 * assumed.batch_size * parameters / assumed.operations)
        # Neighbours and the row itself; the row before training; the result.
        mixing_s = row * own * (assumed.degree + 3) / assumed.memory_bandwidth
    gathered = DOUBLE_BYTES * measured.gathered_numbers * devices
    summed = 2 * DOUBLE_BYTES * measured.summed_numbers
    return Projection(
        memory_bytes=row * (own * measured.peak_floats + halo),
        halo_bytes=row * halo,
        sent_bytes=row * graph.most_sent,
        checkpoint_bytes=2 * row * own,
        gathered_bytes=gathered,
        training_s=training_s,
        mixing_s=mixing_s,
        exchange_s=row * max(halo, graph.most_sent) / assumed.row_bandwidth,
        gathering_s=(gathered + summed) / assumed.number_bandwidth,
        replicated_s=devices * measured.replicated_s,
    )


def read(scaling: dict[str, Any], population: dict[str, Any]) -> Measured:
    """Return what the measurements say of a device: of the one rank with most devices; numbers, of several ranks.

    Raises:
        ValueError: rows of one rank, or of several, are missing.
    """
    single = [row for row in scaling["rows"] if row["ranks"] == 1]
    several = [row for row in scaling["rows"] if row["ranks"] > 1]
    if not (single and several):
        raise ValueError(f"{NAME} must have rows of one rank and of several, got {len(single)} and {len(several)}")
    row = max(single, key=lambda row: row["devices"])
    devices, iterations = row["devices"], scaling["options"]["iterations"]
    memory = max(population["rows"], key=lambda row: row["devices"])
    return Measured(
        parameters=row["parameters_a_device"],
        peak_floats=memory["peak_floats_a_parameter"],
        iterations=iterations,
        training_s=row["training_seconds"] / devices / iterations,
        mixing_s=row["mixing_seconds"] / devices,
        replicated_s=scaling["replicated"]["seconds"] / scaling["replicated"]["devices"],
        gathered_numbers=several[0]["gathered_numbers_a_device"],
        summed_numbers=several[0]["summed_numbers"],
    )


def largest_model(graph: Boundary, measured: Measured, assumed: Assumptions) -> float:
    """Return the parameters of a device of which a GPU's share of devices still fits."""
    return assumed.memory_bytes / FLOAT_BYTES / (graph.most_devices * measured.peak_floats + graph.most_received)


def tables(devices: int, ranks: int, graph: Boundary, measured: Measured, assumed: Assumptions) -> str:
    """Return the page's tables as Markdown: what was put in, and what came out."""
    inputs = [
        ("parameters a device, P", f"{measured.parameters:,.0f}", "measured workload"),
        ("local iterations a round, I", f"{measured.iterations}", "measured workload"),
        ("floats at the peak, a parameter", f"{measured.peak_floats:.2f}", "`population_scale.json`"),
        ("training, a device and iteration", f"{measured.training_s:.3g} s", f"`{NAME}`, a core"),
        ("mixing, a device", f"{measured.mixing_s:.3g} s", f"`{NAME}`, a core"),
        ("replicated, a device of all", f"{measured.replicated_s:.3g} s", f"`{NAME}`, a core"),
        ("numbers gathered, a device", f"{measured.gathered_numbers:.0f}", f"`{NAME}`, counted"),
        ("devices of the fullest rank, n", f"{graph.most_devices:,}", "the graph, divided"),
        ("links cut", f"{graph.links_cut:,} of {graph.links:,}", "the graph, divided"),
        ("rows to the rank that receives most, h", f"{graph.most_received:,}", "the graph, divided"),
        ("rows from the rank that sends most, s", f"{graph.most_sent:,}", "the graph, divided"),
        ("memory of a GPU", f"{assumed.memory_bytes:.3g} B", "assumed"),
        ("its bandwidth, M", f"{assumed.memory_bandwidth:.3g} B/s", "assumed"),
        ("its operations, O", f"{assumed.operations:.3g} a second", "assumed"),
        ("rows between ranks, B", f"{assumed.row_bandwidth:.3g} B/s each way", "assumed"),
        ("numbers between hosts, G", f"{assumed.number_bandwidth:.3g} B/s", "assumed"),
        ("floats moved, a parameter and iteration, f", f"{assumed.training_floats:.3g}", "assumed"),
        ("batch size, b; degree, k", f"{assumed.batch_size:.3g}; {assumed.degree:.3g}", "assumed"),
    ]
    cores, gpus = (project(devices, graph, measured, assumed, on_gpus) for on_gpus in (False, True))
    size, time = "{:.3g} GB".format, "{:.3g} s".format
    results = [
        ("memory of parameters at the peak", "4 P (n * floats + h)", "memory_bytes", size, 1e-9),
        ("of it the halo", "4 P h", "halo_bytes", size, 1e-9),
        ("rows sent a round", "4 P s", "sent_bytes", size, 1e-9),
        ("checkpoint, the rank's file", "8 P n", "checkpoint_bytes", size, 1e-9),
        ("numbers received a round", "8 * numbers * devices", "gathered_bytes", size, 1e-9),
        ("training", "n I * measured; max(4 f P n I / M, 6 b P n I / O)", "training_s", time, 1.0),
        ("mixing", "n * measured; 4 P n (k + 3) / M", "mixing_s", time, 1.0),
        ("exchange of rows", "4 P max(h, s) / B", "exchange_s", time, 1.0),
        ("gathering of numbers", "bytes / G", "gathering_s", time, 1.0),
        ("what every rank computes for all", "devices * measured", "replicated_s", time, 1.0),
        ("a round, nothing overlapped", "sum", "seconds", time, 1.0),
    ]
    lines = ["| put in | | from |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in inputs), ""]
    lines += [f"| {devices:,} devices, the fullest of {ranks} ranks | formula | a core | a GPU |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {formula} | {show(factor * getattr(cores, key))} | {show(factor * getattr(gpus, key))} |"
        for name, formula, key, show, factor in results
    ]
    most = largest_model(graph, measured, assumed)
    return "\n".join([*lines, "", f"The largest model whose devices fit a GPU's memory has {most:,.0f} parameters."])


def insert(page: str, text: str) -> str:
    """Return the page with the text between its marks.

    Example:
        >>> page = insert(f"a {BEGIN} old {END} b", "new").split()
        >>> page[0], "new" in page, "old" in page, page[-1]
        ('a', True, False, 'b')
    """
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Print the tables, and keep them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the measurements are")
    parser.add_argument("--write", action="store_true", help="also put the tables into SCALE.md")
    options = parser.parse_args()
    files = [options.folder / name for name in (NAME, "population_scale.json")]
    missing = [path.name for path in files if not path.exists()]
    if missing:
        parser.error(f"--folder must hold the measurements, it lacks {', '.join(missing)}")
    measured = read(*(json.loads(path.read_text()) for path in files))
    graph = divide(options.devices, options.ranks)
    text = tables(options.devices, options.ranks, graph, measured, Assumptions())
    if options.write:
        write_text(PAGE, insert(PAGE.read_text(), text))
    print(text)


if __name__ == "__main__":
    main()
