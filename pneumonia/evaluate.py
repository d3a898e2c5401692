"""python -m pneumonia.evaluate: what a run is worth, with intervals, on one page; no model unless asked for more."""

import os
from pathlib import Path
from typing import Any

from pneumonia.entry import each_its_own, run_command
from pneumonia.settings import EvaluateConfig

read: dict[tuple[str | None, str | None], Any] = {}  # the Source that was checked last, until its task takes it


def check(config: EvaluateConfig) -> None:
    from pneumonia.workflows.locking import judges_of  # the tables are read and refused before anything is written
    from pneumonia.workflows.sources import source_of

    read.clear()
    source = source_of(config)
    judges_of(source, config.operating_point.runs)
    read[config.run, config.predictions] = source


def place(config: EvaluateConfig) -> tuple[str, Path]:
    folder = config.run or str(Path(config.predictions or "").parent)
    return folder, Path(folder).expanduser().resolve()


def task(config: EvaluateConfig) -> None:
    from pneumonia.workflows.evidence import evaluate

    evaluate(config, read.pop((config.run, config.predictions), None))


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the bootstrap's products are thin: threads only wait
    own = each_its_own(check, place, "a run has one report: type one call after the other.")
    run_command("evaluate", task, own)


if __name__ == "__main__":
    main()
