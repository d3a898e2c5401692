"""Records know whose film it is, and a folder that does not fit is refused by name."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pneumonia.data.records import (
    Record,
    fingerprint,
    fingerprint_films,
    overlooked,
    parse_name,
    read_manifest,
    scan_folder,
    write_manifest,
)
from pneumonia.errors import UserError


@pytest.mark.parametrize(
    ("name", "strict", "conservative", "subtype"),
    [
        ("person1000_bacteria_2931", "person-bacteria-1000", "person-1000", "bacteria"),
        ("person441_virus_900", "person-virus-441", "person-441", "virus"),
        ("person1491_virus_2606_1", "person-virus-1491", "person-1491", "virus"),
        ("IM-0115-0001", "IM-0115", "IM-0115", ""),
        ("IM-0523-0001-0002", "IM-0523", "IM-0523", ""),
        ("NORMAL2-IM-1423-0001", "NORMAL2-IM-1423", "NORMAL2-IM-1423", ""),
    ],
)
def test_file_names_carry_patient_and_subtype(name: str, strict: str, conservative: str, subtype: str) -> None:
    assert parse_name(name, "strict") == (strict, subtype)
    assert parse_name(name, "conservative") == (conservative, subtype)
    assert parse_name(f"train/PNEUMONIA/{name}.jpeg", "conservative") == (conservative, subtype)


def test_a_name_of_no_known_pattern_is_not_guessed_at() -> None:
    assert parse_name("scan_17", "strict") is None
    assert parse_name("person1_virus_2/scan_17.png", "strict") is None


def test_a_scan_finds_every_film_once_and_merges_an_official_val_into_train(films_copy: Path) -> None:
    before, _ = scan_folder(films_copy, "strict")
    for name in ("NORMAL", "PNEUMONIA"):
        (films_copy / "val" / name).mkdir(parents=True)
        moved = next((films_copy / "train" / name).iterdir())
        moved.rename(films_copy / "val" / name / moved.name)
    after, unknown = scan_folder(films_copy, "strict")
    assert sorted(Path(r.path).name for r in after) == sorted(Path(r.path).name for r in before)
    assert {r.split for r in after if r.path.startswith("val/")} == {"train"}
    assert not unknown


def test_a_name_that_is_not_utf_8_is_told(films_copy: Path) -> None:
    film = next((films_copy / "train" / "NORMAL").iterdir())
    try:
        film.rename(film.with_name(os.fsdecode(b"caf\xe9.jpeg")))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(UserError, match=r"caf\\xe9\.jpeg.*a name that is not UTF-8"):
        scan_folder(films_copy, "strict")


def test_masks_beside_the_films_are_not_films(phantoms: Path) -> None:
    records, _ = scan_folder(phantoms, "strict")
    assert len(records) == 80 and (phantoms / "masks").is_dir()


def test_real_films_have_the_patients_that_data_md_counts(real_films: Path) -> None:
    strict, unknown = scan_folder(real_films, "strict")
    ill = {r.patient for r in strict if r.split == "train" and r.label == 1}
    assert len(strict) == 5528 and len(ill) == 2443 and not unknown
    both = {r.patient for r in strict if r.split == "train"} & {r.patient for r in strict if r.split == "test"}
    assert not both
    loose, _ = scan_folder(real_films, "conservative")
    both = {r.patient for r in loose if r.split == "train"} & {r.patient for r in loose if r.split == "test"}
    assert len(both) == 89


def test_a_manifest_reads_back_as_it_was_written(phantoms: Path, tmp_path: Path) -> None:
    records, _ = fingerprint_films(phantoms, scan_folder(phantoms, "strict")[0])
    write_manifest(tmp_path / "manifest.csv", records)
    again, _ = fingerprint_films(phantoms, read_manifest(tmp_path / "manifest.csv", phantoms, "strict")[0])
    assert again == records


def test_a_film_that_changed_since_its_manifest_is_refused(films_copy: Path) -> None:
    record = fingerprint_films(films_copy, scan_folder(films_copy, "strict")[0])[0][0]
    file = films_copy / record.path
    Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    assert "changed since the manifest" in str(fingerprint(file, record))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,0\n", "no column patient"),
        ("path,label,patient\n", "no films"),
        ("path,label,patient\na.png,2,p\n", "line 2: label=2"),
        ("label,patient,path\n0,p,a.png\n0,q\n", "line 3: no path"),
        ("path,label,patient\na.png,0,p\na.png,1,p\n", "line 3: a.png stands already in line 2"),
        ("path,label,patient\na.png,0,p\n./a.png,1,p\n", "line 3: ./a.png stands already in line 2"),
        ("path,label,patient\n\n\na.png,2,p\n", "line 4: label=2"),
        ("path,label,patient,split\na.png,0,p,tset\n", "split=tset"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "films.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(file, tmp_path, "strict")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "film.jpeg").write_bytes(b"x")
    named = [Record(name, 0, name) for name in ("film.jpeg", "gone.jpeg", "zero\0byte.jpeg")]
    good, bad = fingerprint_films(tmp_path, named)
    assert [record.path for record in good] == ["film.jpeg"] and bad[0] == ("gone.jpeg", "no such file")
    assert bad[1][0] == "zero\0byte.jpeg" and "null byte" in bad[1][1]


def test_what_looks_like_films_and_is_not_read_is_told(films_copy: Path) -> None:
    assert overlooked(films_copy) == []
    shutil.copytree(films_copy / "test", films_copy / "valid")
    first = next((films_copy / "train" / "NORMAL").iterdir())
    shutil.copy(first, films_copy / "train" / "lost.png")
    (films_copy / "test" / "PNEUMONIA" / "scan.TIF").write_bytes(b"x")
    folder, left = overlooked(films_copy)
    assert folder.endswith("valid is no folder that films are read from; those are train, val, test.")
    assert "2 files are left out, as " in left and "scan.TIF" in left


def test_a_manifest_gives_patients_that_names_do_not(tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("path,label,patient\nscan1.png,NORMAL,anna\nscan2.png,1,\n")
    records, unknown = read_manifest(tmp_path / "films.csv", tmp_path, "strict")
    assert records[0] == replace(records[0], patient="anna", label=0, split="train")
    assert unknown == ["scan2.png"]  # no patient is told, and the film is not silently given one


def test_the_patient_key_none_makes_every_film_its_own(phantoms: Path) -> None:
    records, _ = scan_folder(phantoms, "none")
    assert len({r.patient for r in records}) == len(records)
