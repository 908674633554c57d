"""Rates against numbers computed by hand, and the statistics of shadowing and fading."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.wireless.channel import Channel, ChannelConfig, path_loss_db, rate_bit_per_s
from dmmlkd_ext.wireless.energy import broadcast_cost
from dmmlkd_ext.wireless.topology import Topology, build_topology

STEADY = ChannelConfig(shadowing_db=0.0, fading="none")


def pair(distance_m):
    return Topology("pair", 2, np.array([[0, 1]]), np.array([[0.0, 0.0], [distance_m, 0.0]]))


def complete(count):
    return build_topology("complete", count, numpy_generator(0, "topology"))


def test_path_loss_is_the_formula():
    # 128.1 + 37.6 log10(0.25) = 128.1 - 37.6 * 0.6020600 = 105.46254
    np.testing.assert_allclose(path_loss_db(250.0), 105.46254, atol=1e-4)


def test_short_links_have_the_loss_of_the_least_distance():
    np.testing.assert_array_equal(path_loss_db([0.0, 0.3]), path_loss_db([1.0, 1.0]))


def test_a_rate_is_what_is_computed_by_hand():
    # 0.1 W = 20 dBm; loss at 250 m 105.4625 dB; noise -174 + 60 = -114 dBm; SNR 28.5375 dB = 714.09;
    # 1 MHz * log2(715.09) = 9.482 Mbit/s.
    rate = Channel(STEADY, pair(250.0), seed=0).draw(0).rates_bit_per_s
    np.testing.assert_allclose(rate, 1e6 * math.log2(1 + 10**2.85375), rtol=1e-4)
    np.testing.assert_allclose(rate, 9.482e6, rtol=1e-3)


def test_a_weak_link_keeps_a_rate():
    # SNR = 0.1 g / (10^-17.4 * 1e-3 * 1e6); far below the rounding of 1 + SNR, rate = Bw * SNR / ln 2.
    noise_w = 10 ** (-174 / 10) / 1000 * 1e6
    np.testing.assert_allclose(rate_bit_per_s(1e-40), 1e6 * 0.1 * 1e-40 / noise_w / math.log(2), rtol=1e-12)


def test_fading_has_mean_one_and_is_exponential():
    channel = Channel(ChannelConfig(shadowing_db=0.0), pair(100.0), seed=1)
    noise_w = 10 ** (-174 / 10) / 1000 * 1e6
    snr = np.array([2 ** (channel.draw(t).rates_bit_per_s[0] / 1e6) - 1 for t in range(4000)])
    fade = snr * noise_w / 0.1 / channel.mean_gain[0]
    assert abs(fade.mean() - 1) < 0.06  # four standard errors
    assert abs((fade < math.log(2)).mean() - 0.5) < 0.032


def test_shadowing_has_its_deviation_and_stays_over_rounds():
    topology = complete(100)
    channel = Channel(ChannelConfig(fading="none"), topology, seed=2)
    shadowing = -10 * np.log10(channel.mean_gain) - path_loss_db(topology.lengths_m)
    assert abs(shadowing.std() - 8) < 0.35
    assert abs(shadowing.mean()) < 0.5
    np.testing.assert_array_equal(channel.draw(0).rates_bit_per_s, channel.draw(5).rates_bit_per_s)


def test_a_draw_depends_on_seed_and_round_alone():
    topology = complete(10)
    channel, again = (Channel(ChannelConfig(), topology, seed=7) for _ in range(2))
    channel.draw(0)
    np.testing.assert_array_equal(channel.draw(4).rates_bit_per_s, again.draw(4).rates_bit_per_s)
    assert (channel.draw(4).rates_bit_per_s != channel.draw(5).rates_bit_per_s).all()
    other = Channel(ChannelConfig(), topology, seed=8)
    assert (channel.draw(4).rates_bit_per_s != other.draw(4).rates_bit_per_s).all()


def test_links_below_the_least_rate_are_in_outage():
    links = Channel(ChannelConfig(min_rate_bit_per_s=8e6), complete(30), seed=0).draw(0)
    np.testing.assert_array_equal(links.alive, links.rates_bit_per_s >= 8e6)
    assert 0 < links.alive.sum() < len(links.alive)


def test_outage_bounds_the_cost_of_a_broadcast():
    config = ChannelConfig()
    links = Channel(config, complete(40), seed=3).draw(1)
    holds = np.ones((40, 1), dtype=bool)
    cost = broadcast_cost([1e6], holds, links.edges, links.rates_bit_per_s, config.transmit_power_w, links.alive)
    assert cost.time_s.max() <= 1e6 / config.min_rate_bit_per_s


def test_no_links_have_no_rates():
    topology = build_topology("ring", 1, numpy_generator(0, "topology"))
    assert Channel(ChannelConfig(), topology, seed=0).draw(0).rates_bit_per_s.shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ChannelConfig(fading="rice"), "fading must be one of rayleigh, none; got 'rice'"),
        (lambda: ChannelConfig(bandwidth_hz=0), "bandwidth_hz must be positive and finite, got 0"),
        (lambda: ChannelConfig(transmit_power_w=-1), "transmit_power_w must be .* got -1"),
        (lambda: ChannelConfig(min_distance_m=0), "min_distance_m must be .* got 0"),
        (lambda: ChannelConfig(shadowing_db=-1), "shadowing_db must be finite and at least 0, got -1"),
        (lambda: ChannelConfig(min_rate_bit_per_s=-1), "min_rate_bit_per_s must be .* got -1"),
        (lambda: ChannelConfig(noise_dbm_per_hz=math.nan), "noise_dbm_per_hz must be finite, got nan"),
        (lambda: path_loss_db([1.0, -2.0]), "distance_m must be finite and at least 0, got -2"),
        (lambda: rate_bit_per_s(math.inf), "power_gain must be finite and at least 0, got inf"),
        (lambda: Channel(ChannelConfig(), pair(1.0), seed=-1), "seed must be at least 0, got -1"),
        (
            lambda: Channel(ChannelConfig(), pair(1.0), seed=0).draw(-1),
            "round_index must be at least 0, got -1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
