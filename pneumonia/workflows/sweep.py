"""A sweep that survives: jobs in folders named by their settings, finished ones skipped, one failure ends nothing else.

Started again with the same command and folder, a sweep returns the stored objective of what is finished, goes on with
what was running, and leaves what failed alone unless retry_failed=true.
"""

import csv
import json
import logging
import os
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pneumonia.settings import TrainConfig, UserError

log = logging.getLogger(__name__)

COLUMNS = ("job", "status", "objective", "value", "seconds", "overrides", "reason")


def run_job(config: TrainConfig) -> float:
    """Train one run; in a sweep, only if it is not finished yet, and without letting an error end the other jobs."""
    from pneumonia.workflows.experiment import fit_and_test  # torch loads here, after --help has answered

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return fit_and_test(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    status = read_run(folder).get("status")
    if status == "finished" or (status == "failed" and not config.retry_failed):
        log.info("%s: %s already, skipped", folder.name, status)
        return stored_objective(folder)
    try:
        resumed = str(folder) if status in ("running", "interrupted") else None
        return fit_and_test(replace(config, resume=resumed))
    except Exception as error:  # the other jobs go on; the table says what failed and why
        log.error("%s: %s", folder.name, error if isinstance(error, UserError) else traceback.format_exc())
        note_failure(folder, error)
        return worst(config.objective)
    finally:
        write_leaderboard(folder.parent)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a job; empty when there is none or it can't be read."""
    try:
        return dict(json.loads((folder / "run.json").read_text()))
    except (OSError, ValueError):
        return {}


def stored_objective(folder: Path) -> float:
    """What a finished job reached, as its sweeper was told then."""
    record = read_run(folder)
    value = record.get("objective", {}).get("value")
    return float(value) if value is not None else worst(str(record.get("objective", {}).get("name", "")))


def worst(objective: str) -> float:
    """A value that no search takes for a good one: the end of the scale, since nan breaks Optuna."""
    return 1e9 if objective.endswith("loss") else -1.0


def note_failure(folder: Path, error: Exception) -> None:
    """Say in run.json that the job failed, also when it failed before it could open one."""
    record = read_run(folder) | {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    temporary = folder / f".run.json.{os.getpid()}"
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, folder / "run.json")


def jobs_of(sweep: Path) -> list[dict[str, Any]]:
    """One row a job that has begun, best first; a job without run.json was killed before it could open one."""
    rows = []
    for folder in sorted(entry.parent for entry in sweep.glob("*/.hydra")):
        record = read_run(folder)
        objective = record.get("objective", {})
        overrides = OmegaConf.load(folder / ".hydra" / "overrides.yaml")
        rows.append(
            {
                "job": folder.name,
                "status": record.get("status", "killed"),
                "objective": objective.get("name", ""),
                "value": objective.get("value"),
                "seconds": record.get("seconds", ""),
                "overrides": " ".join(map(str, overrides)),
                "reason": record.get("reason", ""),
            }
        )
    lower = any(str(row["objective"]).endswith("loss") for row in rows)
    return sorted(rows, key=lambda row: (row["value"] is None, (row["value"] or 0) * (1 if lower else -1)))


def write_leaderboard(sweep: Path) -> list[dict[str, Any]]:
    """leaderboard.csv of the sweep so far, ranked on the objective, which is a validation figure."""
    rows = jobs_of(sweep)
    temporary = sweep / f".leaderboard.csv.{os.getpid()}"
    with temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, sweep / "leaderboard.csv")
    return rows


class SweepReport(Callback):
    """Hydra calls it: refuse another sweep's folder at the start; at the end a table, and exit code 1 on failures."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        same_sweep(folder, [str(o) for o in config.hydra.overrides.task])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = write_leaderboard(folder)
        for row in rows:
            value = "" if row["value"] is None else f"{row['objective']} {row['value']:.4f}"
            log.info("%s  %-11s %-24s %s  %s", row["job"], row["status"], value, row["overrides"], row["reason"])
        log.info("%s", folder.resolve() / "leaderboard.csv")
        if failed := [row["job"] for row in rows if row["status"] != "finished"]:
            log.error("%d of %d jobs did not finish: %s", len(failed), len(rows), ", ".join(failed))
            raise SystemExit(1)


def same_sweep(folder: Path, overrides: Sequence[str]) -> None:
    """Keep what the sweep was started with; raise UserError when the folder is another sweep's."""
    file = folder / "sweep.json"
    told = sorted(o for o in overrides if not o.startswith("retry_failed="))
    if file.exists() and (was := json.loads(file.read_text())["overrides"]) != told:
        raise SystemExit(
            f"pneumonia.train: hydra.sweep.dir={folder}: another sweep is there ({' '.join(was)}); "
            "type the same settings to go on with it, or another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".sweep.json.{os.getpid()}"
    temporary.write_text(json.dumps({"overrides": told}, indent=2) + "\n")
    os.replace(temporary, file)
