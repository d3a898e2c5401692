"""`python -m pneumonia.train` as a user types it: what a run leaves, and that equal runs leave equal bytes."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.metrics import roc_auc_score
from torch.utils.data import RandomSampler

from pneumonia.config import compose, typed
from pneumonia.data.decode import read_film
from pneumonia.data.records import CLASSES
from pneumonia.settings import DataConfig
from pneumonia.training.alignment import Alignment
from pneumonia.training.checkpoint import load_classifier
from pneumonia.workflows.experiment import build_classifier
from pneumonia.workflows.films import Films, films_of
from pneumonia.workflows.predictions import rows_of

Command = Callable[..., None]
SMALL = ("trainer=cpu", "data.image_size=32", "data.batch_size=16", "augment=light")  # as conftest has it


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_leaves_everything_that_outputs_readme_lists(run: Path) -> None:
    left = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()}
    assert {
        "predictions.csv", "metrics.json", "metrics.csv", "manifest.csv", "run.json", "train.log", ".hydra/config.yaml",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/class_counts.png", "figures/films.png",
        "figures/augmented.png", "figures/model.png", "figures/curves.png", "figures/confusion_matrix_val.png",
        "figures/confusion_matrix_test.png",
    } <= left  # fmt: skip
    assert not [
        name for name in left if Path(name).name.startswith(".") and ".hydra" not in name
    ]  # no half-written file


def test_predictions_hold_each_val_and_test_film_once_with_its_own_label(run: Path) -> None:
    manifest = {row["path"]: row for row in table(run / "manifest.csv")}
    rows = table(run / "predictions.csv")
    assert sorted(row["path"] for row in rows) == sorted(p for p, row in manifest.items() if row["split"] != "train")
    for row in rows:
        assert all(row[name] == manifest[row["path"]][name] for name in ("label", "patient", "subtype", "split"))
        assert float(row["probability"]) == pytest.approx(
            torch.sigmoid(torch.tensor(float(row["logit"]))).item(), rel=1e-4
        )


def test_metrics_json_follows_from_predictions_csv(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["val", "test"]
    for split, values in metrics.items():
        rows = [row for row in table(run / "predictions.csv") if row["split"] == split]
        label, score = [int(r["label"]) for r in rows], [float(r["probability"]) for r in rows]
        assert values["n"] == len(rows) == values["tp"] + values["fp"] + values["tn"] + values["fn"]
        assert values["auroc"] == pytest.approx(roc_auc_score(label, score))
        assert values["accuracy"] == sum((s >= 0.5) == y for y, s in zip(label, score, strict=True)) / len(rows)


def test_run_json_says_how_it_ended_and_from_what(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["epochs"] == 2 and min(record["images_per_second"]) > 0
    assert record["parameters"] == sum(p.numel() for p in load_classifier(run / "checkpoints/best.ckpt").parameters())
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    best = max(float(row["val/auroc"]) for row in table(run / "metrics.csv"))
    assert record["objective"] == {"name": "val/auroc", "value": pytest.approx(best)}


def test_the_best_checkpoint_gives_the_predictions(run: Path, phantoms: Path) -> None:
    classifier = load_classifier(run / "checkpoints" / "best.ckpt")
    for row in table(run / "predictions.csv")[::9]:
        pixels = torch.from_numpy(read_film(phantoms / row["path"], 32, "squash"))[None, None]
        assert classifier(pixels).item() == pytest.approx(float(row["logit"]), abs=1e-4)


@pytest.mark.usefixtures("unreported")
def test_equal_runs_leave_equal_bytes_and_another_seed_others(
    run: Path, command: Command, phantoms: Path, tmp_path: Path
) -> None:
    typed = [*SMALL, f"data.root={phantoms}", "epochs=2", "objective=val/auroc", "trainer.precision=bf16-mixed"]
    command("train", *typed, "hydra.run.dir=again")
    command("train", *typed, "hydra.run.dir=other", "seed=1")
    for name in ("metrics.json", "predictions.csv", "manifest.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name
    assert (tmp_path / "other" / "predictions.csv").read_bytes() != (run / "predictions.csv").read_bytes()


def test_a_shuffled_loader_cannot_change_predictions(run: Path, phantoms: Path) -> None:
    """The notebooks' confusion matrix came from a shuffled generator beside ordered labels: 60.9 % beside 86 %."""
    films = films_of(DataConfig(root=str(phantoms), image_size=32, cache=False), 0)
    count = len(films.of("val"))
    batches = [{"index": torch.tensor(part), "logit": torch.tensor(part).float()} for part in chunks(range(count), 5)]
    order = list(RandomSampler(range(count), generator=torch.Generator().manual_seed(0)))
    mixed = [{"index": torch.tensor(part), "logit": torch.tensor(part).float()} for part in chunks(order, 5)]
    assert rows_of(films, "val", mixed) == rows_of(films, "val", batches)
    assert [row["path"] for row in rows_of(films, "val", mixed)] == [r.path for r in films.of("val")]


def chunks(numbers, size: int) -> list[list[int]]:
    numbers = list(numbers)
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def test_a_film_predicted_twice_is_caught(phantoms: Path) -> None:
    films: Films = films_of(DataConfig(root=str(phantoms), image_size=32, cache=False), 0)
    batch = {"index": torch.tensor([0, 0]), "logit": torch.tensor([0.0, 1.0])}
    with pytest.raises(AssertionError, match="twice"):
        rows_of(films, "val", [batch])


@pytest.mark.usefixtures("unreported")
def test_a_manifest_of_a_run_gives_the_same_split_again(
    run: Path, command: Command, phantoms: Path, tmp_path: Path
) -> None:
    command(
        "train", *SMALL, f"data.manifest={run / 'manifest.csv'}", f"data.root={phantoms}", "trainer=debug", "seed=5",
        "hydra.run.dir=again",
    )  # fmt: skip
    assert (tmp_path / "again" / "manifest.csv").read_bytes() == (run / "manifest.csv").read_bytes()
    alone = ("trainer=debug", f"data.manifest={run / 'manifest.csv'}", "hydra.run.dir=alone")  # run.json says where
    command("train", *SMALL, *alone)
    assert (tmp_path / "alone" / "manifest.csv").read_bytes() == (run / "manifest.csv").read_bytes()


def test_a_hospitals_own_list_trains_with_a_warning_for_films_without_patient(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    lines = ["path,label,patient"]
    for number, file in enumerate(sorted(phantoms.glob("train/*/*.png"))):
        shutil.copy(file, tmp_path / f"scan{number}.png")
        patient = "" if number == 3 else f"patient {number // 2}"
        lines.append(f"scan{number}.png,{file.parent.name},{patient}")
    (tmp_path / "films.csv").write_text("\n".join(lines))
    command("train", "trainer=debug", "data.image_size=32", "data.manifest=films.csv", "hydra.run.dir=run")
    assert "1 film names follow no known pattern" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/metrics.json").read_text()).keys() == {"val"}  # no test films, no test figures
    assert "Kermany" not in (tmp_path / "run/model_card.md").read_text()
    command("train", "trainer=debug", "data.image_size=32", f"data.root={phantoms}", "hydra.run.dir=named")
    again = (f"data.root={phantoms}", "data.manifest=named/manifest.csv", "hydra.run.dir=listed")
    command("train", "trainer=debug", "data.image_size=32", *again)
    assert "10.17632/rscbjbr9sj" in (tmp_path / "listed/model_card.md").read_text()  # phantoms are named as theirs are


NETS = (  # drawn, as their model.png is nowhere else
    "model=vgg16 model.weights=null model.trainable_blocks=1 unfreeze_epoch=0 optimizer=adamw",
    "model=deep_dropout data.image_size=64 balance=weighted_loss optimizer=sgd gradient_clip=1.0",
    "model=compact optimizer=adamw gradient_clip=1.0 trainer.precision=bf16-mixed",
)
OTHERS = (
    "balance=weighted_sampler augment=strong stop_on=val/loss label_smoothing=0.1 data.resize=pad",
    "data.folds=3 data.fold=1 test=false schedule=step deterministic=true data.resize=crop",
    "balance=marks validate_every=2 test=false optimizer=muon",
)


@pytest.mark.parametrize("typed", [*(pytest.param(typed, marks=pytest.mark.pictures) for typed in NETS), *OTHERS])
def test_choices_can_be_combined(command: Command, phantoms: Path, tmp_path: Path, typed: str) -> None:
    small = ("trainer=debug", "data.image_size=32", "data.batch_size=4", f"data.root={phantoms}")
    command("train", *small, *typed.split(), "hydra.run.dir=run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert ("test" in metrics) == ("test=false" not in typed)
    assert metrics["val"]["n"] > 0
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    normal, ill = (told["films"]["train"][name] for name in CLASSES)
    if "balance=weighted" in typed:
        assert told["prior_correction"] == pytest.approx(np.log(ill / normal), abs=1e-5)
    else:
        assert (told["prior_correction"] != 0) == ("balance=" in typed)


def test_class_weight_and_mean_film_are_of_the_training_films(phantoms: Path, tmp_path: Path) -> None:
    """A third as many normal films as with pneumonia; the test films, which are negatives, have no say."""
    for split, label, count in [
        ("train", "NORMAL", 8),
        ("train", "PNEUMONIA", 24),
        *((("test", c, 4)) for c in CLASSES),
    ]:
        (tmp_path / split / label).mkdir(parents=True)
        for file in sorted((phantoms / "train" / label).iterdir())[:count]:
            film = Image.open(file)
            (ImageOps.invert(film) if split == "test" else film).save(tmp_path / split / label / file.name)
    overrides = ["balance=weighted_loss", "aligned_view=true", "data.image_size=32", f"data.root={tmp_path}"]
    config = typed("train", compose("train", overrides))
    films = films_of(config.data, config.seed)
    classifier = build_classifier(config, films)
    train = films.of("train")
    normal = sum(record.label == 0 for record in train)
    assert classifier.positive_weight.item() == pytest.approx(normal / (len(train) - normal)) and 2 * normal < len(
        train
    )
    told = Alignment()
    told.learn(torch.from_numpy(np.stack([read_film(tmp_path / r.path, 32, "squash") for r in train]))[:, None])
    assert classifier.alignment is not None
    torch.testing.assert_close(classifier.alignment.mean_film, told.mean_film)


@pytest.mark.parametrize("number", range(1, 9))
def test_each_of_the_eight_experiments_composes_to_the_notebooks_settings(number: int) -> None:
    from pneumonia.config import compose

    config = compose("train", [f"experiment=model{number}"])
    epochs = {1: 10, 2: 10, 3: 10, 4: 20, 5: 20, 6: 15, 7: 20, 8: 20}
    stops = {4: "val/loss", 5: "val/accuracy", 6: "val/loss", 7: "val/accuracy", 8: "val/accuracy"}
    best = {1: "val/loss", 2: "val/loss", 6: "val/loss"}
    assert (config.epochs, config.stop_on) == (epochs[number], stops.get(number))
    assert config.objective == best.get(number, "val/accuracy")
    assert config.optimizer.lr == (0.01 if number == 8 else 0.001)
    assert config.optimizer.eps == 1e-7 and config.data.batch_size == 32
    assert config.optimizer.weight_decay == (0.002 if number == 6 else 0.0)
    schedule = {4: "step", 8: "exponential"}.get(number, "constant")
    assert config.schedule["_target_"].endswith(schedule)


def test_vgg16_by_itself_comes_with_cosine_decay_and_takes_step_decay() -> None:
    from pneumonia.config import compose

    assert compose("train", ["model=vgg16"]).schedule["_target_"].endswith("cosine")
    assert compose("train", ["model=vgg16", "schedule=step"]).schedule["_target_"].endswith("step")


def test_two_runs_of_the_same_second_get_a_folder_each(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from pneumonia.entry import claimed_folder

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claimed_folder(tmp_path / "outputs" / "run", named=False), range(8)))
    assert len(set(folders)) == 8 and all(folder.is_dir() for folder in folders)
    assert claimed_folder(tmp_path / "outputs" / "run", named=True) == tmp_path / "outputs" / "run"


@pytest.mark.usefixtures("unreported")
def test_a_run_is_not_written_over_another(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("trainer=debug", "data.image_size=32", f"data.root={phantoms}", "hydra.run.dir=run")
    command("train", *typed)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(SystemExit):
        command("train", *typed, "seed=1")
    assert "a run is there already; type resume=" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.usefixtures("unreported")
def test_a_path_with_anything_in_it_is_taken_when_quoted(command: Command, phantoms: Path, tmp_path: Path) -> None:
    import shutil

    from pneumonia.config import quoted

    odd = Path(shutil.copytree(phantoms, tmp_path / "it's, k=v $films"))
    command(
        "train",
        "trainer=debug",
        "data.image_size=32",
        f"data.root={quoted(odd)}",
        f"hydra.run.dir={quoted(tmp_path / 'x=1')}",
    )
    assert (tmp_path / "x=1" / "metrics.json").exists()


@pytest.mark.usefixtures("unreported")
def test_a_sweep_runs_each_value(command: Command, phantoms: Path, tmp_path: Path) -> None:
    command(
        "train", "-m", "trainer=debug", "data.image_size=32", f"data.root={phantoms}", "seed=1,2", "test=true",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    jobs = [json.loads(file.read_text()) for file in (tmp_path / "sweep").glob("*/run.json")]
    assert sorted(job["seed"] for job in jobs) == [1, 2]
    assert all("test" in json.loads(file.read_text()) for file in (tmp_path / "sweep").glob("*/metrics.json"))


def test_two_processes_train_one_run(command: Command, phantoms: Path, tmp_path: Path) -> None:
    command(
        "train", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.image_size=32", "epochs=1",
        f"data.root={phantoms}", "hydra.run.dir=run",
    )  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished" and record["devices"] == 2
    rows = table(tmp_path / "run" / "predictions.csv")
    assert len({row["path"] for row in rows}) == len(rows)


def test_an_interrupted_run_says_so_and_keeps_its_last_epoch(
    command: Command,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pneumonia.training.callbacks import History

    def interrupt(self: History, trainer, pl_module) -> None:
        self.started, self.films = 0.0, 0
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(History, "on_train_epoch_start", interrupt)
    with pytest.raises(SystemExit):
        command("train", *SMALL, f"data.root={phantoms}", "epochs=3", "hydra.run.dir=run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert "last.ckpt holds the last whole epoch" in capsys.readouterr().out


def test_a_repository_around_a_virtual_environment_is_not_the_code_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumonia.workflows import record

    def git(*typed: str) -> None:
        told = ("-c", "user.name=a", "-c", "user.email=a@b", *typed)
        subprocess.run(["git", "-C", str(tmp_path), *told], check=True, capture_output=True)

    file = tmp_path / ".venv" / "record.py"
    file.parent.mkdir()
    file.touch()
    (tmp_path / ".gitignore").write_text(".venv\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(record, "__file__", str(file))
    assert record.git_commit() is None
    git("add", "-f", ".venv/record.py")
    git("commit", "-m", "two")
    assert len(record.git_commit() or "") == 40
