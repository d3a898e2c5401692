"""python -m pneumonia.predict: call any films with a trained model."""

from collections.abc import Callable
from pathlib import Path

from pneumonia.entry import run_command
from pneumonia.settings import PredictConfig, UserError


def check_each() -> Callable[[PredictConfig], None]:
    """A check of one run after another, of which no two may write the same table."""
    tables: set[Path] = set()

    def check(config: PredictConfig) -> None:
        from pneumonia.workflows.targets import films_to_predict  # finds the films and the run; still no torch

        films_to_predict(config)
        table = Path(config.output).expanduser().resolve()
        if table in tables:
            raise UserError(
                f"output={config.output}: two runs of -m would write it, the second over the first; name one for each, "
                "as 'output=${run}/films.csv'."
            )
        tables.add(table)

    return check


def task(config: PredictConfig) -> None:
    from pneumonia.workflows.inference import predict_films

    predict_films(config)


def main() -> None:
    run_command("predict", task, check_each())


if __name__ == "__main__":
    main()
