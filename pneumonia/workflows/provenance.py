"""What a report shows beside its figures: which run, from what settings, by which command, on whose films."""

import logging
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL.Image import DecompressionBombError

from pneumonia.config import quoted
from pneumonia.data.decode import BadFilm, read_film
from pneumonia.data.marks import CORNERS, WINDOW
from pneumonia.data.marks import SIDE as MARK_SIDE
from pneumonia.errors import UserError
from pneumonia.report.evidence_figures import inline_film, inline_framed, inline_sheet
from pneumonia.report.figures import Film
from pneumonia.workflows.audit import SHOWN
from pneumonia.workflows.record import read_json
from pneumonia.workflows.resume import OWN, key_of, started_with
from pneumonia.workflows.sources import Source, class_name

log = logging.getLogger(__name__)

SIDE = 224  # pixels of a film in the report
ROOM = 3_000_000  # bytes of explanation sheets in a report of at most 5 MB
FACTS = (
    "status",
    "started",
    "seconds",
    "pneumonia",
    "git_commit",
    "parameters",
    "trainable_parameters",
    "precision",
    "seed",
)


def page_of(source: Source, evidence: Mapping[str, Any], runs: Sequence[str]) -> dict[str, Any]:
    """Plain values for the pages, `runs` as typed; whatever an older version did not write is left out."""
    run = source.run
    return {
        "name": source.folder.resolve().name,
        "command": run.get("command", "") if "vote" in run else command_of(source.folder),
        "vote": run.get("vote", []),
        "net": source.net,
        "repeat": repeat_of(source, evidence, runs),
        "facts": {name: run[name] for name in FACTS if run.get(name) is not None},
        "parameters": run.get("parameters"),
        "versions": run.get("versions", {}),
        "machine": run.get("machine", {}),
        "objective": run.get("objective"),
        "keep": source.config.get("keep"),
        "skipped": run.get("skipped") or [],
        "config": yaml.safe_dump(source.config, sort_keys=False, allow_unicode=True) if source.config else "",
        "model": source.choice or source.model,
        "data": source.config.get("data", {}),
        "history": source.history,
        "credit": source.credit,
        "kermany": "Kermany" in source.credit,
        "sheets": sheets_of(source.folder, evidence["operating_point"]["threshold"]),
        "mistakes": [mistake | {"picture": picture_of(source, mistake["path"])} for mistake in named(evidence)],
        "marks": [mark | {"picture": corner_of(source, mark)} for mark in found_marks(evidence)[:SHOWN]],
    }


def command_of(folder: Path) -> str:
    """The command that trains such a run, in a folder of its own; of a job of a sweep alone; nothing where it is not
    told."""
    if not (folder / ".hydra" / "overrides.yaml").is_file():
        return ""
    apart = (*OWN, "search")  # what a search drew for its trial stands there too; by itself a trial is no search
    try:
        typed = [override for override in started_with(folder) if key_of(override) not in apart]
    except UserError:  # damaged: the page needs it no more than one that is not there
        return ""
    return shlex.join(["python", "-m", "pneumonia.train", *typed])


def repeat_of(source: Source, evidence: Mapping[str, Any], runs: Sequence[str]) -> str:
    """The command that writes the same page, to be typed where this one was typed, quoted for a shell."""
    options = evidence["options"]
    rule = {f"operating_point.{name}": value for name, value in options["operating_point"].items()}
    told = {"run": source.folder} if source.file.name == "predictions.csv" else {"predictions": source.file}
    typed = {**told, **rule, **{name: value for name, value in options.items() if name != "operating_point"}}
    texts = [f"{name}={plainly(value)}" for name, value in typed.items() if value is not None]
    if runs:
        texts.append(f"operating_point.runs={listed(runs)}")
    if "run" in told and (source.folder / "checkpoints" / "best.ckpt").is_file():  # a vote has none
        texts += [f"{name}=true" for name in ("shortcuts", "stress") if evidence[name] is not None]
        if source.config.get("test") is False and "test" in evidence["splits"]:
            texts.append("test=true")  # training had left them alone
    return " ".join(["python -m pneumonia.evaluate", *map(shlex.quote, texts)])


def listed(runs: Sequence[object]) -> str:
    """Folders as a list in Hydra's grammar."""
    return f"[{','.join(plainly(Path(str(run))) for run in runs)}]"


def plainly(value: object) -> str:
    """A value in Hydra's grammar: a path with marks of that grammar stands in quotes."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, Path) or re.fullmatch(r"[\w./~+@-]+", text):
        return text
    return quoted(text)


def sheets_of(folder: Path, threshold: float) -> list[dict[str, str]]:
    """The sheets that explain and scoreboard left in the run, as data URIs where ROOM is left, else by name and reason.

    A sheet that was made at another threshold would tell of other outcomes than the page: it is left out with a reason.
    """
    sheets, used = [], 0
    for file in sorted((folder / "explanations").rglob("*.png")):
        name = file.relative_to(folder / "explanations").with_suffix("").as_posix()
        picture, reason = "", "left out for size"
        told = {} if file.stem == "images" else read_json(file.with_suffix(".json"))  # images are of no outcome
        made, split = told.get("threshold"), told.get("split")
        if isinstance(made, int | float) and not math.isclose(made, threshold, rel_tol=1e-6, abs_tol=1e-9):
            reason = f"made at threshold {made:.4g}, before this operating point"
        else:
            try:
                picture = inline_sheet(file)
            except (OSError, ValueError, DecompressionBombError) as error:
                log.warning("%s can't be read and is left out of the report: %s", file, error)
                continue
        if used + len(picture) > ROOM:
            picture = ""
        used += len(picture)
        name += f" ({split} films)" if split else ""
        sheets.append({"name": name, "picture": picture, "reason": "" if picture else reason})
    return sheets


def named(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        mistake | {"truth": class_name(mistake["label"]), "call": class_name(1 - mistake["label"])}
        for mistake in evidence["mistakes"]
    ]


def found_marks(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The marks that come with one class; none where shortcuts were not looked for, or by a version without them."""
    found: list[dict[str, Any]] = ((evidence["shortcuts"] or {}).get("marks") or {}).get("found", [])
    return found


def picture_of(source: Source, path: str) -> str:
    """The film as the model saw it, as a data URI; empty where its file is no longer there."""
    film = film_of(source, path, SIDE, source.data.resize)
    return "" if film is None else inline_film(film)


def corner_of(source: Source, mark: Mapping[str, Any]) -> str:
    """The corner of a film that carries the mark, with a frame around it; empty where its file is no longer there."""
    film = film_of(source, mark["example"], MARK_SIDE, "squash")
    if film is None:
        return ""
    return inline_framed(film[CORNERS[mark["corner"]]], (mark["top"], mark["left"]), WINDOW)


def film_of(source: Source, path: str, side: int, resize: str) -> Film | None:
    """uint8 [side, side]; None where its file is no longer there."""
    if source.root is None:
        return None
    try:
        return read_film(source.root / path, side, resize)
    except BadFilm:
        return None
