"""The commands on a CUDA GPU: uv run pytest -m gpu"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from resume_cases import assert_same_end, interrupted, rows_without_times, start

from pneumonia.data.decode import read_film
from pneumonia.training.checkpoint import load_classifier
from pneumonia.training.precision import full_float32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is visible here"),
]
Command = Callable[..., None]
SETTINGS = (
    "trainer=gpu",
    "model=compact",
    "data.image_size=64",
    "data.batch_size=20",  # of 48 films: the last batch is smaller
    "data.num_workers=1",
    "epochs=4",
    "model.dropout=0.3",
    "augment=strong",
    "mixup=0.2",
    "ema=0.9",
    "optimizer=muon",
    "optimizer.lr=0.004",
    "standardize=centre",
    "flip_average=true",
    "crop_average=true",
    "aligned_view=true",
    "local_view=true",
    "blurred_views=0.006",
    "cuda_graphs=true",
    "deterministic=true",
)
METHODS = ("gradcam", "integrated_gradients", "lime", "occlusion")


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs on the GPU."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    assert start(phantoms, folder, settings=SETTINGS).wait(300) == 0
    return folder


def logits(file: Path) -> dict[str, float]:
    """{name of the film: the model's own logit} of a table of predictions."""
    with file.open(newline="") as stream:
        return {Path(row["path"]).name: float(row["logit"]) for row in csv.DictReader(stream)}


def test_a_run_says_where_it_was_and_what_it_computed_in(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["precision"] == "bf16-mixed"
    assert record["machine"]["gpus"] == [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    assert np.isfinite([float(row["train/loss"]) for row in rows_without_times(trained)]).all()


def test_equal_deterministic_runs_leave_equal_bytes(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    assert start(phantoms, tmp_path / "again", settings=SETTINGS).wait(300) == 0
    assert_same_end(trained, tmp_path / "again")


def test_graphs_train_the_net_that_single_kernels_train(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    eager = ["cuda_graphs=false" if word.startswith("cuda_graphs=") else word for word in SETTINGS]
    assert start(phantoms, tmp_path / "eager", settings=eager).wait(300) == 0
    assert_same_end(trained, tmp_path / "eager")


def test_whole_batches_of_training_are_replayed(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = torch.cuda.CUDAGraph.replay, []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (count.append(graph), real(graph)))
    command("train", *SETTINGS, f"data.root={phantoms}", "hydra.run.dir=run")
    assert len(count) == 4 * 2 * 2  # epochs, whole batches of each, forward and backward


def test_an_interrupted_run_ends_as_one_that_was_not(
    trained: Path, command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(command, phantoms, monkeypatch, settings=SETTINGS)
    command("train", f"resume={folder}")
    assert_same_end(trained, folder)


@pytest.mark.parametrize(
    "settings",
    [
        ("model=compact", "compile=true"),
        ("model=vgg16", "model.weights=null", "model.trainable_blocks=5", "cuda_graphs=true"),
        ("trainer=ddp", "trainer.devices=1", "model=compact"),
        ("experiment=record", "trainer.precision=16-mixed"),
    ],
    ids=lambda settings: settings[0] + " " + settings[1],
)
def test_other_ways_to_train_leave_a_whole_run(command: Command, phantoms: Path, settings: tuple[str, ...]) -> None:
    small = (
        "data.image_size=32",
        "data.batch_size=16",
        "data.num_workers=1",
        "epochs=2",
        f"data.root={phantoms}",
        "hydra.run.dir=run",
    )
    placed = () if settings[0].startswith("trainer=") else ("trainer=gpu",)
    command("train", *placed, *settings, *small)
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
    assert np.isfinite(list(logits(Path("run/predictions.csv")).values())).all()
    assert Path("run/report.html").is_file()


def test_a_net_says_the_same_on_the_gpu_and_on_the_cpu(trained: Path, phantoms: Path) -> None:
    classifier = load_classifier(trained / "checkpoints" / "best.ckpt")
    paths = sorted((phantoms / "test").rglob("*.png"))
    film = torch.from_numpy(np.stack([read_film(path, 64, "squash") for path in paths]))[:, None]
    with full_float32(), torch.inference_mode():
        here, there = classifier(film), classifier.cuda()(film.cuda()).cpu()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


def test_predict_and_stress_agree_with_the_run(command: Command, trained: Path, phantoms: Path) -> None:
    command("predict", f"run={trained}", f"images={phantoms / 'test'}", "output=calls.csv")
    told, calls = logits(trained / "predictions.csv"), logits(Path("calls.csv"))
    assert calls == pytest.approx({name: told[name] for name in calls}, abs=1e-3)
    command("evaluate", f"run={trained}", "stress=true", "shortcuts=true", "operating_point.stressed=true")
    evidence = json.loads((trained / "evidence.json").read_text())
    assert evidence["stress"] is not None
    assert evidence["shortcuts"] is not None


@pytest.mark.parametrize("method", METHODS)
def test_a_film_is_explained_alike_on_both(command: Command, trained: Path, method: str) -> None:
    found = []
    for accelerator in ("gpu", "cpu"):
        command("explain", f"run={trained}", f"attribution={method}", "count=2", "threshold=0.5",
                f"accelerator={accelerator}", f"output={accelerator}")  # fmt: skip
        found.append({file.stem: np.load(file)["attribution"] for file in sorted(Path(accelerator).rglob("*.npz"))})
    on_gpu, on_cpu = found
    assert on_gpu.keys() == on_cpu.keys() and on_gpu
    for name, values in on_gpu.items():
        off = np.linalg.norm(values - on_cpu[name])
        assert off <= 0.1 * np.linalg.norm(on_cpu[name]) + 1e-6, name


def test_the_scoreboard_and_the_reference_net_run(command: Command, trained: Path, phantoms: Path) -> None:
    command("scoreboard", f"run={trained}", "select=all", "count=2", "noisy=1", "accelerator=gpu")
    command("predict", "checkpoint=reference", f"images={phantoms / 'test'}", "output=reference.csv")
    assert np.isfinite(list(logits(Path("reference.csv")).values())).all()
