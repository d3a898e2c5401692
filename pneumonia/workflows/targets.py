"""Which films predict is asked for: one film, a folder of them, or a list with labels. No torch."""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path

from pneumonia.data.records import CLASSES, SUFFIXES, UNREAD, manifest_label, name_record, numbered
from pneumonia.entry import writable_folder
from pneumonia.errors import UserError
from pneumonia.settings import PredictConfig
from pneumonia.workflows.record import home_of
from pneumonia.workflows.sources import checkpoint_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Film:
    """One film to predict; label None where it is not known."""

    file: Path
    path: str
    label: int | None = None
    patient: str = ""
    subtype: str = ""
    split: str = ""


def films_to_predict(config: PredictConfig) -> list[Film]:
    """The films that `images=` names. Raises UserError for what is not there, and for an output that is not ours."""
    check_model(config)
    check_output(Path(config.output).expanduser())
    images = Path(config.images or "").expanduser()
    if not images.exists():
        raise UserError(f"images={images}: no such file or folder.")
    if images.is_dir():
        return folder_films(images)
    if images.suffix.lower() == ".csv":
        return listed_films(images)
    if images.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"images={images}: expected a film ({', '.join(SUFFIXES)}), a folder of films or a list (.csv)."
        )
    return [named(images, images.name)]


def check_model(config: PredictConfig) -> None:
    """Raise UserError unless the run's best weights or the checkpoint are there."""
    if config.checkpoint:
        checkpoint_file(config.checkpoint)
    if config.run and not (Path(config.run).expanduser() / "checkpoints" / "best.ckpt").is_file():
        raise UserError(
            f"run={config.run} has no checkpoints/best.ckpt: expected the folder of a run with a finished epoch."
        )


def check_output(file: Path) -> None:
    """Raise UserError unless `file` can be written: it is new, or a predictions.csv of an earlier predict."""
    if file.is_dir():
        raise UserError(f"output={file} is a folder: expected a file, as output={file}/predictions.csv.")
    writable_folder(file.resolve().parent, "Set output=/a/writable/folder/predictions.csv.")
    if not file.resolve().parent.is_dir():
        raise UserError(f"output={file}: the folder {file.parent} is not there.")
    if file.exists():
        with file.open(encoding="utf-8", errors="replace") as stream:
            first = stream.readline()
        if not first.startswith("path,patient,subtype,label,split,logit,probability,threshold,call"):
            raise UserError(f"output={file} is there and was not written by predict: name another file.")


def films_below(folder: Path) -> list[Path]:
    """Every film below `folder` by name, without hidden files and what macOS packs beside them. Raises UserError."""
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not file.name.startswith(".")
        and "__MACOSX" not in file.relative_to(folder).parts
        and file.is_file()
    )
    if not found:
        raise UserError(f"images={folder}: no films in it; expected files that end in {', '.join(SUFFIXES)}.")
    if other := sorted(file for file in folder.rglob("*") if file.suffix.lower() in UNREAD):
        log.warning("%d files are left out, as %s: films are %s.", len(other), other[0], ", ".join(SUFFIXES))
    return found


def folder_films(folder: Path) -> list[Film]:
    """Every film below `folder`; labels from folders NORMAL and PNEUMONIA."""
    return [named(file, file.relative_to(folder).as_posix()) for file in films_below(folder)]


def named(file: Path, path: str) -> Film:
    """A film with what its folder and its name tell."""
    folders = (*reversed(Path(path).parts[:-1]), file.absolute().parent.name)  # not resolved: films may be links
    label = next((CLASSES.index(folder.upper()) for folder in folders if folder.upper() in CLASSES), None)
    record, _ = name_record(path, label or 0, "", "strict")
    return Film(file, path, label, record.patient, record.subtype)


def listed_films(file: Path) -> list[Film]:
    """The films of a list with path and, where known, label, patient, subtype, split; paths relative to `home_of`."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = numbered(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"images={file}: can't be read ({error}); expected a CSV with a column path.") from error
    if not rows or "path" not in rows[0][1]:
        raise UserError(f"images={file}: expected a CSV with a column path and a row per film.")
    home = home_of(file)
    films: dict[str, Film] = {}
    for line, row in rows:
        path = row["path"] or ""
        if path in films:
            raise UserError(f"{file}, line {line}: {path} stands there already; each film must stand there once.")
        label = manifest_label(file, line, row["label"]) if (row.get("label") or "").strip() else None
        record, _ = name_record(path, label or 0, "", "strict")
        films[path] = Film(
            home / path, path, label, row.get("patient") or record.patient,
            row.get("subtype") or record.subtype, row.get("split") or "",
        )  # fmt: skip
    return list(films.values())
