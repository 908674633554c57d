"""The measurement of scaling counts what it says, and the projection adds up."""

from __future__ import annotations

import json

import numpy as np
import pytest

import dmmlkd_ext.training.round as round_module
from dmmlkd_ext.training.exchange import mix as exchange
from dmmlkd_ext.training.exchange.mix import divide_weights
from dmmlkd_ext.training.exchange.ranks import Ranks, Slice
from dmmlkd_ext.training.exchange.slices import slice_devices
from dmmlkd_ext.wireless.mixing import metropolis_hastings
from dmmlkd_ext.wireless.topology import build_topology
from paper_figures.figures.scaling import over_ranks
from tests.benchmarks.distributed.projection import Assumptions, boundary, project, read, tables
from tests.benchmarks.distributed.rank import least_bytes, measure
from tests.benchmarks.distributed.scaling import STAGES, summarize, table
from tests.distributed.threads import Numbered


@pytest.fixture(scope="module")
def found() -> dict:
    """Return what one process finds in two rounds of ten devices."""
    return measure(Ranks(), "perceptron", "task", devices=10, rounds=2, iterations=1, pairs=1)


def test_a_round_is_measured_and_nothing_stays_watched(found: dict) -> None:
    stages = np.array([found["stages"][stage] for stage in STAGES])
    assert stages.shape == (3, 2)
    assert (stages > 0).all()
    assert (stages.sum(axis=0) < found["seconds"]).all()
    assert found["communication"] == [0.0, 0.0]
    assert found["bytes_sent"] == found["least_bytes"] == found["collective_bytes"] == found["links_cut"] == 0
    assert found["links"] == 20
    assert round_module.train.__name__ == "train"
    assert exchange.mix.__name__ == "mix"


@pytest.mark.parametrize("ranks", [2, 4])
def test_routes_send_the_least(ranks: int) -> None:
    generator = np.random.default_rng(0)
    edges = build_topology("watts_strogatz", 40, generator).edges
    owner = slice_devices(edges, 40, ranks)
    holders = generator.random(40) < 0.7
    matrix, members = metropolis_hastings(edges, 40, holders), np.flatnonzero(holders)
    rows = 0
    for rank in range(ranks):
        _, route = divide_weights(matrix, members, Slice(Numbered(rank, ranks), owner))
        rows += sum(len(wanted) for wanted in route.sends.values())
    assert rows > 0
    assert least_bytes(edges, owner, [(holders, 7)]) == 4 * 7 * rows


def scaling(found: dict) -> dict:
    """Return a file of results in which two ranks took half the time of one, and sent as much as they must."""
    halved = {
        **found,
        "seconds": [second / 2 for second in found["seconds"]],
        "communication": [second / 8 for second in found["seconds"]],
        "bytes_sent": 3000.0,
        "least_bytes": 2000,
        "collective_bytes": 800.0,
        "gathered_numbers": 15.0,
        "overlap": [1.5, 0.5, 1.25],
    }
    rows = [summarize("strong", 1, 10, [found]), summarize("strong", 2, 10, [halved, halved])]
    return {"options": {"iterations": 1}, "replicated": {"devices": 100, "seconds": 0.01}, "rows": rows}


def test_the_figure_and_the_table_tell_what_was_found(found: dict) -> None:
    content = json.loads(json.dumps(scaling(found)))
    assert over_ranks(content)["speed_up"].tolist() == pytest.approx([1.0, 2.0])
    assert over_ranks(content)["communication_share"].tolist() == pytest.approx([0.0, 0.25])
    one, two = table(content["rows"]).splitlines()[2:]
    assert one.startswith("| strong | 1 | 10 |")
    assert "| 2.00 | 3,000 (1.500) | 800 | 25% |" in two
    assert two.endswith("| 0 of 20 | 1.25 |")


def test_the_projection_takes_its_numbers_from_the_measurement(found: dict) -> None:
    content = scaling(found)
    memory = [{"devices": 10, "peak_floats_a_parameter": 9.0}, {"devices": 100, "peak_floats_a_parameter": 3.5}]
    measured = read(content, {"rows": memory})
    assert measured.peak_floats == 3.5
    assert measured.training_s == pytest.approx(content["rows"][0]["training_seconds"] / 10)
    assert measured.replicated_s == pytest.approx(1e-4)
    ring = np.array([[i, (i + 1) % 8] for i in range(8)])
    graph = boundary(ring, np.repeat([0, 1], 4), 2)
    assert (graph.links_cut, graph.rows_sent, graph.most_received, graph.most_devices) == (2, 4, 2, 4)
    gpu = project(8, graph, measured, Assumptions(operations=1e6, memory_bandwidth=1e30), on_gpus=True)
    assert gpu.training_s == pytest.approx(6 * 32 * 4 * measured.parameters / 1e6)
    assert gpu.seconds == pytest.approx(
        gpu.training_s + gpu.mixing_s + gpu.exchange_s + gpu.gathering_s + gpu.replicated_s
    )
    assert f"| rows sent a round | 4 P s | {8e-9 * measured.parameters:.3g} GB |" in tables(
        8, 2, graph, measured, Assumptions()
    )
    with pytest.raises(ValueError, match="must have rows of one rank and of several, got 1 and 0"):
        read({**content, "rows": content["rows"][:1]}, {"rows": memory})
