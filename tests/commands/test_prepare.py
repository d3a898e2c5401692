"""`python -m pneumonia.prepare` as a user types it."""

from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., None]


def test_it_shows_the_films_and_caches_them_and_leaves_no_run_folder(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("prepare", f"data.root={phantoms}", "data.image_size=32")
    told = capsys.readouterr().out
    assert "NORMAL 24 (50.0 %)" in told and "80 films of 32 px are cached in" in told
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_check_mends_what_was_damaged(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (f"data.root={phantoms}", "data.image_size=32", "data.phantom_seed=7")
    command("prepare", *typed)
    [pixels] = (tmp_path / "cache" / "pixels").glob("*/pixels.u8")
    good = pixels.read_bytes()
    pixels.write_bytes(bytes(100) + good[100:])
    capsys.readouterr()
    command("prepare", *typed, "check=true")
    assert "1 films were damaged in the cache" in capsys.readouterr().out
    assert pixels.read_bytes() == good


def test_without_the_cache_nothing_is_written(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("prepare", f"data.root={phantoms}", "data.cache=false")
    assert "decoded each time" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_mistake_names_the_command(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("prepare", "chek=true")
    assert "pneumonia.prepare: chek=true: there is no setting chek; did you mean check?" in capsys.readouterr().err
