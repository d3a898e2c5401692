"""The cache gives the films' pixels or is made anew; it never gives other pixels, and a kill costs it nothing."""

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pneumonia.data import cache as module
from pneumonia.data.cache import FilmCache, FilmFiles, cache_films, damaged, key_of
from pneumonia.data.decode import read_film
from pneumonia.data.records import Record, fingerprint_films, scan_folder
from pneumonia.errors import UserError

SIZE = 32


def records_of(root: Path) -> list[Record]:
    return fingerprint_films(root, scan_folder(root, "strict")[0])[0]


def cached(folder: Path, root: Path, size: int = SIZE, resize: str = "squash") -> FilmCache:
    return cache_films(folder, root, records_of(root), size, resize)


def assert_true(films: FilmCache, root: Path) -> None:
    """Every cached film is what its file holds now."""
    records = records_of(root)
    for record, row in zip(records, films.rows(records), strict=True):
        assert np.array_equal(films.read(row), read_film(root / record.path, SIZE, "squash"))


def test_each_film_is_decoded_once_and_is_what_its_file_holds(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_true(cached(tmp_path, phantoms), phantoms)
    monkeypatch.setattr(module, "decode", lambda *_: pytest.fail("decoded twice"))
    assert_true(cached(tmp_path, phantoms), phantoms)
    assert not damaged(cached(tmp_path, phantoms))


@pytest.mark.filterwarnings("error")
def test_a_cache_that_is_no_longer_used_leaves_no_open_file(phantoms: Path, tmp_path: Path) -> None:
    films = cached(tmp_path, phantoms)
    films.read(0)
    file = films.file
    del films
    gc.collect()
    assert file is not None and file.closed


def test_a_changed_film_size_or_rule_never_meets_stale_pixels(films_copy: Path, tmp_path: Path) -> None:
    first = cached(tmp_path / "c", films_copy)
    assert cached(tmp_path / "c", films_copy, 48).folder != first.folder
    assert cached(tmp_path / "c", films_copy, resize="pad").folder != first.folder
    film = next((films_copy / "train" / "NORMAL").iterdir())
    stamp = film.stat()
    cv2.imwrite(str(film), 255 - cv2.imread(str(film), cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    os.utime(film, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # neither its time nor its size tells
    changed = cached(tmp_path / "c", films_copy)
    assert changed.folder != first.folder
    assert_true(changed, films_copy)


def test_the_key_depends_on_contents_and_settings_and_not_on_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(["a", "b"], 32, "pad")
    assert key == key_of(["b", "a"], 32, "pad")
    assert len({key, key_of(["a", "c"], 32, "pad"), key_of(["a", "b"], 33, "pad"), key_of(["a", "b"], 32, "crop")}) == 4
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert key_of(["a", "b"], 32, "pad") != key


def spoil(folder: Path, how: str) -> None:
    pixels, lines = folder / "pixels.u8", folder / "films.csv"
    if how == "truncated":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif how == "no pixels":
        pixels.unlink()
    elif how == "no list":
        lines.unlink()
    elif how == "another version's list":
        lines.write_text("path,offset\na,0\n")
    elif how == "other films":
        lines.write_text(lines.read_text().replace("\n0,", "\n1,", 1))


@pytest.mark.parametrize("how", ["truncated", "no pixels", "no list", "another version's list", "other films"])
def test_a_cache_that_does_not_fit_is_made_anew(phantoms: Path, tmp_path: Path, how: str) -> None:
    spoil(cached(tmp_path, phantoms).folder, how)
    assert_true(cached(tmp_path, phantoms), phantoms)


def test_a_flipped_bit_is_found(phantoms: Path, tmp_path: Path) -> None:
    films = cached(tmp_path, phantoms)
    with (films.folder / "pixels.u8").open("r+b") as stream:
        stream.seek(5 * SIZE * SIZE + 3)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    assert len(damaged(cached(tmp_path, phantoms))) == 1


def test_a_cache_that_shrinks_or_vanishes_during_a_run_is_one_clear_error(phantoms: Path, tmp_path: Path) -> None:
    films = cached(tmp_path, phantoms)
    copy = pickle.loads(pickle.dumps(films))  # as a loader process gets it: no pixels travel
    assert copy.file is None and len(pickle.dumps(films)) < 1000  # no list of films travels
    films.read(0)
    os.truncate(films.folder / "pixels.u8", 100)
    for reader in (films, copy):
        with pytest.raises(UserError, match="cut short"):
            reader.read(0)
    (films.folder / "pixels.u8").unlink()
    with pytest.raises(UserError, match="has gone"):
        pickle.loads(pickle.dumps(films)).read(0)


def test_bad_films_are_told_with_their_reason(films_copy: Path, tmp_path: Path) -> None:
    film = next((films_copy / "train" / "NORMAL").iterdir())
    film.write_bytes(film.read_bytes()[:500])
    films = cached(tmp_path / "c", films_copy)
    [bad] = [line for line in films.lines.values() if line.reason]
    assert "truncated" in bad.reason


def test_a_read_that_fails_once_is_no_fault_of_the_film(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, films = Path.read_bytes, fingerprint_films(phantoms, scan_folder(phantoms, "strict")[0])[0]

    def failing(path: Path) -> bytes:
        if path.name == Path(films[9].path).name:
            raise OSError(5, "Input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(UserError, match=r"can't be read any more .*Input/output error.* Type the command again"):
            cache_films(tmp_path / "c", phantoms, films, 32, "squash")
    lines = cache_films(tmp_path / "c", phantoms, films, 32, "squash").lines
    assert len(lines) == len(films) and not [line for line in lines.values() if line.reason]


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_one_clear_error(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written to .*data\.cache_dir="):
        cached(tmp_path / "file" / "cache", phantoms)
    monkeypatch.setattr(module, "MARGIN", 1 << 60)
    with pytest.raises(UserError, match=r"MiB are needed for 80 films of 32 px"):
        cached(tmp_path / "cache", phantoms)


PROGRAM = """
import sys, time
from pathlib import Path
from pneumonia.data import cache
from pneumonia.data.records import fingerprint_films, scan_folder
real = cache.decode
def slow(*arguments):
    time.sleep(0.02)
    return real(*arguments)
cache.decode = slow
root, folder = map(Path, sys.argv[1:])
cache.cache_films(folder, root, fingerprint_films(root, scan_folder(root, "strict")[0])[0], 32, "squash")
"""


def test_a_killed_preparation_goes_on_where_it_stopped(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, phantoms, tmp_path])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lists = list(tmp_path.glob("*.partial/films.csv"))
        if lists and len(lists[0].read_text().splitlines()) > 10:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("*/pixels.u8")) or list(tmp_path.glob("*.partial"))  # nothing looks whole
    decoded: list[int] = []
    real = module.decode
    monkeypatch.setattr(module, "decode", lambda *given: (decoded.append(1), real(*given))[1])
    films = cached(tmp_path, phantoms)
    assert len(decoded) < 71
    assert_true(films, phantoms)
    assert not list(tmp_path.glob("*.partial"))


def test_a_film_that_was_listed_but_not_written_is_decoded_again(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the power may go: the list is on disk, and not yet the pixels."""
    cached(tmp_path, phantoms)
    [whole] = (file.parent for file in tmp_path.glob("32-*/pixels.u8"))
    partial = whole.rename(whole.with_name(f"{whole.name}.partial"))
    pixels = bytearray((partial / "pixels.u8").read_bytes())
    pixels[5 * 32 * 32 : 6 * 32 * 32] = bytes(32 * 32)
    (partial / "pixels.u8").write_bytes(pixels)
    decoded: list[int] = []
    real = module.decode
    monkeypatch.setattr(module, "decode", lambda *given: (decoded.append(1), real(*given))[1])
    films = cached(tmp_path, phantoms)
    assert len(decoded) == 1
    assert_true(films, phantoms)


def test_two_runs_at_once_both_get_whole_films(phantoms: Path, tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", PROGRAM, phantoms, tmp_path]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    films = cached(tmp_path, phantoms)
    assert_true(films, phantoms)
    assert len(list(tmp_path.glob("32-*/pixels.u8"))) == 1


def private_bytes() -> int:
    """Memory that only this process uses (USS), from the kernel's own account."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith(("Private_Clean", "Private_Dirty")))


def read_many(films: FilmCache, count: int, pipe) -> None:
    before = private_bytes()
    total = sum(int(films.read(row)[0, 0]) for row in np.random.default_rng(0).integers(0, count, 2000))
    pipe.send((private_bytes() - before, total))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="private memory is read from /proc")
def test_private_memory_of_a_reader_does_not_grow_with_the_number_of_films(tmp_path: Path) -> None:
    grown = []
    for count in (1_000, 100_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        with (folder / "pixels.u8").open("wb") as stream:
            stream.truncate(count * 64 * 64)  # sparse: takes no room
        films = FilmCache(folder, 64, [])
        films.lines = dict.fromkeys(range(count))  # type: ignore[assignment]
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        process = multiprocessing.get_context("fork").Process(target=read_many, args=(films, count, theirs))
        process.start()
        grown.append(ours.recv()[0])
        process.join()
    assert grown[1] < grown[0] + (4 << 20)


def test_a_film_that_vanishes_later_is_a_users_error_without_a_cache(films_copy: Path) -> None:
    records = records_of(films_copy)
    films = FilmFiles(films_copy, records, SIZE, "squash")
    (films_copy / records[3].path).unlink()
    with pytest.raises(UserError, match=r"Put it back, or type data\.cache=true"):
        films.read(films.rows(records)[3])


def test_a_film_that_stands_twice_is_cached_once(phantoms: Path, tmp_path: Path) -> None:
    records = records_of(phantoms)
    doubled = [*records, replace(records[0], path=records[0].path)]
    films = cache_films(tmp_path, phantoms, doubled, SIZE, "squash")
    hashes = {record.sha256 for record in records}
    assert films.lines.keys() == hashes and (films.folder / "pixels.u8").stat().st_size == len(hashes) * SIZE**2
