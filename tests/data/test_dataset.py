"""The order and the augmentation of films come from (seed, epoch, index), for a film that is drawn again from its
number too, and from nothing else."""

import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pneumonia.config import CONF
from pneumonia.data.cache import FilmFiles, cache_films
from pneumonia.data.counterexamples import against_shortcuts
from pneumonia.data.datamodule import FilmDataModule, balanced, default_workers, labels_as_arrays
from pneumonia.data.dataset import EpochSampler
from pneumonia.data.decode import read_film
from pneumonia.data.marks import SIDE
from pneumonia.data.records import fingerprint_films, scan_folder
from pneumonia.data.split import groups_of, split_by_patient
from pneumonia.data.transforms import Augmentation, call
from pneumonia.errors import UserError


def steps(name: str) -> list[dict]:
    return OmegaConf.to_container(OmegaConf.load(CONF / "augment" / f"{name}.yaml"))["steps"]  # type: ignore[index]


def datamodule(
    root: Path, augment: str = "strong", workers: int = 0, balance: str = "none", cache: Path | None = None
) -> FilmDataModule:
    records = split_by_patient(fingerprint_films(root, scan_folder(root, "strict")[0])[0], 0.2, 0)
    films = FilmFiles(root, records, 32, "squash") if cache is None else cache_films(cache, root, records, 32, "squash")
    return FilmDataModule(
        films, records, steps(augment), batch_size=8, num_workers=workers, balance=balance, seed=3, on_gpu=False,
        root=root,
    )  # fmt: skip


def epoch(films: FilmDataModule, number: int) -> dict[str, torch.Tensor]:
    loader = films.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_a_batch_is_grey_bytes_with_targets_and_numbers(phantoms: Path) -> None:
    films = datamodule(phantoms, "none")
    batch = next(iter(films.val_dataloader()))
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape[1:] == (1, 32, 32)
    assert batch["index"].tolist() == list(range(8))
    assert batch["target"].tolist() == [r.label for r in films.records["val"][:8]]


@pytest.mark.parametrize(
    ("augment", "balance"), [("none", "none"), ("keras", "none"), ("strong", "none"), ("strong", "weighted_sampler")]
)
def test_neither_the_cache_nor_the_number_of_loader_processes_changes_a_tensor(
    phantoms: Path, tmp_path: Path, augment: str, balance: str
) -> None:
    direct = epoch(datamodule(phantoms, augment, balance=balance), 1)
    for workers in (0, 1, 4):
        cached = epoch(datamodule(phantoms, augment, workers, balance, tmp_path), 1)
        for name in direct:
            assert torch.equal(direct[name], cached[name]), (name, workers)


def test_each_epoch_draws_anew_and_an_epoch_again_draws_the_same(phantoms: Path) -> None:
    films = datamodule(phantoms)
    first, second, again = epoch(films, 0), epoch(films, 1), epoch(films, 0)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["index"], second["index"])
    order = first["index"].argsort(), second["index"].argsort()
    assert not torch.equal(first["image"][order[0]], second["image"][order[1]])


@pytest.mark.parametrize("world", [1, 2])
def test_a_film_that_is_drawn_again_is_augmented_anew(phantoms: Path, world: int) -> None:
    films = datamodule(phantoms).datasets["train"]
    weight = np.ones(len(films))
    weight[3] = len(films)  # half of all draws
    keys = [key for rank in range(world) for key in EpochSampler(len(films), 0, True, weight, rank, world)]
    draws = [key for key in keys if key[1] == 3]
    assert sorted(again for _, _, again in draws) == list(range(len(draws))) and len(draws) > 5
    pixels = films.__getitems__(sorted(draws))["image"]
    assert len({film.numpy().tobytes() for film in pixels}) == len(draws)
    once = films.augmentation(films.read(3), films.seed, 0, 3)
    assert np.array_equal(pixels[0, 0].numpy(), once)


def test_an_epoch_of_one_seed_is_none_of_anothers() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, seed, True)
        sampler.set_epoch(epoch)
        return [index for _, index, _ in sampler]

    drawn = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(one) == list(range(50)) for one in drawn) and len({tuple(one) for one in drawn}) == 9


def test_what_is_not_drawn_again_is_augmented_from_seed_epoch_and_index_alone() -> None:
    augmentation = Augmentation(steps("strong"), 64)
    augmentation.reseed(3, 1, 5, 0)
    place = 1 << 32 | 5
    told = np.random.Generator(np.random.Philox(key=np.array([3, place], np.uint64)))
    assert np.array_equal(np.random.Generator(augmentation.bits).random(4), told.random(4))
    assert augmentation.python.random() == random.Random(3 << 64 | place).random()


def test_no_film_trains_by_itself(phantoms: Path) -> None:
    films = datamodule(phantoms)
    count = len(films.datasets["train"])
    for size, left in ((count - 1, [count - 1]), (count - 2, [count - 2, 2]), (count, [count]), (1, [1] * count)):
        films.batch_size = size
        assert [len(batch["target"]) for batch in films.train_dataloader()] == left
    films.batch_size = len(films.datasets["val"]) - 1
    assert [len(batch["target"]) for batch in films.val_dataloader()] == [films.batch_size, 1]


def test_only_films_travel_through_shared_memory(phantoms: Path) -> None:
    films = datamodule(phantoms)
    batch = films.datasets["train"].__getitems__([(0, 3, 0), (0, 1, 0)])
    sent = labels_as_arrays(batch)
    assert {name for name, values in sent.items() if isinstance(values, torch.Tensor)} == {"image"}
    assert all(np.array_equal(sent[name], batch[name]) for name in batch)


def test_persistent_workers_know_the_epoch(phantoms: Path) -> None:
    films = datamodule(phantoms, workers=2)
    loader = films.train_dataloader()
    pictures = []
    for number in (0, 1):
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        pictures.append(torch.cat([batch["image"] for batch in loader]))
    assert torch.equal(pictures[1], epoch(datamodule(phantoms), 1)["image"])


def test_operations_of_a_film_are_independent_draws() -> None:
    """albumentations.Compose would seed each operation alike, so that the flip foretells the rotation."""
    augmentation = Augmentation(steps("keras"), 64)
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    rows = []
    for index in range(400):
        moved = augmentation(ramp, 0, 0, index).astype(float)
        rows.append((moved[:, 40].mean() < moved[:, 24].mean(), moved[44, 32] - moved[20, 32]))
    flipped, tilt = np.array(rows).T
    assert 0.4 < flipped.mean() < 0.6
    signed = np.where(flipped, -tilt, tilt)
    assert abs(np.corrcoef(flipped, signed)[0, 1]) < 0.15


@pytest.mark.parametrize("name", ["light", "keras", "strong"])
def test_our_short_way_through_affine_is_albumentations_own(name: str) -> None:
    short, long = Augmentation(steps(name), 64), Augmentation(steps(name), 64)
    long.calls = [partial(call, step) for step in long.steps]
    film = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    for index in range(50):
        assert np.array_equal(short(film, 0, 0, index), long(film, 0, 0, index))


def test_keras_ranges_are_reached_and_not_passed() -> None:
    """A dot at the centre goes at most 0.2 of the side away (nearest-pixel rounding aside), and often past 0.1."""
    augmentation = Augmentation(steps("keras"), 64)
    dot = np.zeros((101, 101), np.uint8)
    dot[48:53, 48:53] = 255
    places = []
    for index in range(300):
        moved = augmentation(dot, 1, 0, index)
        y, x = np.nonzero(moved > 60)
        places.append((y.mean() - 50, x.mean() - 50))
    away = np.abs(np.array(places))
    assert away.max() <= 0.2 * 101 + 1.5
    assert (away > 0.1 * 101).mean() > 0.3


def test_keras_turns_and_zooms_by_as_much_as_it_says_and_no_more() -> None:
    """The 2 x 2 matrix that takes two dots, right of and below a third one, to where they are seen."""
    augmentation = Augmentation(steps("keras"), 64)
    found = []
    for index in range(200):
        seen = []
        for y, x in ((60, 60), (60, 76), (76, 60)):
            film = np.zeros((121, 121), np.uint8)
            film[y - 2 : y + 3, x - 2 : x + 3] = 255
            moved = augmentation(film, 1, 0, index).astype(float)
            rows, columns = np.indices(moved.shape)
            seen.append((float((rows * moved).sum() / moved.sum()), float((columns * moved).sum() / moved.sum())))
        (y, x), (right_y, right_x), (down_y, down_x) = seen
        found.append([np.hypot(right_x - x, right_y - y) / 16, np.hypot(down_x - x, down_y - y) / 16,
                      np.degrees(np.arctan2(right_y - y, abs(right_x - x)))])  # fmt: skip
    wide, high, turn = np.array(found).T
    for zoom in (wide, high):
        assert 0.75 < zoom.min() < 0.87 and 1.13 < zoom.max() < 1.3
    assert 15 < np.abs(turn).max() < 22


def test_an_empty_pipeline_leaves_the_film_as_it_is() -> None:
    film = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert Augmentation([], 8)(film, 0, 0, 0) is film


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"_target_": "os.system", "command": "true"}], r"os\.system"),
        (["light"], "augment: light: expected a mapping with _target_"),
        ([{"_target_": "albumentations.Resize", "height": 64, "width": 64}], "changes the size of the films"),
        ([{"_target_": "albumentations.RandomCrop", "height": 200, "width": 200}], r"augment.steps: .*112 x 112 px"),
        ([{"_target_": "albumentations.ToFloat", "max_value": 255.0}], "makes float32 of the films' uint8"),
        ([{"_target_": "albumentations.RandomScale", "p": 0.5}], "changes the size of the films"),
        ([{"_target_": "albumentations.ToFloat", "max_value": 255.0, "p": 0.5}], "makes float32 of the films' uint8"),
        ([{"_target_": "albumentations.Normalize"}], "makes float32 of the films' uint8"),
    ],
)
def test_steps_that_leave_no_film_of_its_size_and_kind_are_refused(steps: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(steps, 112)


def test_steps_may_be_meant_for_one_size() -> None:
    steps = [
        {"_target_": "albumentations.RandomCrop", "height": 100, "width": 100},
        {"_target_": "albumentations.Resize", "height": 112, "width": 112},
    ]
    assert Augmentation(steps, 112)(np.zeros((112, 112), np.uint8), 0, 0, 0).shape == (112, 112)


@pytest.mark.parametrize("size", [7, 8, 313])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_films_without_padding(size: int, world: int) -> None:
    ordered = [list(EpochSampler(size, 0, False, rank=rank, world=world)) for rank in range(world)]
    assert sorted(index for part in ordered for _, index, _ in part) == list(range(size))
    shuffled = [list(EpochSampler(size, 0, True, rank=rank, world=world)) for rank in range(world)]
    assert len({len(part) for part in shuffled}) == 1
    drawn = [index for part in shuffled for _, index, _ in part]
    assert len(set(drawn)) == len(drawn) == size // world * world


def test_the_weighted_sampler_draws_both_classes_alike() -> None:
    label = np.array([0] * 100 + [1] * 900, np.float32)
    drawn = np.array([index for _, index, _ in EpochSampler(1000, 0, True, balanced(label))])
    assert 0.44 < label[drawn].mean() < 0.56


@pytest.mark.parametrize(("on_gpu", "processes", "workers"), [(True, 1, 8), (True, 4, 3), (True, 16, 1), (False, 2, 2)])
def test_processes_of_one_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, processes: int, workers: int
) -> None:
    monkeypatch.setattr("pneumonia.data.datamodule.usable_cores", lambda: 16)
    assert default_workers(on_gpu, processes) == workers


@pytest.mark.parametrize(("on_gpu", "workers"), [(True, 1), (False, 0)])
def test_films_are_pinned_and_loaded_beside_for_a_run_on_a_gpu_alone(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, workers: int
) -> None:
    """Whatever the machine has: trainer=cpu needs its cores, and no GPU's memory."""
    monkeypatch.setattr("pneumonia.data.datamodule.usable_cores", lambda: 2)
    records = datamodule(phantoms).records["val"]
    films = FilmDataModule(
        FilmFiles(phantoms, records, 32, "squash"),
        records,
        [],
        batch_size=8,
        num_workers=None,
        balance="none",
        seed=0,
        on_gpu=on_gpu,
    )
    loader = films.val_dataloader()
    assert loader.pin_memory is on_gpu and loader.num_workers == workers


@pytest.mark.parametrize("balance", ["none", "counterexamples", "weighted_sampler"])
def test_hard_films_are_drawn_more_often_beside_what_the_balance_does(phantoms: Path, balance: str) -> None:
    films = datamodule(phantoms, balance=balance)
    label = films.datasets["train"].label
    usual = films.train_dataloader().sampler.weight  # type: ignore[attr-defined]
    films.hard = np.where(label == 0, np.linspace(0, 1, len(label)), 0)
    weight = films.train_dataloader().sampler.weight  # type: ignore[attr-defined]
    ratio = weight / (1 if usual is None else usual)
    if balance == "weighted_sampler":  # both classes are drawn as often as before
        assert weight[label == 0].sum() == pytest.approx(usual[label == 0].sum())
        ratio[label == 0] *= (1 + 4 * films.hard)[label == 0].mean()
    assert ratio == pytest.approx(1 + 4 * films.hard)


def test_the_log_odds_that_a_balance_takes_away_are_known(phantoms: Path) -> None:
    assert datamodule(phantoms).prior_correction() == 0
    films = datamodule(phantoms, balance="weighted_sampler")
    label = films.datasets["train"].label
    ill = label.mean()
    assert films.prior_correction() == pytest.approx(np.log(ill / (1 - ill)))
    films.hard = np.where(label == 0, 0.5, 0)  # both classes are drawn as often as before
    assert films.prior_correction() == pytest.approx(np.log(ill / (1 - ill)))
    films = datamodule(phantoms)
    films.hard = np.where(label == 0, 0.5, 0)  # each three times
    assert films.prior_correction() == pytest.approx(np.log(3))
    drawn = np.array([index for epoch in range(200) for index in drawn_in(films, epoch)])
    odds = label[drawn].mean() / (1 - label[drawn].mean())
    assert np.log(ill / (1 - ill)) - np.log(odds) == pytest.approx(np.log(3), abs=0.05)


def drawn_in(films: FilmDataModule, epoch: int) -> list[int]:
    sampler = films.train_dataloader().sampler
    sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [index for _, index, _ in sampler]


def test_the_balance_setting_reaches_the_sampler(phantoms: Path) -> None:
    assert datamodule(phantoms, balance="weighted_sampler").train_dataloader().sampler.weight is not None  # type: ignore[attr-defined]
    assert datamodule(phantoms).train_dataloader().sampler.weight is None  # type: ignore[attr-defined]
    few = datamodule(phantoms).records["train"]
    one = next(r.patient for r in few if r.label == 0)
    few = [r for r in few if r.label == 1 or r.patient == one]
    with pytest.raises(UserError, match="Too few patients for balance=counterexamples: NORMAL has 1 in train"):
        FilmDataModule(
            FilmFiles(phantoms, few, 32, "squash"),
            few,
            [],
            batch_size=8,
            num_workers=0,
            balance="counterexamples",
            seed=0,
            on_gpu=False,
        )
    films = datamodule(phantoms, balance="counterexamples")
    against = films.train_dataloader().sampler.weight  # type: ignore[attr-defined]
    train = films.records["train"]
    pixels = np.stack([read_film(phantoms / record.path, 32, "squash") for record in train])
    label = np.array([record.label for record in train])
    np.testing.assert_allclose(against, against_shortcuts(pixels, label, groups_of(train), 3))
    assert against.std() > 0


def test_balance_marks_draws_films_whose_marks_mislead_more_often(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All films with pneumonia but one and one normal film have a mark, as `marks_of` is told to say of its films."""
    asked: list[list[str]] = []

    def marks_of(records, films):
        asked.append([record.path for record in records])
        assert [film.shape for film in films] == [(SIDE, SIDE)] * len(records)
        label = np.array([record.label for record in records])
        odd = np.isin(np.arange(len(label)), [np.flatnonzero(label == y)[0] for y in (0, 1)])
        return np.stack([label > 1, (label == 1) != odd])

    monkeypatch.setattr("pneumonia.data.datamodule.marks_of", marks_of)
    films, plain = (datamodule(phantoms, balance=balance) for balance in ("marks", "counterexamples"))
    label = films.datasets["train"].label
    factor = films.train_dataloader().sampler.weight / plain.train_dataloader().sampler.weight  # type: ignore[attr-defined]
    for y in (0, 1):
        odd, *usual = factor[label == y]
        assert odd > 1 > max(usual)
    assert asked == [[record.path for record in films.records["train"]]]


def test_balance_marks_says_which_film_has_gone(phantoms: Path, tmp_path: Path) -> None:
    root = tmp_path / "films"
    shutil.copytree(phantoms, root)
    films = datamodule(root, balance="counterexamples", cache=tmp_path / "cache")
    gone = root / films.records["train"][3].path
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone.name}.*balance=marks looks for marks in the films themselves"):
        films.marks_in(root)
