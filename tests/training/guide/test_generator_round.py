"""The generator's round in one native call does what the reference does by automatic differentiation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dmmlkd_ext.ops import GossipWeights, backend
from dmmlkd_ext.training.guide.base import GeneratorConfig
from dmmlkd_ext.training.guide.generator import Lesson, MomentTargets, NetworkGuidance, mode_seeking
from dmmlkd_ext.training.guide.heads import ReceivedHeads
from tests.ops.instruction_sets import instruction_sets, kernels_of

DEVICES = 6
native_only = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of a generator, and what teaches it."""

    classes: int = 10
    width: int = 32
    noise_width: int = 16
    hidden: int = 64
    copies: int = 8
    steps: int = 10
    degree: int = 3
    weighed: bool = False
    taken: int = 0
    moment_weight: float = 1.0
    mode_seeking: float = 0.02

    def guidance(self) -> NetworkGuidance:
        config = GeneratorConfig(
            "network",
            self.noise_width,
            self.hidden,
            self.steps,
            samples_per_class=self.copies,
            moment_weight=self.moment_weight,
            mode_seeking=self.mode_seeking,
        )
        return NetworkGuidance(config, self.classes, self.width, seed=0)


CASES = {
    "as mfeat": Case(),
    "no whole vectors": Case(classes=3, width=5, noise_width=3, hidden=7, copies=4),
    "weighed heads": Case(classes=5, width=20, hidden=33, copies=6, weighed=True),
    "later": Case(classes=4, width=8, hidden=16, taken=70),
    "one head": Case(classes=4, width=8, hidden=16, degree=0),
    "heads alone": Case(classes=4, width=8, hidden=16, moment_weight=0.0, mode_seeking=0.0),
    "many classes": Case(classes=37, width=8, hidden=16, copies=2, steps=3),
}


def draw(case: Case, dtype: torch.dtype, learners: list[int]) -> tuple[list[torch.Tensor], Lesson]:
    """Return parameters and both moments of Adam, and a lesson in which devices saw no, one or a few of each class."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    layout = case.guidance().layout
    theta = layout.initialize(generator).to(dtype).repeat(DEVICES, 1) + 0.1 * normal(DEVICES, layout.size)
    moments = [0.01 * normal(*theta.shape), 1e-3 * normal(*theta.shape).square()] if case.taken else [theta * 0] * 2
    links = torch.eye(DEVICES)
    for device in range(DEVICES):
        links[device, torch.randperm(DEVICES, generator=generator)[: case.degree]] = 1
    count = torch.randint(0, 6, (DEVICES, case.classes), generator=generator)
    count[0] = 0
    features = normal(DEVICES, case.classes, 6, case.width) * (torch.arange(6) < count.unsqueeze(-1)).unsqueeze(-1)
    lesson = Lesson(
        learners=torch.tensor(learners, dtype=torch.int64),
        steps_taken=case.taken + torch.arange(DEVICES, dtype=torch.float64) * (case.taken > 0),
        noise=normal(case.steps, case.classes, case.copies, case.noise_width),
        heads=normal(DEVICES, case.width, case.classes),
        weights=GossipWeights.from_dense(links),
        seen=torch.randint(0, 3, count.shape, generator=generator).to(dtype) if case.weighed else None,
        count=count.to(dtype),
        sum=features.sum(2),
        product=features.square().sum(2),
    )
    return [theta, *(values.clone() for values in moments)], lesson


def taught(learn, rows: list[torch.Tensor], lesson: Lesson) -> list[torch.Tensor]:
    rows = [values.clone() for values in rows]
    learn(*rows, lesson)
    return rows


@native_only
@pytest.mark.parametrize("kernels", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_the_native_round_is_the_reference(name, dtype, kernels):
    case, learners = CASES[name], [0, 1, 3, 5]
    guidance, (rows, lesson) = case.guidance(), draw(case, dtype, learners)
    with kernels_of(kernels):
        found = taught(guidance.learn, rows, lesson)
    expected = taught(guidance.learn_reference, rows, lesson)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for before, one, other in zip(rows, found, expected, strict=True):
        assert (one[learners] != before[learners]).any(1).all()
        assert torch.equal(one[[2, 4]], before[[2, 4]])
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nobody_learns_where_nobody_may(dtype):
    guidance, (rows, lesson) = Case().guidance(), draw(Case(), dtype, [])
    for learn in (guidance.learn, guidance.learn_reference):
        assert all(torch.equal(one, other) for one, other in zip(rows, taught(learn, rows, lesson), strict=True))


@native_only
def test_a_device_learns_the_same_bits_on_any_number_of_threads_and_among_any_others():
    case = CASES["weighed heads"]
    guidance, (rows, lesson) = case.guidance(), draw(case, torch.float32, list(range(DEVICES)))
    alone = taught(guidance.learn, rows, lesson)
    torch.set_num_threads(3)
    together = taught(guidance.learn, rows, lesson)
    some = taught(guidance.learn, rows, dataclasses.replace(lesson, learners=torch.tensor([1, 4])))
    for first, second, third in zip(alone, together, some, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first[[1, 4]], third[[1, 4]])


@pytest.mark.parametrize("kernels", instruction_sets())
@pytest.mark.parametrize("copies", [1, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_generated_features_are_those_of_the_reference(dtype, copies, kernels):
    for case in (CASES["as mfeat"], CASES["no whole vectors"]):
        generator, theta = case.guidance().generator, draw(case, dtype, [])[0][0]
        noise = torch.randn(case.classes, copies, case.noise_width, generator=torch.Generator().manual_seed(1)).to(
            dtype
        )
        with kernels_of(kernels):
            found = generator.generate(theta, noise)
        expected = generator.generate_reference(theta, noise)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert generator.generate(theta[:0], noise).shape == (0, *expected.shape[1:])


def test_half_precision_learns_by_the_reference():
    case, half = CASES["no whole vectors"], torch.bfloat16
    guidance, (rows, lesson) = case.guidance(), draw(case, torch.float64, [0, 2])
    halves = {name: getattr(lesson, name).to(half) for name in ("noise", "heads", "count", "sum", "product")}
    found = taught(guidance.learn, [values.to(half) for values in rows], dataclasses.replace(lesson, **halves))
    assert found[0].dtype == half
    torch.testing.assert_close(found[0].double(), taught(guidance.learn, rows, lesson)[0], rtol=0.05, atol=0.05)


def test_the_moments_distance_is_that_of_each_class_seen_twice():
    draws = torch.Generator().manual_seed(0)
    seen, made = torch.randn(2, 3, 9, 4, generator=draws), torch.randn(2, 3, 6, 4, generator=draws)
    count = torch.tensor([[9, 1, 9], [0, 0, 0]])
    kept = seen * (torch.arange(9) < count.unsqueeze(-1)).unsqueeze(-1)
    distance = MomentTargets.of(count, kept.sum(2), kept.square().sum(2)).distance(made)
    expected = 0.0
    for label in (0, 2):
        for i in range(4):
            own, generated = seen[0, label, :, i], made[0, label, :, i]
            expected += (generated.mean() - own.mean()) ** 2 / 8
            expected += (generated.var(correction=0) - own.var(correction=0)) ** 2 / 8
    torch.testing.assert_close(distance, torch.stack([expected, torch.tensor(0.0)]))


def test_mode_seeking_is_bounded_where_all_features_are_one():
    assert mode_seeking(torch.zeros(2, 3, 4, 5), torch.randn(3, 4, 2)).tolist() == [1000.0, 1000.0]


def test_each_head_counts_alike_unless_weighed():
    weights = GossipWeights.from_dense(torch.tensor([[1.0, 1, 0], [0, 1, 0], [1, 1, 1]]))
    heads, features = torch.randn(3, 4, 2), torch.randn(2, 2, 5, 4)
    devices = torch.tensor([0, 2])
    found = ReceivedHeads.of(heads, weights, devices).entropy(features)
    for row, received in enumerate(([0, 1], [0, 1, 2])):
        entropies = [-(features[row, c] @ heads[j]).log_softmax(-1)[:, c].mean() for j in received for c in range(2)]
        torch.testing.assert_close(found[row], torch.stack(entropies).mean())
    seen = torch.tensor([[3.0, 0], [1, 0], [0, 0]])
    shares = ReceivedHeads.of(heads, weights, devices, seen).share
    torch.testing.assert_close(
        shares, torch.tensor([[3 / 4, 1 / 2], [1 / 4, 1 / 2], [3 / 4, 1 / 3], [1 / 4, 1 / 3], [0, 1 / 3]])
    )


@native_only
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("learners", lambda value: torch.tensor([0, 0])),
        ("learners", lambda value: torch.tensor([DEVICES])),
        ("learners", lambda value: value.int()),
        ("steps_taken", lambda value: value.float()),
        ("noise", lambda value: value[:, :, :3]),
        ("noise", lambda value: value[:, :3]),
        ("noise", lambda value: value.double()),
        ("heads", lambda value: value[0]),
        ("heads", lambda value: value.double()),
        ("columns", lambda value: value + DEVICES),
        ("row_pointers", lambda value: value[:-1]),
        ("seen", lambda value: value[:1]),
        ("count", lambda value: value[:, :1]),
        ("sum", lambda value: value[:1]),
        ("product", lambda value: value.double()),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(name, change):
    case = CASES["weighed heads"]
    guidance, (rows, lesson) = case.guidance(), draw(case, torch.float32, [0, 1])
    if name in ("columns", "row_pointers"):
        weights = lesson.weights._replace(**{name: change(getattr(lesson.weights, name))})
        bad = dataclasses.replace(lesson, weights=weights)
    else:
        bad = dataclasses.replace(lesson, **{name: change(getattr(lesson, name))})
    before = [values.clone() for values in rows]
    with pytest.raises(ValueError, match=f"^generator_round_?: {name} must"):
        guidance.learn(*rows, bad)
    assert all(torch.equal(one, other) for one, other in zip(before, rows, strict=True))


@native_only
@pytest.mark.parametrize("position", [0, 1, 2])
def test_rows_of_another_shape_are_refused(position):
    names, (rows, lesson) = ("parameters", "first_moment", "second_moment"), draw(Case(), torch.float32, [0])
    rows[position] = rows[position][:, :-1]
    with pytest.raises(ValueError, match=f"{names[position]} must be"):
        Case().guidance().learn(*rows, lesson)


@native_only
def test_features_are_refused_for_what_does_not_fit():
    generator, theta = Case().guidance().generator, draw(Case(), torch.float32, [])[0][0]
    noise = torch.zeros(10, 2, 16)
    for given, bad, words in (
        (theta[:, 1:], noise, "parameters must be"),
        (theta, noise[0], "noise must have shape"),
        (theta, noise.double(), "noise must be"),
        (theta, noise[:, :, 1:], "parameters must be"),
    ):
        with pytest.raises(ValueError, match=f"generate_features: {words}"):
            generator.generate(given, bad)
