"""A million devices on 64 GPUs, by calculation: memory, bytes and seconds a round.

Run with `python -m tests.benchmarks.distributed.extrapolate`; it prints the table of SCALE.md beside it. Nothing here
ran on such machines: the table tells what is computed from the code (parameters, operations, links between ranks), what
is measured here (one core's work on what every rank knows of every device) and what is assumed (the machines' rates).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np

from dmmlkd_ext.balance import BalanceConfig, balance_metric, plan_iterations
from dmmlkd_ext.network.channel import ChannelConfig
from dmmlkd_ext.network.energy import EnergyConfig
from dmmlkd_ext.network.failures import FailureConfig
from dmmlkd_ext.network.slices import slice_devices
from dmmlkd_ext.network.topology import build_topology, metropolis_hastings
from dmmlkd_ext.network.wireless import WirelessNetwork
from dmmlkd_ext.seeding import numpy_generator
from tests.benchmarks.distributed.scaling import TOPOLOGY, least_bytes
from tests.benchmarks.population.workloads import WORKLOADS, build

FLOAT_BYTES = 4
STATE_FLOATS = 3
"""Parameters before and after local training, and momentum: what the population holds for each parameter."""
RECORD_BYTES = 8 * 30
"""What a device contributes to the gatherings of a round: about thirty numbers (losses, speeds, accuracies)."""


@dataclass(frozen=True)
class Machine:
    """What is assumed of one GPU and its network."""

    memory_bytes: float = 80e9
    memory_bytes_per_s: float = 3.0e12
    """About nine tenths of what the maker of an H100 states."""
    operations_per_s: float = 10e12
    """Of small batched products in float32, a sixth of what the maker states."""
    network_bytes_per_s: float = 40e9
    """Of a link of 400 Gbit/s for each GPU, four fifths."""


@dataclass(frozen=True)
class Load:
    """What a round asks of a rank.

    Attributes:
        devices: on the rank.
        parameters: of one device.
        operations: floating-point operations of a device's training in a round.
        received_bytes: rows that arrive from other ranks, the most of any rank.
    """

    devices: int
    parameters: float
    operations: float
    received_bytes: float


def seconds_of(load: Load, machine: Machine) -> dict[str, float]:
    """Return the seconds of the parts of a round, if each runs at its limit and none overlaps another.

    Training is bound by its operations; mixing moves the rows three times (read, read of the old ones, write); the halo
    is received once.

    Example:
        >>> load = Load(devices=10, parameters=1e6, operations=1e9, received_bytes=8e6)
        >>> seconds_of(load, Machine(operations_per_s=1e10, memory_bytes_per_s=1.2e9, network_bytes_per_s=1e6))
        {'training': 1.0, 'mixing': 0.1, 'exchange': 8.0}
    """
    return {
        "training": load.devices * load.operations / machine.operations_per_s,
        "mixing": 3 * FLOAT_BYTES * load.devices * load.parameters / machine.memory_bytes_per_s,
        "exchange": load.received_bytes / machine.network_bytes_per_s,
    }


def memory_of(load: Load, halo_bytes: float, chunk_bytes: float = 2e9) -> float:
    """Return the bytes that a rank holds: state, halo, and a bounded chunk of activations and gradients.

    Example:
        >>> memory_of(Load(devices=10, parameters=100.0, operations=0.0, received_bytes=0.0), 800.0, chunk_bytes=0.0)
        12800.0
    """
    return STATE_FLOATS * FLOAT_BYTES * load.devices * load.parameters + halo_bytes + chunk_bytes


def boundary(num_devices: int, ranks: int) -> tuple[float, float]:
    """Return, for devices on a torus, the share of links between ranks and the rows received a rank, a mean."""
    edges = build_topology(TOPOLOGY, num_devices, numpy_generator(0, "topology")).edges
    owner = slice_devices(edges, num_devices, ranks)
    everyone = {"row": np.ones(num_devices, dtype=np.bool_)}
    cut = float((owner[edges[:, 0]] != owner[edges[:, 1]]).mean())
    return cut, least_bytes(edges, owner, everyone, {"row": 1}) / ranks


def seconds_of_what_all_know(num_devices: int, rounds: int = 3) -> tuple[float, float]:
    """Return the seconds a round that every rank spends, on one core, on one number a device: draws, plans, accounts.

    The first is of a round whose links are those of the round before, the second of one with other links, whose mixing
    weights are made anew.
    """
    generator = np.random.default_rng(0)
    topology = build_topology(TOPOLOGY, num_devices, numpy_generator(0, "topology"))
    holds = np.ones((num_devices, 2), dtype=np.bool_)
    everyone = {"shared": holds[:, 0], "left": holds[:, 0], "right": holds[:, 1]}
    network = WirelessNetwork(
        topology, everyone, dict.fromkeys(everyone, 10_000), EnergyConfig(), ChannelConfig(), FailureConfig(), 0
    )
    energy = network.iteration_energy_joule(holds, [1e4, 1e4], 32)
    speeds = generator.random(holds.shape)
    seconds = []
    for index in range(rounds):
        begin = time.perf_counter()
        links = network.draw(index, np.full(num_devices, 1e6))
        available = np.full(num_devices, 12.0) - links.cost.energy_joule
        metric = balance_metric(speeds, holds)
        plan = plan_iterations(BalanceConfig(policy="balanced"), metric, energy, available, available, 10, holds)
        plan.energy_joule(energy, "drop")
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for held in everyone.values():
        metropolis_hastings(topology.edges, num_devices, held)
    return statistics.median(seconds), statistics.median(seconds) + time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="mfeat")
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=64)
    options = parser.parse_args()
    workload, machine = WORKLOADS[options.workload], Machine()
    simulation, _ = build(workload, "all losses", 1000)
    network, blocks = simulation.population.network, simulation.population.blocks
    parameters = sum(block.start.numel() for block in blocks.values()) / 1000
    training = workload.training
    macs = sum(
        network.forward_macs[name] * float(simulation.holds[:, i].mean()) for i, name in enumerate(network.modalities)
    )
    operations = 6.0 * macs * training.batch_size * training.local_iterations  # forward, and twice that backward
    cut, rows = boundary(options.devices, options.ranks)
    received = rows * parameters * FLOAT_BYTES
    load = Load(options.devices // options.ranks, parameters, operations, received)
    seconds = seconds_of(load, machine)
    memory = memory_of(load, received)
    same_links, other_links = seconds_of_what_all_know(options.devices)
    state = STATE_FLOATS * FLOAT_BYTES * load.devices * parameters
    gathered = RECORD_BYTES * options.devices
    computed, assumed, measured = "computed", "assumed", "measured here, one core"
    rows_of_table = (
        ("devices a GPU", f"{load.devices:,}", computed, "an even share"),
        ("parameters a device, a mean", f"{parameters:,.0f}", computed, "the network, and who holds which modality"),
        ("state a GPU", f"{state / 1e9:.1f} GB", computed, "3 floats a parameter"),
        ("links between GPUs", f"{100 * cut:.2f} %", computed, "the partition of a torus of that size"),
        ("halo a GPU", f"{rows:,.0f} rows, {received / 1e9:.2f} GB", computed, "each boundary row once to each rank"),
        ("memory a GPU", f"{memory / 1e9:.1f} GB", computed, "state, halo, and 2 GB for activations"),
        ("operations a device and round", f"{operations / 1e9:.2f} G", computed, "6 a multiply-accumulate"),
        ("training", f"{seconds['training']:.2f} s", assumed, f"{machine.operations_per_s / 1e12:.0f} TFLOP/s"),
        ("mixing", f"{seconds['mixing']:.3f} s", assumed, f"{machine.memory_bytes_per_s / 1e12:.1f} TB/s, 3 streams"),
        ("exchange", f"{seconds['exchange']:.3f} s", assumed, f"{machine.network_bytes_per_s / 1e9:.0f} GB/s a GPU"),
        ("gathered by every rank", f"{gathered / 1e6:.0f} MB", computed, "about 30 numbers a device"),
        ("draws, plans and accounts", f"{same_links:.1f} s", measured, "every rank does them for all devices"),
        ("the same, with new links", f"{other_links:.1f} s", measured, "mixing weights of three blocks made anew"),
    )
    print(f"{options.devices:,} devices on {options.ranks} GPUs, {options.workload}, all losses, a round:\n")
    print("| quantity | value | how | from |\n|---|---|---|---|")
    for row in rows_of_table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
