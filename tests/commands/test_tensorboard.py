"""TensorBoard for real: a server reads the run's events, and its own endpoints name what is in them."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", run, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def ask(url: str, body: dict | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_for(url: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := ask(url):
                return found
        except OSError:
            pass
        time.sleep(0.5)
    raise TimeoutError(url)


def test_tensorboard_shows_curves_pictures_and_final_metrics(server: str) -> None:
    [name] = wait_for(f"{server}/data/runs")
    scalars = wait_for(f"{server}/data/plugin/scalars/tags")[name]
    assert {
        "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/auroc", "val/sensitivity", "val/specificity",
        "learning_rate", "images_per_second",
    } <= set(scalars)  # fmt: skip
    points = ask(f"{server}/data/plugin/scalars/scalars?run={name}&tag=val/auroc")
    assert len(points) == 2  # one an epoch, none twice
    assert {"train/augmented", "val/confusion_matrix"} <= set(ask(f"{server}/data/plugin/images/tags")[name])
    assert "val/precision_recall" in ask(f"{server}/data/plugin/pr_curves/tags")[name]
    experiment = ask(f"{server}/data/plugin/hparams/experiment", {})
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} >= {"final/val_auroc", "final/test_accuracy"}
    assert {info["name"] for info in experiment["hparamInfos"]} >= {
        "model", "lr", "seed", "image_size", "standardize", "mixup", "keep", "flip_average", "ema",
        "folds", "nested", "hard_films", "optimizer.eps", "schedule.warmup", "model.dropout",
    }  # fmt: skip


def test_a_setting_that_may_be_null_is_a_text_in_every_run() -> None:
    """TensorBoard takes the columns, and their types, from the first run alone."""
    from pneumonia.config import compose, typed
    from pneumonia.workflows.experiment import hyperparameters

    texts = ([], ["ema=0.99", "data.folds=5", "data.fold=1"])
    one, other = (hyperparameters(typed("train", compose("train", text))) for text in texts)
    assert one.keys() == other.keys() and (one["ema"], other["ema"], other["fold"]) == ("None", "0.99", "1")
    assert {name: type(value) for name, value in one.items()} == {name: type(value) for name, value in other.items()}
    assert all(isinstance(value, bool | int | float | str) for value in one.values())
