"""The soft vote of runs as a folder of its own, which `evaluate predictions=` weighs as it does a run. No torch.

Beside its predictions.csv stand vote.json (whose vote, of which films), the runs' manifest.csv where all have the same,
and stress.csv where it was asked for: so its report shows films and audits the split as that of a run does.
"""

import csv
import io
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from pneumonia.evaluation.comparison import Run, leaderboard
from pneumonia.evaluation.ensemble import soft_vote
from pneumonia.settings import CompareConfig
from pneumonia.workflows.record import write_all
from pneumonia.workflows.sources import Source
from pneumonia.workflows.stressed import write_stress


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


def write_vote(folder: Path, voted: Run, sources: Sequence[Source]) -> None:
    """The vote's folder; `sources` are the tables of those that voted."""
    assert voted.val is not None
    told = json.dumps(told_vote(sources), indent=2, ensure_ascii=False) + "\n"
    texts = {"predictions.csv": table(voted, sources[0]), "vote.json": told}
    if agreed(source.manifest for source in sources):
        texts["manifest.csv"] = (sources[0].folder / "manifest.csv").read_text(encoding="utf-8")
    folder.mkdir(exist_ok=True)
    if "manifest.csv" not in texts:
        (folder / "manifest.csv").unlink(missing_ok=True)  # of an earlier vote
    write_all(folder, texts)
    if voted.stressed:
        write_stress(folder, voted.val.path.tolist(), voted.stressed)


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
            rows.append(row | {"logit": float(f"{logit(np.clip(value, 1e-7, 1 - 1e-7)):.6g}"), "probability": value})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def told_vote(sources: Sequence[Source]) -> dict[str, Any]:
    """vote.json: the runs, the command, and what all of them agree on of their net and films."""
    root = agreed(source.root for source in sources)
    data = [asdict(source.data) for source in sources]
    return {
        "vote": [source.folder.resolve().name for source in sources],
        "command": shlex.join(["python", "-m", "pneumonia.compare", *sys.argv[1:]]),
        "net": agreed(source.net for source in sources) or "",
        "credit": credit_of(sources),
        "data_root": str(root) if root else None,
        "data": {name: data[0][name] for name in data[0] if agreed(told[name] for told in data) is not None},
    }


def credit_of(sources: Sequence[Source]) -> str:
    """Whom to name as the films' source: the one that all runs name."""
    return agreed(source.credit for source in sources) or ""


def agreed(values: Iterable[Any]) -> Any:
    """What all values are; None where they differ."""
    first, *others = values
    return first if all(other == first for other in others) else None
