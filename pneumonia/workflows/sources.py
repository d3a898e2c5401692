"""What a run left, read back and checked: predictions.csv, and what lies beside it. No torch.

Beside    manifest.csv (sizes, training films), metrics.csv, run.json, .hydra/config.yaml; of a vote vote.json; each may
          lack.
Errors    UserError with the file, the line where there is one, and the way out.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pneumonia.config import PACKAGE
from pneumonia.data.exported import EXPORTED, read_told
from pneumonia.data.records import CLASSES, Record, numbered, parse_name
from pneumonia.errors import UserError
from pneumonia.evaluation.checks import Floats, Ints, Strings
from pneumonia.evaluation.films import Films
from pneumonia.settings import DataConfig, EvaluateConfig
from pneumonia.workflows.films import credit
from pneumonia.workflows.record import read_json, told_of

NEEDED = ("path", "label", "probability")
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "NORMAL": 0, "PNEUMONIA": 1}
REFERENCE = PACKAGE / "reference" / "model.safetensors"  # of experiment=record; model_card.md lies beside it
SCALED = ("temperature", "bias", "threshold_calibrated")
Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """One split ordered by path; subtype [N]; native width, height, mode [N] where the manifest tells them all."""

    films: Films
    logit: Floats
    subtype: Strings
    width: Ints | None = None
    height: Ints | None = None
    mode: Strings | None = None


@dataclass(frozen=True)
class Source:
    """A run's tables, or a vote's, whose `run` is its vote.json; `threshold` is one that the films were predicted with,
    None where it must be chosen."""

    folder: Path
    file: Path
    splits: dict[str, Split]
    manifest: list[Record] = field(default_factory=list)
    history: list[dict[str, float | None]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    threshold: float | None = None

    @property
    def root(self) -> Path | None:
        """The folder that film paths are relative to, where it is told."""
        told = self.run.get("data_root")
        return Path(told) if told else None

    @property
    def prior_correction(self) -> float:
        """What balance= and hard_films= took off the log odds of pneumonia; 0 where it is not known."""
        told = self.run.get("prior_correction")
        return float(told) if isinstance(told, int | float) and math.isfinite(told) else 0.0

    @property
    def data(self) -> DataConfig:
        """Its data settings; those that its version did not know, or in which voters differ, are at their default."""
        return data_settings(self.config or self.run)

    @property
    def model(self) -> str:
        """The function that builds its net, such as compact; nothing where it is not known."""
        return str(self.config.get("model", {}).get("_target_", "")).rpartition(".")[2]

    @cached_property
    def choice(self) -> str:
        """What was typed as model=, such as baseline; nothing where hydra.yaml does not tell it."""
        return chosen_model(self.folder)

    @property
    def net(self) -> str:
        """Which net at which size, such as compact at 112 px; nothing where it is not known."""
        return f"{self.model} at {self.data.image_size} px" if self.model else str(self.run.get("net", ""))

    @cached_property
    def credit(self) -> str:
        """Whom to name as the films' source; nobody where it is not known."""
        if not self.config:
            return str(self.run.get("credit", ""))
        paths = [path for split in self.splits.values() for path in split.films.path.tolist()]
        return credit(self.data, all(parse_name(path, "strict") for path in paths))


def source_of(config: EvaluateConfig) -> Source:
    """The source that `run=` or `predictions=` names."""
    return read_run(Path(config.run).expanduser()) if config.run else read_predictions(Path(config.predictions or ""))


def read_run(folder: Path) -> Source:
    """A finished run's tables. Raises UserError for a folder that is none, or whose run never got to predict."""
    if not folder.is_dir():
        raise UserError(f"run={folder}: no such folder; expected one that python -m pneumonia.train wrote.")
    if not (folder / "predictions.csv").is_file():
        run = read_json(folder / "run.json")
        told = f"run.json says {run.get('status')}" if run else "it holds no run.json either"
        reason = f" ({run['reason']})" if run.get("reason") else ""
        raise UserError(
            f"run={folder} has no predictions.csv; {told}{reason}: expected a finished run. Train it again, or name "
            "another folder."
        )
    return read_predictions(folder / "predictions.csv")


def jobs_of(
    sweep: Path, setting: str = "runs", instead: str = ", or a list as 'runs=[a,b]'"
) -> tuple[list[Path], list[str]]:
    """The finished runs in the sweep folder that `setting` names, by number, and the names of those that did not."""
    if not sweep.is_dir():
        raise UserError(f"{setting}={sweep}: no such folder; expected a sweep folder{instead}.")
    begun = [folder for folder in sweep.iterdir() if (folder / "run.json").is_file()]
    begun.sort(
        key=lambda folder: (not folder.name.isdigit(), int(folder.name) if folder.name.isdigit() else 0, folder.name)
    )
    finished = [folder for folder in begun if (folder / "predictions.csv").is_file()]
    if not finished:
        raise UserError(f"{setting}={sweep}: no finished run in it; expected folders with a predictions.csv.")
    return finished, [folder.name for folder in begun if folder not in finished]


def read_predictions(file: Path) -> Source:
    """The films of a predictions.csv by split, and what lies beside it."""
    file = file.expanduser()
    rows, columns = read_table(file)
    notes = [f"{file.name} has no column {name}: {lack}" for name, lack in LACKS.items() if name not in columns]
    labelled = [row for row in rows if (row["label"] or "").strip()]
    if not labelled:
        raise UserError(f"{file} holds no film with a label: there is nothing to compare the predictions with.")
    if len(labelled) < len(rows):
        notes.append(f"{len(rows) - len(labelled):,} films without a label were left out")
    parts = by_split(file, labelled)
    if "train" in parts:
        notes.append(f"{len(parts.pop('train')):,} training films were left out: a model is not judged on them")
    if not parts:
        raise UserError(f"{file} holds training films only: expected rows of split val or test.")
    folder = file.parent
    manifest = read_records(folder / "manifest.csv")
    known = {record.path: record for record in manifest}
    try:
        splits: dict[str, Split] = {
            name: split_of(file, parts[name], known) for name in ("val", "test") if name in parts
        }
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    history, run = read_numbers(folder / "metrics.csv"), told_of(folder)
    return Source(folder, file, splits, manifest, history, run, read_config(folder), notes, given_threshold(labelled))


LACKS = {
    "patient": "each film counts as a patient of its own, so intervals may be too narrow",
    "split": "all films are read as test films",
    "logit": "logits are computed from the probabilities",
    "subtype": "there are no subgroups by subtype",
}


def read_table(file: Path) -> tuple[list[Row], list[str]]:
    """Rows and columns of a predictions.csv; each row knows its line. Raises UserError."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows: list[Row] = [{**row, "line": line} for line, row in numbered(reader)]
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"predictions={file}: can't be read ({error}); expected a CSV that predict or train wrote."
        ) from error
    if lacking := [name for name in NEEDED if name not in columns]:
        raise UserError(
            f"predictions={file}: no column {lacking[0]}; expected {','.join(NEEDED)} at least, "
            f"got {','.join(columns)}."
        )
    if not rows:
        raise UserError(f"predictions={file}: no films in it; expected a row per film.")
    lines: dict[str, int] = {}
    for row in rows:
        line = row["line"]
        if not row["path"]:
            raise UserError(f"{file}, line {line}: no path: the line is cut short, or none was written; remove it.")
        if (first := lines.setdefault(row["path"], line)) != line:
            raise UserError(
                f"{file}, line {line}: {row['path']} stands already in line {first}; expected one row a film."
            )
    return rows, columns


def by_split(file: Path, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by split, ordered by path; an empty split is read as test."""
    parts: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["path"]):
        split = (row.get("split") or "test").strip() or "test"
        if split not in ("train", "val", "test"):
            raise UserError(f"{file}, line {row['line']}: split={split}: expected train, val, test or nothing.")
        parts.setdefault(split, []).append(row)
    return parts


def split_of(file: Path, rows: Sequence[Row], known: Mapping[str, Record]) -> Split:
    """The arrays of one split. Raises UserError for a value that is none, and where the manifest has another label."""
    path = [row["path"] for row in rows]
    label = [label_of(file, row) for row in rows]
    probability = np.array([number(file, row, "probability") for row in rows])
    films = Films(
        np.array(path), np.array(label), probability, np.array([row.get("patient") or row["path"] for row in rows])
    )
    if rows[0].get("logit") and not rows[0].get(
        "threshold"
    ):  # predict's probability is scaled already, its logit is not
        logit = np.array([number(file, row, "logit") for row in rows])
    else:
        logit = to_logit(probability)
    subtype = np.array([row.get("subtype") or "" for row in rows])
    records = [known[name] for name in path if name in known]
    if wrong := [
        r.path for r, value in zip(records, label, strict=False) if len(records) == len(path) and r.label != value
    ]:
        raise UserError(
            f"{file}: {len(wrong)} films have another label than in manifest.csv beside it ({wrong[0]}, ...). "
            "Both must come from one run; predict the films again."
        )
    if len(records) < len(path) or not all(record.width for record in records):
        return Split(films, logit, subtype)
    sizes = np.array([(record.width, record.height) for record in records], np.int64)
    return Split(films, logit, subtype, sizes[:, 0], sizes[:, 1], np.array([record.mode for record in records]))


def to_logit(probability: Floats) -> Floats:
    """Natural log odds; 0 and 1, which a table may round to, are as 1e-7 from them."""
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def label_of(file: Path, row: Row) -> int:
    """0 or 1."""
    text = row["label"].strip().upper()
    if text not in LABELS:
        raise UserError(f"{file}, line {row['line']}: label={row['label']}: expected 0 or NORMAL, 1 or PNEUMONIA.")
    return LABELS[text]


def number(file: Path, row: Row, column: str) -> float:
    """A finite number. Raises UserError with its line."""
    text = row.get(column)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"{file}, line {row['line']}: {column}={text or 'nothing'}: expected a finite number. Predict this film "
            "again, or remove its row."
        )
    return value


def given_threshold(rows: Sequence[Row]) -> float | None:
    """The threshold that predict wrote, where all films have the same."""
    told = {row.get("threshold") or "" for row in rows}
    try:
        return float(told.pop()) if len(told) == 1 else None
    except ValueError:
        return None


def read_records(file: Path) -> list[Record]:
    """The records of a run's manifest.csv; columns that its version did not know are at their default; [] without."""
    if not file.is_file():
        return []
    names = {item.name for item in fields(Record)}
    records = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                known: dict[str, Any] = {name: value for name, value in row.items() if name in names and value}
                whole = ("label", "width", "height", "bytes")
                records.append(Record(**known | {name: int(known[name]) for name in whole if name in known}))
    except (OSError, UnicodeDecodeError, csv.Error, TypeError, ValueError) as error:
        raise UserError(f"{file} can't be read ({error}): expected the manifest.csv that the run wrote.") from error
    return records


def read_numbers(file: Path) -> list[dict[str, float | None]]:
    """The rows of metrics.csv, without what is no number; no file gives no rows."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        return [{name: as_number(text) for name, text in row.items() if name} for row in csv.DictReader(stream)]


def as_number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def locked_point(folder: Path) -> dict[str, Any] | None:
    """The operating point in the evidence.json of a run; None where evaluate wrote none. Raises UserError."""
    file = folder / "evidence.json"
    try:
        point: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["operating_point"]
        told = [float(point["threshold"]), *(float(point[name]) for name in SCALED if name in point)]
        if not all(map(math.isfinite, told)):
            raise ValueError("a number is not finite")
        if float(point.get("temperature", 1)) <= 0:
            raise ValueError(f"temperature={point['temperature']}")
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{file} can't be read ({type(error).__name__}: {error}). Run python -m pneumonia.evaluate run={folder} "
            "again, or remove it: the threshold is then 0.5."
        ) from error
    return point


@dataclass(frozen=True)
class Scale:
    """sigmoid(logit / temperature + bias) is the probability; a film is called where it reaches `threshold`."""

    temperature: float = 1.0
    bias: float = 0.0
    threshold: float = 0.5


def scale_of(checkpoint: Path) -> Scale | None:
    """An exported model's own, or that which evaluate locked for the run whose best weights these are; None where it
    did not, and for other weights of a run.

    Raises UserError for a file or evidence that can't be read.
    """
    if checkpoint.suffix == EXPORTED:
        told = read_told(checkpoint)["recipe"]
        return Scale(float(told["temperature"]), float(told.get("bias", 0.0)), float(told["threshold"]))
    point = locked_point(checkpoint.resolve().parent.parent) if checkpoint.name == "best.ckpt" else None
    if point is None:
        return None
    threshold = point.get("threshold_calibrated", point["threshold"])
    return Scale(float(point.get("temperature", 1.0)), float(point.get("bias", 0.0)), float(f"{threshold:.6g}"))


def read_config(folder: Path) -> dict[str, Any]:
    """The composed settings of a run; empty where there are none."""
    try:
        loaded = OmegaConf.load(folder / ".hydra" / "config.yaml")
        found = OmegaConf.to_container(loaded, resolve=True)
    except (OSError, OmegaConfBaseException, YAMLError, ValueError):
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def chosen_model(folder: Path) -> str:
    """The choice of model that Hydra noted in a run's folder; empty where it did not."""
    try:
        loaded = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
        return str(OmegaConf.select(loaded, "hydra.runtime.choices.model") or "")
    except (OSError, OmegaConfBaseException, YAMLError, ValueError):
        return ""


def data_settings(config: Mapping[str, Any]) -> DataConfig:
    """A run's data settings as they were, though today's checks might refuse them; unknown ones are left out."""
    data = DataConfig()
    for name, value in (config.get("data") or {}).items():
        if hasattr(data, name):
            setattr(data, name, value)
    return data


def class_name(label: int) -> str:
    return CLASSES[label]


def checkpoint_file(name: str) -> Path:
    """The file that `checkpoint=` names; `reference` is the net in the package. Raises UserError."""
    if name == "reference":
        return REFERENCE
    file = Path(name).expanduser()
    if not file.is_file():
        raise UserError(
            f"checkpoint={name}: no such file; expected <run>/checkpoints/best.ckpt, <run>/model.safetensors, or "
            "reference for the net in the package."
        )
    return file
