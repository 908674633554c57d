from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dmmlkd_ext.training.guide import GeneratorConfig
from dmmlkd_ext.training.methods import METHODS, LossWeights, MethodConfig, get_method


def test_every_method_is_listed_by_its_own_name():
    assert all(name == method.name == get_method(name).name for name, method in METHODS.items())


def test_methods_differ():
    assert len({replace(method, name="") for method in METHODS.values()}) == len(METHODS)


def test_the_methods_of_the_comparison_are_what_they_are_called():
    local, dmml, kd, tb = (get_method(name) for name in ("local", "dmml", "dmml-kd", "dmml-kd-tb"))
    assert not local.exchange
    assert replace(local, name="dmml", exchange=True) == dmml
    assert dmml.losses == LossWeights()
    assert min(kd.losses.classification, kd.losses.similarity, kd.losses.difference) > 0
    assert replace(tb, name="dmml-kd", balance=kd.balance, base=None, tunes=kd.tunes) == kd
    assert (tb.base, tb.tunes, kd.tunes) == ("dmml-kd", "exponent", "loss_scale")
    assert (kd.balance.policy, tb.balance.policy) == ("uniform", "balanced")


@pytest.mark.parametrize("term", ["classification", "similarity", "difference"])
def test_an_ablation_differs_in_one_term(term):
    whole, part = get_method("dmml-kd"), get_method(f"dmml-kd-no-{term}")
    losses = replace(whole.losses, **{term: 0.0})
    assert part == replace(whole, name=part.name, losses=losses, base="dmml-kd")


def test_the_ablation_of_the_generator_has_neither_its_losses_nor_its_network():
    whole, part = get_method("dmml-kd"), get_method("dmml-kd-no-generator")
    losses = replace(whole.losses, generator=0.0, rehearsal=0.0)
    none = GeneratorConfig(kind="none")
    assert part == replace(whole, name=part.name, losses=losses, generator=none, base="dmml-kd")


def test_the_starting_values_are_those_of_the_method():
    """METHOD 3 and 8."""
    kd = get_method("dmml-kd")
    assert kd.losses == LossWeights(classification=0.5, similarity=0.03, difference=0.05, generator=0.3, rehearsal=0.1)
    generator = kd.generator
    assert (generator.kind, generator.learning_rate, generator.steps) == ("network", 3e-3, 10)
    assert (generator.moment_weight, generator.mode_seeking) == (1.0, 0.02)
    assert (generator.warmup_rounds, generator.ramp_rounds, generator.weigh_heads) == (5, 5, False)


def test_rivals_are_what_their_papers_call_them():
    assert get_method("dmml-kd-gaussian").generator.kind == "gaussian"
    assert get_method("fedproto").generator.kind == "prototypes"
    assert get_method("fedproto").losses == LossWeights(generator=1.0)
    fedgen = get_method("fedgen")
    assert fedgen.losses == LossWeights(generator=1.0, rehearsal=1.0)
    assert (fedgen.generator.kind, fedgen.generator.moment_weight, fedgen.generator.weigh_heads) == ("network", 0, True)
    assert get_method("fedprox").proximal == 0.01
    assert (get_method("ogm-ge").modulation, get_method("ogm-ge").modulation_strength) == ("ogm-ge", 0.5)
    assert (get_method("mmpareto").modulation, get_method("mmpareto").modulation_strength) == ("mmpareto", 1.5)


@pytest.mark.parametrize("name", ["dmmlkd", "", "unimodal:"])
def test_an_unknown_method_is_refused_with_the_list_of_those_there_are(name):
    with pytest.raises(ValueError, match=rf"method must be one of local, dmml, dmml-kd, .*; got '{name}'"):
        get_method(name)


def test_one_modality_alone_is_a_method_of_its_own():
    assert get_method("unimodal:audio") == MethodConfig("unimodal:audio", only="audio", base="dmml")


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize("term", ["classification", "similarity", "difference", "generator", "rehearsal"])
def test_weights_out_of_their_range_are_refused(term, bad):
    with pytest.raises(ValueError, match=f"{term} must be finite and at least 0, got {bad}"):
        LossWeights(**{term: bad})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modulation": "ogm"}, "modulation must be one of none, ogm-ge, mmpareto; got 'ogm'"),
        ({"proximal": -1.0}, "proximal must be finite and at least 0, got -1.0"),
        ({"modulation_strength": math.nan}, "modulation_strength must be finite and at least 0, got nan"),
        ({"losses": LossWeights(generator=0.1)}, "generator.kind must not be none"),
        ({"losses": LossWeights(rehearsal=0.1)}, "generator.kind must not be none"),
    ],
)
def test_a_method_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MethodConfig(**settings)
    if "losses" in settings:
        MethodConfig(**settings, generator=GeneratorConfig(kind="network"))
