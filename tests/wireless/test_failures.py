"""Failures are drawn by round, read from schedules, and never move the mean."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.wireless.failures import (
    FailureConfig,
    Failures,
    ScheduledFailure,
    read_schedule,
)
from dmmlkd_ext.wireless.mixing import metropolis_hastings
from dmmlkd_ext.wireless.topology import build_topology


def graph(name="ring", count=6):
    return build_topology(name, count, numpy_generator(0, "topology"))


def mixing(topology, survivors, members=None):
    """Return the weights on what survives, as the round makes them of the links that work."""
    return metropolis_hastings(topology.edges[survivors.links], topology.num_devices, members)


def scheduled(tmp_path, text, topology, name="failures.csv"):
    path = tmp_path / name
    path.write_text(text)
    return Failures(FailureConfig(schedule_path=str(path)), topology, seed=0)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 25), st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_the_mean_is_kept_under_failures(count, link_probability, device_probability, seed):
    topology = graph("complete", count)
    failures = Failures(FailureConfig(link_probability, device_probability), topology, seed)
    members = np.random.default_rng(seed).random(count) < 0.7
    values = np.random.default_rng(seed).normal(size=int(members.sum()))
    mean = values.sum()
    for index in range(5):
        survivors = failures.draw(index)
        matrix = mixing(topology, survivors, members)
        mixed = matrix @ values
        np.testing.assert_array_equal(mixed[~survivors.devices[members]], values[~survivors.devices[members]])
        values = mixed
    np.testing.assert_allclose(values.sum(), mean, atol=1e-12)


def test_links_and_devices_fail_apart():
    ring = graph("ring", 400)  # as many links as devices
    links, devices = Failures(FailureConfig(0.5, 0.0), ring, seed=3), Failures(FailureConfig(0.0, 0.5), ring, seed=3)
    alike = [np.mean(links.draw(index).links == devices.draw(index).devices) for index in range(5)]
    assert 0.4 < min(alike) <= max(alike) < 0.6


def test_whether_a_device_fails_does_not_depend_on_the_links_there_are():
    config = FailureConfig(0.3, 0.5)
    first, second = (Failures(config, graph(name, 30), seed=3) for name in ("ring", "complete"))
    for index in range(5):
        assert first.draw(index).devices.tolist() == second.draw(index).devices.tolist()


def test_failures_have_their_probabilities():
    topology = graph("complete", 60)
    failures = Failures(FailureConfig(0.2, 0.1), topology, seed=5)
    draws = [failures.draw(index) for index in range(50)]
    devices = np.mean([draw.devices.mean() for draw in draws])
    links = np.mean([draw.links.mean() for draw in draws])
    assert abs(devices - 0.9) < 0.025
    assert abs(links - 0.8 * 0.9**2) < 0.04


def test_certain_failures():
    topology = graph("complete", 8)
    dead = Failures(FailureConfig(device_probability=1.0), topology, seed=0).draw(0)
    assert not dead.devices.any()
    assert not dead.links.any()
    cut = Failures(FailureConfig(link_probability=1.0), topology, seed=0).draw(0)
    assert cut.devices.all()
    np.testing.assert_array_equal(mixing(topology, cut).toarray(), np.eye(8))


def test_a_draw_depends_on_seed_and_round_alone():
    topology = graph("complete", 20)
    config = FailureConfig(0.3, 0.2)
    failures = Failures(config, topology, seed=1)
    failures.draw(0)
    again = Failures(config, topology, seed=1).draw(3)
    np.testing.assert_array_equal(failures.draw(3).links, again.links)
    np.testing.assert_array_equal(failures.draw(3).devices, again.devices)
    assert (failures.draw(3).links != failures.draw(4).links).any()
    more_links = Failures(FailureConfig(0.9, 0.2), topology, seed=1).draw(3)
    np.testing.assert_array_equal(more_links.devices, again.devices)


def test_without_failures_the_matrix_is_the_whole_graphs():
    topology = graph("random_geometric", 12)
    survivors = Failures(FailureConfig(), topology, seed=0).draw(0)
    whole = metropolis_hastings(topology.edges, 12)
    assert (mixing(topology, survivors) != whole).nnz == 0


SCHEDULE = "round,kind,ids\n1,link,0-1 3-2\n2-3,device,4\n\n3, partition ,0 1 2\n"


def test_a_schedule_is_read(tmp_path):
    path = tmp_path / "failures.csv"
    path.write_text(SCHEDULE)
    expected = [
        ScheduledFailure(1, 1, "link", ((0, 1), (3, 2))),
        ScheduledFailure(2, 3, "device", ((4,),)),
        ScheduledFailure(3, 3, "partition", ((0,), (1,), (2,))),
    ]
    assert read_schedule(path) == expected
    lines = [
        {"round": 1, "kind": "link", "ids": [[0, 1], [3, 2]]},
        {"round": "2-3", "kind": "device", "ids": [4]},
        {"round": 3, "kind": "partition", "ids": [0, 1, 2]},
    ]
    path = tmp_path / "failures.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_schedule(path) == expected


def test_a_schedule_takes_down_what_it_names_in_its_rounds(tmp_path):
    topology = graph("ring", 6)  # 0-1 0-5 1-2 2-3 3-4 4-5
    failures = scheduled(tmp_path, SCHEDULE, topology)

    def lost(index):
        return [tuple(edge) for edge in topology.edges[~failures.draw(index).links].tolist()]

    assert lost(0) == []
    assert lost(1) == [(0, 1), (2, 3)]
    assert lost(2) == [(3, 4), (4, 5)]
    assert lost(3) == [(0, 5), (2, 3), (3, 4), (4, 5)]
    assert lost(4) == []
    assert failures.draw(2).devices.tolist() == [True, True, True, True, False, True]


def test_a_partitioned_network_heals(tmp_path):
    topology = graph("complete", 6)
    failures = scheduled(tmp_path, "round,kind,ids\n0-4,partition,0 1 2\n", topology)
    values = np.arange(6.0)
    for index in range(5):
        values = mixing(topology, failures.draw(index)) @ values
    np.testing.assert_allclose(values, [1, 1, 1, 4, 4, 4])
    np.testing.assert_allclose(mixing(topology, failures.draw(5)) @ values, 2.5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "when,kind,ids\n", "schedule_path: line 1 of .* must be round,kind,ids; got 'when,kind,ids'"),
        ("a.csv", "", "schedule_path: line 1 of .* must be round,kind,ids; got ''"),
        ("a.csv", "round,kind,ids\n1,device\n", "schedule_path: line 2 of .* must have 3 fields, got 2"),
        ("a.csv", "round,kind,ids\n1,device,x\n", "schedule_path: line 2 of .* must have numbers .* got 'x'"),
        ("a.csv", "round,kind,ids\n\n-1,device,0\n", "schedule_path: line 3 of .* must have numbers .* got ''"),
        ("a.csv", "round,kind,ids\n5-2,device,0\n", "schedule_path: line 2 of .*: round must be .* got '5-2'"),
        ("a.csv", "round,kind,ids\n1,flood,0\n", "schedule_path: line 2 of .*: kind must be one of link.*'flood'"),
        ("a.csv", "round,kind,ids\n1,link,0\n", "schedule_path: line 2 of .*: ids must be pairs of devices"),
        ("a.csv", "round,kind,ids\n1,device,0-1\n", "schedule_path: line 2 of .*: ids must be devices"),
        ("a.csv", "round,kind,ids\n1,device,\n", "schedule_path: line 2 of .*: ids must be devices"),
        (
            "a.csv",
            "round,kind,ids\n1,device,6\n",
            "schedule_path: device must have devices from 0 to 5, got 6",
        ),
        (
            "a.csv",
            "round,kind,ids\n1,link,0-3\n",
            "schedule_path: link must be one of the topology's, got 0-3",
        ),
        ("a.jsonl", "{\n", "schedule_path: line 1 of .* must be a JSON object"),
        ("a.jsonl", '\n{"round": 1}\n', "schedule_path: line 2 of .* must be an object with round, kind"),
        (
            "a.jsonl",
            '{"round": 1, "kind": "device", "ids": [true]}',
            "line 1 of .* must have numbers .* got 'True'",
        ),
        ("a.jsonl", '{"round": 1.5, "kind": "device", "ids": [1]}', "line 1 of .* must have numbers .* got '1.5'"),
        ("a.jsonl", '{"round": 1, "kind": ["link"], "ids": [1]}', "line 1 of .*: kind must be one of link"),
    ],
)
def test_a_malformed_schedule_is_refused_with_its_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        scheduled(tmp_path, text, graph("ring", 6), name)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_schedule_may_begin_with_a_byte_order_mark(tmp_path, name):
    text = "round,kind,ids\n2,device,1\n" if name == "a.csv" else '{"round": 2, "kind": "device", "ids": [1]}'
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    assert read_schedule(path) == [ScheduledFailure(2, 2, "device", ((1,),))]
    path.write_text(text.replace("device", "devicé"), encoding="latin-1")
    line = 2 if name == "a.csv" else 1
    with pytest.raises(
        ValueError, match=rf"schedule_path: line {line} of .*{name} must be UTF-8 text, got the byte 0xe9"
    ):
        read_schedule(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FailureConfig(link_probability=1.5), "link_probability must be between 0 and 1, got 1.5"),
        (lambda: FailureConfig(device_probability=-1), "device_probability must be between 0 and 1, got -1"),
        (lambda: Failures(FailureConfig(), graph(), seed=-1), "seed must be at least 0, got -1"),
        (
            lambda: Failures(FailureConfig(), graph(), seed=0).draw(-1),
            "round_index must be at least 0, got -1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
