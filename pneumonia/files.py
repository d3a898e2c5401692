"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to, renamed to it when the block ends well, else removed: whole or not there."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex}")  # other machines may write the same file
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
