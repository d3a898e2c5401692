"""The figures of evidence.json: validation locks threshold and calibration, test is only judged with them. No torch.

Nothing in evidence.json differs between equal runs: no time, no folder, ten significant digits.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pneumonia.data.audit import audit_records
from pneumonia.evaluation.bootstrap import (
    Draws,
    bootstrap_draws,
    curve_bands,
    percentile_interval,
    unbiased_interval,
    width_or_none,
)
from pneumonia.evaluation.calibration import calibrate
from pneumonia.evaluation.checks import Interval
from pneumonia.evaluation.conformal import coverage, fit_conformal, risk_coverage
from pneumonia.evaluation.drift import chance_gap, metric_drift, oracle_gap, score_drift
from pneumonia.evaluation.intervals import delong, wilson
from pneumonia.evaluation.metrics import (
    METRICS,
    at_prevalence,
    chance_ece,
    confident_mistakes,
    confusion,
    point_metrics,
    proportions,
    reliability_bins,
)
from pneumonia.evaluation.subgroups import mark_table, subgroup_table
from pneumonia.settings import EvaluateConfig, OperatingPointConfig
from pneumonia.workflows.films import patient_key_of
from pneumonia.workflows.locking import Locked, lock
from pneumonia.workflows.record import read_json
from pneumonia.workflows.sources import Source, Split

CALIBRATION = ("brier", "log_loss", "ece")
MISTAKES = 12
SCHEMA = 2


def digest_of(source: Source) -> str:
    """SHA-256 of the table: evidence is of these predictions."""
    return hashlib.sha256(source.file.read_bytes()).hexdigest()


def weigh(source: Source, config: EvaluateConfig) -> dict[str, Any]:
    """The evidence as plain values, without its verdict. Raises ValueError from the statistics."""
    locked = lock(source, config.operating_point, config.calibration)
    draws = {
        name: bootstrap_draws(
            split.films.label, split.films.probability, split.films.patient, locked.threshold, config.resamples,
            config.seed + (name == "test"),
        )
        for name, split in source.splits.items()
    }  # fmt: skip
    judged = "test" if "test" in source.splits else "val"
    split = source.splits[judged]
    evidence = {
        "schema": SCHEMA,
        "predictions": digest_of(source),
        "options": {
            "operating_point": told_rule(config.operating_point),
            "calibration": config.calibration,
            "prevalence": config.prevalence, "level": config.level,
            "coverage": config.coverage, "resamples": config.resamples, "seed": config.seed,
        },
        "judged": judged,
        "judged_on": told_split(source, judged),
        "notes": [*source.notes, *ties(source)],
        "operating_point": locked.told,
        "splits": {name: one_split(part, locked, draws[name], config) for name, part in source.splits.items()},
        "drift": drift(source, locked, draws, config.level),
        "subgroups": [asdict(row) for row in subgroups(split, locked.threshold, config.level)],
        "abstention": abstention(source, judged, locked, config),
        "mistakes": mistakes(split, locked),
        "audit": audit_of(source),
        "patient_key": patient_key_of(source.data) if source.config else source.run.get("patient_key"),
        "left_out": len(source.run.get("skipped") or []),
        "planned": {name: sum(r.split == name for r in source.manifest) for name in source.splits},
        "shortcuts": None,
        "stress": None,
    }  # fmt: skip
    return rounded(evidence)


def told_rule(rule: OperatingPointConfig) -> dict[str, Any]:
    """How the operating point is chosen; the names of other runs are the command's, not the evidence's."""
    return {name: value for name, value in asdict(rule).items() if name != "runs"}


def ties(source: Source) -> list[str]:
    """A note on each split with films whose probability is 1 to the six digits of predictions.csv."""
    ones = {name: int((split.films.probability == 1).sum()) for name, split in source.splits.items()}
    return [
        f"{count:,} {name} films have a probability of 1 to six digits: AUROC takes them as ties"
        for name, count in ones.items()
        if count > 1
    ]


def told_split(source: Source, judged: str) -> str:
    """What the judged films are, in the words that a figure of them must carry."""
    label = source.splits[judged].films.label
    counts = (int((label == 0).sum()), int((label == 1).sum()))
    if judged == "test" and "Kermany" in source.credit:
        if counts == (117, 195):
            return "development half of the official test set, n = 312"
        if counts == (234, 390):
            return "official test set, n = 624"
    return f"{'test' if judged == 'test' else 'validation'} films, n = {label.size:,}"


def audit_of(source: Source) -> dict[str, Any] | None:
    """What the manifest tells of the films, and near copies where train left them; None without a manifest."""
    if not source.manifest:
        return None
    near = read_json(source.folder / "audit.json").get("near")
    return audit_records(source.manifest) | {"near": near if isinstance(near, dict) else None}


def one_split(split: Split, locked: Locked, draws: Draws, config: EvaluateConfig) -> dict[str, Any]:
    """Counts, every metric with its interval, DeLong beside AUROC, calibration before and after, curves with bands; all
    intervals of a split are over the same resamples."""
    films = split.films
    calibrated = calibrate(split.logit, locked.temperature, locked.bias)
    ranked = delong(films.label, films.probability, config.level)
    bands = curve_bands(films.label, films.probability, films.patient, config.resamples, draws.seed, config.level)
    after = bootstrap_draws(
        films.label, calibrated, films.patient, 0.5, config.resamples, draws.seed, metrics=CALIBRATION
    )
    point = point_metrics(films.label, calibrated, 0.5)
    by_chance = [chance_ece(told, seed=config.seed) for told in (films.probability, calibrated)]
    intervals = clustered(after, point, config.level)
    return {
        "n": films.label.size,
        "positives": int(films.label.sum()),
        "patients": int(np.unique(films.patient).size),
        "resamples_left_out": draws.left_out,
        "seed": draws.seed,
        "counts": confusion(films.label, films.probability, locked.threshold),
        "metrics": estimates(split, locked.threshold, draws, config.level),
        "delong": {"value": ranked.auroc, "interval": ranked.interval},
        "at_prevalence": prevalent(split, locked.threshold, draws, config),
        "chance_ece": [drawn.mean() for drawn in by_chance],
        "chance_ece_most": np.quantile(by_chance[1], 0.95),
        "calibrated": {name: {"value": point[name], "interval": intervals[name]} for name in CALIBRATION},
        "reliability": {
            "before": [b._asdict() for b in reliability_bins(films.label, films.probability)],
            "after": [b._asdict() for b in reliability_bins(films.label, calibrated)],
        },
        "histogram": {
            name: np.histogram(films.probability[films.label == k], 20, (0, 1))[0].tolist()
            for k, name in enumerate(("NORMAL", "PNEUMONIA"))
        },
        "curves": None if bands is None else {name: asdict(b) for name, b in zip(("roc", "pr"), bands, strict=True)},
    }


def estimates(split: Split, threshold: float, draws: Draws, level: float) -> dict[str, dict[str, Any]]:
    """{metric: value, interval, method}: Wilson for proportions (the clustered interval beside), else clustered."""
    films = split.films
    values = point_metrics(films.label, films.probability, threshold)
    of = proportions(confusion(films.label, films.probability, threshold))
    drawn = clustered(draws, values, level)
    found = {
        name: {
            "value": values[name],
            "interval": wilson(*of[name], level) if name in of else drawn[name],
            "method": "Wilson" if name in of else "bootstrap over patients",
            "clustered": drawn[name],
            "of": of[name][1] if name in of else films.label.size,
        }
        for name in METRICS
    }
    if not drawn["auroc"] and (ranked := delong(films.label, films.probability, level).interval):
        found["auroc"] |= {"interval": ranked, "method": "DeLong"}  # all resamples of a perfect ranking are perfect
    return found


def clustered(draws: Draws, values: Mapping[str, float | None], level: float) -> dict[str, Interval | None]:
    """{metric: interval over patients}, None where all draws agree; that of ECE is corrected for their bias."""
    found = draws.intervals(level) | {"ece": unbiased_interval(draws.values["ece"], values["ece"], level)}
    return {name: width_or_none(interval) for name, interval in found.items()}


def prevalent(split: Split, threshold: float, draws: Draws, config: EvaluateConfig) -> dict[str, Any] | None:
    """PPV and NPV where a share `prevalence` is ill, with intervals over the same resamples."""
    if config.prevalence is None:
        return None
    films = split.films
    point = point_metrics(films.label, films.probability, threshold)
    values = at_prevalence(point["sensitivity"], point["specificity"], config.prevalence)
    pairs = zip(draws.values["sensitivity"], draws.values["specificity"], strict=True)
    drawn = np.array([at_prevalence(a, b, config.prevalence) for a, b in pairs], np.float64).reshape(-1, 2)
    return {
        "prevalence": config.prevalence,
        **{
            name: {"value": values[k], "interval": width_or_none(percentile_interval(drawn[:, k], config.level))}
            for k, name in enumerate(("ppv", "npv"))
        },
    }


def drift(source: Source, locked: Locked, draws: Mapping[str, Draws], level: float) -> dict[str, Any] | None:
    """Validation against test; None where one of them is not there."""
    if not {"val", "test"} <= set(source.splits):
        return None
    val, test = source.splits["val"].films, source.splits["test"].films
    gap = oracle_gap(test, locked.threshold)
    chance = chance_gap(val, np.unique(test.patient).size, seed=draws["val"].seed)
    rows = metric_drift(val, test, locked.threshold, draws["val"], draws["test"], level)
    return {
        "metrics": [asdict(row) for row in rows],
        "scores": [asdict(row) for row in score_drift(val, test)],
        "oracle": None if gap is None else asdict(gap) | {"chance": chance},
    }


def subgroups(split: Split, threshold: float, level: float) -> list[Any]:
    films = split.films
    return subgroup_table(
        films.label, films.probability, films.patient, threshold, split.subtype, split.width, split.height, split.mode,
        level,
    )  # fmt: skip


def subgroups_by_mark(split: Split, evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the test films with and without marks of one class; none where no test film has any: on validation films,
    which have chosen the marks, they would tell the class."""
    judged = ((evidence["shortcuts"] or {}).get("marks") or {}).get("judged", {})
    if evidence["judged"] != "test" or not any(judged.values()):
        return []
    films, threshold, level = split.films, evidence["operating_point"]["threshold"], evidence["options"]["level"]
    marked = {name: np.isin(films.path, paths) for name, paths in judged.items()}
    rows = mark_table(films.label, films.probability, films.patient, threshold, marked, level)
    return [asdict(row) for row in rows]


def abstention(source: Source, judged: str, locked: Locked, config: EvaluateConfig) -> dict[str, Any]:
    """Prediction sets fitted on validation and measured on test; risk against coverage on the judged split."""
    films = source.splits[judged].films
    curve = risk_coverage(films.label, films.probability, locked.threshold)
    at = [math.ceil(k * films.label.size / 20) - 1 for k in range(1, 21)]
    found: dict[str, Any] = {
        "aurc": curve.aurc,
        "coverage": curve.coverage[at].tolist(),
        "risk": curve.risk[at].tolist(),
        "sets": None,
    }
    val = source.splits.get("val")
    if val is None or judged == "val":
        return found | {"reason": "sets need validation and test films"}
    sets = fit_conformal(val.films.label, val.films.probability, 1 - config.coverage)
    if math.inf in sets.limit:
        needed = math.ceil(1 / (1 - config.coverage) - 1 - 1e-9)
        counts = " and ".join(f"{(val.films.label == k).sum():,} {name}" for k, name in enumerate(("normal", "ill")))
        told = f"a coverage of {config.coverage:g} needs {needed:,} validation films of each class; there are {counts}"
        return found | {"reason": told}
    measured = coverage(sets, films.label, films.probability, config.level)
    return found | {"sets": {"promised": config.coverage, "limit": sets.limit, **asdict(measured)}}


def mistakes(split: Split, locked: Locked) -> list[dict[str, Any]]:
    """The most confident of them, at most MISTAKES."""
    films = split.films
    calibrated = calibrate(split.logit, locked.temperature, locked.bias)
    return [
        {
            "path": str(films.path[k]),
            "label": int(films.label[k]),
            "subtype": str(split.subtype[k]),
            "probability": float(films.probability[k]),
            "calibrated": float(calibrated[k]),
        }
        for k in confident_mistakes(films.label, films.probability, locked.threshold)[:MISTAKES].tolist()
    ]


def rounded(value: Any) -> Any:
    """Plain values with ten significant digits, so that equal runs write equal bytes; not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): rounded(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
