"""Refuse bad arrays before any figure is computed from them.

Layout  label int64 [N] in {0, 1}; probability float64 [N] in [0, 1]; patient str [N].
Errors  ValueError naming the array, what was expected, what came, and what to do.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Strings = NDArray[np.str_]
Interval = tuple[float, float]


def checked_label(label: ArrayLike) -> Ints:
    """Labels [N] as int64; ValueError where empty, not one-dimensional, or not 0 and 1."""
    array = np.asarray(label)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"label has shape {array.shape}: expected [N] with at least one film. "
            "Check that the split is not empty in predictions.csv."
        )
    bad = array[~np.isin(array, (0, 1))]
    if bad.size:
        raise ValueError(
            f"label holds {bad.size} value(s) such as {bad[0]!r}: expected 0 (normal) or 1 (pneumonia) only. "
            "Correct the label column, or leave films without a label out."
        )
    return array.astype(np.int64)


def checked_score(name: str, score: ArrayLike, n: int) -> Floats:
    """Any finite score [N] as float64; ValueError where the length is not n or a value is NaN or infinite."""
    array = np.asarray(score, dtype=np.float64)
    _same_length(name, array, n)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{name} holds {bad.size} value(s) that are not finite, the first {array[bad[0]]} at row {bad[0]}: "
            "expected numbers. Predict these films again, or remove their rows."
        )
    return array


def checked_probability(probability: ArrayLike, n: int) -> Floats:
    """Probabilities [N] as float64; ValueError as in checked_score, and where a value is outside [0, 1]."""
    array = checked_score("probability", probability, n)
    bad = array[(array < 0) | (array > 1)]
    if bad.size:
        raise ValueError(
            f"probability holds {bad.size} value(s) outside [0, 1], the first {bad[0]}: expected probabilities. "
            "Pass sigmoid(logit), not the logit."
        )
    return array


def checked(label: ArrayLike, probability: ArrayLike) -> tuple[Ints, Floats]:
    """Both arrays of one split, checked."""
    ints = checked_label(label)
    return ints, checked_probability(probability, ints.size)


def checked_patient(patient: Any, n: int) -> Strings:
    """Patient keys as str [N]; ValueError where the length is not n or a key is empty."""
    array = np.asarray(patient).astype(np.str_)
    _same_length("patient", array, n)
    missing = np.isin(array, ("", "nan", "None"))
    if missing.any():
        raise ValueError(
            f"patient is missing for {missing.sum()} film(s), the first at row {missing.argmax()}: expected a key for "
            "each. Fill the patient column of the manifest; a film of an unknown child may use its own path."
        )
    return array


def _same_length(name: str, array: NDArray[Any], n: int) -> None:
    if array.shape != (n,):
        raise ValueError(
            f"{name} has shape {array.shape}, label has shape ({n},): expected one value per film in both. "
            "Read both columns from the same predictions.csv."
        )
