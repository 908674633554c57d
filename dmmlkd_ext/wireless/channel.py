"""The wireless channel: path loss, shadowing and fading of links, and the rates they give (METHOD 6 [C])."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.wireless.topology import Topology

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Fading = Literal["rayleigh", "none"]


@dataclass(frozen=True)
class ChannelConfig:
    """The standard model of the field, with the defaults of METHOD 6 [C].

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> ChannelConfig().bandwidth_hz
        1000000.0
    """

    bandwidth_hz: float = 1e6
    """Bandwidth of each link; channels are orthogonal, so links do not interfere."""
    transmit_power_w: float = 0.1
    noise_dbm_per_hz: float = -174.0
    """Spectral density of the noise, in dBm per hertz."""
    path_loss_at_1_km_db: float = 128.1
    path_loss_per_decade_db: float = 37.6
    """Path loss added per factor of ten in distance."""
    shadowing_db: float = 8.0
    """Standard deviation of the log-normal shadowing, drawn once per link, because devices do not move."""
    fading: Fading = "rayleigh"
    """`rayleigh`: each link's power gain is multiplied by an exponential variable of mean 1, redrawn each round; or
    `none`."""
    min_distance_m: float = 1.0
    """Shorter links have the path loss of this distance, below which the formula does not apply."""
    min_rate_bit_per_s: float = 1e5
    """A link below this rate is in outage for the round: sending in a deep fade would drain the battery."""

    def __post_init__(self) -> None:
        if self.fading not in get_args(Fading):
            raise ValueError(f"fading must be one of {', '.join(get_args(Fading))}; got {self.fading!r}")
        for name in ("bandwidth_hz", "transmit_power_w", "min_distance_m"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("path_loss_per_decade_db", "shadowing_db", "min_rate_bit_per_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        for name in ("noise_dbm_per_hz", "path_loss_at_1_km_db"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Links:
    """The state of all links in one round.

    Attributes:
        edges: int64 [edges, 2], those of the topology.
        rates_bit_per_s: float64 [edges], the same in both directions, as fading is reciprocal.
        alive: bool [edges], False for a link in outage.
    """

    edges: IntArray
    rates_bit_per_s: FloatArray
    alive: BoolArray


def path_loss_db(distance_m: npt.ArrayLike, config: ChannelConfig | None = None) -> FloatArray:
    """Return the path loss, 128.1 + 37.6 log10(distance in km) by default, in decibels (METHOD 6 [C]).

    Args:
        distance_m: length of each link, any shape, in meters.
        config: the two numbers of the formula, and the least distance for which it holds.

    Raises:
        ValueError: a distance is negative or not finite.

    Example:
        >>> path_loss_db([1000.0, 100.0]).round(6).tolist()
        [128.1, 90.5]
    """
    config = config or ChannelConfig()
    distance = np.asarray(distance_m, dtype=np.float64)
    bad = ~(np.isfinite(distance) & (distance >= 0.0))
    if bad.any():
        raise ValueError(f"distance_m must be finite and at least 0, got {distance[bad][0]}")
    decades = np.log10(np.maximum(distance, config.min_distance_m) / 1000.0)
    return np.asarray(config.path_loss_at_1_km_db + config.path_loss_per_decade_db * decades)


def rate_bit_per_s(power_gain: npt.ArrayLike, config: ChannelConfig | None = None) -> FloatArray:
    """Return the rate Bw log2(1 + p g / (N0 Bw)) of links, in bits per second (METHOD 6 [C]).

    Args:
        power_gain: g, received over transmitted power, any shape, without unit.
        config: bandwidth, power and noise.

    Raises:
        ValueError: a gain is negative or not finite.

    Example:
        >>> float(rate_bit_per_s(0.0))
        0.0
    """
    config = config or ChannelConfig()
    gain = np.asarray(power_gain, dtype=np.float64)
    bad = ~(np.isfinite(gain) & (gain >= 0.0))
    if bad.any():
        raise ValueError(f"power_gain must be finite and at least 0, got {gain[bad][0]}")
    noise_w = 10.0 ** (config.noise_dbm_per_hz / 10.0) * 1e-3 * config.bandwidth_hz
    # log1p keeps the rate of a weak link, where 1 + SNR would round to 1.
    return np.asarray(config.bandwidth_hz * np.log1p(config.transmit_power_w * gain / noise_w) / math.log(2.0))


class Channel:
    """The links of a topology: path loss and shadowing fixed for the run, fading redrawn each round.

    A round's draw depends on the seed and the round alone: a resumed run and all methods see the same links.

    Example:
        >>> from dmmlkd_ext.wireless.topology import build_topology
        >>> topology = build_topology("ring", 4, numpy_generator(0, "topology"))
        >>> links = Channel(ChannelConfig(), topology, seed=0).draw(round_index=3)
        >>> links.rates_bit_per_s.shape
        (4,)
    """

    def __init__(self, config: ChannelConfig, topology: Topology, seed: int) -> None:
        """Draw the shadowing of each link.

        Args:
            config: the model.
            topology: the links and the positions of the devices.
            seed: the run's seed.

        Raises:
            ValueError: `seed` is negative.
        """
        self.config = config
        self.topology = topology
        self.seed = seed
        shadowing_db = numpy_generator(seed, "shadowing").normal(0.0, config.shadowing_db, len(topology.edges))
        loss_db = path_loss_db(topology.lengths_m, config) + shadowing_db
        self._mean_gain: FloatArray = 10.0 ** (-loss_db / 10.0)

    @property
    def mean_gain(self) -> FloatArray:
        """Power gain of each link averaged over the fading, float64 [edges]."""
        return self._mean_gain.copy()

    def draw(self, round_index: int) -> Links:
        """Return the links of a round, counted from 0.

        Raises:
            ValueError: `round_index` is negative.
        """
        if round_index < 0:
            raise ValueError(f"round_index must be at least 0, got {round_index}")
        gain = self._mean_gain
        if self.config.fading == "rayleigh":
            gain = gain * numpy_generator(self.seed, "fading", round_index).exponential(1.0, len(gain))
        rates = rate_bit_per_s(gain, self.config)
        return Links(self.topology.edges, rates, (rates > 0.0) & (rates >= self.config.min_rate_bit_per_s))
