"""python -m pneumonia.train: train, test and monitor one model."""

from pneumonia.entry import run_command
from pneumonia.errors import UserError
from pneumonia.settings import TrainConfig


def check(config: TrainConfig) -> None:
    from pneumonia.workflows.films import preflight  # decodes headers and splits; still no torch
    from pneumonia.workflows.hard import check_hard
    from pneumonia.workflows.processes import check_launch

    check_launch(config)
    preflight(config)
    check_hard(config)


def task(config: TrainConfig) -> float:
    from pneumonia.workflows.sweep import run_job

    return run_job(config)


def resolve(arguments: list[str]) -> list[str]:
    from pneumonia.workflows.resume import resumed_arguments

    return resumed_arguments(arguments)


def refused(config: dict[str, object], error: UserError) -> float:
    from pneumonia.workflows.sweep import refused_job

    return refused_job(str(config["objective"]), error)


def main() -> None:
    run_command("train", task, check, resolve, refused)


if __name__ == "__main__":
    main()
