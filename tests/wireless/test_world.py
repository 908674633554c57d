"""Links and costs of a round: the parts, tested elsewhere, put together."""

from __future__ import annotations

import numpy as np
import pytest

from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.wireless.channel import Channel, ChannelConfig
from dmmlkd_ext.wireless.energy import (
    EnergyConfig,
    broadcast_cost,
    computing_energy_joule,
    computing_time_s,
    draw_frequencies_hz,
    training_cycles,
)
from dmmlkd_ext.wireless.failures import FailureConfig, Failures
from dmmlkd_ext.wireless.topology import Topology, build_topology
from dmmlkd_ext.wireless.world import WirelessWorld

WIRELESS = EnergyConfig(model="wireless")
SIZES = {"shared": 100, "image": 5000, "audio": 3000}
HOLDS = np.array([[True, True], [True, False], [True, True], [False, True], [True, True]])


def make_network(topology: str | Topology = "complete", holds: np.ndarray = HOLDS, **settings: object) -> WirelessWorld:
    if isinstance(topology, str):
        topology = build_topology(topology, len(holds), numpy_generator(0, "topology"))
    blocks = {"shared": np.ones(len(holds), dtype=bool), "image": holds[:, 0], "audio": holds[:, 1]}
    arguments = {"energy": WIRELESS, "channel": ChannelConfig(), "failures": FailureConfig(), "seed": 0, **settings}
    return WirelessWorld(topology, blocks, SIZES, **arguments)


def test_a_fixed_exchange_is_free_and_never_fades():
    network = make_network(energy=EnergyConfig())
    for number in range(3):
        links = network.draw(number)
        assert np.array_equal(links.edges, network.topology.edges)
        assert links.devices.all()
        assert not links.cost.energy_joule.any()
        assert not links.cost.time_s.any()
    assert not network.typical_exchange_energy_joule().any()
    assert not network.computing_energy_joule(1e9).any()
    assert network.iteration_energy_joule(HOLDS, [10, 20], 32).tolist() == HOLDS.astype(float).tolist()


def test_a_wireless_exchange_costs_what_channel_and_blocks_make_of_it():
    network = make_network()
    channel = Channel(ChannelConfig(), network.topology, seed=0)
    bits = 32.0 * np.array(list(SIZES.values()))
    holds = np.c_[np.ones(5, dtype=bool), HOLDS]
    drawn = set()
    for number in range(20):
        links, expected = network.draw(number), channel.draw(number)
        assert np.array_equal(links.edges, expected.edges[expected.alive])
        cost = broadcast_cost(bits, holds, expected.edges, expected.rates_bit_per_s, 0.1, expected.alive)
        np.testing.assert_array_equal(links.cost.energy_joule, cost.energy_joule)
        np.testing.assert_array_equal(links.cost.time_s, cost.time_s)
        np.testing.assert_allclose(cost.energy_joule, 0.1 * cost.time_s)
        drawn.add(float(links.cost.time_s.sum()))
    assert len(drawn) == 20


def test_a_round_depends_on_the_seed_and_its_number_alone():
    network, again, other = make_network(), make_network(), make_network(seed=1)
    for number in range(5):
        network.draw(number)
    for number in (3, 1):
        cost = network.draw(number).cost.energy_joule
        assert np.array_equal(again.draw(number).cost.energy_joule, cost)
        assert not np.array_equal(other.draw(number).cost.energy_joule, cost)


def test_the_typical_exchange_is_a_mean_over_rounds():
    network = make_network()
    expected = np.mean([network.draw(number).cost.energy_joule for number in range(20)], axis=0)
    np.testing.assert_allclose(network.typical_exchange_energy_joule(), expected)


def test_every_block_that_a_neighbour_has_is_sent_once():
    # Around device 0, which has both modalities: 1 has only the image, 3 only the audio.
    network = make_network("star", energy=EnergyConfig())
    image, audio, shared = (32.0 * SIZES[name] for name in ("image", "audio", "shared"))
    both = shared + image + audio
    assert network.draw(0).sent_bits.tolist() == [both, shared + image, both, shared + audio, both]


def test_without_exchange_nothing_is_sent_and_nobody_heard():
    network = make_network(exchanges=False)
    links = network.draw(0)
    assert links.edges.shape == (0, 2)
    assert links.devices.all()
    assert not links.sent_bits.any()
    assert not links.cost.energy_joule.any()
    assert not network.typical_exchange_energy_joule().any()


def test_a_device_that_cannot_pay_its_broadcast_is_left_out():
    network = make_network()
    free = network.draw(0)
    battery = np.full(5, np.inf)
    battery[2] = 0.99 * free.cost.energy_joule[2]
    links = network.draw(0, battery)
    assert 2 in free.edges
    assert 2 not in links.edges
    assert {tuple(edge) for edge in free.edges.tolist() if 2 not in edge} == {
        tuple(edge) for edge in links.edges.tolist()
    }
    assert links.sent_bits[2] == links.cost.energy_joule[2] == 0
    assert (links.cost.energy_joule <= free.cost.energy_joule).all()  # the others' worst links can only be better
    battery[2] = free.cost.energy_joule[2]
    assert np.array_equal(network.draw(0, battery).edges, free.edges)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_after_the_batteries_can_be_paid(seed):
    network = make_network("erdos_renyi", seed=seed)
    battery = np.random.default_rng(seed).uniform(0, 2, 5) * network.draw(0).cost.energy_joule
    assert (network.draw(0, battery).cost.energy_joule <= battery).all()


def test_an_empty_battery_still_relays_where_that_is_free():
    network = make_network(energy=EnergyConfig())
    assert np.array_equal(network.draw(0, np.zeros(5)).edges, network.topology.edges)


def test_failures_take_links_and_devices_out():
    config = FailureConfig(link_probability=0.3, device_probability=0.3)
    network = make_network(energy=EnergyConfig(), failures=config)
    failures = Failures(config, network.topology, seed=0)
    for number in range(5):
        links, expected = network.draw(number), failures.draw(number)
        assert np.array_equal(links.edges, network.topology.edges[expected.links])
        assert np.array_equal(links.devices, expected.devices)
        assert not links.sent_bits[~expected.devices].any()


def test_a_failed_device_pays_for_no_broadcast():
    network = make_network(failures=FailureConfig(device_probability=0.5))
    for number in range(5):
        links = network.draw(number)
        assert not links.cost.energy_joule[~links.devices].any()


def test_computing_costs_what_its_capacitance_says():
    once, thrice = (make_network(energy=EnergyConfig(model="wireless", kappa=kappa)) for kappa in (1e-28, 3e-28))
    iteration, further = once.iteration_energy_joule(HOLDS, [10, 20], 32), once.computing_energy_joule(1e9)
    assert iteration[HOLDS].all()
    assert further.all()
    np.testing.assert_allclose(thrice.iteration_energy_joule(HOLDS, [10, 20], 32), 3 * iteration)
    np.testing.assert_allclose(thrice.computing_energy_joule(1e9), 3 * further)


def test_computing_follows_the_processor_of_each_device():
    network = make_network()
    frequency = draw_frequencies_hz(WIRELESS, 5, seed=0)
    macs = [2e4, 5e4]
    energy = network.iteration_energy_joule(HOLDS, macs, batch_size=16)
    cycles = training_cycles(macs)
    np.testing.assert_allclose(energy, computing_energy_joule(cycles, frequency[:, None], 16) * HOLDS)
    np.testing.assert_allclose(network.iteration_time_s(macs, 16), computing_time_s(cycles, frequency[:, None], 16))
    np.testing.assert_allclose(
        network.computing_energy_joule(1e6), computing_energy_joule(training_cycles(1e6), frequency, 1)
    )


def test_a_single_device_has_nobody_to_hear():
    network = make_network(holds=HOLDS[:1], topology="ring")
    links = network.draw(0, np.zeros(1))
    assert links.edges.shape == (0, 2)
    assert links.sent_bits.tolist() == [0.0]


@pytest.mark.parametrize("number", [-1, -5])
def test_a_negative_round_is_refused(number):
    with pytest.raises(ValueError, match=f"round_index must be at least 0, got {number}"):
        make_network().draw(number)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        make_network(seed=-1)
