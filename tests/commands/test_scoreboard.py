"""`python -m pneumonia.scoreboard`: one table in three forms, and the ground truth of phantom films."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import averaging

from pneumonia.workflows.selection import Film, one_a_patient

Command = Callable[..., None]
QUICK = ("steps=3", "perturbations=4", "noisy=1", "noisy_lime=1", "resamples=100")
TRUTH = ("pointing", "mass", "iou")
RANKED = (*TRUTH, "deletion", "insertion", "infidelity", "max_sensitivity", "stability", "randomised")


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def scores(folder: Path) -> dict:
    return json.loads((folder / "explanations" / "scoreboard.json").read_text())


def test_a_patient_with_many_films_is_as_likely_as_one_with_few() -> None:
    films = [Film(f"{k}-{n}.png", str(k), "", 1, 0.9) for k in range(100) for n in range(1 if k < 50 else 5)]
    drawn = [one_a_patient(films, 10, seed) for seed in range(100)]
    assert all(len({film.patient for film in some}) == 10 for some in drawn)
    assert all(some == sorted(some, key=lambda film: film.path) for some in drawn)
    many = sum(int(film.patient) >= 50 for some in drawn for film in some)
    assert 430 < many < 570  # of 1,000; four and a half deviations
    which = [film.path.partition("-")[2] for some in drawn for film in some if int(film.patient) >= 50]
    assert {name for name in which if which.count(name) > 50} == {f"{n}.png" for n in range(5)}
    assert one_a_patient(films, 200, 0) != one_a_patient(films, 200, 1) and len(one_a_patient(films, 200, 0)) == 100


@pytest.mark.pictures
def test_every_method_is_in_the_table_the_picture_and_the_numbers(command: Command, finished: Path) -> None:
    typed = (f"run={finished}", "threshold=0", "count=3", "attributions.lime.num_samples=40", *QUICK)
    command("scoreboard", *typed, "attributions.integrated_gradients.n_steps=5", "attributions.smoothgrad.n_samples=5")
    told = scores(finished)
    assert told["n"] == 3 == len({Path(path).name.split("_")[0] for path in told["films"]})  # one film a patient
    methods = told["methods"]
    assert len(methods) == 9
    ranks = [entry["rank"] for entry in methods.values()]
    assert ranks == sorted(ranks) and np.mean(ranks) == pytest.approx(5)  # the mean of places 1 to 9
    for entry in methods.values():
        for name in (*RANKED, "agreement", "central_share", "seconds", "randomised_pointing"):
            value = entry[name]
            assert value["mean"] is None or value["low"] <= value["mean"] <= value["high"], (name, value)
    table = np.array(told["agreement"]["table"], float)
    assert table.shape == (9, 9) and np.allclose(table, table.T, equal_nan=True)
    with (finished / "explanations" / "scoreboard.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == list(methods)
    for row in rows:
        mean = methods[row["method"]]["deletion"]["mean"]
        assert float(row["deletion"]) == pytest.approx(mean, rel=1e-5)
    assert (finished / "explanations" / "scoreboard.png").stat().st_size > 20_000


def test_the_same_call_gives_the_same_numbers_but_for_the_seconds(command: Command, finished: Path) -> None:
    seen = []
    for _ in range(2):
        command("scoreboard", f"run={finished}", "threshold=0", "count=3", "methods=[saliency,gradcam]", *QUICK)
        methods = scores(finished)["methods"]
        seen.append({name: {key: entry[key] for key in RANKED} for name, entry in methods.items()})
    assert seen[0] == seen[1] and list(seen[0]) == list(seen[1])


def test_films_without_known_opacity_leave_the_truth_out(command: Command, finished: Path, films_copy: Path) -> None:
    shutil.rmtree(films_copy / "masks")
    command(
        "scoreboard", f"run={finished}", f"root={films_copy}", "threshold=0", "count=2", "methods=[gradcam]", *QUICK
    )
    entry = scores(finished)["methods"]["gradcam"]
    assert not set(TRUTH) & set(entry) and entry["deletion"]["n"] == 2


def test_where_views_are_averaged_each_film_is_measured_by_itself(
    command: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumonia.workflows import scoreboard

    averaging(finished)
    seen, below, real = {}, {}, scoreboard.scoreboard
    monkeypatch.setattr(scoreboard, "scoreboard", lambda *shown: (below.update({views: shown[-1]}), real(*shown))[1])
    for views in ("all", "one"):
        typed = ("threshold=0", "count=3", "methods=[saliency,gradcam,lime]", "attributions.lime.num_samples=40")
        command("scoreboard", f"run={finished}", f"views={views}", *typed, *QUICK)
        told = scores(finished)
        assert told["n"] == 3 and told["settings"]["views"] == views
        seen[views] = {name: {key: entry[key] for key in RANKED} for name, entry in told["methods"].items()}
        assert all(entry[key]["n"] == 3 for entry in seen[views].values() for key in (*TRUTH, "deletion"))
        spread = [entry["deletion"]["high"] - entry["deletion"]["low"] for entry in told["methods"].values()]
        assert min(spread) > 0  # films differ
    assert "of one view" in below["one"] and "view" not in below["all"]
    assert all(seen["all"][name]["deletion"] != seen["one"][name]["deletion"] for name in ("saliency", "gradcam"))


def test_a_bench_of_all_views_has_its_film_its_mask_and_a_net_that_learnt_nothing(finished: Path) -> None:
    from pneumonia.attribution.agreement import randomised
    from pneumonia.training.averaged import Averaged
    from pneumonia.training.checkpoint import load_classifier
    from pneumonia.workflows.scoreboard import benches_of

    averaging(finished)
    classifier = load_classifier(finished / "checkpoints" / "best.ckpt")
    grey = np.random.default_rng(0).integers(0, 256, (2, 32, 32)).astype(np.uint8)
    films = [Film(f"{n}.png", "a", "", 1, 0.9, grey[n], mask=np.full((32, 32), bool(n))) for n in range(2)]
    request: Any = SimpleNamespace(films=films)
    config: Any = SimpleNamespace(seed=0, views="all")
    benches = benches_of(request, classifier, config)
    assert len(benches) == 2
    with torch.no_grad():
        for bench, film in zip(benches, films, strict=True):
            seen = torch.from_numpy(film.pixels)[None, None]
            alone = classifier(seen)
            torch.testing.assert_close(bench.net(bench.images), alone)
            chance = Averaged(
                randomised(classifier, 0), classifier.as_predicted(torch.from_numpy(film.pixels)[None, None])
            )
            torch.testing.assert_close(bench.random(bench.images), chance(bench.images))
            assert not torch.allclose(bench.random(bench.images), alone, atol=0.01)
            assert bench.masks is not None and np.array_equal(bench.masks.numpy()[0], film.mask)
    films[1] = Film("1.png", "a", "", 0, 0.9, grey[1])  # a normal film has no opacity to find
    assert all(bench.masks is None for bench in benches_of(request, classifier, config))
    config.views = "one"
    [bench] = benches_of(request, classifier, config)
    assert bench.images.shape == (2, 3, 32, 32) and bench.net is classifier.net


def test_a_map_without_ranks_leaves_the_agreement_of_the_others() -> None:
    from pneumonia.workflows.scoreboard import mean_of_defined

    table = np.array([[0.2, np.nan], [0.4, 0.6], [np.nan, np.nan]])
    np.testing.assert_allclose(mean_of_defined(table, axis=1), [0.2, 0.5, np.nan])
    np.testing.assert_allclose(mean_of_defined(table, axis=0), [0.3, 0.6])


def test_ranks_by_hand() -> None:
    from pneumonia.workflows.scoreboard import measures_of, ranks

    def row(pointing: float | None, deletion: float, randomised: float) -> dict:
        values = {"pointing": pointing, "deletion": deletion, "randomised": randomised, "seconds": 1.0}
        return {name: {"mean": value} for name, value in values.items()}

    table = {"a": row(0.9, 0.2, -0.3), "b": row(0.9, 0.1, 0.1), "c": row(None, 0.3, 0.2)}
    expected = {"a": (1.5 + 2 + 3) / 3, "b": (1.5 + 1 + 1) / 3, "c": (3 + 3 + 2) / 3}
    assert ranks(table) == pytest.approx(expected)
    without = {"a": (1.5 + 3) / 2, "b": (1.5 + 1) / 2, "c": (3 + 2) / 2}
    assert ranks(table, measures_of("all")) == pytest.approx(without)
    assert ranks(table, measures_of("fp")) == pytest.approx(expected)
    assert ranks({"a": table["a"]}) == {"a": None}


def test_each_measure_is_told_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumonia.workflows import scoreboard

    measures = {
        "deletion": "deletion_auc", "insertion": "insertion_auc", "infidelity": "infidelity",
        "max_sensitivity": "max_sensitivity", "stability": "seed_stability", "randomised": "rank_correlation",
        "central_share": "central_share", "pointing": "pointing_game", "mass": "mass_in_mask",
        "iou": "iou_at_equal_area",
    }  # fmt: skip
    for place, function in enumerate(measures.values()):
        monkeypatch.setattr(scoreboard, function, lambda *given, place=place, **named: np.full(2, place))
    images = torch.rand(2, 3, 4, 4)
    method = SimpleNamespace(attribute=lambda net, films: films.mean(1))
    config = SimpleNamespace(noisy=1, noisy_lime=1, steps=1, perturbations=1, seed=0, seeds=2)
    bench = scoreboard.Bench(torch.nn.Identity(), torch.nn.Identity(), images, torch.ones(2, 4, 4), config)  # type: ignore[arg-type]
    _, found = scoreboard.measured(method, bench)  # type: ignore[arg-type]
    assert {name: values[0] for name, values in found.items() if name in measures} == {
        name: place for place, name in enumerate(measures)
    }


@pytest.mark.parametrize(
    ("measure", "better", "worse"),
    [
        ("pointing", 0.9, 0.1), ("mass", 0.9, 0.1), ("iou", 0.9, 0.1), ("deletion", 0.1, 0.9), ("insertion", 0.9, 0.1),
        ("infidelity", 0.1, 0.9), ("max_sensitivity", 0.1, 0.9), ("stability", 0.9, 0.1), ("randomised", -0.1, -0.9),
    ],
)  # fmt: skip
def test_the_better_end_of_each_measure(measure: str, better: float, worse: float) -> None:
    from pneumonia.workflows.scoreboard import ranks

    assert ranks({"a": {measure: {"mean": worse}}, "b": {measure: {"mean": better}}}) == {"a": 2, "b": 1}


def test_the_columns_of_the_terminal_stand_below_their_heads(caplog: pytest.LogCaptureFixture) -> None:
    from pneumonia.workflows.scoreboard import MEASURES, log_table

    measures = [m for m in MEASURES if m.name in ("mass", "iou")]
    means = {
        name: {"mass": {"mean": -1.23e-12}, "iou": {"mean": None}} for name in ("lime", "integrated_gradients_long")
    }
    with caplog.at_level("INFO"):
        log_table(list(means), {"lime": 1.0, "integrated_gradients_long": 2.0}, measures, means)
    lines = [record.getMessage() for record in caplog.records][:3]
    assert len({len(line) for line in lines}) == 1 and all("  " in line for line in lines)
    assert lines[1].split() == ["lime", "1", "-1.23e-12", "-"]


def test_intervals_of_hits_are_wilson_s_and_of_others_from_films() -> None:
    from pneumonia.workflows.scoreboard import interval

    hits = interval(np.ones(10), 200, 0, hits=True)
    assert hits["low"] == pytest.approx(0.7225, abs=1e-3) and hits["high"] == 1  # 10 of 10 is not certainty
    assert interval(np.ones(10), 200, 0)["low"] == 1  # a correlation of 1 in every film is no proportion
    others = interval(np.array([0.2, 0.4, np.nan, 0.9]), 200, 0)
    assert others["n"] == 3 and others["mean"] == pytest.approx(0.5)
    assert 0.2 <= others["low"] < 0.5 < others["high"] <= 0.9
    assert interval(np.array([np.nan]), 200, 0)["mean"] is None


def truth(command: Command, folder: Path, methods: str, count: int) -> dict[str, dict]:
    """Pointing at the true opacity in the true positives of the test films, with trained and with random weights."""
    command("scoreboard", f"run={folder}", f"methods={methods}", f"count={count}", *QUICK)
    told = scores(folder)
    found = {
        name: {key: entry[key]["mean"] for key in ("pointing", "randomised_pointing")} | {"n": entry["pointing"]["n"]}
        for name, entry in told["methods"].items()
    }
    print(found)
    return found


def check_truth(found: dict[str, dict], fewest: int) -> None:
    best = max(found, key=lambda name: found[name]["pointing"])
    assert found[best]["n"] >= fewest
    assert found[best]["pointing"] >= 0.8, found
    assert all(entry["randomised_pointing"] <= 0.4 for entry in found.values()), found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learnt for five epochs from 400 phantoms: enough to look where it should."""
    from pneumonia.train import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PNEUMONIA_CACHE", str(folder / "cache"))
        typed = ["data=synthetic", "data.phantoms=400", "epochs=5", "trainer=cpu", "hydra.run.dir=run"]
        patch.setattr("sys.argv", ["pneumonia.train", *typed])
        main()
    return folder / "run"


def test_a_trained_model_is_seen_to_look_at_the_opacity_and_a_random_one_is_not(
    command: Command, trained: Path
) -> None:
    """A short training; the whole one is below. An opacity covers 15 % of a film: chance hits that often."""
    found = truth(command, trained, "[deeplift,guided_gradcam]", 24)
    check_truth(found, 12)
    with pytest.raises(AssertionError):  # as it must, were the weights random
        check_truth({name: entry | {"pointing": entry["randomised_pointing"]} for name, entry in found.items()}, 12)


def test_on_a_trained_net_integrated_gradients_sum_to_the_change_in_logit_within_1_percent(
    command: Command, trained: Path
) -> None:
    from pneumonia.training.checkpoint import load_classifier

    typed = (f"run={trained}", "attribution=integrated_gradients", "attribution.n_steps=300", "threshold=0", "count=3")
    command("explain", *typed, "select=tp", "pick=most_confident")
    with np.load(trained / "explanations" / "integrated_gradients" / "tp.npz") as found:
        images = (torch.from_numpy(found["film"]).float() / 255)[:, None].expand(-1, 3, -1, -1).contiguous()
        attribution = torch.from_numpy(found["attribution"])
    net = load_classifier(trained / "checkpoints" / "best.ckpt").net
    with torch.no_grad():
        change = net(images) - net(torch.zeros_like(images[:1]))
    assert ((attribution.flatten(1).sum(1) - change).abs() < 0.01 * change.abs()).all()


@pytest.mark.slow
def test_the_default_model_is_seen_to_look_at_the_opacity(command: Command, tmp_path: Path) -> None:
    command("train", "data=synthetic", "trainer=cpu", "hydra.run.dir=run")
    methods = "[integrated_gradients,deeplift,gradient_shap,guided_gradcam]"
    check_truth(truth(command, tmp_path / "run", methods, 40), 35)
