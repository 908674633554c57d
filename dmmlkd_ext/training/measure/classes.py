"""Which classes a device's model confuses: the confusion matrix, and the accuracy and F1 of each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.training.measure.evaluation import judge_reference, parts_at_once
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassScores:
    """How well each class is told from the others.

    Args:
        confusion: samples, float64 [devices, true class, predicted class].

    Example:
        >>> scores = ClassScores(np.array([[[3.0, 1.0], [0.0, 2.0]]]))
        >>> scores.accuracy.tolist(), scores.f1.round(3).tolist(), scores.macro_f1.round(3).tolist()
        ([[0.75, 1.0]], [[0.857, 0.8]], [0.829])
    """

    confusion: FloatArray

    @property
    def accuracy(self) -> FloatArray:
        """Share of a class's samples that are recognized (its recall), [devices, classes]; NaN without samples."""
        return _divide(self._right, self.confusion.sum(2))

    @property
    def f1(self) -> FloatArray:
        """Harmonic mean of precision and recall, [devices, classes]; NaN for a class neither there nor predicted."""
        return _divide(2 * self._right, self.confusion.sum(1) + self.confusion.sum(2))

    @property
    def macro_f1(self) -> FloatArray:
        """Mean of F1 over the classes that are there or predicted, [devices]; NaN without samples."""
        known = ~np.isnan(self.f1)
        return _divide(np.where(known, self.f1, 0.0).sum(1), known.sum(1))

    @property
    def _right(self) -> FloatArray:
        return np.diagonal(self.confusion, axis1=1, axis2=2)


def _divide(above: FloatArray, below: npt.NDArray[np.generic]) -> FloatArray:
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0))


@torch.no_grad()
def count_confusion(
    population: Population,
    split: Split,
    guess: npt.NDArray[np.int64] | None = None,
    samples: torch.Tensor | None = None,
) -> ClassScores:
    """Count what each device's model takes each class for, with the modalities that it has.

    Predictions are those of the reference. Where two classes are equal but for rounding, they may differ from those
    that the native evaluation counts as right.

    Args:
        population: the devices.
        split: the samples; one that has none of a device's modalities does not count for it.
        guess: the class that a device without modalities predicts, int64 [devices]; None counts nothing for it.
        samples: indices of the samples that judge each device, int64 [devices, n]; None is all.

    Example:
        >>> from dmmlkd_ext.model.network import MultiModalNetwork
        >>> population = Population(MultiModalNetwork({"wrist": (3,)}, 2, 4, 8), np.array([[True], [False]]), seed=0)
        >>> present, nobody = torch.ones(4, 1, dtype=torch.bool), torch.full((4,), -1)
        >>> split = Split({"wrist": torch.randn(4, 3)}, torch.tensor([0, 1, 1, 1]), present, nobody)
        >>> scores = count_confusion(population, split, guess=np.array([0, 1]))
        >>> scores.confusion[1].tolist(), scores.confusion.sum((1, 2)).tolist()  # the second device can only guess
        ([[0.0, 1.0], [0.0, 3.0]], [4.0, 4.0])
    """
    classes = population.network.num_classes
    confusion = np.zeros((population.num_devices, classes, classes))
    labels, blind = split.labels, np.asarray(~population.holds.any(axis=1))
    for part in parts_at_once(population, split) if len(split) else ():
        chosen = None if samples is None else samples[part.start : part.stop]
        found = judge_reference(population, split, part, chosen).predicted
        assert found is not None
        predicted = found.cpu()
        if guess is not None:
            here = torch.from_numpy(blind[part])
            predicted[here] = torch.from_numpy(guess[part])[here, None]
        true = (labels.expand(len(predicted), -1) if chosen is None else labels[chosen]).cpu()
        for device, (row, wanted) in enumerate(zip(predicted, true, strict=True), start=part.start):
            pairs = (wanted * classes + row)[row >= 0]
            confusion[device] = torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy()
    return ClassScores(confusion)
