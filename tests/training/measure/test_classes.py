"""Confusion, accuracy and F1 of classes, against scikit-learn and against the accuracies that the record has anyway."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dmmlkd_ext.training.measure.classes import ClassScores, count_confusion
from dmmlkd_ext.training.measure.evaluation import evaluate
from tests.training.synthetic import SMALL_TRAINING, make_dataset, make_simulation

OF_CLASSES = {"class_accuracy", "class_f1", "macro_f1", "confusion"}


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    true, predicted = draw.integers(4, size=(3, 50)), draw.integers(4, size=(3, 50))
    true[1] %= 2  # two classes that a device has no samples of
    confusion = np.stack(
        [metrics.confusion_matrix(*pair, labels=range(4)) for pair in zip(true, predicted, strict=True)]
    )
    scores = ClassScores(confusion.astype(float))
    for device in range(3):
        pair = true[device], predicted[device]
        assert scores.macro_f1[device] == pytest.approx(metrics.f1_score(*pair, average="macro", zero_division=0))
        recalls = metrics.recall_score(*pair, average=None, labels=range(4), zero_division=np.nan)
        assert scores.accuracy[device] == pytest.approx(recalls, nan_ok=True)


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_the_diagonal_is_the_accuracy(missing):
    simulation = make_simulation(
        make_dataset(missing=missing), holds=np.array([[True] * 3, [False] * 3, [True, False, True]])
    )
    simulation.run_round()
    guess = np.array([0, 1, 0])
    joint = evaluate(simulation.population, simulation.dataset.test, guess).joint
    counted = count_confusion(simulation.population, simulation.dataset.test, guess).confusion
    assert np.trace(counted, axis1=1, axis2=2) / counted.sum((1, 2)) == pytest.approx(joint)


@pytest.mark.parametrize(("when", "rounds"), [("none", []), ("last", [4]), ("evaluated", [2, 4])])
def test_the_record_has_classes_when_they_are_asked_for(when, rounds):
    training = replace(SMALL_TRAINING, rounds=4, evaluate_every=2, per_class=when)
    simulation = make_simulation(make_dataset(), training=training)
    records = [simulation.run_round() for _ in range(4)]
    assert [record["round"] for record in records if record.keys() & OF_CLASSES] == rounds
    plain = make_simulation(make_dataset(), training=replace(training, per_class="none"))
    for record in records:
        assert record == json.loads(json.dumps(record))
        rest = {key: value for key, value in record.items() if key not in OF_CLASSES}
        assert rest == plain.run_round()
    for record in (records[number - 1] for number in rounds):
        names = list(simulation.dataset.class_names)
        assert list(record["class_accuracy"]) == list(record["class_f1"]) == names
        assert len(record["macro_f1"]) == len(record["accuracy"]["test"])
        assert np.array(record["confusion"]).shape == (len(names), len(names))
