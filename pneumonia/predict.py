"""python -m pneumonia.predict: call any films with a trained model."""

from pathlib import Path

from pneumonia.entry import each_its_own, run_command
from pneumonia.settings import PredictConfig


def check(config: PredictConfig) -> None:
    from pneumonia.workflows.targets import films_to_predict  # finds the films and the run; still no torch

    films_to_predict(config)


def place(config: PredictConfig) -> tuple[str, Path]:
    return f"output={config.output}", Path(config.output).expanduser().resolve()


def task(config: PredictConfig) -> None:
    from pneumonia.workflows.inference import predict_films

    predict_films(config)


def main() -> None:
    own = each_its_own(check, place, "name one for each, as 'output=${run}/films.csv'.")
    run_command("predict", task, own)


if __name__ == "__main__":
    main()
