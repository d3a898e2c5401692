"""The soft vote of runs as a folder of its own, which `evaluate predictions=` weighs as it does a run. No torch.

Beside its predictions.csv stand vote.json (whose vote, of which films), the runs' manifest.csv and audit.json where all
have the same, and stress.csv where it was asked for: so its report shows films and audits the split as a run's does.
"""

import csv
import io
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia.evaluation.comparison import Run, leaderboard
from pneumonia.evaluation.ensemble import soft_vote
from pneumonia.settings import CompareConfig
from pneumonia.workflows.films import patient_key_of
from pneumonia.workflows.provenance import listed, plainly
from pneumonia.workflows.record import read_json, write_all
from pneumonia.workflows.resume import flat
from pneumonia.workflows.sources import Source, to_logit
from pneumonia.workflows.stressed import write_stress

TABLES = ("manifest.csv", "audit.json", "stress.csv")  # that a vote may lack
PAGES = ("report.html", "report.md", "model_card.md", "evidence.json")


def voters(runs: Sequence[Run], config: CompareConfig) -> list[Run]:
    """The best `ensemble` runs on validation; none of a single run, with 0, or where no film was called by all."""
    count = len(runs) if config.ensemble is None else config.ensemble
    if count < 2 or len(runs) < 2 or len({run.test.path.tobytes() for run in runs}) > 1:
        return []
    return [entry.run for entry in leaderboard(runs, config.metric, 1, config.seed, config.level)][:count]


def vote(best: Sequence[Run], config: CompareConfig) -> Run:
    """Their soft vote as one more run."""
    rule = config.operating_point
    return soft_vote(best, f"soft vote of {len(best)}", rule.rule, rule.minimum, rule.cost_ratio)


def write_vote(folder: Path, voted: Run, sources: Mapping[str, Source], config: CompareConfig) -> None:
    """The vote's folder; `sources` are the tables of those that voted, by name. Another vote's pages and tables go."""
    assert voted.val is not None
    each = list(sources.values())
    texts = {
        "predictions.csv": table(voted, each[0]),
        "vote.json": json.dumps(told_vote(sources, config), indent=2, ensure_ascii=False) + "\n",
    }
    if agreed(source.manifest for source in each):
        texts["manifest.csv"] = (each[0].folder / "manifest.csv").read_text(encoding="utf-8")
        audits = [audit for source in each if (audit := read_json(source.folder / "audit.json"))]
        texts |= {"audit.json": json.dumps(audits[0], indent=2) + "\n"} if audits else {}
    folder.mkdir(exist_ok=True)
    another = was(folder / "predictions.csv") != texts["predictions.csv"]
    write_all(folder, texts)
    for name in {*TABLES, *(PAGES if another else ())} - set(texts):
        (folder / name).unlink(missing_ok=True)
    if voted.stressed:
        write_stress(folder, voted.val.path.tolist(), voted.stressed)


def drop_vote(folder: Path) -> None:
    """Remove what write_vote and the report of a vote wrote, and the folder if that leaves it empty."""
    for name in ("predictions.csv", "vote.json", *TABLES, *PAGES):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def was(file: Path) -> str:
    """Its text; empty where there is none."""
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def table(voted: Run, source: Source) -> str:
    """Its predictions.csv, the subtypes from any run's."""
    assert voted.val is not None
    rows = []
    for split, films in {"val": voted.val, "test": voted.test}.items():
        if split not in source.splits:
            continue
        columns = films.path, films.patient, source.splits[split].subtype, films.label, films.probability
        for path, patient, subtype, label, probability in zip(*columns, strict=True):
            value = float(f"{probability:.6g}")
            row = {"path": path, "patient": patient, "subtype": subtype, "label": int(label), "split": split}
            rows.append(row | {"logit": float(f"{to_logit(np.array(value)):.6g}"), "probability": value})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def told_vote(sources: Mapping[str, Source], config: CompareConfig) -> dict[str, Any]:
    """vote.json: the runs, the command, and what all of them agree on of their net and films."""
    each = list(sources.values())
    root, resize = agreed(source.root for source in each), agreed(source.data.resize for source in each)
    return {
        "vote": list(sources),
        "command": command_of(config),
        "prior_correction": round(float(np.mean([source.prior_correction for source in each])), 6),
        "net": agreed(source.net for source in each) or "",
        "credit": credit_of(each),
        "data_root": str(root) if root else None,
        "data": {"resize": resize} if resize else {},
        "patient_key": agreed(patient_key_of(source.data) if source.config else None for source in each),
        "skipped": agreed(source.run.get("skipped", []) for source in each),
    }


def command_of(config: CompareConfig) -> str:
    """The command that makes the vote anew, quoted for a shell."""
    told = flat(asdict(config))
    default = flat(asdict(CompareConfig(runs="-")))
    runs = plainly(Path(config.runs)) if isinstance(config.runs, str) else listed(config.runs)
    typed = {name: value for name, value in told.items() if value != default[name] and name not in ("runs", "output")}
    texts = [f"runs={runs}", *(f"{name}={plainly(value)}" for name, value in typed.items())]
    texts += [f"output={plainly(Path(config.output))}"] if config.output else []
    return shlex.join(["python", "-m", "pneumonia.compare", *texts])


def credit_of(sources: Sequence[Source]) -> str:
    """Whom to name as the films' source: the one that all runs name."""
    return agreed(source.credit for source in sources) or ""


def agreed(values: Iterable[Any]) -> Any:
    """What all values are; None where they differ."""
    first, *others = values
    return first if all(other == first for other in others) else None
