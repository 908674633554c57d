"""A run ends early when nothing improves, resumed or not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dmmlkd_ext.training.measure.patience import Patience
from tests.training.synthetic import SMALL_TRAINING, make_dataset, make_simulation

# With a learning rate this small the accuracy stays what it was.
STALLED = replace(SMALL_TRAINING, rounds=20, evaluate_every=2, learning_rate=1e-12, evaluation_samples=0, patience=2)


def run(simulation):
    records = []
    while simulation.round < simulation.total_rounds:
        records.append(simulation.run_round())
    return records


def test_a_run_that_stalls_ends_with_a_round_that_is_evaluated_in_full():
    records = run(make_simulation(make_dataset(), training=STALLED))
    assert len(records) == 7  # evaluated after rounds 2, 4 and 6, of which two were no better
    assert records[-1]["accuracy"] is not None
    without = make_simulation(make_dataset(), training=replace(STALLED, patience=0))
    assert [record["loss"] for record in run(without)[:7]] == [record["loss"] for record in records]
    assert without.round == 20


def test_a_run_that_is_resumed_ends_in_the_same_round():
    whole = run(make_simulation(make_dataset(), training=STALLED))
    for done in (3, 6):
        first = make_simulation(make_dataset(), training=STALLED)
        for _ in range(done):
            first.run_round()
        second = make_simulation(make_dataset(), training=STALLED)
        second.load_state_dict(first.state_dict())
        assert run(second) == whole[done:]


def test_without_patience_the_state_is_as_it_was():
    assert "patience" not in make_simulation(make_dataset()).state_dict()


def test_a_diverged_loss_is_no_improvement():
    patience = Patience(1, "loss")
    losses = [1.0, 0.5, math.nan]
    assert [patience.is_over({"accuracy": {}, "loss": {"total": loss}}) for loss in losses] == [False, False, True]


def test_what_cannot_be_watched_is_refused():
    dataset = make_dataset()
    with pytest.raises(ValueError, match="patience_metric must be loss"):
        make_simulation(
            replace(dataset, validation=dataset.validation.select(torch.tensor([], dtype=torch.int64))),
            training=STALLED,
        )
    with pytest.raises(ValueError, match="patience must be at least 0, got -1"):
        replace(STALLED, patience=-1)
