"""What is wrong with the films: what `prepare audit=true` prints, and when it ends with 1; a run's audit.json."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumonia.data.audit import audit_records, near_copies, standing
from pneumonia.data.cache import FilmCache
from pneumonia.data.marks import one_of_each, one_sided_marks, squashed
from pneumonia.data.records import CLASSES, Record
from pneumonia.settings import PrepareConfig
from pneumonia.workflows.films import Films, films_of, patient_key_of
from pneumonia.workflows.record import write_json

log = logging.getLogger(__name__)

SHOWN = 20  # marks that are told one by one


def audit_films(config: PrepareConfig) -> dict[str, Any]:
    """Print the audit; exit code 1 where a patient (by its key or manifest) or a copy stands in two splits."""
    films = films_of(config.data, config.seed)
    found = audit_records(films.records)
    found["near"] = near_copies_of(films)
    found["marks"] = class_marks(films.root, films.records)
    key = patient_key_of(config.data)
    own = "the manifest's patients" if key == "manifest" else f"data.patient_key={key}"
    describe(found, own, films.skipped)
    reasons = leaks(found)
    if reasons:
        log.error("LEAK: %s", "; ".join(reasons))
        raise SystemExit(1)
    log.info("No leak under %s.", own)
    return found


def near_copies_of(films: Films) -> dict[str, Any]:
    return near_copies(films.records, (films.pixels.read(row) for row in films.pixels.rows(films.records)))


def write_audit(folder: Path, films: Films) -> None:
    """audit.json of a run: what its manifest can't tell. Only where the pixels are cached: decoding anew is slow."""
    if isinstance(films.pixels, FilmCache):
        write_json(folder / "audit.json", {"near": near_copies_of(films)})


def class_marks(root: Path, records: Sequence[Record], judged: Sequence[str] = ()) -> dict[str, Any]:
    """Marks that come with one class, of one film of each patient that a net learns from or is chosen by: no label of
    test is looked at; `judged`, by class, those of these paths whose films have one. Raises BadFilm.
    """
    chosen, patients = one_of_each([record for record in records if record.split != "test"])
    films = squashed(root, [record.path for record in chosen])
    found, marked = one_sided_marks(chosen, films, squashed(root, judged))
    of_judged = {
        name: [path for path, has in zip(judged, some, strict=True) if has]
        for name, some in zip(CLASSES, marked, strict=True)
    }
    return found | {"of": patients, "judged": of_judged}


def leaks(found: dict[str, Any]) -> list[str]:
    """Why training on this split would flatter the figures; the records' own patient key decides."""
    own, _, _ = found["patients"]
    told = [standing(own["shared"], "patient", "patients")] if own["shared"] else []
    for kind, name in (("copies", "exact copies"), ("near", "near copies")):
        if count := found[kind]["across"]:
            told.append(standing(count, f"group of {name}", f"groups of {name}"))
    return [f"{text} in more than one split" for text in told]


def describe(found: dict[str, Any], own: str, skipped: list[tuple[str, str]]) -> None:
    """Sizes, patients under each key (`own`: the recorded one), copies, marks, unreadable files, a line each."""
    for row in found["sizes"]:
        modes = ", ".join(f"{mode} {count:,}" for mode, count in row["modes"].items())
        size = " x ".join(
            f"{row[side]['median']} ({row[side]['least']} to {row[side]['most']})" for side in ("width", "height")
        )
        log.info(
            "%-10s %6d films  median size %s  median %.1f kB  %s",
            row["class"],
            row["films"],
            size,
            row["kilobytes"],
            modes,
        )
    for row in found["patients"]:
        key = own if row["key"] == "recorded" else f"{row['key']} key"
        pairs = "  ".join(f"{pair} {row[pair]}" for pair in ("train-val", "train-test", "val-test"))
        log.info("patients in two splits, %-26s %s", key, pairs)
    for kind, name in (("copies", "exact copies"), ("near", "near copies")):
        group = found[kind]
        log.info(
            "%s: %d films in %d groups, %d across splits, %d with both labels", name, group["films"], group["groups"],
            group["across"], group["two_classes"],
        )  # fmt: skip
        for paths in group["examples"]:
            log.info("  %s", "  =  ".join(paths))
    describe_marks(found["marks"])
    log.info("unreadable: %d", len(skipped))


def describe_marks(found: dict[str, Any]) -> None:
    """How many patients carry the marks of each class, and the first SHOWN marks."""
    total = found["patients"]
    looked = f"{sum(total):,}" if sum(total) == found["of"] else f"{sum(total):,} of {found['of']:,}"
    log.info("marks in the corners that come with one class, one film of each of %s patients:", looked)
    log.info("(found on one half of the patients and counted on the other, both ways; below, found and counted on all)")
    for name, carrying in found["carrying"].items():
        log.info("  those of %-9s  %s", name, of_patients(carrying, total))
    for mark in found["found"][:SHOWN]:
        log.info("  %-11s  %s, as in %s", mark["corner"], of_patients(mark["patients"], total), mark["example"])
    if more := len(found["found"][SHOWN:]):
        log.info("  and %d more", more)
    if found["found"]:
        log.info("a net can learn them; train with border_swap=0.8 gives most films another film's border, and")
        log.info("balance=marks draws films whose marks mislead more often")


def of_patients(some: Sequence[int], total: Sequence[int]) -> str:
    return f"{some[0]:,} of {total[0]:,} normal patients, {some[1]:,} of {total[1]:,} with pneumonia"
