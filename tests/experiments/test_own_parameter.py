from __future__ import annotations

import dataclasses
import math

import pytest

from dmmlkd_ext.experiments.config.own_parameter import (
    get_own_parameter,
    loss_scale,
    scale_losses,
    set_own_parameter,
)
from dmmlkd_ext.training.methods import METHODS, get_method


@pytest.mark.parametrize("name", METHODS)
def test_a_value_that_is_set_is_read_back_and_changes_nothing_else(name: str) -> None:
    method = METHODS[name]
    if method.tunes is None:
        assert math.isnan(get_own_parameter(method))
        with pytest.raises(ValueError, match=f"method {name} has no parameter of its own"):
            set_own_parameter(method, 2.0)
        return
    changed = set_own_parameter(method, 2.0)
    assert get_own_parameter(changed) == 2.0
    assert changed != method
    assert set_own_parameter(changed, get_own_parameter(method)) == method


def test_scaled_losses_keep_their_ratios_and_what_is_left_out() -> None:
    scaled = scale_losses(METHODS["dmml-kd-no-similarity"], 0.5).losses
    assert (scaled.classification, scaled.similarity, scaled.generator) == (0.25, 0.0, 0.15)


def test_a_balanced_method_keeps_its_exponent_when_its_losses_are_scaled() -> None:
    method = scale_losses(METHODS["dmml-kd-tb"], 2.0)
    assert (get_own_parameter(method), loss_scale(method)) == (3.0, 2.0)


def test_losses_that_are_no_multiple_have_no_scale() -> None:
    method = METHODS["dmml-kd"]
    other = dataclasses.replace(method, losses=dataclasses.replace(method.losses, similarity=0.3))
    assert math.isnan(loss_scale(other))
    more = dataclasses.replace(
        METHODS["fedproto"], losses=dataclasses.replace(METHODS["fedproto"].losses, similarity=1)
    )
    assert math.isnan(loss_scale(more))
    assert math.isnan(loss_scale(get_method("unimodal:audio")))


def test_wrong_scales_and_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="scale must be positive and finite, got 0"):
        scale_losses(METHODS["dmml-kd"], 0)
    with pytest.raises(ValueError, match="method must be one of"):
        scale_losses(get_method("unimodal:audio"), 2)
