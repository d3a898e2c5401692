"""python -m pneumonia.explain: show which parts of a film speak for and against pneumonia."""

from pneumonia.entry import run_command
from pneumonia.settings import ExplainConfig


def check(config: ExplainConfig) -> None:
    from pneumonia.workflows.selection import films_to_explain  # finds and reads the films; still no torch

    films_to_explain(config)


def task(config: ExplainConfig) -> None:
    from pneumonia.workflows.explanation import explain_films  # torch loads here, after --help has answered

    explain_films(config)


def main() -> None:
    run_command("explain", task, check)


if __name__ == "__main__":
    main()
