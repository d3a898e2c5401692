"""A sweep that survives: jobs in folders named by their settings, finished ones skipped, one failure ends nothing else.

Started again with the same command and folder, a sweep returns the stored objective of what is finished, goes on with
what was running, and leaves what failed alone unless retry_failed=true.
"""

import csv
import json
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from pneumonia.errors import UserError
from pneumonia.files import written
from pneumonia.launch import launched
from pneumonia.settings import FILMS_LAY, CompareConfig, TrainConfig, lower_is_better
from pneumonia.workflows.comparison import compare
from pneumonia.workflows.processes import (
    ending_at_sigterm,
    ending_with_sweep,
    fall_silent,
    name_lines,
    one_at_a_time,
    own_port,
)
from pneumonia.workflows.record import read_json, write_json
from pneumonia.workflows.resume import flat, unfinished_run

log = logging.getLogger(__name__)

GRACE = 15.0  # seconds; a loader looks after its run every 5
PROPOSES = ("hydra.sweeper.n_jobs", "hydra.sweeper.sampler", "hydra.sweeper.params", "hydra.launcher.n_jobs")

COLUMNS = ("job", "status", "objective", "value", "seconds", "overrides", "reason")


def run_job(config: TrainConfig) -> float:
    """Train one run, which no other process may be at; in a sweep see run_in_sweep."""
    from pneumonia.workflows.experiment import fit_and_test  # torch loads here, after --help has answered

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    swept = hydra.mode == RunMode.MULTIRUN
    if launched().rank > 0:
        fall_silent()
        return run_in_sweep(config, folder, fit_and_test) if swept else fit_and_test(config)
    if not one_at_a_time():
        name_lines(folder.name)
    with only_one(folder / ".hydra" / "lock", wait=swept), own_port(), ending_with_sweep(), ending_at_sigterm():
        if config.resume is not None:
            unfinished_run(config.resume)  # who was at it when this began may have finished it
        return run_in_sweep(config, folder, fit_and_test) if swept else fit_and_test(config)


@contextmanager
def only_one(lock: Path, wait: bool) -> Iterator[None]:
    """Hold `lock`, which the system lets go of however this process ends.

    When another process has it, `wait` for that: a sweep that was killed may have left a job that is still at work.
    Else raise UserError after GRACE seconds, in which the loaders of a run that was killed notice that it is gone.
    """
    run = lock.parent.parent
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        log.info("%s: another process is at it, waiting", run.name)
        try:
            held.acquire(timeout=-1 if wait else GRACE)
        except Timeout:
            raise UserError(f"{run}: another process is at this run; wait for it, or end it.") from None
    try:
        yield
    finally:
        held.release()


def run_in_sweep(config: TrainConfig, folder: Path, train: Callable[[TrainConfig], float]) -> float:
    """`train`, only if the job is not finished yet, and without letting an error end the other jobs; the objective."""
    status = read_json(folder / "run.json").get("status")
    config = own_settings(config, folder)
    if status == "finished" or (status == "failed" and not config.retry_failed):
        log.info("%s: %s already, skipped", folder.name, status)
        return stored_objective(folder, config.objective)
    try:
        value = train(replace(config, resume=str(folder) if status else None))
        return worst(config.objective) if math.isnan(value) else value
    except Exception as error:  # the other jobs go on; the table says what failed and why
        if launched().rank == 0:
            log.error("%s: %s", folder.name, error if isinstance(error, UserError) else traceback.format_exc())
            note_failure(folder, error)
        if launched().world > 1:
            raise  # the processes are out of step: the sweep ends, and goes on when it is started again
        return worst(config.objective)
    finally:
        if launched().rank == 0:
            write_leaderboard(folder.parent)


def own_settings(config: TrainConfig, folder: Path) -> TrainConfig:
    """`config`, or what a job was trained by so far, whatever the defaults are by now. Where films lie is as now."""
    kept = folder / ".hydra" / "trained.yaml"  # Hydra has written today's into config.yaml
    own = config
    if kept.is_file() and (folder / "checkpoints" / "last.ckpt").is_file():
        own = restored(config, OmegaConf.to_container(OmegaConf.load(kept)))
        names = [name.removeprefix("data.") for name in FILMS_LAY]
        data = replace(own.data, **{name: getattr(config.data, name) for name in names})
        own = replace(own, data=data, retry_failed=config.retry_failed)
    if launched().rank == 0:
        say_changed(folder, flat(asdict(own)), flat(asdict(config)))
        for file in (kept, folder / ".hydra" / "config.yaml"):
            with written(file) as temporary:
                OmegaConf.save(OmegaConf.structured(own), temporary)
    return own


def say_changed(folder: Path, own: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Which settings of a job are no longer what its sweep would give it."""
    other = [f"{name}={value}, now {now.get(name)}" for name, value in own.items() if value != now.get(name)]
    if other:
        log.warning("%s: defaults have changed since it began (%s); it keeps its own", folder.name, "; ".join(other))


def restored(now: Any, told: Any) -> Any:
    """A dataclass of settings with the values that are told of it; those that are not told, as now."""
    values = {field.name: getattr(now, field.name) for field in fields(now)}
    return replace(
        now,
        **{
            name: restored(value, told[name]) if is_dataclass(value) else told[name]
            for name, value in values.items()
            if name in told
        },
    )


def refused_job(objective: str, error: UserError) -> float:
    """What a job whose settings don't go together counts as: it failed, and the other jobs go on."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if read_json(folder / "run.json").get("status") == "finished":  # by a version that knew no such rule
        return stored_objective(folder, objective)
    if launched().rank == 0:
        log.error("%s: %s", folder.name, error)
        note_failure(folder, error)
        write_leaderboard(folder.parent)
    return worst(objective)


def stored_objective(folder: Path, objective: str) -> float:
    """What a job that ended reached, as its sweeper was told then."""
    record = read_json(folder / "run.json")
    value = record.get("objective", {}).get("value") if record["status"] == "finished" else None
    return worst(objective) if value is None else float(value)


def worst(objective: str) -> float:
    """A value that no search takes for a good one: the end of the scale, since nan breaks Optuna."""
    return 1e9 if lower_is_better(objective) else -1.0


def note_failure(folder: Path, error: Exception) -> None:
    """Say in run.json that the job failed, also when it failed before it could open one."""
    reason = f"{type(error).__name__}: {error}"
    write_json(folder / "run.json", read_json(folder / "run.json") | {"status": "failed", "reason": reason})


def jobs_of(sweep: Path) -> list[dict[str, Any]]:
    """One row a job that has begun, best first, those of each objective by themselves; a job without run.json was
    killed before it could open one."""
    rows = []
    for file in sorted(sweep.glob("*/.hydra/overrides.yaml")):
        folder = file.parent.parent
        record = read_json(folder / "run.json")
        objective = record.get("objective", {})
        rows.append(
            {
                "job": folder.name,
                "status": record.get("status", "killed"),
                "objective": objective.get("name", ""),
                "value": objective.get("value"),
                "seconds": record.get("seconds", ""),
                "overrides": " ".join(overrides_of(file)),
                "reason": record.get("reason", ""),
            }
        )
    return sorted(rows, key=place_in_table)


def place_in_table(row: Mapping[str, Any]) -> tuple[bool, str, float]:
    """Sorts rows of `jobs_of`: with a value, by objective, the best first."""
    sign = 1 if lower_is_better(row["objective"]) else -1
    return row["value"] is None, row["objective"], sign * (row["value"] or 0)


def overrides_of(file: Path) -> list[str]:
    """The settings of a job; none where Hydra, in another process, has half written them."""
    try:
        return [str(override) for override in OmegaConf.load(file)]
    except (OSError, YAMLError):
        return []


def write_leaderboard(sweep: Path) -> list[dict[str, Any]]:
    """leaderboard.csv of the sweep so far, ranked on the objective, which is a validation figure."""
    rows = jobs_of(sweep)
    with written(sweep / "leaderboard.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return rows


class SweepReport(Callback):
    """Hydra calls it: refuse another sweep's folder at the start; at the end the tables, and exit code 1."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if launched().rank > 0:
            fall_silent()
        steps = [o for o in config.hydra.overrides.hydra if o.startswith(PROPOSES)]
        if "optuna" in config.hydra.sweeper._target_:
            quiet_optuna()
            steps.append(f"{config.hydra.sweeper.n_jobs} at once")  # a launcher or another machine changes it
        folder = Path(config.hydra.sweep.dir)
        same_sweep(folder, [*config.hydra.overrides.task, *steps])
        log.info("sweep in %s; broken off, it goes on with the same settings and hydra.sweep.dir=%s", folder, folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if launched().rank > 0:
            return
        folder = Path(config.hydra.sweep.dir)
        rows = jobs_of(folder)
        report(folder, rows)
        if any(row["status"] != "finished" for row in rows):
            raise SystemExit(1)


def quiet_optuna() -> None:
    """Its trials are shown by the runs themselves."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # speaks when it is imported
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def report(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """leaderboard.csv and the comparison of the finished runs, and both on the terminal."""
    write_leaderboard(folder)
    typed = [row["overrides"].split(" ") for row in rows]
    common = set(typed[0]).intersection(*typed) if len(rows) > 1 else set()
    for row, overrides in zip(rows, typed, strict=True):
        value = "" if row["value"] is None else f"{row['objective']} {row['value']:.4f}"
        own = " ".join(override for override in overrides if override not in common)
        log.info("%s  %-11s %-24s %s  %s", row["job"], row["status"], value, own, row["reason"])
    log.info("%s", folder.resolve() / "leaderboard.csv")
    if len(objectives := {row["objective"] for row in rows if row["value"] is not None}) > 1:
        log.warning("jobs of %s are ranked each among their own", " and ".join(sorted(objectives)))
    compare_finished(folder, rows)
    if failed := [row["job"] for row in rows if row["status"] != "finished"]:
        log.error("%d of %d jobs did not finish: %s", len(failed), len(rows), ", ".join(failed))


def compare_finished(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """What `compare` says of the finished runs, ranked on validation, in <sweep>/comparison; or why it can't."""
    done = [row for row in rows if row["status"] == "finished"]
    if len(done) < 2:
        log.info("no comparison: %d of %d runs finished, two are needed", len(done), len(rows))
        return
    metric = done[0]["objective"].removeprefix("val/").replace("loss", "log_loss")
    runs = [str(folder / row["job"]) for row in done]
    try:
        compare(CompareConfig(runs, metric, output=str(folder / "comparison")))
    except UserError as error:
        log.warning("no comparison: %s", error)


def same_sweep(folder: Path, overrides: Sequence[str]) -> None:
    """Keep what the sweep was started with; end the command (code 2) when the folder is another sweep's, or none."""
    file = folder / "sweep.json"
    told = sorted(o for o in map(str, overrides) if not o.startswith("retry_failed="))
    try:
        was = json.loads(file.read_text())["overrides"] if file.exists() else told
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(f"hydra.sweep.dir={folder}: {file} can't be read ({error}); name another folder.")
    if was != told:
        refuse(
            f"hydra.sweep.dir={folder}: another sweep is there ({' '.join(was)}); type the same settings to go on with "
            "it, or another folder."
        )
    if not file.exists() and [*folder.glob("run.json"), *folder.glob("*/run.json")]:
        refuse(f"hydra.sweep.dir={folder}: runs of no sweep are there; name a folder of its own.")
    if launched().rank > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {"overrides": told})


def refuse(message: str) -> NoReturn:
    """One line and exit code 2; Hydra would make a warning of an exception."""
    if launched().rank == 0:
        print(f"pneumonia.train: {message}", file=sys.stderr)
    raise SystemExit(2)
