"""Recommended settings of each dataset."""

from __future__ import annotations

from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.methods import get_method

# Starting values found in trials (METHOD 8); all of them are choices of this project [C].
_DATA: dict[str, DataConfig] = {
    "watch": DataConfig("watch", partition="natural", num_devices=20, missing_rate=0.6),
    "mfeat": DataConfig(
        "mfeat",
        partition="dirichlet",
        num_devices=20,
        dirichlet_alpha=0.1,
        # With all six views on every device the accuracy saturates, so every device holds two to four.
        missing_rate=1.0,
        modalities_per_device=(2, 4),
    ),
    # Every device holds both views, of unequal strength.
    "mfeat-pair": DataConfig(
        "mfeat-pair", partition="dirichlet", num_devices=20, dirichlet_alpha=0.5, missing_rate=0.0
    ),
    "avdigits": DataConfig("avdigits", partition="dirichlet", num_devices=20, dirichlet_alpha=0.5, missing_rate=0.6),
    "avdigits-clean": DataConfig(
        "avdigits-clean", partition="dirichlet", num_devices=20, dirichlet_alpha=0.5, missing_rate=0.6
    ),
}

_TRAINING: dict[str, TrainingConfig] = {
    "watch": TrainingConfig(batch_size=16, learning_rate=0.05, weight_decay=2e-3, input_noise=0.2),
    "mfeat": TrainingConfig(batch_size=32, learning_rate=0.1, weight_decay=1e-3, input_noise=0.0),
    "avdigits": TrainingConfig(batch_size=32, learning_rate=0.05, weight_decay=5e-3, input_noise=0.5),
}
_TRAINING |= {"mfeat-pair": _TRAINING["mfeat"], "avdigits-clean": _TRAINING["avdigits"]}

PRESETS: tuple[str, ...] = tuple(_DATA)
"""Datasets with recommended settings."""


def preset(dataset: str, method: str = "dmml-kd", seed: int = 0) -> ExperimentConfig:
    """Return the recommended configuration of a method on a dataset.

    A registered dataset without recommended settings, such as one of yours, gets the defaults.

    Args:
        dataset: name of a registered dataset.
        method: name of a method of `dmmlkd_ext.training.methods.METHODS`.
        seed: of every random draw of the run, at least 0.

    Raises:
        ValueError: there is no such dataset or method, or `seed` is negative.

    Example:
        >>> config = preset("mfeat", "dmml", seed=3)
        >>> config.training.learning_rate, config.data.modalities_per_device, config.seed
        (0.1, (2, 4), 3)
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return ExperimentConfig(
        method=get_method(method),
        data=_DATA[dataset] if dataset in _DATA else _default_data(dataset),
        training=_TRAINING.get(dataset, TrainingConfig()),
        seed=seed,
    )


def _default_data(dataset: str) -> DataConfig:
    from dmmlkd_ext.data import available_datasets

    known = sorted({*available_datasets(), *PRESETS})
    if dataset not in known:
        raise ValueError(f"dataset must be one of {', '.join(known)}; got {dataset!r}")
    return DataConfig(dataset)
