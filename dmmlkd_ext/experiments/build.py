"""From a configuration to a simulation: data, devices, links and energy, each with its random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.data.partition import (
    assign_modalities,
    partition_dirichlet,
    partition_iid,
    partition_natural,
)
from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig, TopologyConfig
from dmmlkd_ext.experiments.inputs import hash_data, load_data
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.exchange.ranks import Ranks, Slice
from dmmlkd_ext.training.exchange.slices import slice_devices
from dmmlkd_ext.training.guide import GENERATOR, make_guidance
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.energy import initial_budget_joule
from dmmlkd_ext.wireless.topology import Topology, build_topology
from dmmlkd_ext.wireless.world import WirelessWorld


def build_simulation(config: ExperimentConfig, ranks: Ranks | None = None) -> Simulation:
    """Return the simulation that a configuration describes, before its first round.

    Args:
        config: what is simulated.
        ranks: the processes that share it, each with the devices of its `Slice`; None is this process alone.

    Raises:
        ValueError: the configuration does not fit the dataset, or has fewer devices than there are ranks; the message
            names the field.
        DataUnavailableError: the dataset is neither cached nor can be fetched.

    Example:
        >>> from dmmlkd_ext.experiments.config.presets import preset
        >>> simulation = build_simulation(preset("mfeat", "dmml-kd", seed=1))
        >>> simulation.population.num_devices, simulation.round, simulation.total_rounds
        (20, 0, 40)
    """
    dataset = load_data(config)
    data_sha256 = hash_data(dataset)  # before `centralize` replaces it
    device_samples = partition(dataset, config.data, config.seed)
    holds = assign_modalities(
        config.data.num_devices,
        len(dataset.modalities),
        config.data.missing_rate,
        numpy_generator(config.seed, "modalities"),
        config.data.modalities_per_device,
        None if config.data.lacking is None else position_of(config.data.lacking, dataset.modalities, "lacking"),
    )
    method, training = config.method, config.training
    topology = make_topology(config.topology, config.data.num_devices, config.seed)
    budget = None if method.centralized else reference_budget_joule(config, dataset, topology, holds)
    if method.only is not None:
        holds = keep_only(holds, dataset.modalities, method.only)
    if method.centralized:
        training = replace(training, batch_size=training.batch_size * config.data.num_devices)
        dataset, device_samples, holds, topology = centralize(dataset, device_samples, holds, topology)
    model = make_network(dataset, training)
    guidance = make_guidance(method.generator, dataset.num_classes, training.feature_width, config.seed)
    further = {GENERATOR: guidance.layout} if guidance else {}
    part = slice_population(topology, holds, model, ranks or Ranks())
    population = Population(model, holds[part.devices], config.seed, further)
    everyone = np.ones(len(holds), dtype=np.bool_)
    held = {name: holds[:, column] for column, name in enumerate(model.modalities)}
    world = WirelessWorld(
        topology,
        {name: held.get(name, everyone) for name in population.blocks},
        {name: block.num_parameters for name, block in population.blocks.items()},
        config.energy,
        config.channel,
        config.failures,
        config.seed,
        method.exchange,
    )
    simulation = Simulation(
        dataset, device_samples, population, world, method, training, config.seed, guidance, part, budget
    )
    simulation.data_sha256 = data_sha256
    return simulation


def make_network(dataset: MultiModalDataset, training: TrainingConfig) -> MultiModalNetwork:
    """Return the network for a dataset."""
    return MultiModalNetwork(
        dataset.shapes, dataset.num_classes, training.feature_width, training.hidden_width, training.encoders
    )


def reference_budget_joule(
    config: ExperimentConfig, dataset: MultiModalDataset, topology: Topology, holds: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64] | None:
    """Return the energy that each device starts with whatever the method, float64 [devices] (METHOD 6).

    It is what the budget's fraction of all iterations costs with the modalities that the devices hold, bool [devices,
    modalities], and the exchange of `dmml`. None where a budget is not of this kind.
    """
    energy, training = config.energy, config.training
    if energy.budget_basis != "dmml" or energy.budget_fraction is None:
        return None
    model = make_network(dataset, training)
    held = {name: holds[:, column] for column, name in enumerate(model.modalities)}
    world = WirelessWorld(
        topology,
        {SHARED: np.ones(len(holds), dtype=np.bool_), **held},
        {name: layout.size for name, layout in model.layouts.items()},
        energy,
        config.channel,
        config.failures,
        config.seed,
    )
    macs = [model.forward_macs[name] for name in model.modalities]
    iteration = world.iteration_energy_joule(holds, macs, training.batch_size)
    exchange = world.typical_exchange_energy_joule()
    return initial_budget_joule(energy, iteration, training.local_iterations, training.rounds, exchange)


def slice_population(topology: Topology, holds: npt.NDArray[np.bool_], model: MultiModalNetwork, ranks: Ranks) -> Slice:
    """Return the devices of this rank: even shares of the work, few links between ranks.

    Raises:
        ValueError: there are more ranks than devices.
    """
    if ranks.size > len(holds):
        raise ValueError(
            f"nproc-per-node and nnodes must make at most {len(holds)} ranks, one per device; got {ranks.size}"
        )
    macs = np.array([model.forward_macs[name] for name in model.modalities], dtype=np.float64)
    # A device without modalities still exchanges.
    work = holds @ macs + 0.01 * macs.sum()
    return Slice(ranks, slice_devices(topology.edges, len(holds), ranks.size, work))


def keep_only(holds: npt.NDArray[np.bool_], modalities: Sequence[str], modality: str) -> npt.NDArray[np.bool_]:
    """Return `holds` [devices, modalities] with all but one modality taken away.

    Raises:
        ValueError: there is no such modality.

    Example:
        >>> keep_only(np.array([[True, True], [True, False]]), ("wrist", "chest"), "chest").tolist()
        [[False, True], [False, False]]
    """
    kept: npt.NDArray[np.bool_] = holds & (np.arange(len(modalities)) == position_of(modality, modalities, "only"))
    return kept


def position_of(modality: str, modalities: Sequence[str], option: str) -> int:
    """Return the column of a modality that an option names.

    Raises:
        ValueError: there is no such modality.
    """
    if modality not in modalities:
        raise ValueError(f"{option} must be one of {', '.join(modalities)}; got {modality!r}")
    return list(modalities).index(modality)


def centralize(
    dataset: MultiModalDataset,
    device_samples: Sequence[npt.NDArray[np.int64]],
    holds: npt.NDArray[np.bool_],
    topology: Topology,
) -> tuple[MultiModalDataset, list[npt.NDArray[np.int64]], npt.NDArray[np.bool_], Topology]:
    """Give one device all samples; each keeps the modalities of the device that held it."""
    present = dataset.train.present.clone()
    for samples, held in zip(device_samples, holds, strict=True):
        present[torch.from_numpy(samples)] &= torch.from_numpy(held)
    pooled = np.sort(np.concatenate(device_samples))
    pooled = pooled[present[torch.from_numpy(pooled)].any(1).numpy()]
    train = replace(dataset.train.select(torch.from_numpy(pooled)), present=present[torch.from_numpy(pooled)])
    alone = Topology(topology.name, 1, np.zeros((0, 2), dtype=np.int64), topology.positions_m[:1])
    everything = np.ones((1, len(dataset.modalities)), dtype=np.bool_)
    return replace(dataset, train=train), [np.arange(len(pooled))], everything, alone


def partition(dataset: MultiModalDataset, config: DataConfig, seed: int) -> list[npt.NDArray[np.int64]]:
    """Return the training samples of each device.

    Raises:
        ValueError: the natural partition has another number of devices than `config` asks for.
    """
    generator = numpy_generator(seed, "partition")
    labels = dataset.train.labels.numpy()
    if config.partition == "dirichlet":
        return partition_dirichlet(labels, config.num_devices, config.dirichlet_alpha, generator)
    if config.partition == "iid":
        return partition_iid(len(labels), config.num_devices, generator)
    parts = partition_natural(dataset.train.groups.numpy())
    if len(parts) != config.num_devices:
        raise ValueError(
            f"num_devices must be {len(parts)} for the natural partition of {dataset.name}, got {config.num_devices}"
        )
    return parts


def make_topology(config: TopologyConfig, num_devices: int, seed: int) -> Topology:
    """Return the graph of links that a configuration describes."""
    return build_topology(
        config.name,
        num_devices,
        numpy_generator(seed, "topology"),
        degree=config.degree,
        probability=config.probability,
        radius_m=config.radius_m,
        side_m=config.side_m,
        path=config.path,
    )
