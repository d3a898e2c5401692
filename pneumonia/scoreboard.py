"""python -m pneumonia.scoreboard: rank the attribution methods by what they know of the model."""

from pneumonia.entry import run_command
from pneumonia.settings import ScoreboardConfig


def check(config: ScoreboardConfig) -> None:
    from pneumonia.workflows.selection import films_to_score  # finds and reads the films; still no torch

    films_to_score(config)


def task(config: ScoreboardConfig) -> None:
    from pneumonia.workflows.scoreboard import score_methods  # torch loads here, after --help has answered

    score_methods(config)


def main() -> None:
    run_command("scoreboard", task, check)


if __name__ == "__main__":
    main()
