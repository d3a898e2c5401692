"""The audit finds what is planted, and is quiet on clean films."""

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumonia.data.audit import alike, audit_records, difference_hash, near_copies, shrunk, size_table
from pneumonia.data.records import scan_folder, write_manifest
from pneumonia.settings import DataConfig
from pneumonia.workflows.films import Films, films_of

Command = Callable[..., None]


@pytest.fixture(scope="module")
def films(phantoms: Path) -> Films:
    return films_of(DataConfig(root=str(phantoms), image_size=64, cache=False), 0)


@pytest.fixture(scope="module")
def pixels(films: Films) -> np.ndarray:
    return np.stack([films.pixels.read(row) for row in films.pixels.rows(films.records)])


def test_clean_films_are_quiet(films: Films, pixels: np.ndarray) -> None:
    found = audit_records(films.records)
    assert found["copies"]["groups"] == 0
    assert [row["shared"] for row in found["patients"]] == [0, 0, 0]
    assert near_copies(films.records, pixels)["groups"] == 0


def test_a_planted_patient_and_a_planted_copy_are_found(films: Films) -> None:
    train = next(r for r in films.records if r.split == "train")
    test = next(r for r in films.records if r.split == "test")
    found = audit_records([*films.records, replace(train, path="copy.png", split="test", label=1 - train.label)])
    assert found["copies"] == {
        "groups": 1, "films": 2, "across": 1, "two_classes": 1, "examples": [[train.path, "copy.png"]],
    }  # fmt: skip
    assert found["patients"][0]["train-test"] == 1 and found["patients"][0]["examples"] == [train.patient]
    assert audit_records([*films.records, replace(test, path="again.png")])["copies"]["across"] == 0


def test_both_keys_of_the_file_names_are_told() -> None:
    from pneumonia.data.records import Record

    records = [
        Record("train/PNEUMONIA/person7_bacteria_1.jpeg", 1, "person-bacteria-7", split="train"),
        Record("test/PNEUMONIA/person7_virus_2.jpeg", 1, "person-virus-7", split="test"),
    ]
    own, strict, conservative = audit_records(records)["patients"]
    assert (own["shared"], strict["shared"], conservative["shared"]) == (0, 0, 1)
    assert conservative["train-test"] == 1


def jpeg(film: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(film).save(stream, format="JPEG", quality=40)
    return np.asarray(Image.open(stream))


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        lambda film: np.clip(film * 0.9 + 15, 0, 255).astype(np.uint8),
        lambda film: np.asarray(Image.fromarray(film).resize((48, 48)).resize((64, 64))),
    ],
    ids=["compressed", "brightened", "resized"],
)
def test_a_changed_copy_is_found(films: Films, pixels: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
    copy = replace(films.records[0], path="copy.png", sha256="f" * 64, split="test")
    found = near_copies([*films.records, copy], np.concatenate([pixels, change(pixels[0])[None]]))
    assert found["groups"] == 1 and found["examples"] == [[films.records[0].path, "copy.png"]]


def test_pairs_are_those_of_the_plain_count(pixels: np.ndarray) -> None:
    hashes = difference_hash(np.stack([shrunk(film, 17, 16) for film in pixels]))
    hashes[5] = hashes[60] ^ np.uint64(7)
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    plain = {(a, b) for a in range(len(bits)) for b in range(a + 1, len(bits)) if (bits[a] != bits[b]).sum() <= 24}
    assert set(alike(hashes, chunk=7)) == plain and (5, 60) in plain


def test_sizes_are_told_by_class(films: Films) -> None:
    records = [replace(r, width=100 + 50 * r.label, mode="RGB" if r.label else "L") for r in films.records]
    normal, ill = size_table(records)
    assert (normal["width"]["median"], ill["width"]["median"]) == (100, 150)
    assert ill["modes"] == {"RGB": ill["films"]}


def test_prepare_tells_it_and_ends_with_one_where_the_chosen_key_leaks(
    command: Command, films_copy: Path, capsys: Any
) -> None:
    typed = (f"data.root={films_copy}", "data.image_size=32", "audit=true")
    command("prepare", *typed)
    assert "No leak under data.patient_key=strict" in capsys.readouterr().out
    source = sorted((films_copy / "train" / "PNEUMONIA").glob("*bacteria*"))[0]
    number = source.name.partition("_")[0].removeprefix("person")
    other = sorted((films_copy / "test" / "PNEUMONIA").glob("*virus*"))[0]
    other.rename(other.with_name(f"person{number}_virus_9999.png"))
    films_of.cache_clear()  # a process scans once; the user types a new command each time
    command("prepare", *typed)  # the same number under another subtype: no leak under the strict key
    assert re.search(r"conservative key +train-val 0 .*(train|val)-test 1", capsys.readouterr().out)
    with pytest.raises(SystemExit) as ending:
        command("prepare", *typed, "data.patient_key=conservative")
    assert ending.value.code == 1 and "LEAK: 1 patient stands" in capsys.readouterr().out
    shutil.copy(source, films_copy / "test" / "PNEUMONIA" / "person8888_bacteria_1.png")
    films_of.cache_clear()
    with pytest.raises(SystemExit) as ending:
        command("prepare", *typed)
    assert ending.value.code == 1 and "1 group of exact copies stands in more than one split" in capsys.readouterr().out


def test_the_patients_of_a_manifest_are_told_as_its_own(command: Command, films_copy: Path, capsys: Any) -> None:
    """The typed key names none of them, and what is said of it would be said of another split."""
    typed = (f"data.root={films_copy}", "data.image_size=32", "audit=true", "data.patient_key=conservative")
    manifest = films_copy / "films.csv"
    write_manifest(manifest, scan_folder(films_copy, "strict")[0])
    command("prepare", *typed, f"data.manifest={manifest}")
    told = capsys.readouterr()
    assert "No leak under the manifest's patients" in told.out and "under data.patient_key" not in told.out
    assert "the patients that data.manifest names go first" in told.out + told.err
