"""The processor or GPU that simulates: what is asked for, and what there is."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from dmmlkd_ext.experiments.config.schema import PROCESSORS

AUTO = "auto"


class GpuMissingError(OSError):
    """The GPU that was asked for is not there."""


def choose(asked: str | None) -> tuple[str | None, int | None]:
    """Return the kind of processor for `ExperimentConfig.torch_device`, and the number of the GPU or None for any.

    Args:
        asked: `cpu`, `cuda`, `cuda:N`, or `auto`, the GPU if there is one, else the CPU; None leaves the choice.

    Raises:
        ValueError: `asked` is none of them.

    Example:
        >>> choose("cpu"), choose("cuda:1")
        (('cpu', None), ('cuda', 1))
    """
    if asked is None:
        return None, None
    if asked == AUTO:
        return ("cuda" if name_gpus() else "cpu"), None
    kind, colon, number = asked.partition(":")
    if kind not in PROCESSORS or (colon and (kind == "cpu" or not re.fullmatch(r"[0-9]+", number))):
        raise ValueError(f"device must be cpu, cuda, cuda:N or {AUTO}; got {asked!r}")
    return kind, int(number) if number else None


def name_gpus() -> list[str]:
    """Return the names of the GPUs that torch can use, by their numbers."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def describe_gpus() -> str:
    """Return the GPUs in one line, or why there are none.

    Example:
        >>> describe_gpus()
        '...'
    """
    names = name_gpus()
    if names:
        return ", ".join(f"cuda:{number} ({name})" for number, name in enumerate(names))
    if torch.version.cuda is None:
        return f"none, as this torch ({torch.__version__}) was built without CUDA"
    return f"none that this torch ({torch.__version__}) can use"


def require(kind: str, gpu: int | None = None) -> None:
    """Refuse what is not there.

    Args:
        kind: of `PROCESSORS`.
        gpu: the number of the GPU; None is any.

    Raises:
        GpuMissingError: the message names what was asked for and what there is.
    """
    if kind == "cuda" and (gpu or 0) >= torch.cuda.device_count():
        asked = kind if gpu is None else f"{kind}:{gpu}"
        raise GpuMissingError(f"device {asked} is not there; the GPUs are: {describe_gpus()}")


def on_gpu(kind: str, gpu: int | None) -> AbstractContextManager[object]:
    """Return a context in which `cuda` is the GPU of that number; None leaves it as it is."""
    return nullcontext() if kind != "cuda" or gpu is None else torch.cuda.device(gpu)
