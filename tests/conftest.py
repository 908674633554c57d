from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.instruction_sets import instruction_sets


def _repeats_a_reference(parameters: dict[str, Any]) -> bool:
    """Whether a reference, which knows no instruction sets, would run with another one than the first."""
    chosen = parameters.get("instruction_set", parameters.get("kernels"))
    reference = any(getattr(value, "__name__", "").endswith("_reference") for value in parameters.values())
    return reference and chosen in instruction_sets()[1:]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the tests that would say the same again; let those that take minutes begin, so that none is left alone."""
    if " " in torch.__file__:
        reason = f"torch.compile's C++ compiler cannot read a path with a space, as that of torch: {torch.__file__}"
        for item in items:
            if item.get_closest_marker("compile") is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: item.get_closest_marker("install") is None)
    repeated = [item for item in items if _repeats_a_reference(getattr(getattr(item, "callspec", None), "params", {}))]
    if repeated:
        config.hook.pytest_deselected(items=repeated)
        dropped = set(repeated)
        items[:] = [item for item in items if item not in dropped]
