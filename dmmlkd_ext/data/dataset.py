"""Datasets: samples with several modalities, some of which may be absent, in three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

RESERVED_MODALITIES = ("shared", "generator", "state of the guidance")
"""Names that checkpoints, records and links use besides those of modalities; no modality may have one of them."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples of one side of a dataset (training, validation or test).

    Attributes:
        features: one float32 tensor ``[samples, *shape]`` per modality, all values finite, at least one per sample. The
            row of a sample that lacks the modality holds any finite values (zeros by custom).
        labels: int64 ``[samples]``, the class of each sample.
        present: bool ``[samples, modalities]``, columns in the order of ``MultiModalDataset.modalities``;
            every sample has at least one modality.
        groups: int64 ``[samples]``, the natural owner of each sample (such as a speaker), or -1.

    Raises:
        ValueError: a field has the wrong type, dtype or shape, or features are not finite.

    Example:
        >>> split = Split(
        ...     features={"camera": torch.zeros(3, 8), "radar": torch.zeros(3, 1, 4)},
        ...     labels=torch.tensor([0, 1, 1]),
        ...     present=torch.tensor([[True, True], [True, False], [True, True]]),
        ...     groups=torch.full((3,), -1),
        ... )
        >>> len(split), len(split.select(torch.tensor([0, 2])))
        (3, 2)
    """

    features: dict[str, torch.Tensor]
    labels: torch.Tensor
    present: torch.Tensor
    groups: torch.Tensor

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features must hold at least one modality, got an empty dict")
        _require_tensor("labels", self.labels, torch.int64, 1)
        samples = self.labels.shape[0]
        _require_tensor("groups", self.groups, torch.int64, 1, samples)
        _require_tensor("present", self.present, torch.bool, 2, samples)
        if self.present.shape[1] != len(self.features):
            raise ValueError(
                f"present must have one column a modality, {len(self.features)}, got {self.present.shape[1]}"
            )
        for modality, values in self.features.items():
            name = f"features[{modality!r}]"
            _require_tensor(name, values, torch.float32, None, samples)
            if 0 in values.shape[1:]:
                raise ValueError(f"{name} must hold at least one value a sample, got shape {tuple(values.shape)}")
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} must be finite (zeros where a sample lacks the modality), got nan or inf")
        if samples and not bool(self.present.any(dim=1).all()):
            row = int((~self.present.any(dim=1)).nonzero()[0])
            raise ValueError(f"present must keep at least one modality a sample, row {row} has none")
        if samples and int(self.groups.min()) < -1:
            raise ValueError(f"groups must be at least -1 (no owner), got {int(self.groups.min())}")

    def __len__(self) -> int:
        return self.labels.shape[0]

    def select(self, indices: torch.Tensor) -> Split:
        """Return the samples at ``indices`` (int64 ``[n]``), in that order, copied."""
        return Split(
            features={modality: values[indices] for modality, values in self.features.items()},
            labels=self.labels[indices],
            present=self.present[indices],
            groups=self.groups[indices],
        )

    def to(self, torch_device: torch.device) -> Split:
        """Return the samples on a processor or GPU; those that are there already are not copied."""
        if self.labels.device == torch_device:
            return self
        return Split(
            features={modality: values.to(torch_device) for modality, values in self.features.items()},
            labels=self.labels.to(torch_device),
            present=self.present.to(torch_device),
            groups=self.groups.to(torch_device),
        )


@dataclass(frozen=True, eq=False)
class MultiModalDataset:
    """A classification dataset with several modalities and its three splits.

    Attributes:
        name: the name that it is registered under.
        modalities: names, in the order of the columns of ``Split.present``; none of `RESERVED_MODALITIES`.
        num_classes: number of classes C; labels lie in 0..C-1.
        class_names: C names.
        train: what devices hold and learn from; at least one sample.
        validation: for choices such as the learning rate; may be empty.
        test: for results only; may be empty.

    Raises:
        ValueError: a field is inconsistent with another; the message names the field.

    Example:
        >>> part = Split({"a": torch.zeros(2, 3)}, torch.tensor([0, 1]), torch.ones(2, 1, dtype=torch.bool),
        ...              torch.tensor([-1, -1]))
        >>> data = MultiModalDataset("tiny", ("a",), 2, ("no", "yes"), part, part, part)
        >>> data.shapes
        {'a': (3,)}
    """

    name: str
    modalities: tuple[str, ...]
    num_classes: int
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name must not be empty")
        _require_names("modalities", self.modalities)
        _require_names("class_names", self.class_names)
        for taken in RESERVED_MODALITIES:
            if taken in self.modalities:
                raise ValueError(f"modalities must not be named {taken!r}, a part of every model; rename it")
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must hold num_classes = {self.num_classes} names, got {len(self.class_names)}"
            )
        if len(self.train) == 0:
            raise ValueError("train must hold at least one sample, got none")
        for side in ("train", "validation", "test"):
            self._check_split(side, getattr(self, side))

    def _check_split(self, side: str, split: Split) -> None:
        if tuple(split.features) != self.modalities:
            raise ValueError(
                f"{side}.features must hold the modalities {self.modalities} in this order, got {tuple(split.features)}"
            )
        for modality, values in split.features.items():
            if tuple(values.shape[1:]) != self.shapes[modality]:
                raise ValueError(
                    f"{side}.features[{modality!r}] must have samples of shape {self.shapes[modality]} "
                    f"like train's, got {tuple(values.shape[1:])}"
                )
        if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < self.num_classes:
            raise ValueError(
                f"{side}.labels must lie in 0..{self.num_classes - 1}, "
                f"got {int(split.labels.min())}..{int(split.labels.max())}"
            )

    def to(self, torch_device: torch.device) -> MultiModalDataset:
        """Return the dataset on a processor or GPU; what is there already is not copied."""
        if self.train.labels.device == torch_device:
            return self
        sides = {side: getattr(self, side).to(torch_device) for side in ("train", "validation", "test")}
        return replace(self, **sides)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample's features, by modality."""
        return {modality: tuple(values.shape[1:]) for modality, values in self.train.features.items()}


def _require_names(field: str, names: Sequence[str]) -> None:
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{field} must be a non-empty tuple of non-empty strings, got {names!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"{field} must be distinct, got {names!r}")


def _require_tensor(
    field: str, value: torch.Tensor, dtype: torch.dtype, dimensions: int | None, samples: int | None = None
) -> None:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{field} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype != dtype:
        raise ValueError(f"{field} must be {dtype}, got {value.dtype}")
    if value.dim() < 1 or (dimensions is not None and value.dim() != dimensions):
        needed = "at least 1 dimension" if dimensions is None else f"{dimensions} dimension(s)"
        raise ValueError(f"{field} must have {needed}, got shape {tuple(value.shape)}")
    if samples is not None and value.shape[0] != samples:
        raise ValueError(f"{field} must have one row per sample, {samples} as labels has, got {value.shape[0]}")
