"""The parameters of all simulated devices of a process, as one matrix per block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.model.layout import BlockLayout
from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.seeding import torch_generator
from dmmlkd_ext.training.exchange.ranks import Slice, alone
from dmmlkd_ext.training.measure.consensus import column_sums, squared_distances


class Block:
    """One block of parameters of the devices that have it: three matrices [devices of the block, parameters].

    `start` holds the parameters at the round's start, `local` the trained ones, `momentum` the optimizer's buffer,
    which is not exchanged. An exchange writes the mixed parameters over `start`. Behind the rows of `local` there may
    be a halo: the rows of neighbours on other ranks, as received in the last exchange.

    Args:
        devices: int64, the numbers of the devices that have the block, increasing.
        initial: [parameters], the same for every device [C].
    """

    def __init__(self, devices: npt.NDArray[np.int64], initial: torch.Tensor) -> None:
        self.devices = devices
        self.start = initial.repeat(len(devices), 1)
        self.local = self.at_hand = self.start.clone()
        self.momentum = torch.zeros_like(self.start)

    def begin(self) -> None:
        """Copy `start` to `local`."""
        self.local.copy_(self.start)

    def make_room(self, halo: int) -> None:
        """Allocate `halo` rows behind those of `local`, all of which `at_hand` shows."""
        self.at_hand = self.local.new_empty(len(self.devices) + halo, self.num_parameters)
        self.at_hand[: len(self.devices)] = self.local
        self.local = self.at_hand[: len(self.devices)]

    @property
    def num_parameters(self) -> int:
        """Parameters of one device."""
        return self.start.shape[1]

    def rows_of(self, devices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the rows of `devices`, which must have the block, in the order given, int64."""
        return torch.from_numpy(np.searchsorted(self.devices, devices))


class Population:
    """The parameters of this rank's devices, by block (METHOD 2 and 4); devices are counted from 0.

    Args:
        network: the model; a device has its shared block and those of its modalities.
        holds: bool [devices, modalities]: which modalities a device has. A device without any only mixes and relays.
        seed: the run's seed.
        further: layouts of further blocks that every device has, such as the generator's.
        dtype: of the parameters; their initial values are drawn in float32.
        torch_device: the processor or GPU that holds them.

    Raises:
        ValueError: `holds` has another number of modalities than `network`.

    Example:
        >>> network = MultiModalNetwork({"image": (6,), "audio": (4,)}, 3, feature_width=2, hidden_width=5)
        >>> population = Population(network, np.array([[True, True], [True, False]]), seed=0)
        >>> {name: tuple(block.start.shape) for name, block in population.blocks.items()}
        {'shared': (2, 6), 'image': (2, 91), 'audio': (1, 81)}
    """

    def __init__(
        self,
        network: MultiModalNetwork,
        holds: npt.NDArray[np.bool_],
        seed: int,
        further: Mapping[str, BlockLayout] | None = None,
        dtype: torch.dtype = torch.float32,
        torch_device: torch.device | str = "cpu",
    ) -> None:
        if holds.dtype != np.bool_ or holds.ndim != 2 or holds.shape[1] != len(network.modalities):
            raise ValueError(
                f"holds must be bool [devices, {len(network.modalities)} modalities], got {holds.dtype} of shape "
                f"{list(holds.shape)}"
            )
        self.network = network
        self.holds = holds
        self.blocks: dict[str, Block] = {}
        everyone = np.ones(len(holds), dtype=np.bool_)
        members = {name: holds[:, column] for column, name in enumerate(network.modalities)}
        for name, layout in {**network.layouts, **(further or {})}.items():
            initial = layout.initialize(torch_generator(seed, f"initialization of {name}")).to(torch_device, dtype)
            self.blocks[name] = Block(np.flatnonzero(members.get(name, everyone)), initial)

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return len(self.holds)

    @property
    def torch_device(self) -> torch.device:
        """The torch device that holds the parameters."""
        return next(iter(self.blocks.values())).start.device

    def consensus_distance(self, part: Slice | None = None) -> dict[str, float]:
        """Return, for each block, the root mean square distance of the devices from their mean, on all ranks.

        The bits do not depend on the ranks for float32: sums are taken in float64, which is exact unless a parameter's
        values differ by factors of 1e5, and the mean is rounded to float32. For float64 they may.
        """
        part = part or alone(self.num_devices)
        blocks = [block.start for block in self.blocks.values()]
        rows = [len(block) for block in blocks]
        counts = blocks[0].new_tensor(rows, dtype=torch.float64)
        total = part.ranks.sum(torch.cat([column_sums(blocks), counts]))
        members = total[-len(blocks) :].clamp_min(1)
        sums = total[: -len(blocks)].split([block.shape[1] for block in blocks])
        center = torch.cat([values / count for values, count in zip(sums, members, strict=True)]).to(blocks[0].dtype)
        # The host waits once.
        *found, members = torch.cat([squared_distances(blocks, center), members]).cpu().split([*rows, len(blocks)])
        squares = {name: np.zeros(self.num_devices) for name in self.blocks}
        for (name, block), distances in zip(self.blocks.items(), found, strict=True):
            squares[name][block.devices] = distances.numpy()
        everyone = part.gather(squares)
        return {
            name: float(everyone[name].sum() / float(count)) ** 0.5
            for name, count in zip(self.blocks, members, strict=True)
        }

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the state that a resumed run needs, between two rounds."""
        return {name: {"parameters": block.start, "momentum": block.momentum} for name, block in self.blocks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict` of a population of the same network and devices.

        Raises:
            ValueError: a block is missing or has another shape.
        """
        for name, block in self.blocks.items():
            saved = state.get(name)
            shape = saved["parameters"].shape if saved else None
            if shape != block.start.shape:
                raise ValueError(f"state: block {name} must have shape {list(block.start.shape)}, got {shape}")
        for name, block in self.blocks.items():
            block.start.copy_(state[name]["parameters"])
            block.momentum.copy_(state[name]["momentum"])
