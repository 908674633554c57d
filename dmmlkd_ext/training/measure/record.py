"""The record of a round: one line of JSON, the same bits for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.training.learn.terms import term_names
from dmmlkd_ext.training.measure.evaluation import Evaluation
from dmmlkd_ext.training.measure.generator_quality import GeneratorQuality
from dmmlkd_ext.training.measure.judge import Judgement
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.wireless.energy import EnergyAccount
from dmmlkd_ext.wireless.world import RoundLinks

FloatArray = npt.NDArray[np.float64]


class RecordedSimulation(Protocol):
    """What a record uses of the simulation after the round."""

    round: int
    population: Population
    method: MethodConfig
    energy: EnergyAccount
    iteration_time: FloatArray
    learning_time: FloatArray
    holds: npt.NDArray[np.bool_]
    blind: npt.NDArray[np.bool_]
    agreement: FloatArray | None

    def imbalance(self) -> FloatArray:
        """Return the coefficient of variation of each device's training speeds, float64 [devices]."""
        ...

    def spectral_gap(self, edges: npt.NDArray[np.int64]) -> float:
        """Return the spectral gap of the mixing of all devices on these links."""
        ...

    def consensus_distance(self) -> dict[str, float]:
        """Return, by block, the root mean square distance of the devices from their mean."""
        ...


@dataclass(frozen=True)
class RoundOutcome:
    """The results of one round; `learns`, bool [devices], says whose generator learned."""

    links: RoundLinks
    plan: Plan
    metric: FloatArray
    losses: dict[str, FloatArray]
    learning_rate: float
    learns: npt.NDArray[np.bool_]
    judgement: Judgement


def make_record(simulation: RecordedSimulation, outcome: RoundOutcome) -> dict[str, Any]:
    """Return the record of the round that a simulation has just completed.

    Lists have one entry per device; an entry that does not apply, such as of a modality that a device lacks, is None.
    Energies are in joules, times in seconds of simulated time; `loss` is a mean over the devices that trained, and
    `spectral_gap` that of the mixing of all devices on the working links (METHOD 4 to 6 define the rest).

    Example:
        >>> from dmmlkd_ext.experiments.config.presets import preset
        >>> from dmmlkd_ext.experiments.build import build_simulation
        >>> record = build_simulation(preset("mfeat", "dmml")).run_round()  # a round ends with its record
        >>> len(record["energy_spent_joule"]), sorted(record["loss"])[:3]
        (20, ['classification', 'difference', 'generator'])
    """
    population, plan, links = simulation.population, outcome.plan, outcome.links
    probe = outcome.judgement.probe
    names = population.network.modalities
    held = simulation.holds
    learning_time = np.where(outcome.learns, simulation.learning_time, 0.0)
    compute_time = plan.energy_joule(simulation.iteration_time)
    device_time = compute_time + links.cost.time_s + learning_time
    return {
        "round": simulation.round,
        "learning_rate": outcome.learning_rate,
        "loss": _losses(outcome, simulation),
        "device_loss": {term: _values(outcome.losses[term]) for term in term_names(simulation.method.losses)},
        "accuracy": _accuracies(outcome),
        "modality_accuracy": _alone(outcome.judgement.test, names),
        "generator_quality": _quality(None if outcome.judgement.test is None else outcome.judgement.test.generator),
        "probe_accuracy": None if probe is None else {name: _values(probe[name]) for name in names},
        "consensus_distance": simulation.consensus_distance(),
        "local_iterations": _by_modality(plan.iterations.astype(float), names, held, integer=True),
        "balance_metric": _by_modality(outcome.metric, names, held),
        "imbalance": _values(simulation.imbalance()),
        "ranking_agreement": None if simulation.agreement is None else _values(simulation.agreement),
        "energy_spent_joule": _values(simulation.energy.spent_joule),
        "energy_left_joule": _values(simulation.energy.remaining_joule),
        "sent_bits": _values(links.sent_bits),
        "working_links": len(links.edges),
        "spectral_gap": simulation.spectral_gap(links.edges),
        "failed_devices": int((~links.devices).sum()),
        "device_time_s": _values(device_time),
        # A round lasts until the slowest device has computed, sent, and trained its generator.
        "simulated_time_s": float(device_time.max(initial=0.0)),
    }


def _values(array: FloatArray) -> list[float | None]:
    values: list[float | None] = np.asarray(array, dtype=np.float64).tolist()
    for index in np.flatnonzero(~np.isfinite(array)):
        values[index] = None
    return values


def _quality(quality: GeneratorQuality | None) -> dict[str, list[float | None]] | None:
    if quality is None:
        return None
    return {"nearest_mean_accuracy": _values(quality.nearest_mean), "spread_ratio": _values(quality.spread)}


def _losses(outcome: RoundOutcome, simulation: RecordedSimulation) -> dict[str, float | None]:
    """Return the mean of each term over the devices that trained on samples that they see; None for an absent term."""
    trained = outcome.plan.iterations.any(axis=1) & ~simulation.blind
    weights = {"task": 1.0, **simulation.method.losses.named()}
    means: dict[str, float | None] = dict.fromkeys(term_names(simulation.method.losses))
    if not trained.any():
        return {"total": None, **means}
    total = 0.0
    for term in means:
        if weight := weights[term]:
            mean = float(outcome.losses[term][trained].mean())  # NaN shows that a training diverged
            means[term], total = mean, total + weight * mean
    return {"total": total, **means}


def _accuracies(outcome: RoundOutcome) -> dict[str, list[float | None]] | None:
    if outcome.judgement.test is None or outcome.judgement.validation is None:
        return None
    return {"test": _values(outcome.judgement.test.joint), "validation": _values(outcome.judgement.validation.joint)}


def _alone(test: Evaluation | None, names: Sequence[str]) -> dict[str, list[float | None]] | None:
    return None if test is None else {name: _values(test.alone[name]) for name in names}


def _by_modality(
    values: FloatArray, names: Sequence[str], held: npt.NDArray[np.bool_], integer: bool = False
) -> dict[str, list[float | None]]:
    """Return one list per modality, None where a device lacks it."""
    lists = {name: _values(np.where(held[:, column], values[:, column], np.nan)) for column, name in enumerate(names)}
    if not integer:
        return lists
    return {name: [None if value is None else int(value) for value in row] for name, row in lists.items()}
