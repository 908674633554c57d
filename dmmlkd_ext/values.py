"""Values from text by their expected type: one reader for everything that a user writes."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NOTHING = ("None", "null")
_ORDER: tuple[Any, ...] = (type(None), int, float, bool)
"""The order in which the types of a union are tried, before all other types; str, which accepts anything, is last."""


def read_value(hint: Any, text: str, where: str) -> Any:
    """Convert a text to a type.

    A bool is `true`, `yes` or `1`, in any case; a list is `1,2` or `[1, 2]`; a dict is JSON. A str is the text itself,
    also if it looks like a number. For an unknown type, a text that looks like a number, a bool or None is one; in
    quotes it is a str.

    Args:
        hint: the type, as in annotations.
        text: the text.
        where: its name in messages.

    Raises:
        ValueError: the text does not fit.

    Example:
        >>> [read_value(kind, "0", "x") for kind in (bool, int, float, str, int | None)]
        [False, 0, 0.0, '0', 0]
        >>> read_value(tuple[int, int], "2, 4", "x"), read_value(Any, "'007'", "x"), read_value(Any, "inf", "x")
        ((2, 4), '007', inf)
    """
    origin = get_origin(hint)
    if origin is Annotated:
        return read_value(get_args(hint)[0], text, where)
    if origin in (Union, types.UnionType):
        return _read_first(sorted(get_args(hint), key=_place), text, where)
    if origin is Literal:
        for option in get_args(hint):
            if str(option) == text:
                return option
    elif origin is tuple:
        return _read_tuple(hint, text, where)
    elif dataclasses.is_dataclass(hint) or origin is dict or hint is dict:
        return _read_table(text, where)
    else:
        return _convert(_READERS.get(hint, _guess), hint, text, where)
    raise ValueError(f"{where} must be one of {', '.join(map(str, get_args(hint)))}; got {text!r}")


def fit_value(hint: Any, value: Any, where: str) -> Any:
    """Return a value of any type as the type that it is expected to have, or read as text.

    Raises:
        ValueError: it does not fit.

    Example:
        >>> fit_value(float, 1, "x"), fit_value(bool, "False", "x"), fit_value(bool, 0, "x"), fit_value(str, 7, "x")
        (1.0, False, False, '7')
    """
    origin = get_origin(hint)
    is_union = origin in (Union, types.UnionType)
    if origin is Annotated:
        return fit_value(get_args(hint)[0], value, where)
    if isinstance(value, str) and not (is_union and str in get_args(hint)):
        return read_value(hint, value, where)
    if is_union:
        if type(value) in get_args(hint):  # a text too: it was written as one
            return value
        return _read_first(sorted(get_args(hint), key=_place), value, where)
    if origin is tuple:
        return _fit_tuple(hint, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, got {value!r}")
        return {str(key): fit_value(get_args(hint)[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is Literal:
        return read_value(hint, str(value), where)
    if hint not in _READERS or type(value) is hint:
        return value
    return float(value) if hint is float and type(value) is int else read_value(hint, str(value), where)


def is_boolean(text: str) -> bool:
    """Return whether a text is a bool."""
    return text.strip().lower() in _BOOLEANS


def split_values(text: str) -> list[str]:
    """Return the values of a list, separated by commas that no bracket encloses.

    Example:
        >>> split_values("0,0.3,1"), split_values("[1, 2],[2, 4]")
        (['0', '0.3', '1'], ['[1, 2]', '[2, 4]'])
    """
    return [value.strip() for value in re.findall(r"(?:\[[^]]*\]|\([^)]*\)|[^,])+", text)]


def read_counts(words: Sequence[str], where: str) -> tuple[int, ...]:
    """Return whole numbers of at least 0, each once; a range such as `0-9` includes its last number.

    Raises:
        ValueError: a word is neither a number nor a range, or a number occurs twice.

    Example:
        >>> read_counts(["0-2", "5,7"], "seeds")
        (0, 1, 2, 5, 7)
    """
    found: list[int] = []
    for word in (part for words_of in words for part in split_values(words_of)):
        first, dash, last = word.partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last) and int(last or first) >= int(first)):
            raise ValueError(f"{where} must be numbers of at least 0, or ranges such as 0-9; got {word!r}")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) < len(found):
        raise ValueError(f"{where} must name each number once, got {' '.join(words)}")
    return tuple(found)


def is_scalar(hint: Any) -> bool:
    """Return whether a type is str, a number, bool, None, or a union of these.

    Example:
        >>> is_scalar(int | None), is_scalar(list[int]), is_scalar("int")
        (True, False, False)
    """
    if get_origin(hint) is Annotated:
        return is_scalar(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return all(map(is_scalar, get_args(hint)))
    return get_origin(hint) is Literal or any(hint is scalar for scalar in _READERS)


def _place(hint: Any) -> int:
    return _ORDER.index(hint) if hint in _ORDER else len(_ORDER) + (hint is str)


def _read_first(hints: list[Any], value: Any, where: str) -> Any:
    reasons = []
    for hint in hints:
        try:
            return read_value(hint, value, where) if isinstance(value, str) else fit_value(hint, value, where)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(reasons))


def _read_tuple(hint: Any, text: str, where: str) -> tuple[Any, ...]:
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("[]", "()"):
        inner = inner[1:-1]
    words = inner.replace(",", " ").split()
    return _fit_tuple(hint, [word.strip("'\"") for word in words], where, text)


def _fit_tuple(hint: Any, values: Any, where: str, shown: str = "") -> tuple[Any, ...]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{where} must be a list, got {values!r}")
    kinds = get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(kinds) != len(values):
        raise ValueError(f"{where} must be {len(kinds)} values, such as 1,2; got {shown or values!r}")
    return tuple(
        fit_value(kind, value, f"{where}[{index}]")
        for index, (kind, value) in enumerate(zip(kinds, values, strict=True))
    )


def _read_table(text: str, where: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} must be a table in JSON, got {text!r}: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table in JSON, got {text!r}")
    return table


def _convert(reader: Callable[[str], Any], hint: Any, text: str, where: str) -> Any:
    try:
        return reader(text)
    except (ValueError, KeyError):
        kind = "None" if hint in (None, type(None)) else hint.__name__
        raise ValueError(f"{where} must be {kind}, got {text!r}") from None


def _read_nothing(text: str) -> None:
    if text not in _NOTHING:
        raise ValueError


def _guess(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    for reader in (_read_nothing, int, float):
        try:
            return reader(text)
        except ValueError:
            continue
    return _BOOLEANS.get(text.lower(), text) if text.lower() in ("true", "false") else text


_READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: _BOOLEANS[text.strip().lower()],
    type(None): _read_nothing,
    None: _read_nothing,
}
