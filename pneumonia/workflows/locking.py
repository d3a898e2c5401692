"""What validation decides, once, before a test film is looked at: the threshold and the calibration. No torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from pneumonia.errors import UserError
from pneumonia.evaluation.calibration import calibrate, fit_platt, fit_temperature
from pneumonia.evaluation.checks import Floats, Ints
from pneumonia.evaluation.operating_point import choose_pooled
from pneumonia.settings import OperatingPointConfig
from pneumonia.workflows.sources import Source, read_predictions, read_run, to_logit
from pneumonia.workflows.stressed import needed_stress, same_stress

SAID = {"temperature": "temperature is", "platt": "slope and level are"}


@dataclass(frozen=True)
class Locked:
    """What validation decided: threshold on the probabilities of predictions.csv, temperature and bias."""

    threshold: float
    temperature: float
    bias: float
    told: dict[str, Any]


def lock(source: Source, rule: OperatingPointConfig, calibration: str) -> Locked:
    """Threshold and calibration from validation; where it can't decide, 0.5 or the films' own, and why.

    Raises UserError for runs that can't choose, ValueError from the choice itself.
    """
    told: dict[str, Any] = {
        "rule": rule.rule, "minimum": rule.minimum, "cost_ratio": rule.cost_ratio, "corruptions": 0,
        "runs": len(rule.runs),
    }  # fmt: skip
    judges = judges_of(source, rule.runs) or [source]
    if any("val" not in judge.splits for judge in judges):
        threshold = 0.5 if source.threshold is None else source.threshold
        why = "0.5" if source.threshold is None else "the threshold that the films were predicted with"
        told |= {"rule": None, "chosen_on": None, "reason": f"no validation films here: {why} is used"}
        return locked(threshold, None, told)
    label, shown, raw = seen(judges, rule.stressed)
    if rule.runs:
        told["judges"] = [hashlib.sha256(judge.file.read_bytes()).hexdigest() for judge in judges]
    told["corruptions"] = len(shown) - 1
    if 0 < label.sum() < label.size:
        threshold = choose_pooled(label, shown, rule.rule, rule.minimum, rule.cost_ratio).threshold
        told |= {"chosen_on": "val", "n": label.size, "reason": ""}
    else:
        threshold = 0.5
        told |= {"rule": None, "chosen_on": None, "reason": "validation has one class only: 0.5 is used"}
    often = np.tile(label, len(shown))
    fitted = scaling(often, raw, calibration, source.prior_correction)
    if fitted is None:
        told["temperature_reason"] = f"no finite {SAID[calibration]} best on validation: probabilities stay as they are"
    return locked(threshold, fitted, told)


def scaling(label: Ints, raw: Floats, calibration: str, known: float) -> tuple[float, float] | None:
    """(temperature, bias): both fitted by Platt's rule, else the temperature beside the bias that is known."""
    if calibration == "platt":
        return fit_platt(label, raw)
    temperature = fit_temperature(label, raw, known)
    return None if temperature is None else (temperature, known)


def locked(threshold: float, fitted: tuple[float, float] | None, told: dict[str, Any]) -> Locked:
    """`fitted`: temperature and bias."""
    temperature, bias = fitted or (1.0, 0.0)
    figures = {
        "threshold": threshold, "temperature": temperature, "bias": bias, "temperature_fitted": fitted is not None,
        "threshold_calibrated": float(calibrate(logit(threshold), temperature, bias)),
    }  # fmt: skip
    return Locked(threshold, temperature, bias, told | figures)


def judges_of(source: Source, names: Sequence[str]) -> list[Source]:
    """The runs whose validation films choose for `source`, and none of them twice. Raises UserError."""
    judges = [judge_of(name) for name in names]
    test = {record.path for record in source.manifest if record.split == "test"}
    test |= set(source.splits["test"].films.path.tolist()) if "test" in source.splits else set()
    told: set[Path] = {source.file.resolve()}
    for name, judge in zip(names, judges, strict=True):
        file = judge.file.resolve()
        if file in told:
            raise UserError(
                f"operating_point.runs: {name} is the judged run or listed twice; name each other run once."
            )
        told.add(file)
        if test & set(judge.splits["val"].films.path.tolist()):
            raise UserError(
                f"operating_point.runs: {name} validates on test films of {source.file}; they may not choose."
            )
        if source.net and judge.net and source.net != judge.net:
            raise UserError(
                f"operating_point.runs: {name} is a {judge.net}, {source.file} of a {source.net}: another net's "
                "probabilities say nothing about this one's. Name runs of the same recipe."
            )
    if names and (lacking := [s.file for s in (source, *judges) if s.threshold is not None]):
        raise UserError(
            f"operating_point.runs: {lacking[0]} was written by predict: its probabilities are calibrated, those of a "
            "run are not. Name runs, or leave operating_point.runs out."
        )
    return judges


def judge_of(name: str) -> Source:
    """A run whose validation films choose for another: its folder, or a predictions.csv. Raises UserError."""
    found = Path(name).expanduser()
    try:
        source = read_predictions(found) if found.suffix == ".csv" else read_run(found)
    except UserError as error:
        raise UserError(f"operating_point.runs: {error}") from error
    if "val" not in source.splits:
        raise UserError(f"operating_point.runs: {name} holds no validation films; they are to choose the threshold.")
    return source


def seen(judges: list[Source], stressed: bool) -> tuple[Ints, list[Floats], Floats]:
    """(label [N], probability [N] for each way of seeing them, logit [ways * N]) of the validation films of all
    `judges`: as they are or, under stress, in that way and then under each corruption."""
    under = {
        str(judge.file): needed_stress(judge) if stressed else {"as_is": judge.splits["val"].films.probability}
        for judge in judges
    }
    same_stress(under)
    names = next(iter(under.values()))
    shown = [np.concatenate([ways[name] for ways in under.values()]) for name in names]
    raw = to_logit(np.concatenate(shown)) if stressed else np.concatenate([j.splits["val"].logit for j in judges])
    return np.concatenate([judge.splits["val"].films.label for judge in judges]), shown, raw
