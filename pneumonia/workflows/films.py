"""From settings to films: where they come from, whether each can be read, and which side of the split it is on."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from pneumonia.data.audit import same_bytes, standing
from pneumonia.data.cache import FilmCache, FilmFiles, Line, cache_films, damaged
from pneumonia.data.download import download_films
from pneumonia.data.records import (
    Record,
    bad_files_message,
    fingerprint_films,
    overlooked,
    parse_name,
    read_manifest,
    scan_folder,
)
from pneumonia.data.split import class_counts, split_by_patient
from pneumonia.data.synthetic import FORMAT, draw_films
from pneumonia.errors import UserError
from pneumonia.settings import DataConfig, PrepareConfig, TrainConfig
from pneumonia.workflows.record import home_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Films:
    """Records with their split and pixels, the folder their paths are relative to, what was left out or doubtful, and
    whom to name as their source."""

    root: Path
    records: list[Record]
    pixels: FilmCache | FilmFiles
    skipped: list[tuple[str, str]]
    warnings: list[str]
    credit: str

    def of(self, split: str) -> list[Record]:
        return [record for record in self.records if record.split == split]


@lru_cache(maxsize=8)
def films_of(data: DataConfig, seed: int) -> Films:
    """All films of `data`, opened, checked and split from `seed`; kept, so that a check and the run scan once."""
    root = films_folder(data)
    if data.manifest:
        records, unknown = read_manifest(Path(data.manifest).expanduser(), root, data.patient_key)
    else:
        records, unknown = scan_folder(root, data.patient_key)
    found, unread = fingerprint_films(root, records)
    size, resize = data.image_size, data.resize
    folder = Path(data.cache_dir).expanduser() / "pixels"
    pixels = cache_films(folder, root, found, size, resize) if data.cache else FilmFiles(root, found, size, resize)
    opened = [described(record, line) for record in found if not (line := pixels.lines[record.sha256]).reason]
    bad = unread + [(record.path, line.reason) for record in found if (line := pixels.lines[record.sha256]).reason]
    if (bad and data.on_bad_file == "error") or not opened:
        raise UserError(bad_files_message(bad, root, len(records)))
    notes = [f"left out {path}: {reason}" for path, reason in bad]
    if unknown and data.patient_key != "none":
        notes.append(
            f"{len(unknown)} film names follow no known pattern and carry no patient ({unknown[0]}, ...): each counts "
            "as a patient of its own, so one child may stand on both sides of the split. data.manifest=films.csv with "
            "a patient column mends it; data.patient_key=none says that it is meant."
        )
    if data.manifest and data.patient_key == "conservative":
        notes.append(
            "data.patient_key=conservative: the patients that data.manifest names go first; empty its patient column "
            "to have them by the key."
        )
    if not data.manifest:
        notes += overlooked(root)
    split = split_by_patient(
        opened, data.val_fraction, seed, data.folds, data.fold, data.held_out, data.counterexamples,
        lambda some: stacked(pixels, some), data.nested,
    )  # fmt: skip
    if data.counterexamples is not None:
        notes.append(
            f"data.counterexamples={data.counterexamples}: those films validate that a model of the "
            f"{data.counterexamples} alone gets most wrong. Their figures, and a threshold chosen on them, are not "
            "those of usual films."
        )
    notes += leaks(split) + contradictions(split)
    understood = not unknown
    if data.manifest:  # its own patient column may stand in for names that tell none
        understood = all(parse_name(record.path, "strict") for record in split)
    return Films(root, split, pixels, bad, notes, credit(data, understood))


def stacked(pixels: FilmCache | FilmFiles, records: Sequence[Record]) -> np.ndarray:
    """The pixels of some films, uint8 [N, S, S]."""
    return np.stack([pixels.read(row) for row in pixels.rows(records)])


def patient_key_of(data: DataConfig) -> str:
    """The key by which films have their patients; `manifest` where a list names them."""
    return "manifest" if data.manifest and data.patient_key != "none" else data.patient_key


def leaks(records: list[Record]) -> list[str]:
    """A note when a given split has one patient, or one film's bytes, on two sides."""
    notes = []
    for one, many, key in (
        ("patient", "patients", "patient"),
        ("film with the same bytes", "films with the same bytes", "sha256"),
    ):
        sides: dict[str, set[str]] = {}
        for record in records:
            sides.setdefault(getattr(record, key), set()).add(record.split)
        if torn := sum(len(splits) > 1 for splits in sides.values()):
            notes.append(f"{standing(torn, one, many)} in more than one split: the figures will flatter the model.")
    return notes


def contradictions(records: list[Record]) -> list[str]:
    """A note when one film's bytes have both labels."""
    torn = [group for group in same_bytes(records) if len({record.label for record in group}) > 1]
    if not torn:
        return []
    return [
        f"{standing(len(torn), 'film', 'films')} there with both labels ({' = '.join(r.path for r in torn[0])}): one "
        "label of each is wrong; remove it."
    ]


def described(record: Record, line: Line) -> Record:
    """The record with what its file turned out to be."""
    return replace(record, width=line.width, height=line.height, mode=line.mode)


def credit(data: DataConfig, understood: bool) -> str:
    """Whom figures that show films must name; films whose names are not all `understood` as Kermany's name nobody."""
    if data.source == "synthetic":
        return "Films: synthetic phantoms, no patients"
    if not understood:
        return ""
    return "Films: Kermany, Zhang, Goldbaum 2018, doi:10.17632/rscbjbr9sj, CC BY 4.0"


def films_folder(data: DataConfig) -> Path:
    """The folder that film paths are relative to; draws or downloads the films first where that is asked for."""
    if data.source == "synthetic":
        name = f"{data.phantoms}-films-seed-{data.phantom_seed}-format-{FORMAT}"
        folder = Path(data.cache_dir).expanduser().resolve() / "synthetic" / name
        if not folder.is_dir():
            try:
                draw_films(folder, data.phantoms, data.phantom_seed)
            except OSError as error:
                raise UserError(
                    f"The phantom films can't be drawn into {folder} ({error}). Set data.cache_dir=/a/writable/folder."
                ) from error
        return folder
    if data.root:
        return Path(data.root).expanduser().resolve()
    if data.manifest:
        return home_of(Path(data.manifest).expanduser())
    if not data.download:
        raise UserError(
            "data.root is not set and data.download=false: set data.root=/path/to/chest_xray, or try data=synthetic."
        )
    return download_films()


def describe(films: Films) -> None:
    """Counts of every split, and what is doubtful, on the terminal and in the log."""
    log.info("films in %s", films.root)
    for split, counts in class_counts(films.records).items():
        total = sum(counts.values())
        shares = "  ".join(f"{name} {count:,} ({100 * count / total:.1f} %)" for name, count in counts.items())
        patients = len({record.patient for record in films.of(split)})
        log.info("  %-5s %6d films of %5d patients:  %s", split, total, patients, shares)
    for note in films.warnings:
        log.warning(note)


def prepare(config: PrepareConfig) -> None:
    """Show the films, and where their pixels are; with `check`, mend cached pixels that are not what was written."""
    films = films_of(config.data, config.seed)
    describe(films)
    if not isinstance(films.pixels, FilmCache):
        log.info("data.cache=false: the films are decoded each time")
        return
    if config.check and (wrong := damaged(films.pixels)):
        log.warning("%d films were damaged in the cache; it is made anew", len(wrong))
        shutil.rmtree(films.pixels.folder)
        films_of.cache_clear()
        films_of(config.data, config.seed)
    checked = ", every pixel checked" if config.check else ""
    log.info(
        "%d films of %d px are cached in %s%s", len(films.pixels.lines), films.pixels.size, films.pixels.folder, checked
    )


def preflight(config: TrainConfig) -> None:
    """Everything that can be known to be wrong without torch: films, split, weights file. Raises UserError."""
    weights = config.model.get("weights")
    if isinstance(weights, str) and "/" in weights and not Path(weights).expanduser().is_file():
        raise UserError(
            f"model.weights={weights}: no such file; expected a state dict saved by torch.save, IMAGENET1K_V1, "
            "IMAGENET1K_FEATURES or null."
        )
    films_of(config.data, config.seed)
