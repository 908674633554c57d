"""The measurements of all devices after a round: accuracy, the generator, and at the end the encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.exchange.ranks import Slice
from dmmlkd_ext.training.guide import GENERATOR, Guidance
from dmmlkd_ext.training.measure.classes import ClassScores, count_confusion
from dmmlkd_ext.training.measure.evaluation import Evaluation, evaluate
from dmmlkd_ext.training.measure.evaluation_samples import draw_evaluation_samples
from dmmlkd_ext.training.measure.generator_quality import GeneratorQuality
from dmmlkd_ext.training.measure.probe import probe_accuracy
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """The measurements after a round, of all devices on all ranks; None if not due.

    Attributes:
        validation: on validation data.
        test: on test data; after the last round with the generator.
        probe: accuracy of a linear probe of each encoder, after the last round.
        classes: what each device's model takes the test samples of each class for (`TrainingConfig.per_class`).
    """

    validation: Evaluation | None = None
    test: Evaluation | None = None
    probe: dict[str, FloatArray] | None = None
    classes: ClassScores | None = None


class Judge:
    """Measures the devices of this rank and gathers the results of all ranks.

    The dataset is on the torch device of the population.

    Before the last round each device is judged by a few samples (`TrainingConfig.evaluation_samples`), after it by all.
    """

    def __init__(
        self,
        dataset: MultiModalDataset,
        device_samples: Sequence[npt.NDArray[np.int64]],
        part: Slice,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        self.dataset, self.part, self.config = dataset, part, config
        labels = dataset.train.labels.cpu().numpy()
        # A device without modalities predicts its most frequent class, the first of several.
        mine = [device_samples[device] for device in part.devices.tolist()]
        self.guess = np.array([np.bincount(labels[samples]).argmax() for samples in mine], dtype=np.int64)
        self._validated_by = self._draw(dataset.validation, "validation samples", seed)
        self._tested_by = self._draw(dataset.test, "test samples", seed)
        if config.patience and config.patience_metric == "validation_accuracy" and not len(dataset.validation):
            raise ValueError(f"patience_metric must be loss: {dataset.name} has no validation samples")

    def _draw(self, split: Split, purpose: str, seed: int) -> torch.Tensor | None:
        count, devices = self.config.evaluation_samples, len(self.part.owner)
        generator = numpy_generator(seed, purpose)
        rows = draw_evaluation_samples(split.labels.cpu().numpy(), count, self.part.devices, devices, generator)
        return None if rows is None else rows.to(split.labels.device)

    def judge(self, population: Population, guidance: Guidance | None, round_number: int, rounds: int) -> Judgement:
        """Make the measurements that are due after a round, counted from 1."""
        validation, test = self.dataset.validation, self.dataset.test
        if round_number == rounds:
            pool = self._generated(population, guidance, round_number)
            return Judgement(
                self._evaluate(population, validation),
                self._evaluate(population, test, pool=pool),
                self._probe(population),
                self._count_classes(population, None) if self.config.per_class != "none" else None,
            )
        if round_number % self.config.evaluate_every:
            return Judgement()
        validated, tested = self._validated_by, self._tested_by
        return Judgement(
            self._evaluate(population, validation, validated),
            self._evaluate(population, test, tested),
            classes=self._count_classes(population, tested) if self.config.per_class == "evaluated" else None,
        )

    def _evaluate(
        self,
        population: Population,
        split: Split,
        samples: torch.Tensor | None = None,
        pool: torch.Tensor | None = None,
    ) -> Evaluation:
        found = evaluate(population, split, self.guess, samples, pool)
        columns = {f"alone {name}": values for name, values in found.alone.items()} | {"joint": found.joint}
        if found.generator is not None:
            columns |= {"nearest_mean": found.generator.nearest_mean, "spread": found.generator.spread}
        columns = self.part.gather(columns)
        quality = None if found.generator is None else GeneratorQuality(columns["nearest_mean"], columns["spread"])
        return Evaluation(columns["joint"], {name: columns[f"alone {name}"] for name in found.alone}, quality)

    def _count_classes(self, population: Population, samples: torch.Tensor | None) -> ClassScores:
        mine = count_confusion(population, self.dataset.test, self.guess, samples).confusion
        shape = mine.shape[1:]
        columns = self.part.gather({str(cell): mine[:, *cell] for cell in np.ndindex(shape)})
        return ClassScores(np.stack(list(columns.values()), axis=1).reshape(-1, *shape))

    def _generated(self, population: Population, guidance: Guidance | None, round_number: int) -> torch.Tensor | None:
        """Return the generated features of this rank's devices if those of all classes are valid, else None."""
        if guidance is None:
            return None
        pool, known = guidance.generate(population.blocks[GENERATOR].start, round_number)
        everyone = self.part.gather({"known": known.all(1).cpu().numpy()})["known"]
        return pool if everyone.all() and pool.shape[2] > 1 else None

    def _probe(self, population: Population) -> dict[str, FloatArray] | None:
        if not self.config.probe:
            return None
        return self.part.gather(probe_accuracy(population, self.dataset.train, self.dataset.test))
