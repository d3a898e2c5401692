"""python -m pneumonia.compare: rank runs on validation, test them against the best."""

import os
from pathlib import Path

from pneumonia.entry import each_its_own, run_command
from pneumonia.settings import CompareConfig


def check(config: CompareConfig) -> None:
    from pneumonia.workflows.comparison import runs_of  # reads every run; still no torch

    runs_of(config)


def place(config: CompareConfig) -> tuple[str, Path]:
    from pneumonia.workflows.comparison import output_of

    return str(output_of(config)), output_of(config).resolve()


def task(config: CompareConfig) -> None:
    from pneumonia.workflows.comparison import compare

    compare(config)


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the bootstrap's products are thin: threads only wait
    own = each_its_own(check, place, "name one for each, as 'output=outputs/${metric}'.")
    run_command("compare", task, own)


if __name__ == "__main__":
    main()
