"""Which films to explain: those of a finished run by outcome, or any images. No torch.

A run's films come from its predictions.csv, at the threshold of its evidence.json; their pixels are read again by the
run's own size and resize rule. Errors are UserError, before anything is loaded or written.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumonia.data.decode import RESIZE, BadFilm, read_film
from pneumonia.data.exported import EXPORTED, read_told
from pneumonia.data.records import SUFFIXES, parse_name
from pneumonia.errors import UserError
from pneumonia.evaluation.metrics import confident_mistakes
from pneumonia.settings import OUTCOMES, ExplainConfig, ScoreboardConfig
from pneumonia.workflows.films import credit
from pneumonia.workflows.record import read_json
from pneumonia.workflows.sources import (
    Scale,
    Source,
    checkpoint_file,
    data_settings,
    locked_point,
    read_config,
    read_run,
    scale_of,
)
from pneumonia.workflows.targets import films_below

NAMES = {
    "tp": "true positives",
    "tn": "true negatives",
    "fp": "false positives",
    "fn": "false negatives",
    "most_confident_mistakes": "most confident mistakes",
    "images": "films",
}


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
    `notes` what a user should know. A probability is sigmoid(logit / temperature + bias): that of predictions.csv for
    films of a run, that of predict for other images; the threshold is on the same scale, `locked` empty there.
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
    temperature: float = 1.0
    bias: float = 0.0

    @property
    def films(self) -> list[Film]:
        return [film for sheet in self.sheets.values() for film in sheet]


def films_to_explain(config: ExplainConfig) -> Request:
    """The films that `config` asks for, read. Raises UserError."""
    request = from_images(config) if config.images else from_run(config)
    writable(request.output)
    return request


def films_to_score(config: ScoreboardConfig) -> Request:
    """The films that a scoreboard is made over: one a patient, so that they are independent. Raises UserError."""
    folder = run_folder(config.run or "")
    threshold, locked = threshold_of(folder, config.threshold)
    source = read_run(folder)
    known = called_films(source, config.split)
    wanted = [film for film in known if config.select in ("all", film.outcome(threshold))]
    if not wanted:
        raise UserError(f"run={folder}: no {NAMES[config.select]} at this operating point ({locked}).")
    chosen = one_a_patient(wanted, config.count, config.seed)
    if len(chosen) < 2:
        raise UserError(
            f"run={folder}: only one patient among the {NAMES.get(config.select, 'films')}; intervals need two."
        )
    request = described_run(source, threshold, locked, {config.select: chosen}, {config.select: len(wanted)})
    writable(request.output)
    return pictured(request, config.root)


def one_a_patient(films: Sequence[Film], count: int, seed: int) -> list[Film]:
    """One film of each of at most `count` patients, in order of path; patients and films drawn from seed, each as
    likely as another."""
    rng, first = np.random.default_rng(seed), dict[str, Film]()
    for place in rng.permutation(len(films)):
        first.setdefault(films[place].patient, films[place])
    patients = sorted(first)
    drawn = [patients[place] for place in rng.permutation(len(patients))[:count]]
    return sorted((first[patient] for patient in drawn), key=lambda film: film.path)


def from_run(config: ExplainConfig) -> Request:
    """Films of a run by outcome."""
    folder = run_folder(config.run or "")
    threshold, locked = threshold_of(folder, config.threshold)
    source = read_run(folder)
    groups = by_outcome(called_films(source, config.split), threshold)
    names = OUTCOMES if config.select == "all" else (config.select,)
    notes: tuple[str, ...] = (locked,)
    if empty := [NAMES[name].replace("most confident ", "") for name in names if not groups[name]]:
        told = f"no {' and no '.join(empty)} at this operating point ({locked})"
        if len(empty) == len(names):
            there = " or ".join(f"select={name}" for name in OUTCOMES if groups[name])
            raise UserError(f"select={config.select}: {told} among the {config.split} films. Type {there}.")
        notes = (told,)
    sheets = {name: choose(groups[name], name, config, threshold) for name in names if groups[name]}
    totals = {name: len(groups[name]) for name in sheets}
    request = described_run(source, threshold, locked, sheets, totals, config.output)
    return pictured(replace(request, notes=notes), config.root)


def by_outcome(films: Sequence[Film], threshold: float) -> dict[str, list[Film]]:
    """tp, tn, fp, fn of films in path order, and most_confident_mistakes as the report ranks them."""
    groups = {name: [film for film in films if film.outcome(threshold) == name] for name in OUTCOMES}
    called = np.array([(film.label, film.probability) for film in films], np.float64)
    ranked = confident_mistakes(called[:, 0], called[:, 1], threshold)
    return groups | {"most_confident_mistakes": [films[place] for place in ranked.tolist()]}


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
    checkpoint = run / "checkpoints" / "best.ckpt" if run else checkpoint_file(config.checkpoint or "")
    size, resize, source, notes = preprocessing(checkpoint)
    scale = scale_of(checkpoint) or Scale()
    threshold = scale.threshold if config.threshold is None else config.threshold
    files = image_files(Path(config.images or "").expanduser())
    understood = [parse_name(file.name, "strict") for file in files]
    films = [
        Film(str(file), "", (parsed or ("", ""))[1], None, None)
        for file, parsed in zip(files[: config.count], understood, strict=False)
    ]
    if len(files) > len(films):
        notes.append(f"the first {len(films)} of {len(files)} images by name; count={len(files)} takes them all")
    output = config.output or (run / "explanations" if run else "explanations")
    request = Request(
        {"images": films}, {"images": len(files)}, checkpoint, run, Path(output).expanduser(),
        size, resize, threshold, "", source if all(understood) else "", tuple(notes),
        scale.temperature, scale.bias,
    )  # fmt: skip
    return pictured(request, "/", "images")


Preprocessing = tuple[int | None, str, str, list[str]]


def preprocessing(checkpoint: Path) -> Preprocessing:
    """(side, resize, whom to cite, notes): an exported model's own, or its run's."""
    if checkpoint.suffix == EXPORTED:
        told = read_told(checkpoint)["recipe"]
        return int(told["image_size"]), told["resize"], told.get("films", ""), []
    settings = read_config(checkpoint.resolve().parent.parent)
    if not settings:
        return None, "squash", "", [f"no settings beside {checkpoint}: films are squashed to the net's own size"]
    data = data_settings(settings)
    return data.image_size, data.resize, credit(data, True) if data.source == "folder" else "", []


def image_files(place: Path) -> list[Path]:
    """The image, or every image below the folder in name order."""
    if place.is_dir():
        return [file.resolve() for file in films_below(place)]
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


def called_films(source: Source, split: str) -> list[Film]:
    """The films of one split of a run, by path. Raises UserError."""
    if split not in source.splits:
        raise UserError(f"split={split}: {source.file} has no such films; it has {', '.join(source.splits)}.")
    part = source.splits[split]
    columns = (part.films.path, part.films.patient, part.subtype, part.films.label, part.films.probability)
    return [Film(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


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
    source: Source, threshold: float, locked: str, sheets: dict[str, list[Film]], totals: dict[str, int],
    output: str | None = None,
) -> Request:  # fmt: skip
    """The request for films of a run, pixels not read yet."""
    folder, data = source.folder, source.data
    if not source.config:
        raise UserError(f"run={folder}: .hydra/config.yaml can't be read; expected the folder of a finished run.")
    understood = all(parse_name(film.path, "strict") for films in sheets.values() for film in films)
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
        root = read_json(request.run / "run.json").get("data_root")
        if not isinstance(root, str):
            raise UserError(f"{request.run / 'run.json'} does not tell where the films lie: set root=/path/to/them.")
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


def writable(folder: Path) -> None:
    """Raise UserError unless `folder` can be made or written to; makes nothing."""
    parent = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} is not a writable folder. Set output=/a/writable/folder, or mend its permissions.")
