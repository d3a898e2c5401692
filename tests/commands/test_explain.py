"""`python -m pneumonia.explain` on a finished run: the right films, the right pixels, sheets that can be found."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_runs import averaging
from numpy.typing import NDArray
from PIL import Image

from pneumonia.attribution.gradient import IntegratedGradients, Saliency
from pneumonia.build import build
from pneumonia.data.decode import read_film
from pneumonia.report import overlays
from pneumonia.training.alignment import Alignment
from pneumonia.training.averaged import Averaged
from pneumonia.training.checkpoint import load_classifier
from pneumonia.workflows.explanation import explained
from pneumonia.workflows.provenance import sheets_of
from pneumonia.workflows.selection import Film

Command = Callable[..., None]
METHODS = (
    "deeplift", "gradcam", "gradient_shap", "guided_gradcam", "integrated_gradients", "lime", "occlusion", "saliency",
    "smoothgrad",
)  # fmt: skip
QUICK = {"lime": ("attribution.num_samples=40",), "integrated_gradients": ("attribution.n_steps=5",)}

AS_CALLED: Any = SimpleNamespace(temperature=1.0, bias=0.0)


def noise(count: int) -> list[Film]:
    greys = np.random.default_rng(0).integers(0, 256, (count, 32, 32)).astype(np.uint8)
    return [Film(f"{place}.png", "a", "", None, None, grey) for place, grey in enumerate(greys)]


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be explained in."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def predictions(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open() as stream:
        return {row["path"]: row for row in csv.DictReader(stream) if row["split"] == "test"}


def outcome(row: dict[str, str], threshold: float) -> str:
    called = float(row["probability"]) >= threshold
    return ("tp" if called else "fn") if row["label"] == "1" else ("fp" if called else "tn")


def middle(folder: Path) -> float:
    """A threshold that leaves films in at least three outcomes: the median probability."""
    return float(np.median([float(row["probability"]) for row in predictions(folder).values()]))


def arrays(file: Path) -> dict[str, NDArray]:
    with np.load(file, allow_pickle=False) as content:
        return dict(content)


def test_every_sheet_holds_films_of_its_outcome_and_what_the_method_says_of_them(
    command: Command, finished: Path, phantoms: Path
) -> None:
    threshold = middle(finished)
    command("explain", f"run={finished}", "attribution=saliency", "count=3", f"threshold={threshold}")
    folder = finished / "explanations" / "saliency"
    rows = predictions(finished)
    there = {outcome(row, threshold) for row in rows.values()}
    assert {file.stem for file in folder.glob("*.png")} == {file.stem for file in folder.glob("*.npz")} == there
    net = load_classifier(finished / "checkpoints" / "best.ckpt").net
    for name in there:
        found = arrays(folder / f"{name}.npz")
        assert found["attribution"].dtype == np.float32
        assert len(found["path"]) == min(3, sum(outcome(row, threshold) == name for row in rows.values()))
        for path, film, attribution in zip(found["path"], found["film"], found["attribution"], strict=True):
            assert outcome(rows[str(path)], threshold) == name
            assert np.array_equal(film, read_film(phantoms / str(path), 32, "squash"))
            image = (torch.from_numpy(film).float() / 255).expand(1, 3, -1, -1).clone().requires_grad_()
            [gradient] = torch.autograd.grad(net(image).sum(), image)
            np.testing.assert_allclose(attribution, gradient[0].sum(0).abs(), atol=1e-5, rtol=1e-4)


def test_the_threshold_that_evaluate_locked_decides_the_outcomes(command: Command, finished: Path) -> None:
    threshold = middle(finished)
    (finished / "evidence.json").write_text(json.dumps({"operating_point": {"threshold": threshold}}))
    command("explain", f"run={finished}", "attribution=gradcam", "count=300")
    files = (finished / "explanations" / "gradcam").glob("*.json")
    told = {file.stem: json.loads(file.read_text()) for file in files}
    assert all(sheet["threshold"] == threshold for sheet in told.values())
    rows = predictions(finished)
    assert {path for sheet in told.values() for path in sheet["films"]} == set(rows)
    assert all(outcome(rows[path], threshold) == name for name, sheet in told.items() for path in sheet["films"])


@pytest.mark.pictures
def test_the_same_call_gives_the_same_bytes_and_another_seed_other_films(command: Command, finished: Path) -> None:
    typed = (f"run={finished}", "attribution=lime", "attribution.num_samples=40", "select=tp", "count=2", "threshold=0")
    folder = finished / "explanations" / "lime"
    seen = []
    for seed in (0, 0, 1):
        command("explain", *typed, f"seed={seed}")
        seen.append([(folder / name).read_bytes() for name in ("tp.png", "tp.npz")])
    assert seen[0] == seen[1] != seen[2]
    found = arrays(folder / "tp.npz")
    assert found["segments"].shape == found["attribution"].shape
    for segments, attribution in zip(found["segments"], found["attribution"], strict=True):
        assert all(np.ptp(attribution[segments == number]) == 0 for number in np.unique(segments))


def test_the_report_and_explain_rank_mistakes_alike(finished: Path) -> None:
    from pneumonia.workflows.selection import by_outcome, called_films
    from pneumonia.workflows.sources import read_run

    evidence = json.loads((finished / "evidence.json").read_text())
    told = [mistake["path"] for mistake in evidence["mistakes"]]
    threshold = evidence["operating_point"]["threshold"]
    films = by_outcome(called_films(read_run(finished), "test"), threshold)["most_confident_mistakes"]
    assert told and [film.path for film in films][: len(told)] == told


def test_mistakes_come_with_the_most_confident_first_and_pick_goes_by_distance(
    command: Command, finished: Path
) -> None:
    threshold, rows = middle(finished), predictions(finished)
    base = (f"run={finished}", "attribution=gradcam", "count=4", f"threshold={threshold}")
    command("explain", *base, "select=most_confident_mistakes")
    folder = finished / "explanations" / "gradcam"
    shown = arrays(folder / "most_confident_mistakes.npz")["path"].tolist()
    wrong = {p: abs(int(r["label"]) - float(r["probability"])) for p, r in rows.items()}
    mistakes = [p for p, r in rows.items() if outcome(r, threshold) in ("fp", "fn")]
    assert sorted((wrong[p] for p in mistakes), reverse=True)[:4] == [wrong[p] for p in shown]
    command("explain", *base, "select=tn", "pick=least_confident")
    assert (folder / "most_confident_mistakes.png").exists()  # another call, another sheet
    told = [json.loads((folder / f"{name}.json").read_text()) for name in ("most_confident_mistakes", "tn")]
    assert "pick" not in told[0] and told[1]["pick"] == "least_confident"
    nearest = [abs(float(rows[p]["probability"]) - threshold) for p in arrays(folder / "tn.npz")["path"]]
    every = [abs(float(r["probability"]) - threshold) for r in rows.values() if outcome(r, threshold) == "tn"]
    assert nearest == sorted(every)[:4]
    command("explain", *base[:-1], "threshold=0")  # nothing is negative now: that sheet would tell of another threshold
    assert {file.stem for file in folder.glob("*.png")} == {"most_confident_mistakes", "tp", "fp"}


@pytest.mark.pictures
@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_any_image_with_a_checkpoint_alone(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, name: str
) -> None:
    film = next(iter(sorted((phantoms / "test" / "PNEUMONIA").iterdir())))
    checkpoint = run / "checkpoints" / "best.ckpt"
    command("explain", f"checkpoint={checkpoint}", f"images={film}", f"attribution={name}", *QUICK.get(name, ()))
    found = arrays(tmp_path / "explanations" / name / "images.npz")
    assert found["attribution"].shape == (1, 32, 32) and np.isfinite(found["attribution"]).all()
    with Image.open(tmp_path / "explanations" / name / "images.png") as sheet:
        assert min(sheet.size) > 300


def test_images_go_through_the_run_s_own_preprocessing(
    command: Command, finished: Path, phantoms: Path, tmp_path: Path
) -> None:
    file = finished / ".hydra" / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["data"]["resize"] = "pad"
    file.write_text(yaml.safe_dump(settings))
    folder = phantoms / "test" / "NORMAL"
    command("explain", f"checkpoint={finished}/checkpoints/best.ckpt", f"images={folder}", "attribution=gradcam")
    told = json.loads(Path("explanations/gradcam/images.json").read_text())
    assert not {"pick", "seed", "split"} & set(told)  # the first by name: nothing was drawn
    sheet = tmp_path / "explanations" / "gradcam" / "images.png"
    [shown] = sheets_of(tmp_path, 0.123)  # of no outcome: in the report whatever the threshold is
    assert sheet.is_file() and shown["picture"] and shown["name"] == "gradcam/images"
    found = arrays(sheet.with_suffix(".npz"))
    assert len(found["path"]) == 6
    for path, film in zip(found["path"], found["film"], strict=True):
        assert np.array_equal(film, read_film(Path(str(path)), 32, "pad"))


def test_what_is_explained_is_the_film_as_predictions_see_it(finished: Path) -> None:
    from pneumonia.training.views import blurred
    from pneumonia.workflows.explanation import images_of

    classifier = load_classifier(finished / "checkpoints" / "best.ckpt").eval()
    classifier.blurred_views = 0.02
    grey = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    shown = images_of([Film("a.png", "a", "", None, None, grey)], classifier)
    by_hand = blurred(torch.from_numpy(grey)[None, None], 0.02) / 255
    torch.testing.assert_close(shown, by_hand.expand(1, 3, 32, 32))


@pytest.mark.parametrize("view", [None, "flip_average", "crop_average", "local_view", "alignment"])
@pytest.mark.parametrize("views", ["all", "one"])
def test_a_sheet_knows_whether_its_maps_are_of_less_than_its_probabilities(
    finished: Path, view: str | None, views: str
) -> None:
    classifier = load_classifier(finished / "checkpoints" / "best.ckpt").eval()
    if view:
        setattr(classifier, view, Alignment() if view == "alignment" else True)
    sheet = explained(Saliency(False, 8), classifier, noise(1), AS_CALLED, views)
    assert bool(sheet.note) is (views == "one" and bool(view)) and ("of one view" in sheet.note) is bool(sheet.note)


def test_views_are_typed_told_and_done(command: Command, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averaging(finished)
    below: list[str] = []
    real = overlays.contact_sheet
    monkeypatch.setattr(overlays, "contact_sheet", lambda *shown: (below.append(shown[-1]), real(*shown))[1])
    typed = (f"run={finished}", "attribution=saliency", "count=1", "threshold=0", "select=tp")
    maps, told = {}, {}
    for views in ("one", "all"):
        command("explain", *typed, f"views={views}", f"output={views}")
        sheet = Path(views) / "saliency" / "tp.npz"
        maps[views], told[views] = arrays(sheet), json.loads(sheet.with_suffix(".json").read_text())
    assert told["one"]["views"] == "one" and told["all"]["views"] == "all"
    assert "the maps are of one view" in below[0] and "of one view" not in below[1]
    film = torch.from_numpy(maps["one"]["film"])[:, None]
    classifier = load_classifier(finished / "checkpoints" / "best.ckpt")
    seen = classifier.as_predicted(film)
    one = Saliency(True, 8).attribute(classifier.net, classifier.images(seen)).numpy()
    every = Saliency(True, 8).attribute(Averaged(classifier, seen), (seen / 255).expand(-1, 3, -1, -1)).numpy()
    for views, map_ in (("one", one), ("all", every)):
        np.testing.assert_allclose(maps[views]["attribution"], map_, atol=1e-6, rtol=1e-3)
    assert not np.allclose(one, every, rtol=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_the_mean_over_views_film_by_film(finished: Path, name: str) -> None:
    classifier = load_classifier(finished / "checkpoints" / "best.ckpt").eval()
    spec = yaml.safe_load((Path(__file__).parents[2] / "conf" / "attribution" / f"{name}.yaml").read_text())
    method = build("attribution", spec | ({"num_samples": 40} if name == "lime" else {}))
    plain = explained(method, classifier, noise(2), AS_CALLED, "all").maps
    classifier.flip_average = classifier.crop_average = classifier.local_view = True
    films = noise(2)
    averaged, one = (explained(method, classifier, films, AS_CALLED, views).maps for views in ("all", "one"))
    assert averaged.shape == (2, 32, 32) and averaged.dtype == np.float32 and np.isfinite(averaged).all()
    assert np.array_equal(one, plain) and not np.allclose(averaged, one, rtol=0.01)
    np.testing.assert_allclose(
        averaged[1:], explained(method, classifier, films[1:], AS_CALLED, "all").maps, atol=1e-6, rtol=1e-4
    )


def test_the_map_of_all_views_is_of_the_logit_that_calls_the_film(finished: Path) -> None:
    classifier = load_classifier(finished / "checkpoints" / "best.ckpt").eval()
    classifier.flip_average = classifier.crop_average = classifier.local_view = True
    sheet = explained(IntegratedGradients(0.0, 200, 64), classifier, noise(2), AS_CALLED, "all")
    for film, attribution, p in zip(sheet.films, sheet.maps, sheet.probability, strict=True):
        assert film.pixels is not None
        net = Averaged(classifier, torch.from_numpy(film.pixels)[None, None])
        with torch.no_grad():
            black = float(net(torch.zeros(1, 3, 32, 32)))
        change = float(np.log(p / (1 - p))) - black
        assert abs(float(attribution.sum()) - change) < 0.02 * abs(change)


def test_the_footnote_counts_the_superpixels() -> None:
    from pneumonia.attribution.superpixel import Explanation
    from pneumonia.workflows.explanation import strongest

    few, many = (Explanation(np.zeros((1, 1), np.int64), np.zeros(size), 0, 0, 0) for size in (3, 31))
    assert strongest(5, [few]) == "the 3 strongest of 3 superpixels, outlined"
    assert strongest(5, [many, few]) == "the 3 to 5 strongest of 3 to 31 superpixels, outlined"


def test_hidden_files_are_no_films(command: Command, run: Path, phantoms: Path, tmp_path: Path) -> None:
    film = next((phantoms / "test" / "NORMAL").iterdir())
    for name in ("a.png", "._a.png", "__MACOSX/a.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, tmp_path / "mine" / name)
    command("explain", f"checkpoint={run}/checkpoints/best.ckpt", f"images={tmp_path}/mine", "attribution=gradcam")
    assert arrays(tmp_path / "explanations" / "gradcam" / "images.npz")["path"].tolist() == [
        str(tmp_path / "mine/a.png")
    ]


def test_older_runs_without_patients_are_explained(command: Command, finished: Path) -> None:
    rows = list(predictions(finished).values())
    with (finished / "predictions.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("path", "label", "split", "probability"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    command("explain", f"run={finished}", "attribution=gradcam", "count=2", "threshold=0")
    assert (finished / "explanations" / "gradcam" / "tp.png").exists()


def test_films_that_were_moved_are_found_again(
    command: Command, capsys: pytest.CaptureFixture[str], finished: Path, films_copy: Path
) -> None:
    told = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(told | {"data_root": "/nowhere"}))
    typed = (f"run={finished}", "attribution=gradcam", "count=1", "threshold=0", "select=tp")
    with pytest.raises(SystemExit):
        command("explain", *typed)
    assert "root=/where/they/lie/now" in capsys.readouterr().err
    command("explain", *typed, f"root={films_copy}")
    assert (finished / "explanations" / "gradcam" / "tp.png").exists()


def test_activations_alone_and_beside_an_attribution(command: Command, finished: Path) -> None:
    typed = (f"run={finished}", "attribution=gradcam", "count=1", "select=tp", "threshold=0")
    command("explain", *typed, "activations=only", "channel=strongest", "relu=after")
    assert [file.name for file in (finished / "explanations").iterdir()] == ["activations.png"]
    command("explain", *typed, "activations=true", "channel=3", "layers=[input,features.3]")
    assert sorted(file.name for file in (finished / "explanations").iterdir()) == ["activations.png", "gradcam"]


def test_sheets_stand_in_the_run_s_tensorboard(command: Command, finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command("explain", f"run={finished}", "attribution=gradcam", "count=1", "select=tp", "threshold=0")
    written = [EventAccumulator(str(file)).Reload() for file in (finished / "tensorboard").glob("events*")]
    assert "explanations/gradcam/tp" in {tag for events in written for tag in events.Tags()["images"]}


@pytest.mark.parametrize(
    "typed",
    [
        ("explain", "attribution=gradcam"),
        ("scoreboard", "methods=[saliency]", "steps=3", "perturbations=4", "noisy=1", "resamples=100"),
    ],
    ids=lambda typed: typed[0],
)
def test_a_film_that_is_not_the_one_that_was_called_is_told(
    command: Command, capfd: pytest.CaptureFixture[str], finished: Path, typed: tuple[str, ...]
) -> None:
    file = finished / "predictions.csv"
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"probability": float(row["probability"]) / 2} for row in rows)
    command(*typed, f"run={finished}", "count=2", "select=tp", "threshold=0")
    assert "2 of 2 films have another probability than in predictions.csv" in capfd.readouterr().out


def test_a_run_that_takes_nothing_is_explained_elsewhere(
    command: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real, before = os.access, sorted(file.name for file in (finished / "tensorboard").iterdir())
    monkeypatch.setattr(os, "access", lambda place, mode: "tensorboard" not in str(place) and real(place, mode))
    typed = (f"run={finished}", f"output={tmp_path}/elsewhere", "threshold=0", "count=2")
    command("explain", *typed, "attribution=saliency", "activations=true")
    assert {file.name for file in (tmp_path / "elsewhere").rglob("*.png")} == {"tp.png", "fp.png", "activations.png"}
    told = capsys.readouterr()
    assert (told.out + told.err).count("is not shown in TensorBoard") == 3
    assert sorted(file.name for file in (finished / "tensorboard").iterdir()) == before


def test_films_are_found_and_checked_without_torch(run: Path) -> None:
    probe = (
        "import sys, pneumonia.explain, pneumonia.scoreboard\n"
        "from pneumonia.settings import ExplainConfig, ScoreboardConfig\n"
        f"pneumonia.explain.check(ExplainConfig(run={str(run)!r}))\n"
        f"pneumonia.scoreboard.check(ScoreboardConfig(run={str(run)!r}, threshold=0.0))\n"
        "sys.exit(bool({'torch', 'lightning', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_a_sweep_over_methods_leaves_no_job_folders(command: Command, finished: Path) -> None:
    typed = ("-m", f"run={finished}", "attribution=saliency,gradcam", "count=1", "select=tp", "threshold=0")
    command("explain", *typed)
    assert {file.name for file in (finished / "explanations").iterdir()} == {"saliency", "gradcam"}
    assert {file.name for file in Path().iterdir()} == {"run", "multirun.yaml"}  # the latter is Hydra's


def test_nor_does_any_other_command_of_finished_runs_or_films(command: Command, finished: Path, phantoms: Path) -> None:
    shutil.copytree(finished, "other")
    command("evaluate", "-m", f"run={finished},other", "resamples=100")
    command("predict", "-m", f"run={finished}", f"images={phantoms}/test/NORMAL", "output=a.csv,b.csv")
    command("compare", "-m", f"runs=[{finished},other]", "output=a,b", "resamples=100")
    command("prepare", "-m", f"data.root={phantoms}", "data.image_size=32", "seed=0,1")
    made = {"run", "other", "cache", "multirun.yaml", "a.csv", "b.csv", "a", "b"}
    assert {file.name for file in Path().iterdir()} == made
