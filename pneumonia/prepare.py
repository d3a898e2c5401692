"""python -m pneumonia.prepare: decode the films once, show what they are, check what is cached."""

from pneumonia.entry import run_command
from pneumonia.settings import PrepareConfig


def check(config: PrepareConfig) -> None:
    from pneumonia.workflows.films import films_of

    films_of(config.data, config.seed)


def task(config: PrepareConfig) -> None:
    from pneumonia.workflows.films import prepare

    prepare(config)
    if config.audit:
        from pneumonia.workflows.audit import audit_films

        audit_films(config)


def main() -> None:
    run_command("prepare", task, check)


if __name__ == "__main__":
    main()
