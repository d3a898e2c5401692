"""What a run is worth: from its tables to evidence.json, report.html, report.md and model_card.md. No torch.

Every figure of the pages is in evidence.json, and nothing in evidence.json differs between equal runs: no time, no
folder, ten significant digits. The threshold and the calibration come from validation and are locked; test is only
judged with them.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia.data.audit import audit_records
from pneumonia.evaluation.bootstrap import Draws, bootstrap_draws, curve_bands, percentile_interval, unbiased_interval
from pneumonia.evaluation.calibration import calibrate
from pneumonia.evaluation.checks import Interval
from pneumonia.evaluation.conformal import coverage, fit_conformal, risk_coverage
from pneumonia.evaluation.drift import metric_drift, oracle_gap, score_drift
from pneumonia.evaluation.intervals import delong, wilson
from pneumonia.evaluation.metrics import (
    METRICS,
    at_prevalence,
    confident_mistakes,
    confusion,
    point_metrics,
    reliability_bins,
)
from pneumonia.evaluation.subgroups import subgroup_table
from pneumonia.report.pages import model_card, report_html, report_markdown
from pneumonia.report.verdict import verdict
from pneumonia.settings import EvaluateConfig, OperatingPointConfig, UserError
from pneumonia.workflows.locking import Locked, lock
from pneumonia.workflows.provenance import page_of, repeat_of
from pneumonia.workflows.record import written
from pneumonia.workflows.sources import Source, Split, read_json, source_of
from pneumonia.workflows.stressed import stress_evidence

log = logging.getLogger(__name__)

CALIBRATION = ("brier", "log_loss", "ece")
MISTAKES = 12
SCHEMA = 2


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Weigh a run, write its pages beside its predictions, close with a table and the verdict; the evidence."""
    source = source_of(config)
    keep_report(source)
    if config.stress:
        from pneumonia.workflows.stress import stress_run

        stress_run(source)
    try:
        evidence = weigh(source, config)
    except ValueError as error:
        raise UserError(f"{source.file}: {error}") from error
    earlier = earlier_of(source, evidence)
    evidence |= rounded(probes(source, evidence, earlier, config))
    warn_of_another_choice(source, evidence, earlier)
    evidence["verdict"] = verdict(evidence)
    write_pages(source, evidence, config.operating_point.runs)
    if config.export:
        from pneumonia.workflows.export import export_run

        export_run(source, evidence)
    describe(evidence)
    log.info("%s", source.folder / "report.html")
    return evidence


def earlier_of(source: Source, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence that an earlier call left of the same predictions; empty without."""
    earlier = read_json(source.folder / "evidence.json")
    same = earlier.get("schema") == SCHEMA and earlier.get("predictions") == evidence["predictions"]
    return earlier if same else {}


def probes(
    source: Source, evidence: Mapping[str, Any], earlier: Mapping[str, Any], config: EvaluateConfig
) -> dict[str, Any]:
    """What the model makes of changed films: kept where an earlier command computed it, since that needs torch.

    Stress is weighed from stress.csv; the shortcuts of earlier evidence tell their level.
    """
    found = {
        "shortcuts": earlier.get("shortcuts"),
        "stress": stress_evidence(source, evidence["operating_point"]["threshold"], config),
    }
    if config.shortcuts:
        from pneumonia.workflows.shortcuts import shortcuts_of

        found["shortcuts"] = shortcuts_of(source, evidence["judged"], config)
    return found


def warn_of_another_choice(source: Source, evidence: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Threshold and calibration that were chosen with options are chosen anew by every call, and predict follows."""
    if not earlier:
        return
    was, now = (
        (told["options"]["operating_point"], told["options"].get("calibration"), told["operating_point"].get("judges"))
        for told in (earlier, evidence)
    )
    if was not in (now, (told_rule(OperatingPointConfig()), EvaluateConfig.calibration, None)):
        runs = f" and operating_point.runs= of {len(was[2])} runs" if was[2] else ""
        log.warning(
            "threshold and calibration were locked with other options; they are locked anew by those of this call, and "
            "predict goes by these. To have the former ones back: %s%s", repeat_of(source, earlier, ()), runs,
        )  # fmt: skip


def keep_report(source: Source) -> None:
    """Raise UserError where the pages of another table would replace those of the run that it lies in."""
    if source.file.name != "predictions.csv" and (source.folder / "run.json").exists():
        raise UserError(
            f"predictions={source.file} lies in a run's folder, whose report it would overwrite; move it elsewhere, or "
            f"type run={source.folder}."
        )


def after_training(folder: Path) -> None:
    """The evidence of a run that has just finished; a run is not lost because its evidence can't be drawn."""
    try:
        evaluate(EvaluateConfig(run=str(folder)))
    except (UserError, OSError) as error:
        log.warning("No evidence was written: %s", error)
    except Exception:  # the run is finished and its tables are whole: a page must not make it fail
        log.exception("No evidence was written. Once mended: python -m pneumonia.evaluate run=%s", folder)


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
        "predictions": hashlib.sha256(source.file.read_bytes()).hexdigest(),
        "options": {
            "operating_point": told_rule(config.operating_point),
            "calibration": config.calibration,
            "prevalence": config.prevalence, "level": config.level,
            "coverage": config.coverage, "resamples": config.resamples, "seed": config.seed,
        },
        "judged": judged,
        "judged_on": told_split(source, judged),
        "notes": source.notes,
        "operating_point": locked.told,
        "splits": {name: one_split(part, locked, draws[name], config) for name, part in source.splits.items()},
        "drift": drift(source, locked, draws, config.level),
        "subgroups": [asdict(row) for row in subgroups(split, locked.threshold, config.level)],
        "abstention": abstention(source, judged, locked, config),
        "mistakes": mistakes(split, locked),
        "audit": audit_of(source),
        "patient_key": source.data.patient_key if source.config else None,
        "left_out": len(source.run.get("skipped", [])),
        "planned": {name: sum(r.split == name for r in source.manifest) for name in source.splits},
        "shortcuts": None,
        "stress": None,
    }  # fmt: skip
    return rounded(evidence)


def told_rule(rule: OperatingPointConfig) -> dict[str, Any]:
    """How the operating point is chosen; the names of other runs are the command's, not the evidence's."""
    return {name: value for name, value in asdict(rule).items() if name != "runs"}


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
    """Counts, every metric with its interval, DeLong beside AUROC, calibration before and after, curves with bands."""
    films = split.films
    calibrated = calibrate(split.logit, locked.temperature, locked.bias)
    ranked = delong(films.label, films.probability, config.level)
    bands = curve_bands(films.label, films.probability, films.patient, config.resamples, config.seed, config.level)
    after = bootstrap_draws(
        films.label, calibrated, films.patient, 0.5, config.resamples, config.seed, metrics=CALIBRATION
    )
    point = point_metrics(films.label, calibrated, 0.5)
    intervals = clustered(after, point, config.level)
    return {
        "n": films.label.size,
        "positives": int(films.label.sum()),
        "patients": int(np.unique(films.patient).size),
        "resamples_left_out": draws.left_out,
        "counts": confusion(films.label, films.probability, locked.threshold),
        "metrics": estimates(split, locked.threshold, draws, config.level),
        "delong": {"value": ranked.auroc, "interval": ranked.interval},
        "at_prevalence": prevalent(split, locked.threshold, draws, config),
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
    c = confusion(films.label, films.probability, threshold)
    of = {
        "accuracy": (c["tp"] + c["tn"], films.label.size), "sensitivity": (c["tp"], c["tp"] + c["fn"]),
        "specificity": (c["tn"], c["tn"] + c["fp"]), "ppv": (c["tp"], c["tp"] + c["fp"]),
        "npv": (c["tn"], c["tn"] + c["fn"]),
    }  # fmt: skip
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
    if drawn["auroc"] and drawn["auroc"][0] == drawn["auroc"][1]:  # all resamples of a perfect ranking are perfect
        found["auroc"] |= {"interval": delong(films.label, films.probability, level).interval, "method": "DeLong"}
    return found


def clustered(draws: Draws, values: Mapping[str, float | None], level: float) -> dict[str, Interval | None]:
    """{metric: interval over patients}; that of ECE is corrected for the bias of its draws."""
    found = draws.intervals(level)
    return found | {"ece": unbiased_interval(draws.values["ece"], values["ece"], level)}


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
            name: {"value": values[k], "interval": percentile_interval(drawn[:, k], config.level)}
            for k, name in enumerate(("ppv", "npv"))
        },
    }


def drift(source: Source, locked: Locked, draws: Mapping[str, Draws], level: float) -> dict[str, Any] | None:
    """Validation against test; None where one of them is not there."""
    if not {"val", "test"} <= set(source.splits):
        return None
    val, test = source.splits["val"].films, source.splits["test"].films
    gap = oracle_gap(test, locked.threshold)
    rows = metric_drift(val, test, locked.threshold, draws["val"], draws["test"], level)
    return {
        "metrics": [asdict(row) for row in rows],
        "scores": [asdict(row) for row in score_drift(val, test)],
        "oracle": None if gap is None else asdict(gap),
    }


def subgroups(split: Split, threshold: float, level: float) -> list[Any]:
    films = split.films
    return subgroup_table(
        films.label, films.probability, films.patient, threshold, split.subtype, split.width, split.height, split.mode,
        level,
    )  # fmt: skip


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
    measured = coverage(sets, films.label, films.probability, config.level)
    limit = [None if math.isinf(value) else value for value in sets.limit]
    return found | {"sets": {"promised": config.coverage, "limit": limit, **asdict(measured)}}


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


def write_pages(source: Source, evidence: dict[str, Any], runs: Sequence[str]) -> None:
    """All four files, or none of them: each under a temporary name, renamed when all are whole."""
    page = page_of(source, evidence, runs)
    texts = {
        "report.html": report_html(evidence, page),
        "report.md": report_markdown(evidence, page),
        "model_card.md": model_card(evidence, page),
        "evidence.json": json.dumps(evidence, indent=2, allow_nan=False) + "\n",
    }
    try:
        write_all(source.folder, texts)
    except OSError as error:
        raise UserError(f"The report can't be written to {source.folder} ({error}).") from error


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write every text of {name: text}; they are renamed when all are whole."""
    with ExitStack() as stack:
        for name, text in texts.items():
            stack.enter_context(written(folder / name)).write_text(text, encoding="utf-8")


def describe(evidence: Mapping[str, Any]) -> None:
    """A short table and the verdict."""
    point = evidence["operating_point"]
    others = f" of {point['runs']} other runs" if point["runs"] else ""
    where = f"chosen on {point['chosen_on']}{others} by {point['rule']}" if point["chosen_on"] else point["reason"]
    scaled = f"temperature {point['temperature']:.3f}" + (f", bias {point['bias']:.3f}" if point["bias"] else "")
    log.info("threshold %.4f (%s), %s", point["threshold"], where, scaled)
    shown = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "ece")
    splits = evidence["splits"]
    titles = [f"{name}, n = {part['n']:,}" for name, part in splits.items()]
    log.info("%-20s%s", "", "".join(f"{text:>28}" for text in titles))
    for name in shown:
        cells = [cell(part["metrics"][name]) for part in splits.values()]
        log.info("%-20s%s", name, "".join(f"{text:>28}" for text in cells))
    if stress := evidence["stress"]:
        lowest = f"; lowest under {stress['worst'].replace('_', ' ')}" if stress["worst"] else ""
        log.info("stress AUROC on val  %s, mean of %d corruptions%s", cell(stress["mean"]), len(stress["rows"]), lowest)
        log.info("pooled               %s, all of them in one ranking", cell(stress["pooled"]))
        if stress["framing"]:
            log.info("framing              %s, zoom and aspect in one ranking", cell(stress["framing"]))
    for note in evidence["notes"]:
        log.warning("%s", note)
    found = evidence["verdict"]
    log.info("%s", found["headline"])
    for finding in found["findings"]:
        log.info("  %s: %s", finding["level"], finding["text"])


def cell(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "undefined"
    low_high: Interval | None = estimate["interval"]
    return f"{estimate['value']:.4f}" + (f" [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else "")
