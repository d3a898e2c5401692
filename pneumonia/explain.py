"""python -m pneumonia.explain: show which parts of a film speak for and against pneumonia."""

from pathlib import Path

from pneumonia.entry import each_its_own, run_command
from pneumonia.settings import ExplainConfig


def check(config: ExplainConfig) -> None:
    from pneumonia.workflows.selection import films_to_explain  # finds and reads the films; still no torch

    films_to_explain(config)


def place(config: ExplainConfig) -> tuple[str, tuple[Path, str, str]]:
    output = config.output or f"{config.run or '.'}/explanations"
    apart = "" if config.activations else config.select  # they have one picture for all films
    return output, (Path(output).expanduser().resolve(), config.attribution["_target_"], apart)


def task(config: ExplainConfig) -> None:
    from pneumonia.workflows.explanation import explain_films  # torch loads here, after --help has answered

    explain_films(config)


def main() -> None:
    own = each_its_own(check, place, "name one for each, as 'output=${run}/explanations/${seed}'.")
    run_command("explain", task, own)


if __name__ == "__main__":
    main()
