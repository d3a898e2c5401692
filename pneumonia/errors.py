"""The error that a user's mistake gets, and the checks that raise it."""

import difflib
from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """A mistake the user can mend: names the value, what was expected, and what to type instead."""


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{key}={value}: expected one of {', '.join(choices)}{nearest(value, choices)}")


def in_range(key: str, value: float | None, low: float, high: float = float("inf"), *, open_low: bool = False) -> None:
    """Raise UserError unless low <= value <= high (low < value with `open_low`); None is left alone."""
    if value is None:
        return
    if not (low <= value <= high) or (open_low and value == low) or value == float("inf"):
        sign = ">" if open_low else ">="
        upper = "" if high == float("inf") else f" and <= {high:.10g}"
        raise UserError(f"{key}={value}: expected a number {sign} {low:.10g}{upper}.")


def nearest(word: str, choices: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing when no choice is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def not_empty(config: Any, *names: str, section: str = "") -> None:
    """Raise UserError for a path that is typed as nothing, as by a shell's variable that isn't set."""
    for name in names:
        if getattr(config, name) == "":
            raise UserError(f"{section}{name}= is empty: expected a path, or leave {section}{name} out.")
