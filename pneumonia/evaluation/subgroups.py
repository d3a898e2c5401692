"""Does the model work for all films? The same threshold, by subtype, native size and colour mode.

Groups    subtype      bacteria or virus, each against all normal films (so specificity is the same in every row)
          native_size  quartiles of width * height in pixels, cut on these films
          colour_mode  as stored in the file (L, RGB, ..)
          mark         films with a mark in a corner that comes with normal, or with pneumonia, on other films; one may
                       have both
Intervals Wilson for proportions, DeLong for AUROC; both take films as independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumonia.evaluation.checks import Floats, Interval, Ints, Strings, checked, checked_patient
from pneumonia.evaluation.intervals import delong, wilson
from pneumonia.evaluation.metrics import confusion, proportions, ratio


@dataclass(frozen=True)
class Estimate:
    """A value and its interval, None where undefined; n is the denominator (films)."""

    value: float | None
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class Subgroup:
    """One row; where the grouping is not available, `reason` says why and everything else is None or 0."""

    group: str
    name: str | None
    n: int = 0
    positives: int = 0
    patients: int = 0
    accuracy: Estimate | None = None
    sensitivity: Estimate | None = None
    specificity: Estimate | None = None
    auroc: Estimate | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Split:
    label: Ints
    probability: Floats
    patient: Strings
    threshold: float
    level: float


def subgroup_table(
    label: ArrayLike,
    probability: ArrayLike,
    patient: ArrayLike,
    threshold: float,
    subtype: ArrayLike | None = None,
    width: ArrayLike | None = None,
    height: ArrayLike | None = None,
    mode: ArrayLike | None = None,
    level: float = 0.95,
) -> list[Subgroup]:
    """Rows for every grouping; subtype, mode: str [N]; width, height: int [N] in pixels; None where not recorded."""
    truth, score = checked(label, probability)
    split = _Split(truth, score, checked_patient(patient, truth.size), threshold, level)
    kinds = None if subtype is None else _column("subtype", subtype, truth.size).astype(np.str_)
    modes = None if mode is None else _column("mode", mode, truth.size).astype(np.str_)
    area = None
    if width is not None and height is not None:
        area = _column("width", width, truth.size).astype(float) * _column("height", height, truth.size).astype(float)
    return [*_by_subtype(split, kinds), *_by_size(split, area), *_by_mode(split, modes)]


def mark_table(
    label: ArrayLike, probability: ArrayLike, patient: ArrayLike, threshold: float, marked: Mapping[str, ArrayLike],
    level: float = 0.95,
) -> list[Subgroup]:  # fmt: skip
    """A row for films with a mark of each class, `marked` {class: bool [N]}, and one for those with none."""
    truth, score = checked(label, probability)
    split = _Split(truth, score, checked_patient(patient, truth.size), threshold, level)
    parts = {
        f"a mark of {name.lower()}": _column("marked", mask, truth.size).astype(bool) for name, mask in marked.items()
    }
    parts["no mark"] = ~np.any(list(parts.values()), axis=0)
    return [_row(split, "mark", name, part) for name, part in parts.items() if part.any()]


def _by_subtype(split: _Split, subtype: Strings | None) -> list[Subgroup]:
    if subtype is None:
        return [Subgroup("subtype", None, reason="not recorded")]
    names = [name for name in np.unique(subtype[split.label == 1]).tolist() if name]
    if not names:
        return [Subgroup("subtype", None, reason="no pneumonia film has a subtype")]
    return [_row(split, "subtype", name, (split.label == 0) | (subtype == name)) for name in names]


def _by_size(split: _Split, area: Floats | None) -> list[Subgroup]:
    if area is None or not np.isfinite(area).all():
        return [Subgroup("native_size", None, reason="not recorded for every film")]
    if area.min() == area.max():
        return [Subgroup("native_size", None, reason=f"all {area.size} films have {int(area[0])} pixels")]
    cuts = np.unique(np.quantile(area, [0.25, 0.5, 0.75], method="inverted_cdf"))
    quartile = np.searchsorted(cuts, area, side="left")
    parts = [quartile == k for k in range(cuts.size + 1) if (quartile == k).any()]
    return [
        _row(split, "native_size", f"{int(area[part].min())} to {int(area[part].max())} pixels", part) for part in parts
    ]


def _by_mode(split: _Split, mode: Strings | None) -> list[Subgroup]:
    if mode is None:
        return [Subgroup("colour_mode", None, reason="not recorded")]
    names = np.unique(mode).tolist()
    if len(names) == 1:
        return [Subgroup("colour_mode", None, reason=f"all {mode.size} films are {names[0] or 'without a mode'}")]
    return [_row(split, "colour_mode", name, mode == name) for name in names]


def _row(split: _Split, group: str, name: str, part: NDArray[np.bool_]) -> Subgroup:
    label, score = split.label[part], split.probability[part]
    of = proportions(confusion(label, score, split.threshold))
    ranked = delong(label, score, split.level)
    return Subgroup(
        group, name, label.size, int(label.sum()), np.unique(split.patient[part]).size,
        accuracy=proportion(*of["accuracy"], split.level),
        sensitivity=proportion(*of["sensitivity"], split.level),
        specificity=proportion(*of["specificity"], split.level),
        auroc=Estimate(ranked.auroc, ranked.interval, label.size),
    )  # fmt: skip


def proportion(successes: int, n: int, level: float) -> Estimate:
    """A share of n films with Wilson's interval."""
    return Estimate(ratio(successes, n), wilson(successes, n, level), n)


def _column(name: str, values: ArrayLike, n: int) -> NDArray[np.generic]:
    column = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(
            f"{name} has shape {column.shape}: expected ({n},), one value per film. Join it to the predictions by path."
        )
    return column
