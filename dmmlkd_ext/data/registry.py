"""Datasets by name, to which a user can add.

A new dataset needs a function that returns a `MultiModalDataset`, with any number of modalities of any shape; any
sample may lack some of them:

    >>> import torch
    >>> from dmmlkd_ext.data import MultiModalDataset, Split, load_dataset, register_dataset
    >>> def load_robots(seed: int = 0, samples: int = 60) -> MultiModalDataset:
    ...     generator = torch.Generator().manual_seed(seed)
    ...     def part(count: int) -> Split:
    ...         labels = torch.randint(3, (count,), generator=generator)
    ...         present = torch.ones(count, 3, dtype=torch.bool)
    ...         present[::4, 2] = False  # every fourth sample has no gripper reading
    ...         return Split(
    ...             features={
    ...                 "camera": torch.randn(count, 1, 8, 8, generator=generator),
    ...                 "torque": torch.randn(count, 6, 32, generator=generator),
    ...                 "gripper": torch.randn(count, 4, generator=generator) * present[:, 2:],
    ...             },
    ...             labels=labels,
    ...             present=present,
    ...             groups=torch.arange(count) % 5,  # five robots; -1 where there is no natural owner
    ...         )
    ...     names = ("cup", "box", "ball")
    ...     return MultiModalDataset("robots", ("camera", "torque", "gripper"), 3, names,
    ...                              train=part(samples), validation=part(12), test=part(24))
    >>> register_dataset("robots", load_robots)
    >>> data = load_dataset("robots", seed=1, samples=40)
    >>> len(data.train), data.shapes["torque"], "robots" in available_datasets()
    (40, (6, 32), True)
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.values import fit_value, is_scalar, read_value

Loader = Callable[..., MultiModalDataset]

_LOADERS: dict[str, Loader] = {}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def register_dataset(name: str, loader: Loader, *, replace: bool = False) -> None:
    """Register ``loader`` as ``name``; see the module's text for an example.

    Args:
        name: the dataset's name in `load_dataset` and configurations.
        loader: called as ``loader(seed=seed, **options)``; returns a `MultiModalDataset`. Results of
            different seeds are comparable only if the test split does not depend on the seed.
        replace: replace a registered dataset of that name.

    Raises:
        ValueError: the name is empty or taken, or the loader is not callable or takes no ``seed``.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name must be a non-empty string, got {name!r}")
    if not callable(loader):
        raise ValueError(f"loader of dataset {name!r} must be callable, got {type(loader).__name__}")
    if name in _LOADERS and not replace:
        raise ValueError(f"name {name!r} is already registered; pass replace=True to put another in its place")
    if not _accepts(loader, "seed"):
        raise ValueError(f"loader of dataset {name!r} must take the keyword argument seed")
    _LOADERS[name] = loader


def load_dataset(name: str, /, seed: int = 0, **options: object) -> MultiModalDataset:
    """Load the dataset registered as ``name``.

    Args:
        name: one of `available_datasets`.
        seed: the run's seed, at least 0. The splits and features of this package's datasets do not depend on it, so
            that runs are comparable; those of another dataset may.
        **options: options of that dataset, such as ``split="subject"`` of ``watch``; text is converted to the type that
            the loader declares.

    Raises:
        ValueError: the name, an option or the seed is not valid.
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: the files are neither local nor can be downloaded.

    Example:
        >>> load_dataset("wacht")
        Traceback (most recent call last):
        ...
        ValueError: name must be one of ..., got 'wacht'; did you mean 'watch'?
    """
    loader = _find_loader(name)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    read = read_options(name, options)
    _require_options(name, loader, read)
    dataset = loader(seed=seed, **read)
    if not isinstance(dataset, MultiModalDataset):
        raise ValueError(f"loader of dataset {name!r} must return a MultiModalDataset, got {type(dataset).__name__}")
    return dataset


def read_options(name: str, options: Mapping[str, object]) -> dict[str, Any]:
    """Return a loader's options converted to the types of its signature, by annotation or else by default.

    Raises:
        ValueError: there is no such dataset or option, or a value does not fit.

    Example:
        >>> read_options("avdigits", {"pairs": "2", "snr_db": "inf"})
        {'pairs': 2, 'snr_db': inf}
    """
    loader, read = _find_loader(name), {}
    for option, value in options.items():
        if option == "seed" or not _accepts(loader, option):
            known = [parameter for parameter in inspect.signature(loader).parameters if parameter != "seed"]
            instead = "; the run's seed is a setting of its own" if option == "seed" else ""
            raise ValueError(f"{option} is not an option of dataset {name!r}, which takes {known or 'none'}{instead}")
        try:
            kind = _type_of(loader, option)
            text = isinstance(value, str)
            read[option] = read_value(kind, str(value), option) if text else fit_value(kind, value, option)
        except ValueError as error:
            raise ValueError(f"{error} (an option of dataset {name!r})") from None
    return read


def _require_options(name: str, loader: Loader, given: Mapping[str, object]) -> None:
    for option, parameter in inspect.signature(loader).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in _VARIADIC
        if needed and option != "seed" and option not in given:
            raise ValueError(f"dataset {name!r} needs its option {option}, such as --data.options {option} VALUE")


def _type_of(loader: Loader, option: str) -> Any:
    """Return the type that a loader declares for an option, or Any."""
    try:
        parameter = inspect.signature(loader, eval_str=True).parameters.get(option)
    except Exception:  # an annotation may be any expression, with names that only type checkers import
        parameter = inspect.signature(loader).parameters.get(option)
    if parameter is None:
        return Any
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        return parameter.annotation if is_scalar(parameter.annotation) else Any
    stated = type(parameter.default)
    return stated if stated in (bool, int, float, str) else Any


def _find_loader(name: str) -> Loader:
    loader = _LOADERS.get(name)
    if loader is None:
        close = difflib.get_close_matches(str(name), _LOADERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"name must be one of {', '.join(available_datasets())}, got {name!r}{hint}")
    return loader


def available_datasets() -> tuple[str, ...]:
    """Return the registered names, sorted; loads no data.

    Example:
        >>> {"mfeat", "watch"} <= set(available_datasets())
        True
    """
    return tuple(sorted(_LOADERS))


def _accepts(loader: Loader, keyword: str) -> bool:
    parameters = inspect.signature(loader).parameters
    named = parameters.get(keyword)
    if named is not None:
        return named.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
