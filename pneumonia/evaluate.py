"""python -m pneumonia.evaluate: what a run is worth, with intervals, on one page (no model, no torch)."""

import os
from typing import Any

from pneumonia.entry import run_command
from pneumonia.settings import EvaluateConfig

read: dict[tuple[str | None, str | None], Any] = {}  # the Source that was checked last, until its task takes it


def check(config: EvaluateConfig) -> None:
    from pneumonia.workflows.locking import judges_of  # the tables are read and refused before anything is written
    from pneumonia.workflows.sources import source_of

    read.clear()
    source = source_of(config)
    judges_of(source, config.operating_point.runs)
    read[config.run, config.predictions] = source


def task(config: EvaluateConfig) -> None:
    from pneumonia.workflows.evidence import evaluate

    evaluate(config, read.pop((config.run, config.predictions), None))


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the bootstrap's products are thin: threads only wait
    run_command("evaluate", task, check)


if __name__ == "__main__":
    main()
