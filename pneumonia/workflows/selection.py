"""Which films to explain: those of a finished run by outcome, or any images. No torch.

A run's films come from its predictions.csv, at the threshold of its evidence.json; their pixels are read again by the
run's own size and resize rule. Errors are UserError, before anything is loaded or written.
"""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pneumonia.data.decode import RESIZE, BadFilm, read_film
from pneumonia.data.records import SUFFIXES, parse_name
from pneumonia.settings import OUTCOMES, DataConfig, ExplainConfig, ScoreboardConfig, UserError
from pneumonia.workflows.films import credit
from pneumonia.workflows.sources import locked_point

NAMES = {
    "tp": "true positives",
    "tn": "true negatives",
    "fp": "false positives",
    "fn": "false negatives",
    "most_confident_mistakes": "most confident mistakes",
    "images": "films",
}
COLUMNS = ("path", "patient", "subtype", "label", "split", "probability")


@dataclass(frozen=True)
class Film:
    """One film to explain; label and probability are None for an image that no run has called.

    `pixels` uint8 [S, S], `mask` bool [S, S] where the true opacity is known.
    """

    path: str
    patient: str
    subtype: str
    label: int | None
    probability: float | None
    pixels: NDArray[np.uint8] | None = None
    mask: NDArray[np.bool_] | None = None

    def outcome(self, threshold: float) -> str:
        """tp, tn, fp or fn."""
        assert self.label is not None and self.probability is not None
        positive = self.probability >= threshold
        return ("tp" if positive else "fn") if self.label else ("fp" if positive else "tn")


@dataclass(frozen=True)
class Request:
    """Films by sheet, with how many each was chosen from, and everything that must be known to explain them.

    `image_size` None: the net's own. `run` None: a checkpoint alone. `locked` says where the threshold comes from,
    `notes` what a user should know.
    """

    sheets: dict[str, list[Film]]
    totals: dict[str, int]
    checkpoint: Path
    run: Path | None
    output: Path
    image_size: int | None
    resize: str
    threshold: float
    locked: str
    source: str
    notes: tuple[str, ...] = ()

    @property
    def films(self) -> list[Film]:
        return [film for sheet in self.sheets.values() for film in sheet]


@lru_cache(maxsize=4)
def _loaded(folder: Path) -> dict[str, Any]:
    """The settings of a run; empty where there are none."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=True)
    except (OSError, OmegaConfBaseException, ValueError):
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def data_of(folder: Path) -> DataConfig | None:
    """The data settings that a run was made with, None where they are not known."""
    data = _loaded(folder).get("data")
    names = DataConfig.__dataclass_fields__
    return DataConfig(**{name: value for name, value in data.items() if name in names}) if data else None


def films_to_explain(config: ExplainConfig) -> Request:
    """The films that `config` asks for, read. Raises UserError."""
    request = from_images(config) if config.images else from_run(config)
    writable(request.output)
    return request


def films_to_score(config: ScoreboardConfig) -> Request:
    """The films that a scoreboard is made over: one a patient, so that they are independent. Raises UserError."""
    folder = run_folder(config.run or "")
    threshold, locked = threshold_of(folder, config.threshold)
    known = called_films(folder, config.split)
    wanted = [film for film in known if config.select in ("all", film.outcome(threshold))]
    if not wanted:
        raise UserError(f"run={folder}: no {NAMES[config.select]} at this operating point ({locked}).")
    order = np.random.default_rng(config.seed).permutation(len(wanted))
    first = {wanted[place].patient: wanted[place] for place in reversed(order)}
    chosen = sorted(list(first.values())[-config.count :], key=lambda film: film.path)
    if len(chosen) < 2:
        raise UserError(
            f"run={folder}: only one patient among the {NAMES.get(config.select, 'films')}; intervals need two."
        )
    request = described_run(folder, threshold, locked, {config.select: chosen}, {config.select: len(wanted)})
    writable(request.output)
    return pictured(request, config.root)


def from_run(config: ExplainConfig) -> Request:
    """Films of a run by outcome."""
    folder = run_folder(config.run or "")
    threshold, locked = threshold_of(folder, config.threshold)
    groups = by_outcome(called_films(folder, config.split), threshold)
    names = OUTCOMES if config.select == "all" else (config.select,)
    notes: tuple[str, ...] = (locked,)
    if empty := [NAMES[name].replace("most confident ", "") for name in names if not groups[name]]:
        told = f"no {' and no '.join(empty)} at this operating point ({locked})"
        if len(empty) == len(names):
            there = ", ".join(name for name in OUTCOMES if groups[name])
            raise UserError(f"select={config.select}: {told} among the {config.split} films. Type select={there}.")
        notes = (told,)
    sheets = {name: choose(groups[name], name, config, threshold) for name in names if groups[name]}
    totals = {name: len(groups[name]) for name in sheets}
    request = described_run(folder, threshold, locked, sheets, totals, config.output)
    return pictured(replace(request, notes=notes), config.root)


def by_outcome(films: Sequence[Film], threshold: float) -> dict[str, list[Film]]:
    """tp, tn, fp, fn and most_confident_mistakes; the last starts with the film that is farthest on the wrong side."""
    groups = {name: [film for film in films if film.outcome(threshold) == name] for name in OUTCOMES}
    mistakes = sorted(groups["fp"] + groups["fn"], key=lambda film: (-wrong_by(film), film.path))
    return groups | {"most_confident_mistakes": mistakes}


def wrong_by(film: Film) -> float:
    """Probability of the class that the film does not have."""
    assert film.label is not None and film.probability is not None
    return 1 - film.probability if film.label else film.probability


def choose(films: Sequence[Film], name: str, config: ExplainConfig, threshold: float) -> list[Film]:
    """`count` of them: mistakes in their order; others drawn from seed, or by their distance from the threshold."""
    if name == "most_confident_mistakes":
        return list(films[: config.count])
    if config.pick == "random":
        drawn = np.random.default_rng((config.seed, OUTCOMES.index(name))).permutation(len(films))[: config.count]
        return [films[place] for place in sorted(drawn.tolist())]
    sign = -1 if config.pick == "most_confident" else 1
    return sorted(films, key=lambda film: (sign * abs((film.probability or 0) - threshold), film.path))[: config.count]


def from_images(config: ExplainConfig) -> Request:
    """Images by name, with the preprocessing of the run that the checkpoint lies in, where it lies in one."""
    run = run_folder(config.run) if config.run else None
    checkpoint = run / "checkpoints" / "best.ckpt" if run else Path(config.checkpoint or "").expanduser()
    if not checkpoint.is_file():
        raise UserError(f"checkpoint={checkpoint}: no such file; expected <run>/checkpoints/best.ckpt.")
    home = run or checkpoint.resolve().parents[1]
    data = data_of(home)
    files = image_files(Path(config.images or "").expanduser())
    understood = [parse_name(file.stem, "strict") for file in files]
    films = [
        Film(str(file), "", (parsed or ("", ""))[1], None, None)
        for file, parsed in zip(files[: config.count], understood, strict=False)
    ]
    notes: list[str] = []
    if len(files) > len(films):
        notes.append(f"{len(films)} of {len(files)} images; count={len(files)} takes them all")
    threshold, locked = threshold_of(home, config.threshold)
    if data is None:
        notes.append(f"no settings beside {checkpoint}: films are squashed to the net's own size")
    known = data is not None and data.source == "folder" and all(understood)
    output = config.output or (run / "explanations" if run else "explanations")
    request = Request(
        {"images": films}, {"images": len(files)}, checkpoint, run, Path(output).expanduser(),
        data.image_size if data else None, data.resize if data else "squash", threshold, locked,
        credit(data, True) if data and known else "", tuple(notes),
    )  # fmt: skip
    return pictured(request, "/", "images")


def image_files(place: Path) -> list[Path]:
    """The image, or every image below the folder in name order."""
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise UserError(f"images={place}: no films in it; expected {', '.join(SUFFIXES)}.")
        return [file.resolve() for file in files]
    if not place.is_file():
        raise UserError(f"images={place}: no such file or folder; expected a film ({', '.join(SUFFIXES)}) or a folder.")
    return [place.resolve()]


def run_folder(name: str) -> Path:
    """The folder of a run that has a checkpoint. Raises UserError."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={name}: no such folder; expected one that python -m pneumonia.train wrote.")
    if not (folder / "checkpoints" / "best.ckpt").is_file():
        raise UserError(f"run={name}: there is no checkpoints/best.ckpt in it; expected the folder of a finished run.")
    return folder


def called_films(folder: Path, split: str) -> list[Film]:
    """The films of one split of predictions.csv, in its order. Raises UserError."""
    file = folder / "predictions.csv"
    if not file.is_file():
        raise UserError(f"run={folder}: there is no predictions.csv in it; expected the folder of a finished run.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        films = [
            Film(row["path"], row["patient"], row["subtype"], int(row["label"]), float(row["probability"]))
            for row in rows
            if row["split"] == split
        ]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} can't be read ({error}); expected the columns {','.join(COLUMNS)}.") from error
    if not films:
        there = sorted({row["split"] for row in rows})
        raise UserError(f"split={split}: {file} has no such films; it has {', '.join(there) or 'no rows'}.")
    return films


def threshold_of(folder: Path, given: float | None) -> tuple[float, str]:
    """(threshold, where it comes from): as typed, locked by evaluate in evidence.json, else 0.5."""
    if given is not None:
        return given, f"threshold={given:g}, as typed"
    point = locked_point(folder)
    if point is None:
        return 0.5, "threshold 0.5; evaluate would lock one on validation"
    threshold = float(point["threshold"])
    chosen = point.get("chosen_on", "val")
    return threshold, f"threshold {threshold:.4g}, {'locked on validation' if chosen else 'not chosen on validation'}"


def described_run(
    folder: Path, threshold: float, locked: str, sheets: dict[str, list[Film]], totals: dict[str, int],
    output: str | None = None,
) -> Request:  # fmt: skip
    """The request for films of a run, pixels not read yet."""
    data = data_of(folder)
    if data is None:
        raise UserError(f"run={folder}: .hydra/config.yaml can't be read; expected the folder of a finished run.")
    understood = all(parse_name(Path(film.path).stem, "strict") for films in sheets.values() for film in films)
    place = Path(output).expanduser() if output else folder / "explanations"
    return Request(
        sheets, totals, folder / "checkpoints" / "best.ckpt", folder, place, data.image_size, data.resize, threshold,
        locked, credit(data, understood),
    )  # fmt: skip


def pictured(request: Request, root: str | None, section: str = "root") -> Request:
    """The request with pixels and, for phantoms, masks. Raises UserError with the films that can't be read."""
    if request.image_size is None:
        return request  # the net will tell its size
    if root is None:
        assert request.run is not None
        root = data_root(request.run)
    bad: list[str] = []
    sheets = {
        name: [read(film, Path(root), request.image_size, request.resize, bad) for film in films]
        for name, films in request.sheets.items()
    }
    if bad:
        more = f" ... and {len(bad) - 3} more" if len(bad) > 3 else ""
        way = "Set root=/where/they/lie/now, if they were moved." if section == "root" else "Leave them out."
        raise UserError(f"{len(bad)} films can't be read: {'; '.join(bad[:3])}{more}. {way}")
    return replace(request, sheets=sheets)


def read(film: Film, root: Path, size: int, resize: str, bad: list[str]) -> Film:
    """The film with its pixels [size, size], and its mask where there is one; a reason is added to `bad` instead."""
    try:
        if not (root / film.path).is_file():
            raise BadFilm(f"{root / film.path}: no such file")
        pixels = read_film(root / film.path, size, resize)
    except BadFilm as error:
        bad.append(str(error))
        return film
    file = root / "masks" / film.path  # an absolute path leaves the root, and would name the film itself
    known = not Path(film.path).is_absolute() and file.is_file()
    grey = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) if known else None
    return replace(film, pixels=pixels, mask=None if grey is None else RESIZE[resize](np.asarray(grey), size) > 127)


def data_root(folder: Path) -> str:
    """Where the run's films lay. Raises UserError when run.json does not tell."""
    try:
        return str(json.loads((folder / "run.json").read_text())["data_root"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'run.json'} does not tell where the films lie: set root=/path/to/them.") from error


def writable(folder: Path) -> None:
    """Raise UserError unless `folder` can be made or written to; makes nothing."""
    parent = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} is not a writable folder. Set output=/a/writable/folder, or mend its permissions.")
