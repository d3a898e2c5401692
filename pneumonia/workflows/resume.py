"""Going on with a run: which one is meant, with which settings, from which checkpoint."""

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pneumonia.config import compose, quoted
from pneumonia.data.records import Record
from pneumonia.settings import UserError

log = logging.getLogger(__name__)

OUTPUTS = Path("outputs")
OWN = ("resume", "force")


def resumed_arguments(arguments: Sequence[str]) -> list[str]:
    """`arguments`, or with resume=<run folder>|last among them those that the run was started with, in its own folder.

    Settings typed beside resume= that differ from the run's are refused with a list, unless force=true is typed too.
    """
    typed = [argument for argument in arguments if key_of(argument) not in OWN]
    wanted = next((value_of(a) for a in arguments if key_of(a) == "resume"), None)
    if wanted is None:
        return list(arguments)
    folder = unfinished_run(wanted)
    saved = [override for override in started_with(folder) if key_of(override) not in OWN]
    force = any(value_of(a).lower() == "true" for a in arguments if key_of(a) == "force")
    if not force:
        refuse_conflicts(folder, saved, typed)
    return [*saved, *(typed if force else []), f"resume={quoted(folder)}", f"hydra.run.dir={quoted(folder)}"]


def key_of(override: str) -> str:
    return override.partition("=")[0]


def value_of(override: str) -> str:
    return override.partition("=")[2].strip("'\"")


def unfinished_run(wanted: str) -> Path:
    """The folder of the run to go on with. Raises UserError when it is no run, is finished, or there is none."""
    folder = newest_unfinished() if wanted == "last" else Path(wanted).expanduser().resolve()
    if not (folder / "run.json").is_file() or not (folder / ".hydra" / "overrides.yaml").is_file():
        raise UserError(f"resume={wanted}: not a run folder; expected one with run.json and .hydra/, as outputs/<run>.")
    if status_of(folder) == "finished":
        raise UserError(
            f"resume={wanted}: this run is finished. Start a new one, or type resume=last for the newest that isn't."
        )
    return folder


def newest_unfinished(outputs: Path = OUTPUTS) -> Path:
    """The newest run below outputs/ that has not finished. Raises UserError when there is none."""
    runs = [file.parent for file in outputs.rglob("run.json") if status_of(file.parent) != "finished"]
    if not runs:
        raise UserError(
            f"resume=last: every run below {outputs.resolve()} is finished; name a folder with resume=<folder>."
        )
    return max(runs, key=lambda run: json.loads((run / "run.json").read_text())["started"]).resolve()


def status_of(run: Path) -> str:
    """What run.json says of the run; `damaged` when it can't be read."""
    try:
        return str(json.loads((run / "run.json").read_text())["status"])
    except (OSError, ValueError, KeyError):
        return "damaged"


def started_with(folder: Path) -> list[str]:
    """The overrides that the run was started with."""
    return [str(override) for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]


def refuse_conflicts(folder: Path, saved: Sequence[str], typed: Sequence[str]) -> None:
    """Raise UserError when `typed` would change a setting of the run, or the project's defaults have changed since."""
    was = flat(OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml")))
    now = flat(OmegaConf.to_container(compose("train", [*saved, *typed])))
    now = {name: value for name, value in now.items() if not name.startswith("hydra")}
    differ = [name for name in sorted(was | now) if was.get(name) != now.get(name) and name not in OWN]
    if differ:
        lines = [f"  {name}: the run has {was.get(name)}, now {now.get(name)}" for name in differ]
        told = "\n".join(lines)
        raise UserError(
            f"resume={folder}: these settings differ from the run's own:\n{told}\n"
            "Leave them out, or type force=true to go on with the new ones."
        )


def flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of a nested section."""
    if not isinstance(section, dict):
        return {prefix: section}
    parts = [flat(part, f"{prefix}.{key}" if prefix else str(key)) for key, part in section.items()]
    return {name: value for part in parts for name, value in part.items()}


@dataclass(frozen=True)
class Place:
    """Where a run goes on: the checkpoint (None: from the beginning), and the step and epoch it was taken after."""

    checkpoint: Path | None
    step: int
    epoch: int


def place_of(folder: Path) -> Place:
    """The newest checkpoint that can be read; says so when that is not the last one."""
    for name in ("last.ckpt", "previous.ckpt"):
        file = folder / "checkpoints" / name
        if not file.is_file():
            continue
        if (content := readable(file)) is not None:
            log.info("going on in %s after epoch %d", folder, content["epoch"] + 1)
            return Place(file, int(content["global_step"]), int(content["epoch"]))
        log.warning("%s is damaged; going on from the one before it", file)
    log.info("going on in %s from the beginning: no epoch was finished", folder)
    return Place(None, 0, -1)


def readable(file: Path) -> dict[str, Any] | None:
    """The checkpoint's content, or None when it can't be read."""
    import torch

    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return content if {"epoch", "global_step", "state_dict"} <= content.keys() else None
    except Exception:  # torch.load raises many kinds on a damaged file
        return None


def refuse_other_films(folder: Path, records: Sequence[Record]) -> None:
    """Raise UserError unless the films and their split are those of the run's manifest."""
    file = folder / "manifest.csv"
    if not file.is_file():
        return
    with file.open(newline="") as stream:
        was = {(row["path"], row["sha256"], row["split"]) for row in csv.DictReader(stream)}
    now = {(record.path, record.sha256, record.split) for record in records}
    if was != now:
        one = sorted(was ^ now)[0][0]
        raise UserError(
            f"resume={folder}: the films are not those of the run ({len(was ^ now)} differ, {one} for one). "
            "Set data.root to the run's films, or start a new run."
        )
