"""Decode each film once and keep its 8-bit pixels on disk.

Layout  <folder>/<key>/pixels.u8    uint8 [N, S, S], a row a film, in the order of their hashes
        <folder>/<key>/films.csv    row, sha256, width, height, mode, crc32 of the row's pixels, reason when it is bad
Key     hash of the films' content hashes, S, the resize rule and FORMAT: a changed film or setting never meets stale
        pixels. Random augmentation is never cached.
Safety  pixels are written to a folder `<key>.partial` under a lock and renamed when whole. films.csv grows a line a
        film, after its pixels, so that a killed run goes on where it stopped; two runs at once wait for each other.
Units   0 black .. 255 white.
"""

import csv
import hashlib
import os
import shutil
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from io import BufferedReader
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from pneumonia.data.decode import BadFilm, Decoded, decode, read_film
from pneumonia.data.records import Record
from pneumonia.errors import UserError
from pneumonia.files import written
from pneumonia.launch import usable_cores

FORMAT = 4
MARGIN = 64 << 20  # bytes left free for everything else


@dataclass(frozen=True, slots=True)
class Line:
    """One line of films.csv; `reason` is empty for a good film."""

    row: int
    sha256: str
    width: int
    height: int
    mode: str
    crc32: int
    reason: str = ""


class FilmFiles:
    """Pixels decoded from the films' own files each time: what the cache is measured against, and its stand-in."""

    def __init__(self, root: Path, records: Sequence[Record], size: int, resize: str) -> None:
        self.size = size
        self.resize = resize
        self.sources = {record.sha256: root / record.path for record in records}
        self.hashes = sorted(self.sources)
        todo = list(enumerate(self.hashes))
        self.lines = {line.sha256: line for line in decoded(todo, self.sources, None, size, resize)}

    def rows(self, records: Sequence[Record]) -> np.ndarray:
        """Row [N] of each record."""
        return np.array([self.lines[record.sha256].row for record in records], np.int64)

    def read(self, row: int) -> np.ndarray:
        """Pixels uint8 [S, S] of a row. Raises UserError when its file can't be read any more."""
        try:
            return read_film(self.sources[self.hashes[row]], self.size, self.resize)
        except BadFilm as error:
            raise UserError(f"{error}: it could be read at the start. Put it back, or type data.cache=true.") from error


class FilmCache:
    """Pixels by content hash; the file is opened anew in every process that reads it.

    Rows are read by position, not through a map: the pages stay the kernel's, so a reader's private memory is constant,
    and a file that is cut short during a run is an error here, where a map would end the process by a signal.
    """

    def __init__(self, folder: Path, size: int, lines: Sequence[Line]) -> None:
        self.folder = folder
        self.size = size
        self.lines = {line.sha256: line for line in lines}
        self.file: BufferedReader | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"file": None, "lines": {}}  # rows were looked up before: a reader needs no list

    def rows(self, records: Sequence[Record]) -> np.ndarray:
        """Row [N] of each record."""
        return np.array([self.lines[record.sha256].row for record in records], np.int64)

    def read(self, row: int) -> np.ndarray:
        """Pixels uint8 [S, S] of a row. Raises UserError when the file has gone or was cut short since it was made."""
        count = self.size * self.size
        try:
            if self.file is None:
                self.file = (self.folder / "pixels.u8").open("rb")
                weakref.finalize(self, self.file.close)  # left to the collector it would be reported as open
                if hasattr(os, "posix_fadvise"):  # rows come in random order: reading ahead is wasted
                    os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            content = os.pread(self.file.fileno(), count, int(row) * count)
        except OSError as error:
            raise UserError(
                f"The film cache {self.folder} has gone ({error}); start again, and it is made anew."
            ) from error
        if len(content) != count:
            raise UserError(f"The film cache {self.folder} was cut short; start again, and it is made anew.")
        return np.frombuffer(content, np.uint8).reshape(self.size, self.size)


def cache_films(folder: Path, root: Path, records: Sequence[Record], size: int, resize: str) -> FilmCache:
    """The cache of these films (with their hashes) below `folder`, made or completed where it is not whole.

    Raises UserError when the folder can't be written or the disk is too small.
    """
    sources = {record.sha256: root / record.path for record in records}
    target = folder / key_of(list(sources), size, resize)
    if (lines := whole(target, list(sources), size)) is not None:
        return FilmCache(target, size, lines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            lines = whole(target, list(sources), size) or make(target, sources, size, resize)
    except OSError as error:
        raise UserError(
            f"The film cache can't be written to {folder} ({error}). Set data.cache_dir=/a/folder/with/room, "
            "or data.cache=false to decode films each time."
        ) from error
    return FilmCache(target, size, lines)


def key_of(hashes: Sequence[str], size: int, resize: str) -> str:
    """Name of the cache for these contents and settings; their order changes nothing."""
    told = "\n".join([f"{FORMAT} {size} {resize}", *sorted(hashes)])
    return f"{size}-{resize}-{hashlib.sha256(told.encode()).hexdigest()[:20]}"


def whole(target: Path, hashes: Sequence[str], size: int) -> list[Line] | None:
    """The lines of a cache that is complete and of these films; None when it is not there or doesn't fit."""
    lines = read_lines(target / "films.csv")
    rows = {line.sha256: line.row for line in lines}
    pixels = target / "pixels.u8"
    fits = rows == {digest: row for row, digest in enumerate(sorted(hashes))}
    if not fits or not pixels.is_file() or pixels.stat().st_size != len(hashes) * size * size:
        return None
    return lines


def make(target: Path, sources: dict[str, Path], size: int, resize: str) -> list[Line]:
    """Decode what is not decoded yet into <target>.partial, then rename it; the lines of all films."""
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(exist_ok=True)
    hashes = sorted(sources)
    pixels = reserve(partial / "pixels.u8", len(hashes), size)
    done = {line.sha256: line for line in read_lines(partial / "films.csv") if sound(line, hashes, pixels)}
    todo = [(row, digest) for row, digest in enumerate(hashes) if digest not in done]
    write_lines(partial / "films.csv", list(done.values()))
    with (partial / "films.csv").open("a", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Line)])
        for line in decoded(todo, sources, pixels, size, resize):
            writer.writerow(asdict(line))
            stream.flush()
            done[line.sha256] = line
        os.fsync(stream.fileno())
    pixels.flush()
    shutil.rmtree(target, ignore_errors=True)  # one that does not fit
    partial.rename(target)
    return [done[digest] for digest in hashes]


def decoded(
    todo: Sequence[tuple[int, str]], sources: dict[str, Path], pixels: np.ndarray | None, size: int, resize: str
) -> Iterator[Line]:
    """Decode `todo` in parallel, with a progress bar, into `pixels` where given; a line a film once it is written."""

    def one(job: tuple[int, str]) -> Line:
        row, digest = job
        try:
            content = sources[digest].read_bytes()
        except OSError as error:  # it was read a moment ago: no fault of the film's, and not to be remembered as one
            raise UserError(f"{sources[digest]} can't be read any more ({error}). Type the command again.") from error
        try:
            film: Decoded = decode(content, size, resize)
        except BadFilm as error:
            return Line(row, digest, 0, 0, "", 0, str(error))
        if pixels is not None:
            pixels[row] = film.pixels
        return Line(row, digest, film.width, film.height, film.mode, checksum(film.pixels))

    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        yield from tqdm(pool.map(one, todo), "decoding films", len(todo), leave=False, disable=None)


def reserve(file: Path, count: int, size: int) -> np.memmap:
    """A writable map of count x size x size bytes, its disk space taken beforehand: a full disk is an error here, and
    not a crash in the middle of writing. Raises OSError."""
    needed = count * size * size
    have = file.stat().st_size if file.exists() else 0
    free = shutil.disk_usage(file.parent).free + have
    if needed + MARGIN > free:
        needs = f"{needed / 2**20:,.0f} MiB are needed for {count:,} films of {size} px"
        raise OSError(f"{needs}, {free / 2**20:,.0f} are free")
    with file.open("ab") as stream:
        if have != needed:
            stream.truncate(needed)
        if needed and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, needed)
    return np.memmap(file, np.uint8, "r+", shape=(count, size, size))


def sound(line: Line, hashes: Sequence[str], pixels: np.ndarray) -> bool:
    """Whether a line of a former attempt is of these films, good, and its pixels are what was written."""
    known = 0 <= line.row < len(hashes) and hashes[line.row] == line.sha256
    return known and not line.reason and checksum(pixels[line.row]) == line.crc32


def checksum(film: np.ndarray) -> int:
    """CRC-32 of a film's pixels."""
    return zlib.crc32(np.ascontiguousarray(film).data)


def damaged(cache: FilmCache) -> list[str]:
    """Content hashes of the films whose cached pixels are no longer what was written."""
    good = [line for line in cache.lines.values() if not line.reason]
    return [line.sha256 for line in good if checksum(cache.read(line.row)) != line.crc32]


def read_lines(file: Path) -> list[Line]:
    """The lines of films.csv; a line that was cut short by a kill is left out, as is a file of another format."""
    if not file.is_file():
        return []
    lines = []
    with file.open(newline="", errors="replace") as stream:
        for row in csv.DictReader(stream):
            try:
                numbers = {name: int(row[name]) for name in ("row", "width", "height", "crc32")}
                lines.append(Line(sha256=row["sha256"], mode=row["mode"], reason=row["reason"] or "", **numbers))
            except (KeyError, TypeError, ValueError):
                continue
    return lines


def write_lines(file: Path, lines: Sequence[Line]) -> None:
    """Write films.csv anew."""
    with written(file) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Line)])
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
