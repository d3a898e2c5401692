"""One record per film: where it lies, what it shows, whose it is, and what its file is.

Layout    <root>/{train,test}/{NORMAL,PNEUMONIA}/*.{jpeg,jpg,png}; an official <root>/val is read as train.
Names     person1000_bacteria_2931.jpeg, person441_virus_900.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-1423-0001.jpeg.
Patient   strict: (prefix, subtype, id); conservative: (prefix, id); none: every film its own. Which of the first two
          is a child's true identity is not proven; the numbering is most likely per subtype, hence the default strict.
Source    Kermany et al. 2018, doi:10.17632/rscbjbr9sj (CC BY 4.0).
"""

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from pneumonia.errors import UserError, nearest
from pneumonia.files import written
from pneumonia.launch import usable_cores

CLASSES = ("NORMAL", "PNEUMONIA")
SPLITS = ("train", "val", "test")
SUFFIXES = (".jpeg", ".jpg", ".png")
UNREAD = (".bmp", ".dcm", ".gif", ".jfif", ".jpe", ".tif", ".tiff", ".webp")  # may be films, and are not read
MISSING = "no such file"
EXPECTED = "<root>/{train,test}/{NORMAL,PNEUMONIA}/*.{jpeg,jpg,png}"
PATTERNS = (
    re.compile(r"(?P<prefix>person)(?P<id>\d+)_(?P<subtype>bacteria|virus)_\d+"),
    re.compile(r"(?P<prefix>(?:NORMAL2-)?IM)-(?P<id>\d+)-\d+"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One film. `path` is relative to the data root where it lies below it; width and height are native pixels."""

    path: str
    label: int
    patient: str
    subtype: str = ""
    split: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    bytes: int = 0
    sha256: str = ""


def parse_name(path: str, patient_key: str) -> tuple[str, str] | None:
    """(patient, subtype) from a film's file name, or None when it follows no known pattern."""
    name = os.path.basename(path)
    match = next((m for m in (pattern.match(name) for pattern in PATTERNS) if m), None)
    if match is None:
        return None
    parts = match.groupdict()
    subtype = parts.get("subtype") or ""
    prefix = [parts["prefix"], subtype] if subtype and patient_key == "strict" else [parts["prefix"]]
    return "-".join([*prefix, parts["id"]]), subtype


def name_record(path: str, label: int, split: str, patient_key: str) -> tuple[Record, bool]:
    """The record that a file name gives, and whether the name was understood; else the film is its own patient."""
    parsed = parse_name(path, patient_key)
    patient, subtype = parsed or (path, "")
    return Record(path, label, path if patient_key == "none" else patient, subtype, split), parsed is not None


def scan_folder(root: Path, patient_key: str) -> tuple[list[Record], list[str]]:
    """Records of every film under `root` (not yet opened; split train or test), and the names not understood.

    Raises UserError for a missing root, split or class folder, an empty one, or a third class.
    """
    if not root.is_dir():
        raise UserError(
            f"data.root={root}: no such folder; expected {EXPECTED}. Set data.root=/path/to/chest_xray, leave it out "
            "to download the films, or try data=synthetic."
        )
    records, unknown = [], []
    for folder in SPLITS:
        if folder == "val" and not (root / folder).is_dir():
            continue
        for label, path in class_files(root, folder):
            relative = path.relative_to(root).as_posix()
            record, understood = name_record(relative, label, "test" if folder == "test" else "train", patient_key)
            records.append(record)
            unknown += [] if understood else [relative]
    return records, unknown


def overlooked(root: Path) -> list[str]:
    """Notes on what lies below `root` and looks like films, but where or named as none is read."""
    others = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and entry.name not in SPLITS]
    folders = [entry.name for entry in others if any((entry / name).is_dir() for name in CLASSES)]
    notes = [f"{root / name} is no folder that films are read from; those are {', '.join(SPLITS)}." for name in folders]
    below = [
        path for name in SPLITS for path in sorted((root / name).rglob("*")) if not path.name.startswith((".", "_"))
    ]
    left = [path for path in below if path.suffix.lower() in UNREAD]
    left += [path for path in below if path.suffix.lower() in SUFFIXES and path.parent.parent == root]
    if left:
        notes.append(
            f"{len(left):,} files are left out, as {left[0]}: films are {', '.join(SUFFIXES)} in <split>/<class>/."
        )
    return notes


def class_files(root: Path, split: str) -> list[tuple[int, Path]]:
    """(label, path) of each film below <root>/<split>, in name order. Raises UserError for one that does not fit."""
    folder = root / split
    found = (
        sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith((".", "_")))
        if folder.is_dir()
        else []
    )
    if extra := [name for name in found if name not in CLASSES]:
        raise UserError(
            f"{folder / extra[0]}: a third class; expected just {' and '.join(CLASSES)} in {folder}. Move it elsewhere"
            f"{nearest(extra[0], CLASSES) or '.'}"
        )
    pairs = []
    for label, name in enumerate(CLASSES):
        files = sorted(
            p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        if not files and split != "val":
            what = "has no films" if (folder / name).is_dir() else "is missing"
            raise UserError(
                f"data.root={root}: the folder {split}/{name} {what}; expected {EXPECTED}. "
                "Both classes are needed in train and test."
            )
        for file in files:
            if os.fsencode(file).decode(errors="replace") != str(file):
                raise UserError(
                    f"{os.fsencode(file)!r}: a name that is not UTF-8, as archives of other systems have; rename the "
                    "file, or unpack it with its own encoding (unzip -O latin1)."
                )
        pairs += [(label, file) for file in files]
    return pairs


def read_manifest(file: Path, root: Path, patient_key: str) -> tuple[list[Record], list[str]]:
    """Records of a list of films (path, label, patient, optional split and subtype), and the names not understood.

    A patient or subtype that is empty comes from the file name. Raises UserError with the line at fault.
    """
    rows = read_rows(file)
    records: list[Record] = []
    unknown: list[str] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        path = row["path"]
        if not path:
            raise UserError(f"{file}, line {line}: no path: the line is cut short, or none was written; remove it.")
        if (before := lines.setdefault(os.path.normpath(path), line)) != line:
            raise UserError(
                f"{file}, line {line}: {path} stands already in line {before}; each film must stand there once."
            )
        record, understood = name_record(
            path, manifest_label(file, line, row["label"]), manifest_split(file, line, row), patient_key
        )
        given = (row.get("patient") or "").strip()
        if patient_key != "none" and given:
            record = replace(record, patient=given)
        records.append(replace(record, subtype=row.get("subtype") or record.subtype, sha256=row.get("sha256") or ""))
        unknown += [] if understood or given else [path]
    return records, unknown


def read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a manifest. Raises UserError when it is missing, not text, empty or lacks a column."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = numbered(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"data.manifest={file}: can't be read ({error}); expected a CSV with path,label,patient[,split,subtype]."
        ) from error
    if lacking := [name for name in ("path", "label", "patient") if name not in columns]:
        raise UserError(
            f"data.manifest={file}: no column {lacking[0]}; expected path,label,patient[,split,subtype], "
            f"got {','.join(columns)}."
        )
    if not rows:
        raise UserError(f"data.manifest={file}: no films in it; expected a row per film.")
    return rows


def numbered(reader: "csv.DictReader[str]") -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a table, counted as an editor does: empty lines too; of a row of several lines the last."""
    return [(reader.line_num, row) for row in reader]


def manifest_label(file: Path, line: int, text: str) -> int:
    """0 or 1 from 0, 1, NORMAL or PNEUMONIA."""
    names = {"0": 0, "1": 1, "NORMAL": 0, "PNEUMONIA": 1}
    if (text or "").strip().upper() not in names:
        raise UserError(f"{file}, line {line}: label={text}: expected 0 or NORMAL, 1 or PNEUMONIA.")
    return names[text.strip().upper()]


def manifest_split(file: Path, line: int, row: dict[str, str]) -> str:
    """train, val or test; train where the column is empty or not there."""
    split = (row.get("split") or "train").strip()
    if split not in SPLITS:
        raise UserError(f"{file}, line {line}: split={split}: expected one of {', '.join(SPLITS)}.")
    return split


def fingerprint_films(root: Path, records: Sequence[Record]) -> tuple[list[Record], list[tuple[str, str]]]:
    """Read every file once, in parallel: records with bytes and SHA-256, and (path, reason) of those that can't be."""
    with ThreadPoolExecutor(max_workers=min(16, usable_cores())) as pool:
        results = list(pool.map(lambda record: fingerprint(root / record.path, record), records))
    bad = [(record.path, result) for record, result in zip(records, results, strict=True) if isinstance(result, str)]
    return [result for result in results if isinstance(result, Record)], bad


def fingerprint(path: Path, record: Record) -> Record | str:
    """`record` with the size and hash of its file, or the reason why it can't be read or isn't the one meant."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        return str(error)
    digest = hashlib.sha256(content).hexdigest()
    if record.sha256 and record.sha256.lower() != digest:
        return "changed since the manifest was written (another SHA-256)"
    return replace(record, bytes=len(content), sha256=digest)


def bad_files_message(bad: Sequence[tuple[str, str]], root: Path, films: int, shown: int = 10) -> str:
    """Which of so many films below `root` can't be used, by name, and the ways out."""
    lines = [f"  {path}: {reason}" for path, reason in bad[:shown]]
    more = [f"  ... and {len(bad) - shown} more"] if len(bad) > shown else []
    way = "Mend or remove them, or leave them out with data.on_bad_file=skip."
    if len(bad) == films and all(reason == MISSING for _, reason in bad):
        way = f"They were looked for below {root}; set data.root= to the folder that these paths are relative to."
    return "\n".join([f"{len(bad)} films can't be used:", *lines, *more, way])


def write_manifest(file: Path, records: Iterable[Record]) -> None:
    """Write manifest.csv; reading it back gives the same records."""
    with written(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
