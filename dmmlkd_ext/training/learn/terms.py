"""The loss terms of all devices at once (METHOD 3), each beside its formula; `register_term` adds further ones.

A term is a function of a `Batch` that returns one number per device, a mean over what is present in its batch. A device
minimizes the task's term plus the other terms times their weights in `method.losses`. An example:

    >>> from dmmlkd_ext.training.learn.terms import Batch, register_term
    >>> def feature_norm(batch: Batch) -> torch.Tensor:
    ...     squares = batch.common.square().mean(-1)  # [devices, samples, modalities]
    ...     return batch.mean_over_samples(batch.mean_over_modalities(squares))
    >>> register_term("feature-norm", feature_norm)

In a file that `--module` names, its weight is then set as `--method.losses.further feature-norm 0.01`; a registered
method has `LossWeights(further={"feature-norm": 0.01})`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from dmmlkd_ext.ops import orthogonality_difference, pairwise_kl_similarity
from dmmlkd_ext.registry import Registry
from dmmlkd_ext.training.guide.base import GuidanceBatch
from dmmlkd_ext.training.methods import LossWeights


@dataclass(frozen=True)
class Batch:
    """The outputs of the training devices for one batch each; zeros where a modality is absent.

    Attributes:
        labels: int64 [devices, samples].
        present: bool [devices, samples, modalities]: trained in this iteration and present in the sample.
        common: h^, [devices, samples, modalities, d].
        specific: hˇ, likewise.
        common_logits: w^_n h^, [devices, samples, modalities, classes].
        specific_logits: wˇ_n hˇ, likewise.
        shared_head: w^_n, [devices, d, classes].
        guidance: features that guide the batch, or None.
    """

    labels: torch.Tensor
    present: torch.Tensor
    common: torch.Tensor
    specific: torch.Tensor
    common_logits: torch.Tensor
    specific_logits: torch.Tensor
    shared_head: torch.Tensor
    guidance: GuidanceBatch | None = None

    @property
    def counted(self) -> torch.Tensor:
        """Which samples have a modality that trains and so count, bool [devices, samples]."""
        return self.present.any(2)

    def mean_over_modalities(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean [devices, samples] over the modalities present of [devices, samples, modalities]."""
        return sum_in_order(values * self.present, 2) / self.present.sum(2).clamp_min(1)

    def mean_over_samples(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean [devices] of values [devices, samples] over the samples that count."""
        return mean_where(values, self.counted)

    def entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Return each modality's cross-entropy [devices, samples, modalities] by logits [..., classes]."""
        labels = self.labels.unsqueeze(-1).expand(logits.shape[:-1])
        return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


Term = Callable[[Batch], torch.Tensor]


def sum_in_order(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sum over modalities, added in order: the bits do not change with an absent modality.

    Example:
        >>> sum_in_order(torch.tensor([[1.0, 2.0, 0.0]]), 1)
        tensor([3.])
    """
    return functools.reduce(torch.add, values.unbind(dim))


def mean_where(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the mean [devices] of values [devices, n] where `counted`; 0 if nothing is.

    Example:
        >>> mean_where(torch.tensor([[1.0, 3.0, 8.0], [1.0, 1.0, 1.0]]), torch.tensor([[1, 1, 0], [0, 0, 0]]) > 0)
        tensor([2., 0.])
    """
    return (values * counted).sum(1) / counted.sum(1).clamp_min(1)


def predict(batch: Batch) -> torch.Tensor:
    """Return the prediction's logits, [devices, samples, classes]: the mean over the modalities present (METHOD 2).

    logits = mean_m( w^_n h^_m ) + mean_m( wˇ_{n,m} hˇ_m )
    """
    logits = (batch.common_logits + batch.specific_logits) * batch.present.unsqueeze(-1)
    return sum_in_order(logits, 2) / batch.present.sum(2).clamp_min(1).unsqueeze(-1)


def task(batch: Batch) -> torch.Tensor:
    """Return CE(prediction, y), a mean over the samples that count (METHOD 1 and 3)."""
    logits = predict(batch)
    entropy = cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    return batch.mean_over_samples(entropy.view_as(batch.labels))


def classification(batch: Batch) -> torch.Tensor:
    """Return F_cls = 1 / (B |M|) sum_d sum_m CE( sigma(w^_n h^_m(d)), y(d) ) (METHOD 3 [P])."""
    return batch.mean_over_samples(batch.mean_over_modalities(batch.entropy(batch.common_logits)))


def similarity(batch: Batch) -> torch.Tensor:
    """Return F_sim, the mean of KL( sigma(w^_n h^_m) || sigma(w^_n h^_m') ) over ordered pairs (METHOD 3 [P])."""
    return batch.mean_over_samples(pairwise_kl_similarity(batch.common_logits, batch.present, "none"))


def difference(batch: Batch) -> torch.Tensor:
    """Return F_dif = sum_m || (H^_m)^T Hˇ_m ||^2 in its normalized form (METHOD 3 [P], the form [C])."""
    common, specific = batch.common.transpose(1, 2), batch.specific.transpose(1, 2)
    mask = batch.present.transpose(1, 2)
    by_modality = orthogonality_difference(common, specific, mask, normalize=True, reduction="none")
    return sum_in_order(by_modality, 1)


def generator(batch: Batch) -> torch.Tensor:
    """Return F_gen = 1 / (B |M|) sum_d sum_m KL( sigma(w^_n h~(d)) || sigma(w^_n h^_m(d)) ) (METHOD 3 [C]).

    The teacher, h~ and its logits, is constant. With prototypes the squared distance of h^_m from h~ replaces the
    divergence (FedProto, Tan et al. 2022). Samples whose class has no feature h~ do not count.
    """
    guidance = batch.guidance
    assert guidance is not None
    if guidance.by_distance:
        apart = (batch.common - guidance.target.unsqueeze(2)).square().mean(-1)
    else:
        teacher = torch.bmm(guidance.target, batch.shared_head.detach()).log_softmax(-1).unsqueeze(2)
        apart = (teacher.exp() * (teacher - batch.common_logits.log_softmax(-1))).sum(-1)
    return guidance.strength * mean_where(batch.mean_over_modalities(apart), guidance.known & batch.counted)


def rehearsal(batch: Batch) -> torch.Tensor:
    """Return CE( sigma(w^_n G(e, y')), y' ) of classes y' drawn uniformly, of those that have a feature (METHOD 3)."""
    guidance = batch.guidance
    assert guidance is not None
    assert guidance.rehearsal is not None
    assert guidance.rehearsal_known is not None
    logits = torch.bmm(guidance.rehearsal, batch.shared_head)
    labels = guidance.rehearsal_labels.repeat(len(logits))
    entropy = cross_entropy(logits.flatten(0, 1), labels, reduction="none").view(logits.shape[:2])
    return guidance.strength * mean_where(entropy, guidance.rehearsal_known)


TERMS: dict[str, Term] = {
    "task": task,
    "classification": classification,
    "similarity": similarity,
    "difference": difference,
    "generator": generator,
    "rehearsal": rehearsal,
}
"""The package's terms, in the order of a record."""

_ALL: Registry[Term] = Registry("loss term", TERMS)


def register_term(name: str, term: Term) -> None:
    """Register a loss term; see the module's text for an example.

    Args:
        name: used in `method.losses.further`, which holds its weight, and in a record's losses.
        term: maps a `Batch` to one differentiable number per device, [devices], which must depend on that device's part
            of the batch alone.

    Raises:
        ValueError: `name` is no identifier or belongs to the package, or `term` is not callable.
    """
    _ALL.add(name, term)


def term_names(weights: LossWeights) -> tuple[str, ...]:
    """Return the names of all terms in a record of a method: the package's, then registered ones."""
    return (*TERMS, *weights.further)


def loss_terms(batch: Batch, weights: LossWeights) -> dict[str, torch.Tensor]:
    """Return each term of nonzero weight, each [devices].

    Raises:
        ValueError: a term of the weights is not registered, or returns another shape than [devices].
    """
    wanted = {"task": 1.0, **weights.named()}
    guided = batch.guidance is not None
    rehearsed = guided and batch.guidance.rehearsal is not None  # type: ignore[union-attr]
    possible = {"generator": guided, "rehearsal": rehearsed}
    terms = {name: _ALL[name](batch) for name, weight in wanted.items() if weight and possible.get(name, True)}
    for name, value in terms.items():
        if value.shape != batch.labels.shape[:1]:
            raise ValueError(f"loss term {name} must return [{len(batch.labels)}] values, got {list(value.shape)}")
    return terms


def total(terms: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
    """Return the sum over devices of F_k, the task's term plus the other weighted terms (METHOD 3, "total")."""
    factors = {"task": 1.0, **weights.named()}
    return torch.stack([factors[name] * value for name, value in terms.items()]).sum()
