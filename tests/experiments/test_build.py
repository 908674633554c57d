"""What a configuration becomes: who holds what, and all data in one place for the upper reference."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig, TopologyConfig
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.wireless.energy import EnergyConfig
from tests.training.synthetic import TINY_SHAPES, divide, make_dataset

SMALL = dataclasses.replace(preset("mfeat", "dmml"), data=DataConfig("mfeat", num_devices=4, missing_rate=0.5))


def test_one_modality_is_kept_where_it_was():
    holds = np.array([[True, True], [True, False], [False, True]])
    assert world.keep_only(holds, ("left", "right"), "right").tolist() == [[False, True], [False, False], [False, True]]
    with pytest.raises(ValueError, match="only must be one of left, right; got 'middle'"):
        world.keep_only(holds, ("left", "right"), "middle")


def test_centralized_data_keep_the_modalities_that_their_devices_had():
    dataset, samples = make_dataset(TINY_SHAPES, missing=0.3), divide(90, 4)
    holds = np.array([[True, True], [True, False], [False, True], [False, False]])
    whole = world.make_topology(TopologyConfig("ring"), 4, seed=0)
    pooled, own, everything, alone = world.centralize(dataset, samples, holds, whole)
    assert alone.num_devices == 1
    assert not len(alone.edges)
    assert everything.tolist() == [[True, True]]
    assert own[0].tolist() == list(range(len(pooled.train)))
    owner = np.empty(90, dtype=int)
    for device, mine in enumerate(samples):
        owner[mine] = device
    expected = dataset.train.present & torch.from_numpy(holds[owner])
    kept = expected.any(1)
    assert 0 < kept.sum() < 90  # those of the last device are lost with its modalities
    assert torch.equal(pooled.train.present, expected[kept])
    assert torch.equal(pooled.train.labels, dataset.train.labels[kept])
    assert torch.equal(pooled.train.features["left"], dataset.train.features["left"][kept])
    assert pooled.test is dataset.test
    assert len(dataset.train.present) == 90  # the dataset itself is left as it was


def test_a_centralized_run_trains_on_the_batch_of_all_devices():
    config = dataclasses.replace(SMALL, method=get_method("centralized"))
    simulation, apart = world.build_simulation(config), world.build_simulation(SMALL)
    assert simulation.population.num_devices == 1
    assert simulation.config.batch_size == 4 * apart.config.batch_size
    assert simulation.holds.all()


def test_a_unimodal_run_leaves_the_other_modalities_to_nobody():
    simulation = world.build_simulation(dataclasses.replace(SMALL, method=get_method("unimodal:pix")))
    column = simulation.population.network.modalities.index("pix")
    both = world.build_simulation(SMALL)
    assert simulation.holds[:, column].tolist() == both.holds[:, column].tolist()
    assert not np.delete(simulation.holds, column, axis=1).any()


@pytest.mark.parametrize("partition", ["dirichlet", "iid"])
def test_every_training_sample_has_one_owner(partition):
    dataset = make_dataset(TINY_SHAPES)
    parts = world.partition(dataset, DataConfig("mfeat", partition, num_devices=5), seed=2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(90))
    again = world.partition(dataset, DataConfig("mfeat", partition, num_devices=5), seed=2)
    assert all(np.array_equal(first, second) for first, second in zip(parts, again, strict=True))


def test_what_does_not_fit_is_named():
    natural = ExperimentConfig(data=DataConfig("watch", "natural", num_devices=7))
    with pytest.raises(ValueError, match="num_devices must be 20 for the natural partition of watch, got 7"):
        world.build_simulation(natural)
    fine, many = world.build_simulation(SMALL), SimpleNamespace(size=5, rank=0)
    with pytest.raises(ValueError, match="at most 4 ranks, one per device; got 5"):
        world.slice_population(fine.world.topology, fine.holds, fine.population.network, many)


@pytest.mark.parametrize("method", ["local", "dmml-kd", "unimodal:pix"])
def test_a_budget_of_joules_is_the_same_for_every_method(method):
    energy = EnergyConfig("wireless", budget_fraction=0.3, budget_basis="dmml")
    plain = world.build_simulation(dataclasses.replace(SMALL, energy=energy))
    other = world.build_simulation(dataclasses.replace(SMALL, energy=energy, method=get_method(method)))
    np.testing.assert_array_equal(other.energy.remaining_joule, plain.energy.remaining_joule)
    own = dataclasses.replace(energy, budget_basis="method")
    np.testing.assert_allclose(
        plain.energy.remaining_joule,
        world.build_simulation(dataclasses.replace(SMALL, energy=own)).energy.remaining_joule,
    )
    by_method = world.build_simulation(dataclasses.replace(SMALL, energy=own, method=get_method(method)))
    assert not np.allclose(by_method.energy.remaining_joule, plain.energy.remaining_joule)


def test_what_distillation_sends_and_trains_is_paid_with_iterations():
    energy = EnergyConfig("wireless", budget_fraction=0.6, budget_basis="dmml")
    training = dataclasses.replace(SMALL.training, rounds=6, evaluate_every=6)
    counts, spent = {}, {}
    for name in ("dmml", "dmml-kd"):
        config = dataclasses.replace(SMALL, energy=energy, training=training, method=get_method(name))
        simulation = world.build_simulation(config)
        records = [simulation.run_round() for _ in range(6)]
        counts[name] = sum(value or 0 for row in records for part in row["local_iterations"].values() for value in part)
        spent[name] = simulation.energy.spent_joule
        assert (spent[name] <= world.build_simulation(config).energy.remaining_joule * (1 + 1e-9)).all()
    assert counts["dmml-kd"] < counts["dmml"]


def test_a_centralized_run_has_a_budget_of_its_own():
    energy = EnergyConfig("wireless", budget_fraction=0.3, budget_basis="dmml")
    config = dataclasses.replace(SMALL, energy=energy, method=get_method("centralized"))
    assert world.build_simulation(config).energy.remaining_joule.shape == (1,)


def test_a_modality_that_devices_lack_is_named_by_the_dataset():
    data = dataclasses.replace(SMALL.data, lacking="mor", missing_rate=0.5)
    simulation = world.build_simulation(dataclasses.replace(SMALL, data=data))
    column = simulation.population.network.modalities.index("mor")
    assert simulation.holds[:, column].sum() == 2
    assert np.delete(simulation.holds, column, axis=1).all()
    with pytest.raises(ValueError, match=r"lacking must be one of fac, .*; got 'colour'"):
        world.build_simulation(dataclasses.replace(SMALL, data=dataclasses.replace(data, lacking="colour")))
