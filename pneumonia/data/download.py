"""The Kaggle copy of Kermany's films, brought once by kagglehub into its own cache outside the project."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pneumonia.errors import UserError

HANDLE = "paultimothymooney/chest-xray-pneumonia/versions/2"  # without a version kagglehub asks online even when cached
WAYS_OUT = "Bring the films yourself and set data.root=/path/to/chest_xray, or try data=synthetic, which needs none."


def download_films() -> Path:
    """The folder that holds train/ and test/, downloaded (1.2 GB) unless kagglehub's cache has it. Raises UserError."""
    import kagglehub

    try:
        with alone(Path(kagglehub.config.get_cache_folder())):
            archive = Path(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # kagglehub lets requests', urllib3's and its own errors through
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(f"data.root is not set, and the films can't be downloaded ({reason}). {WAYS_OUT}") from error
    return films_root(archive)


@contextmanager
def alone(cache: Path) -> Iterator[None]:
    """One process at a time, where all of a run begin at once: kagglehub would go on with what another is writing. A
    cache that can't be written needs none."""
    if os.access(cache, os.W_OK) or not cache.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".pneumonia.lock"):
            yield
    else:
        yield


def films_root(archive: Path) -> Path:
    """The one folder with train/ and test/: the archive nests chest_xray/chest_xray and a __MACOSX beside it."""
    for folder in (archive / "chest_xray", archive, archive / "chest_xray" / "chest_xray"):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return folder
    raise UserError(
        f"{archive}: the downloaded archive has no train/ and test/ folders. Remove it to download it again. {WAYS_OUT}"
    )
