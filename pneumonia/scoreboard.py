"""python -m pneumonia.scoreboard: rank the attribution methods by what they know of the model."""

from pathlib import Path

from pneumonia.entry import each_its_own, run_command
from pneumonia.settings import ScoreboardConfig


def check(config: ScoreboardConfig) -> None:
    from pneumonia.workflows.selection import films_to_score  # finds and reads the films; still no torch

    films_to_score(config)


def place(config: ScoreboardConfig) -> tuple[str, Path]:
    folder = Path(config.run or "").expanduser()
    return str(folder / "explanations" / "scoreboard.csv"), folder.resolve()


def task(config: ScoreboardConfig) -> None:
    from pneumonia.workflows.scoreboard import score_methods  # torch loads here, after --help has answered

    score_methods(config)


def main() -> None:
    own = each_its_own(check, place, "type one by itself, and keep what it wrote before the next.")
    run_command("scoreboard", task, own)


if __name__ == "__main__":
    main()
