"""How fast films reach the network beside the usual pipeline, in one process and run: one table of ratios.

uv run pytest -m benchmark -s tests/benchmarks/test_loading_speed.py

Peers      torchvision ImageFolder (PIL, RGB, resize, flip, affine, to tensor) in a DataLoader; bare cv2.warpAffine.
Fairness   everything runs on one core and without loader processes; each pair of timings is taken in turn, several
           times over, and the median ratio is what counts.
"""

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pneumonia.config import CONF
from pneumonia.data.cache import FilmCache, cache_films
from pneumonia.data.datamodule import FilmLoader, labels_as_arrays
from pneumonia.data.dataset import EpochSampler, FilmDataset
from pneumonia.data.decode import decode
from pneumonia.data.records import Record, fingerprint_films
from pneumonia.data.transforms import Augmentation

pytestmark = pytest.mark.benchmark
SIZE, BATCH, ROUNDS = 224, 32, 7
KERAS = OmegaConf.to_container(OmegaConf.load(CONF / "augment" / "keras.yaml"))["steps"]  # type: ignore[index,call-overload]


@pytest.fixture(scope="module", autouse=True)
def one_core():
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(threads)
    cv2.setNumThreads(cv_threads)


def rate(run: Callable[[], int]) -> float:
    """Films a second of `run`, which returns how many it handled."""
    start = time.perf_counter()
    films = run()
    return films / (time.perf_counter() - start)


def in_turn(*runs: Callable[[], int]) -> list[list[float]]:
    """Rates of each run, taken in turn ROUNDS times after one round that does not count."""
    for run in runs:
        run()
    return [[rate(run) for run in runs] for _ in range(ROUNDS)]


def told(name: str, rounds: list[list[float]], names: list[str]) -> float:
    """Print the medians and return the median ratio of the first to the second."""
    medians = np.median(rounds, 0)
    ratios = [row[0] / row[1] for row in rounds]
    rates = ", ".join(f"{label} {value:,.0f}/s" for label, value in zip(names, medians, strict=True))
    print(f"\n{name}: {rates}; ratio {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return float(np.median(ratios))


def loader_of(films: FilmCache, records: list[Record], count: int) -> DataLoader:
    """Our loader over `count` draws of the cached films with augment=keras."""
    rows = np.resize(films.rows(records), count)
    dataset = FilmDataset(films, rows, np.zeros(count, np.float32), Augmentation(KERAS, SIZE), 0)
    return FilmLoader(dataset, BATCH, sampler=EpochSampler(count, 0, True), collate_fn=labels_as_arrays)


def peer_of(folder: Path, count: int) -> DataLoader:
    """The usual pipeline with the same operations, over `count` draws."""
    operations = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(
                20, (0.2, 0.2), (0.8, 1.2), (-0.2, 0.2), interpolation=transforms.InterpolationMode.BILINEAR
            ),
            transforms.ToTensor(),
        ]
    )
    folders = ImageFolder(str(folder), operations)
    return DataLoader(torch.utils.data.Subset(folders, np.resize(np.arange(len(folders)), count).tolist()), BATCH)


def drained(loader: DataLoader) -> Callable[[], int]:
    def run() -> int:
        return sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in loader)

    return run


def cached(folder: Path, tmp_path: Path) -> tuple[FilmCache, list[Record]]:
    paths = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.jpeg"))
    records, _ = fingerprint_films(folder, [Record(path, 0, path) for path in paths])
    return cache_films(tmp_path, folder, records, SIZE, "squash"), records


@pytest.mark.parametrize(("which", "least"), [("full-size originals", 40), ("224 px copies", 5)])
def test_cached_films_against_imagefolder(
    originals: Path, real_films: Path, tmp_path: Path, which: str, least: float
) -> None:
    full = which.startswith("full")
    folder = originals if full else real_films / "test"
    films, records = cached(folder, tmp_path)
    ours, peer = loader_of(films, records, 1024), peer_of(folder, 52 if full else 312)
    ratio = told(
        f"cached + keras against ImageFolder, {which}", in_turn(drained(ours), drained(peer)), ["ours", "ImageFolder"]
    )
    assert ratio >= least


def test_the_loader_against_bare_warp_affine(real_films: Path, tmp_path: Path) -> None:
    films, records = cached(real_films / "test", tmp_path)
    pixels = [films.read(row) for row in films.rows(records)]
    rng = np.random.default_rng(0)
    turns = [
        cv2.getRotationMatrix2D((112 + dx, 112 + dy), angle, zoom)
        for angle, zoom, dx, dy in rng.uniform([-20, 0.8, -45, -45], [20, 1.2, 45, 45], (1024, 4))
    ]

    def bare() -> int:
        for number, matrix in enumerate(turns):
            film = pixels[number % len(pixels)]
            cv2.warpAffine(film, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return len(turns)

    ours = drained(loader_of(films, records, 1024))
    assert told("loader with keras against bare warpAffine", in_turn(ours, bare), ["ours", "warpAffine"]) >= 0.4


def test_the_first_pass_against_imagefolders_loader_and_resize(originals: Path) -> None:
    paths = sorted(originals.rglob("*.jpeg"))
    folder = ImageFolder(str(originals), transforms.Resize((SIZE, SIZE)))

    def ours() -> int:
        for path in paths:
            decode(path.read_bytes(), SIZE, "squash")
        return len(paths)

    def theirs() -> int:
        for number in range(len(folder)):
            folder[number]
        return len(folder)

    assert told("first pass against ImageFolder + Resize", in_turn(ours, theirs), ["ours", "ImageFolder"]) >= 2.5


def test_an_epoch_starts_at_once_and_its_cost_is_linear(tmp_path: Path) -> None:
    seconds = []
    for count in (1_000, 10_000, 100_000):
        with (tmp_path / "pixels.u8").open("wb") as stream:
            stream.truncate(count * SIZE * SIZE)  # sparse
        films = FilmCache(tmp_path, SIZE, [])
        dataset = FilmDataset(films, np.arange(count), np.zeros(count, np.float32), Augmentation([], SIZE), 0)
        loader = FilmLoader(dataset, BATCH, sampler=EpochSampler(count, 0, True), collate_fn=labels_as_arrays)
        for _ in loader:  # the pages are the kernel's from here on
            pass
        start = time.perf_counter()
        iterator = iter(loader)
        next(iterator)
        first = time.perf_counter() - start
        for _ in range(count // BATCH - 1):
            next(iterator)
        seconds.append((count, first, (time.perf_counter() - start) / count))
        print(f"\n{count:7,} films: first batch after {first * 1000:.0f} ms, {seconds[-1][2] * 1e6:.1f} us a film")
    assert seconds[-1][1] < 1
    assert seconds[-1][2] < 2 * seconds[0][2]
