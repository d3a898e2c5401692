"""python -m pneumonia.predict: call any films with a trained model."""

from pneumonia.config import run_command
from pneumonia.settings import PredictConfig


def check(config: PredictConfig) -> None:
    from pneumonia.workflows.targets import films_to_predict  # finds the films and the run; still no torch

    films_to_predict(config)


def task(config: PredictConfig) -> None:
    from pneumonia.workflows.inference import predict_films

    predict_films(config)


def main() -> None:
    run_command("predict", task, check)


if __name__ == "__main__":
    main()
