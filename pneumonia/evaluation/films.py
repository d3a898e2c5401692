"""One split of one run, as read from predictions.csv: the arrays that drift and comparison work on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumonia.evaluation.checks import Floats, Ints, Strings, checked, checked_patient

SHOWN = 3


@dataclass(frozen=True)
class Films:
    """path str [N], label int [N], probability float [N], patient str [N]; checked, and ordered by path."""

    path: Strings
    label: Ints
    probability: Floats
    patient: Strings

    def __post_init__(self) -> None:
        label, probability = checked(self.label, self.probability)
        path = np.asarray(self.path).astype(np.str_)
        if path.shape != label.shape:
            raise ValueError(
                f"path has shape {path.shape}, label has shape {label.shape}: expected one value per film in both. "
                "Read both columns from the same predictions.csv."
            )
        order = np.argsort(path, kind="stable")
        path = path[order]
        twice = np.unique(path[1:][path[1:] == path[:-1]])
        if twice.size:
            raise ValueError(
                f"{twice.size} path(s) occur more than once ({_some(twice)}): expected one row per film. "
                "Remove the repeated rows of predictions.csv."
            )
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "label", label[order])
        object.__setattr__(self, "probability", probability[order])
        object.__setattr__(self, "patient", checked_patient(self.patient, label.size)[order])


def check_same_films(named: Sequence[tuple[str, Films]]) -> None:
    """ValueError unless all hold the same paths with the same labels and patients; it says which do not."""
    (first, reference), *others = named
    for name, films in others:
        missing = np.setdiff1d(reference.path, films.path)
        extra = np.setdiff1d(films.path, reference.path)
        if missing.size or extra.size:
            raise ValueError(
                f"{name} and {first} are not over the same films: {missing.size} only in {first} ({_some(missing)}), "
                f"{extra.size} only in {name} ({_some(extra)}). Compare runs made from the same manifest."
            )
        for column in ("label", "patient"):
            differs = reference.path[getattr(reference, column) != getattr(films, column)]
            if differs.size:
                raise ValueError(
                    f"{name} and {first} give {differs.size} film(s) another {column} ({_some(differs)}). "
                    "Compare runs made from the same manifest."
                )


def _some(paths: Strings) -> str:
    shown = ", ".join(paths[:SHOWN].tolist()) or "none"
    return shown + (", .." if paths.size > SHOWN else "")
