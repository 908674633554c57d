"""Words become what they are due to be."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest

from dmmlkd_ext.data import registry
from dmmlkd_ext.data.registry import load_dataset, read_options, register_dataset
from dmmlkd_ext.values import fit_value, read_counts, read_value


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        *((bool, word, False) for word in ("false", "False", "FALSE", "0", "no")),
        *((bool, word, True) for word in ("true", "True", "1", "yes")),
        (int, "-3", -3),
        (float, ".05", 0.05),
        (float, "inf", math.inf),
        (float, "1", 1.0),
        *((str, word, word) for word in ("5", "True", "None", "inf", "[1]", "", '"a"')),
        (int | None, "None", None),
        (str | None, "5", "5"),
        (bool | int | float | str, "5", 5),
        (bool | int | float | str, "5.0", 5.0),
        (bool | str, "0", False),
        (Literal["a", 3], "3", 3),
        (Annotated[int, "rounds"], "7", 7),
        (tuple[int, int], "[1, 2]", (1, 2)),
        (tuple[int, int] | None, "1 2", (1, 2)),
        (tuple[float, ...], "", ()),
        (tuple[str, ...], '["a", "5"]', ("a", "5")),
        (dict[str, float], '{"a": 1}', {"a": 1}),
        (Any, "5", 5),
        (Any, "'5'", "5"),
        (Any, "true", True),
        (Any, "None", None),
        (Any, "five", "five"),
    ],
)
def test_a_word_is_read_as_what_is_due(hint: Any, text: str, value: Any) -> None:
    read = read_value(hint, text, "x")
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("hint", "text", "message"),
    [
        (bool, "2", "x must be bool, got '2'"),
        (int, "1e3", "x must be int, got '1e3'"),
        (float, "much", "x must be float, got 'much'"),
        (int | None, "a", "x must be None, got 'a'; or x must be int, got 'a'"),
        (Literal["a", "b"], "c", "x must be one of a, b; got 'c'"),
        (tuple[int, int], "1", "x must be 2 values, such as 1,2; got '1'"),
        (tuple[int, int], "1,b", r"x\[1\] must be int, got 'b'"),
        (dict[str, int], "{", "x must be a table in JSON, got '{'"),
        (dict[str, int], "[]", "x must be a table in JSON"),
    ],
)
def test_a_word_that_does_not_fit_is_refused(hint: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_value(hint, text, "x")


@pytest.mark.parametrize(
    ("hint", "given", "value"),
    [(bool, 0, False), (bool, True, True), (float, 2, 2.0), (str, 7, "7"), (int | None, 3, 3), (Any, 0.5, 0.5)],
)
def test_a_value_that_fits_stays_as_it_is(hint: Any, given: Any, value: Any) -> None:
    fitted = fit_value(hint, given, "x")
    assert (fitted, type(fitted)) == (value, type(value))


@pytest.mark.parametrize(("hint", "given"), [(int, 2.0), (int, True), (bool, 2), (float, None)])
def test_a_value_of_another_kind_is_refused(hint: Any, given: Any) -> None:
    with pytest.raises(ValueError, match=f"x must be {hint.__name__}, got"):
        fit_value(hint, given, "x")


@pytest.mark.parametrize(
    ("words", "counts"), [(["0-3"], (0, 1, 2, 3)), (["2", "0"], (2, 0)), (["1,4-5"], (1, 4, 5)), ([], ())]
)
def test_counts_are_numbers_and_ranges(words: list[str], counts: tuple[int, ...]) -> None:
    assert read_counts(words, "seeds") == counts


@pytest.mark.parametrize("word", ["-1", "3-1", "a", "1-", "1.5"])
def test_what_is_no_count_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=rf"seeds must be numbers of at least 0, or ranges such as 0-9; got '{word}'"):
        read_counts([word], "seeds")
    with pytest.raises(ValueError, match="seeds must name each number once"):
        read_counts(["0-3", "2"], "seeds")


def test_options_are_read_by_the_loaders_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(
        seed: int = 0,
        flag: bool = True,
        rate=1.5,
        name: str = "",
        odd: Unknown = None,  # noqa: F821
        **others: Any,
    ) -> None:
        seen.update(flag=flag, rate=rate, name=name, odd=odd, **others)

    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    register_dataset("own", load)
    with pytest.raises(ValueError, match="must return a MultiModalDataset"):
        load_dataset("own", flag="false", rate="2", name="5", odd="3", more="7")
    assert seen == {"flag": False, "rate": 2.0, "name": "5", "odd": 3, "more": 7}
    with pytest.raises(ValueError, match=r"rate must be float, got 'x' \(an option of dataset 'own'\)"):
        read_options("own", {"rate": "x"})
    with pytest.raises(ValueError, match=r"seed is not an option of dataset 'own'.*the run's seed is a setting"):
        read_options("own", {"seed": 1})
