"""python -m pneumonia.compare: rank runs on validation, test them against the best."""

import os

from pneumonia.entry import run_command
from pneumonia.settings import CompareConfig


def check(config: CompareConfig) -> None:
    from pneumonia.workflows.comparison import runs_of  # reads every run; still no torch

    runs_of(config)


def task(config: CompareConfig) -> None:
    from pneumonia.workflows.comparison import compare

    compare(config)


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the bootstrap's products are thin: threads only wait
    run_command("compare", task, check)


if __name__ == "__main__":
    main()
