"""Going on with a run: which one is meant, with which settings, from which checkpoint."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pneumonia.config import compose, quoted
from pneumonia.data.records import Record
from pneumonia.errors import UserError
from pneumonia.files import written
from pneumonia.launch import launched
from pneumonia.settings import TrainConfig, named_standardize
from pneumonia.workflows.record import read_json

log = logging.getLogger(__name__)

OUTPUTS = Path("outputs")
OWN = ("resume", "force")
UNREADABLE = (OSError, OmegaConfBaseException, YAMLError, ValueError)


def resumed_arguments(arguments: Sequence[str]) -> list[str]:
    """`arguments`, or with resume=<run folder>|last among them those that compose to the run's saved settings, in its
    own folder, whatever the defaults of today are; Hydra leaves the run's .hydra/ alone.

    Settings typed beside resume= that differ from the run's are refused with a list, unless force=true is typed too.
    """
    typed = [argument for argument in arguments if key_of(argument) not in OWN]
    wanted = next((value_of(a) for a in arguments if key_of(a) == "resume"), "null")
    if wanted == "null":
        return [argument for argument in arguments if key_of(argument) != "resume"]
    folder = unfinished_run(wanted)
    refuse_beside(typed)
    force = forced(arguments)
    saved = [override for override in started_with(folder) if key_of(override) not in OWN]
    was = settings_of(folder)
    changed = changes(saved, typed, was)
    if changed and not force:
        refuse_conflicts(folder, changed, was)
    composed = composed_settings([*saved, *(typed if force else [])])
    was = composed_settings([]) | was  # what its version did not know is at its default, not as its experiment says now
    kept = [
        f"++{name}={hydra_value(was[name])}"
        for name, value in composed.items()
        if name in was and name not in changed and was[name] != value
    ]
    own = [f"resume={quoted(folder)}", f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null"]
    return [*saved, *(typed if force else []), *kept, *(["force=true"] if force else []), *own]


def refuse_beside(typed: Sequence[str]) -> None:
    """Raise UserError for flags and Hydra's own settings: a run goes on in its own folder, by itself."""
    for argument in typed:
        if argument in ("-m", "--multirun"):
            raise UserError(
                f"{argument} beside resume=: one run goes on. A sweep goes on when its command is typed again with "
                "hydra.sweep.dir=<its folder>."
            )
        if argument.startswith(("-", "hydra")):
            raise UserError(f"{argument} beside resume=: a run goes on in its own folder; leave it out.")


def forced(arguments: Sequence[str]) -> bool:
    """Whether force=true is typed. Raises UserError for another word."""
    told = next((value_of(a).lower() for a in arguments if key_of(a) == "force"), "false")
    if told not in ("true", "false"):
        raise UserError(f"force={told}: expected true or false.")
    return told == "true"


def cut_short(file: Path, error: object) -> UserError:
    """What is told of a run whose saved settings can't be read."""
    return UserError(f"{file} can't be read ({str(error).splitlines()[0]}): the run can't go on; start a new one.")


def settings_of(folder: Path) -> dict[str, Any]:
    """{dotted name: value} of the run's saved settings; relative places are where they were when it started."""
    file = folder / ".hydra" / "config.yaml"
    try:
        saved = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except UNREADABLE as error:
        raise cut_short(file, error) from error
    if not isinstance(saved, dict) or not saved:
        raise cut_short(file, "no settings in it")
    was = {name: value for name, value in flat(saved).items() if name not in OWN}
    if "standardize" in was:
        was["standardize"] = named_standardize(was["standardize"])
    root = read_json(folder / "run.json").get("data_root")
    if root and was.get("data.root") and not Path(str(was["data.root"])).expanduser().is_absolute():
        was["data.root"] = root
    began = began_in(folder)
    if began != Path.cwd():
        places = {"data.manifest": Path.is_file, "model.weights": Path.is_file, "hard_films": Path.is_dir}
        for name, there in places.items():
            if was.get(name) and there(began / str(was[name])):
                was[name] = str(began / str(was[name]))
    return was


def began_in(folder: Path) -> Path:
    """The folder in which the run's command was typed; today's where that is not told."""
    try:
        told = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.cwd")
    except UNREADABLE:
        told = None
    return Path(told) if isinstance(told, str) else Path.cwd()


def composed_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """{dotted name: value} that these overrides give today, Hydra's own section and resume= left out."""
    config = compose("train", overrides)
    with open_dict(config), read_write(config):
        config.pop("hydra", None)
    return {
        name: value for name, value in flat(OmegaConf.to_container(config, resolve=True)).items() if name not in OWN
    }


def changes(saved: Sequence[str], typed: Sequence[str], was: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of the run's settings that what is typed would change; None where it would take one away."""
    if not typed:
        return {}
    before, after = composed_settings(saved), composed_settings([*saved, *typed])
    named = {key_of(override).lstrip("+~") for override in typed}
    touched = [name for name in before | after if before.get(name) != after.get(name) or name in named]
    return {name: after.get(name) for name in sorted(touched) if was.get(name) != after.get(name)}


def hydra_value(value: Any) -> str:
    """A plain value as Hydra's grammar takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(hydra_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{hydra_value(item)}' for key, item in value.items())}}}"
    return quoted(value) if isinstance(value, str) else repr(value)


def key_of(override: str) -> str:
    return override.partition("=")[0]


def value_of(override: str) -> str:
    """What stands behind the =; a text in quotes as Hydra reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    value = override.partition("=")[2]
    try:
        return str(OverridesParser.create().parse_override(override).value()) if value[:1] in ("'", '"') else value
    except HydraException:
        return value.strip("'\"")


def unfinished_run(wanted: str) -> Path:
    """The folder of the run to go on with. Raises UserError when it is no run, is finished, or there is none."""
    folder = newest_unfinished() if wanted == "last" else Path(wanted).expanduser().resolve()
    if (folder / "sweep.json").is_file():
        raise UserError(
            f"resume={wanted}: this is a sweep's folder; it goes on when its command is typed again with "
            f"hydra.sweep.dir={folder}."
        )
    if not (folder / "run.json").is_file() or not (folder / ".hydra" / "overrides.yaml").is_file():
        raise UserError(f"resume={wanted}: not a run folder; expected one with run.json and .hydra/, as outputs/<run>.")
    if read_json(folder / "run.json").get("status") == "finished":
        raise UserError(
            f"resume={wanted}: this run is finished. Start a new one, or type resume=last for the newest that isn't."
        )
    return folder


def newest_unfinished(outputs: Path = OUTPUTS) -> Path:
    """The newest run below outputs/ that has not finished; what never began or can't be read is left out. Raises
    UserError when there is none."""
    told = {file.parent: read_json(file) for file in outputs.rglob("run.json")}
    runs = {run: record for run, record in told.items() if "started" in record and record.get("status") != "finished"}
    if not runs:
        found = "every run below {} is finished" if told else "there is no run below {}"
        raise UserError(f"resume=last: {found.format(outputs.resolve())}; name a folder with resume=<folder>.")
    return max(runs, key=lambda run: str(runs[run]["started"])).resolve()


def started_with(folder: Path) -> list[str]:
    """The overrides that the run was started with."""
    file = folder / ".hydra" / "overrides.yaml"
    try:
        return [str(override) for override in OmegaConf.load(file)]
    except UNREADABLE as error:
        raise cut_short(file, error) from error


def refuse_conflicts(folder: Path, changed: dict[str, Any], was: dict[str, Any]) -> None:
    """Raise UserError with the settings of the run that what is typed would change."""
    told = "\n".join(f"  {name}: the run has {was.get(name)}, now {value}" for name, value in changed.items())
    raise UserError(
        f"resume={folder}: these settings differ from the run's own:\n{told}\n"
        "Leave them out, or type force=true to go on with the new ones."
    )


def keep_settings(folder: Path, config: TrainConfig) -> None:
    """Write down the settings that a forced run goes on with, once nothing of them was refused."""
    overrides = [o for o in HydraConfig.get().overrides.task if key_of(o) not in OWN]
    plain = OmegaConf.structured(replace(config, resume=None, force=False))
    for name, content in (("config", plain), ("overrides", OmegaConf.create(overrides))):
        with written(folder / ".hydra" / f"{name}.yaml") as temporary:
            OmegaConf.save(content, temporary)


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
    for left in (folder / "checkpoints").glob(".*.ckpt.*"):
        left.unlink(missing_ok=True)  # of a kill in the midst of writing
    for name in ("last.ckpt", "previous.ckpt"):
        file = folder / "checkpoints" / name
        if not file.is_file():
            continue
        if (content := readable(file)) is not None:
            log.info("going on in %s after epoch %d", folder, content["epoch"] + 1)
            return Place(file, int(content["global_step"]), int(content["epoch"]))
        log.warning("%s is damaged; going on from the one before it", file)
        if launched().world == 1:
            file.unlink()  # else the next epoch would keep it in the place of the one before it
    log.info("going on in %s from the beginning: no epoch was finished", folder)
    return Place(None, 0, -1)


def refuse_other_state(folder: Path, place: Place, weights: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise UserError unless the checkpoint's weights and optimizer are of the kind that the run goes on with, its best
    weights of the same rule, and some are or will be validated."""
    content = readable(place.checkpoint) if place.checkpoint else None
    if content is None:
        return
    was = settings_of(folder)
    for name in ("objective", "keep"):
        if (before := was.get(name, getattr(config, name))) != getattr(config, name):
            raise UserError(
                f"resume={folder}: {name}={getattr(config, name)}: best.ckpt was kept by {name}={before}; start a new "
                "run for another."
            )
    if place.epoch + 1 >= config.epochs and not (folder / "checkpoints" / "best.ckpt").is_file():
        raise UserError(
            f"resume={folder}: epochs={config.epochs}: {place.epoch + 1} are done and none of them was validated; type "
            "more, or leave it out."
        )
    averaged = "current_model_state" in content  # Lightning's, beside the average that state_dict then holds
    if averaged != (config.ema is not None):
        raise UserError(
            f"resume={folder}: ema={hydra_value(config.ema)}: the weights of the checkpoint are "
            f"{'averaged' if averaged else 'not averaged'}; start a new run for others."
        )
    shapes = {name: tuple(value.shape) for name, value in content["state_dict"].items()}
    now = {name: tuple(value.shape) for name, value in weights.items()}
    if differ := sorted(name for name in shapes | now if shapes.get(name) != now.get(name)):
        raise UserError(
            f"resume={folder}: the model is not that of the checkpoint ({len(differ)} weights differ, {differ[0]} for "
            "one); start a new run for another model."
        )
    optimizer = config.optimizer["_target_"]
    if (kind := content["hyper_parameters"]["optimizer"]["_target_"]) != optimizer:
        raise UserError(
            f"resume={folder}: the checkpoint holds the state of {kind}, which {optimizer} can't go on with; start a "
            "new run for another optimizer."
        )


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
