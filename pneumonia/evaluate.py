"""python -m pneumonia.evaluate: what a run is worth, with intervals, on one page (no model, no torch)."""

import os

from pneumonia.config import run_command
from pneumonia.settings import EvaluateConfig


def check(config: EvaluateConfig) -> None:
    from pneumonia.workflows.locking import judges_of  # the tables are read and refused before anything is written
    from pneumonia.workflows.sources import source_of

    judges_of(source_of(config), config.operating_point.runs)


def task(config: EvaluateConfig) -> None:
    from pneumonia.workflows.evidence import evaluate

    evaluate(config)


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the bootstrap's products are thin: threads only wait
    run_command("evaluate", task, check)


if __name__ == "__main__":
    main()
