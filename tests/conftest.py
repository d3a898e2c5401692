"""Films for the tests: phantoms drawn once a session, and the real ones where they lie beside the project."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: a second thread only waits

from pneumonia.data.synthetic import draw_films
from pneumonia.workflows.films import films_of

gc.set_threshold(20_000, 20, 200)  # a whole collection walks through all that torch has: an eighth of the tests' time
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 phantom films in the layout of chest_xray; not to be written to."""
    folder = tmp_path_factory.mktemp("films") / "phantoms"
    draw_films(folder, 80, seed=1)
    return folder


@pytest.fixture
def films_copy(phantoms: Path, tmp_path: Path) -> Path:
    """The same films, to be spoiled."""
    import shutil

    return Path(shutil.copytree(phantoms, tmp_path / "films"))


@pytest.fixture(scope="session")
def real_films() -> Path:
    """The real films; skips where they are not."""
    if not (SHARED / "chest_xray" / "train").is_dir():
        pytest.skip("the real films are not at ../shared/chest_xray")
    return SHARED / "chest_xray"


@pytest.fixture(scope="session")
def originals() -> Path:
    """A few films at their native size; skips where they are not."""
    if not (SHARED / "xray_originals").is_dir():
        pytest.skip("the full-size films are not at ../shared/xray_originals")
    return SHARED / "xray_originals"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """`command("train", "seed=1")` runs the command in-process, in an empty folder, as if it had been typed."""
    import importlib

    def run(name: str, *arguments: str) -> None:
        films_of.cache_clear()  # a new command is a new process, which remembers nothing
        module = importlib.import_module(f"pneumonia.{name}")
        monkeypatch.setattr("sys.argv", [f"pneumonia.{name}", *arguments])
        try:
            module.main()
        finally:
            if "torch" in sys.modules:
                sys.modules["torch"].use_deterministic_algorithms(False)  # what deterministic=true leaves on

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PNEUMONIA_CACHE", str(tmp_path / "cache"))
    return run
