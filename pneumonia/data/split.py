"""Train and validation from the training films: stratified by class, grouped by patient, duplicates on one side.

A group is what must not be torn apart: films of one patient, and films with the same bytes. Everything is drawn from a
seed over groups in name order, so the order in which a disk lists its files changes nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePath

import numpy as np

from pneumonia.data.counterexamples import FOLDS, Films, misjudged
from pneumonia.data.records import CLASSES, SPLITS, Record
from pneumonia.errors import UserError

Read = Callable[[Sequence[Record]], Films]


def split_by_patient(
    records: Sequence[Record], fraction: float, seed: int, folds: int | None = None, fold: int | None = None,
    held_out: str | None = None, counterexamples: str | None = None, read: Read | None = None, nested: bool = False,
) -> list[Record]:  # fmt: skip
    """`records` with split train, val or test; test records, and a split that names val already, stay as they are.

    `fraction` of each class validates; with `folds`, fold number `fold` of k does; with `held_out`, of the classes that
    have films of such names these do; with `counterexamples`, the fraction that this shortcut gets most wrong, for
    which `read` gives the pixels uint8 [N, S, S] of records. `nested`: the folds are of the training films alone that
    `fraction`, or the manifest, leaves; the others are left out, test films too. Raises UserError when there are too
    few patients to have both classes on both sides.
    """
    if nested:
        outer = split_by_patient(records, fraction, seed)
        return split_by_patient([r for r in outer if r.split == "train"], fraction, seed, folds, fold)
    if any(record.split == "val" for record in records):
        told = {"folds": folds, "held_out": held_out, "counterexamples": counterexamples}
        for key, value in told.items():
            if value is not None:
                raise UserError(
                    f"data.{key}: the manifest names its val films already; write train where its split column says "
                    "val to split anew."
                )
        check_splits(records)
        return list(records)
    development = sorted((r for r in records if r.split == "train"), key=lambda r: r.path)
    if not development:
        raise UserError("There are no training films: expected some of both classes, in train/ or by split=train.")
    group = groups_of(development)
    label = np.array([record.label for record in development])
    if counterexamples is not None:
        assert read is not None
        check_enough(label, group, FOLDS, f"for data.counterexamples={counterexamples}", "leave that out")
        validates = choose_worst(
            label, group, fraction, misjudged(read(development), label, group, counterexamples, seed)
        )
    elif folds is not None:
        assert fold is not None
        check_enough(label, group, folds, f"for data.folds={folds}", "lower it")
        validates = choose_fold(label, group, folds, fold, seed)
    else:
        check_enough(label, group, 2, "to split")
        validates = choose(label, group, fraction, seed)
        validates = validates if held_out is None else hold_out(development, held_out, label, group, validates)
    moved = {r.path: replace(r, split="val") for r, chosen in zip(development, validates, strict=True) if chosen}
    result = [moved.get(record.path, record) for record in records]
    check_splits(result)
    return result


def groups_of(records: Sequence[Record]) -> np.ndarray:
    """Group number [N] of each record: records linked by a patient or by the same bytes, in any chain, share one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names: dict[str, int] = {}
    edges = [
        (row, names.setdefault(key, len(names)))
        for row, record in enumerate(records)
        for key in (f"patient {record.patient}", f"bytes {record.sha256 or record.path}")
    ]
    rows, columns = np.array(edges).T
    size = len(records) + len(names)
    graph = coo_matrix((np.ones(len(edges)), (rows, columns + len(records))), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(records)]


def check_enough(label: np.ndarray, group: np.ndarray, needed: int, what: str, instead: str = "") -> None:
    """Raise UserError unless every class has `needed` groups, which `what` takes; `instead` is another way out."""
    for number, name in enumerate(CLASSES):
        patients = len(np.unique(group[label == number]))
        if patients < needed:
            ways = f"Add films, {instead}" if instead else "Add films"
            raise UserError(
                f"Too few patients {what}: {name} has {patients} in train, at least {needed} are needed. "
                f"{ways}, or type data.patient_key=none if every film is of another child."
            )


def choose(label: np.ndarray, group: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Mask [N] of the validation films: shuffled groups are taken while no class goes over its share."""
    counts = np.zeros((group.max() + 1, len(CLASSES)), int)
    np.add.at(counts, (group, label), 1)
    total = counts.sum(0)
    quota = np.clip(np.rint(total * fraction), 1, total - 1)
    taken, chosen = np.zeros(len(CLASSES), int), np.zeros(len(counts), bool)
    for index in np.random.default_rng(seed).permutation(len(counts)):
        if (taken + counts[index] <= quota).all():
            chosen[index] = True
            taken += counts[index]
    return chosen[group]


def hold_out(
    records: Sequence[Record], pattern: str, label: np.ndarray, group: np.ndarray, validates: np.ndarray
) -> np.ndarray:
    """Mask [N] of the validation films: those of the file names `pattern`, in a class that has none `validates`, and
    all others of these patients. Raises UserError where no name fits."""
    named = np.array([fnmatchcase(PurePath(record.path).name, pattern) for record in records])
    if not named.any():
        raise UserError(
            f"data.held_out={pattern}: no training film has such a name; expected a pattern as NORMAL2-*, and there is "
            f"{PurePath(records[0].path).name} for one."
        )
    chosen = named | (validates & ~np.isin(label, label[named]))
    return np.isin(group, group[chosen])


def choose_worst(label: np.ndarray, group: np.ndarray, fraction: float, wrong: np.ndarray) -> np.ndarray:
    """Mask [N] of the groups with the highest mean of `wrong` [N], until each class has its share."""
    mean = np.bincount(group, wrong) / np.bincount(group)
    chosen = np.zeros(len(label), bool)
    for number in range(len(CLASSES)):
        groups = np.unique(group[label == number])
        for index in groups[np.argsort(-mean[groups], kind="stable")]:
            if chosen[label == number].sum() >= fraction * (label == number).sum():
                break
            chosen |= group == index
    return chosen


def choose_fold(label: np.ndarray, group: np.ndarray, folds: int, fold: int, seed: int) -> np.ndarray:
    """Mask [N] of the films of fold `fold` of `folds`; over all folds each film validates once."""
    from sklearn.model_selection import StratifiedGroupKFold

    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(label, label, group)
    mask = np.zeros(len(label), bool)
    mask[list(parts)[fold][1]] = True
    return mask


def check_splits(records: Sequence[Record]) -> None:
    """Raise UserError unless train and val hold both classes, and test too where there are test films."""
    for split in SPLITS:
        present = {record.label for record in records if record.split == split}
        if len(present) < len(CLASSES) and (present or split != "test"):
            lacking = ", ".join(name for number, name in enumerate(CLASSES) if number not in present)
            raise UserError(
                f"The {split} split has no {lacking} films; both classes are needed. Add films or patients, or change "
                "data.val_fraction or data.held_out."
            )


def class_counts(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """{split: {class: films}} in the order train, val, test."""
    counts = Counter((record.split, record.label) for record in records)
    return {
        split: {name: counts[split, number] for number, name in enumerate(CLASSES)}
        for split in SPLITS
        if any(counts[split, number] for number in range(len(CLASSES)))
    }
