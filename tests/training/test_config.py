from __future__ import annotations

import math

import pytest

from dmmlkd_ext.training.config import TrainingConfig


def test_the_learning_rate_falls_along_a_line_to_its_fraction():
    config = TrainingConfig(rounds=5, learning_rate=0.2, final_learning_rate_fraction=0.5)
    assert [config.learning_rate_at(index) for index in range(5)] == pytest.approx([0.2, 0.175, 0.15, 0.125, 0.1])


def test_a_single_round_has_the_whole_learning_rate():
    assert TrainingConfig(rounds=1, learning_rate=0.2).learning_rate_at(0) == 0.2


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("rounds", 0), ("local_iterations", 0), ("batch_size", 0), ("feature_width", -1), ("hidden_width", 0)),
        *(
            ("evaluate_every", 0),
            ("evaluation_samples", -1),
            ("learning_rate", 0.0),
            ("learning_rate", math.inf),
            ("clip_norm", -1.0),
        ),
        *(("clip_norm", math.nan), ("weight_decay", -1e-3), ("input_noise", math.inf), ("input_noise", math.nan)),
        *(("momentum", 1.5), ("momentum", math.nan), ("final_learning_rate_fraction", -0.1)),
    ],
)
def test_settings_out_of_their_range_are_refused(field, bad):
    with pytest.raises(ValueError, match=f"{field} must be .*, got {bad}"):
        TrainingConfig(**{field: bad})
