"""Named parts that users may add to: encoders, loss terms, policies, topologies."""

from __future__ import annotations

import difflib
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Parts of one kind by name; those of the package cannot be replaced.

    Args:
        kind: what the parts are, for messages.
        builtin: the package's parts.

    Example:
        >>> norms = Registry("norm", {"largest": max})
        >>> norms.add("total", sum)
        >>> norms["total"]([1, 2]), norms.names()
        (3, ('largest', 'total'))
        >>> norms["totl"]
        Traceback (most recent call last):
        ...
        ValueError: norm must be one of largest, total; got 'totl'; did you mean 'total'?
    """

    def __init__(self, kind: str, builtin: dict[str, T] | None = None) -> None:
        self.kind = kind
        self._builtin = frozenset(builtin or {})
        self._parts = dict(builtin or {})

    def add(self, name: str, part: T) -> None:
        """Register `part` as `name`, replacing an earlier part of the user.

        Raises:
            ValueError: the name is no identifier, or belongs to the package; or the part cannot be called.
        """
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise ValueError(f"name of a {self.kind} must be a word of letters, digits, - and _; got {name!r}")
        if name in self._builtin:
            raise ValueError(f"name of a {self.kind} must not be one of the package's, got {name!r}")
        if not callable(part):
            raise ValueError(f"{self.kind} {name!r} must be callable, got {type(part).__name__}")
        self._parts[name] = part

    def __getitem__(self, name: str) -> T:
        self.check(name)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def is_builtin(self, name: str) -> bool:
        """Return whether the part belongs to the package."""
        return name in self._builtin

    def names(self) -> tuple[str, ...]:
        """Return all names, the package's first."""
        return tuple(self._parts)

    def check(self, name: str) -> None:
        """Raise ValueError, with all names and the most similar one, if there is no such part."""
        if name not in self._parts:
            close = difflib.get_close_matches(str(name), self._parts, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{self.kind} must be one of {', '.join(self._parts) or 'none'}; got {name!r}{hint}")
