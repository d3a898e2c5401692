"""What a run is worth: from its tables to evidence.json, report.html, report.md and model_card.md. No torch.

Every figure of the pages is in evidence.json, which is the same for equal runs.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumonia.errors import UserError
from pneumonia.report.pages import estimate, model_card, report_html, report_markdown
from pneumonia.report.verdict import verdict
from pneumonia.settings import NEED_NET, EvaluateConfig, OperatingPointConfig
from pneumonia.workflows.locking import lock
from pneumonia.workflows.provenance import page_of, repeat_of
from pneumonia.workflows.record import read_json, write_all
from pneumonia.workflows.sources import Source, source_of
from pneumonia.workflows.stressed import stress_evidence
from pneumonia.workflows.weighing import SCHEMA, digest_of, rounded, subgroups_by_mark, told_rule, weigh

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, source: Source | None = None) -> dict[str, Any]:
    """Weigh a run, write its pages beside its predictions, close with a table and the verdict; the evidence.

    `source`: what `config` names, where it was read already.
    """
    source = source or source_of(config)
    keep_report(source)
    refuse_of_a_vote(source, config)
    earlier = earlier_of(source)
    if config.stress:
        from pneumonia.workflows.stress import stress_run

        stress_run(source)
    try:
        if config.test:
            from pneumonia.workflows.last_look import with_test_films

            lock(source, config.operating_point, config.calibration)  # what would be refused is, before the look
            source = with_test_films(source)
        evidence = weigh(source, config)
    except ValueError as error:
        raise UserError(f"{source.file}: {error}") from error
    evidence |= rounded(probes(source, evidence, earlier, config))
    evidence["subgroups"] += rounded(subgroups_by_mark(source.splits[evidence["judged"]], evidence))
    warn_of_another_choice(source, evidence, earlier)
    evidence["verdict"] = verdict(evidence)
    write_pages(source, evidence, config.operating_point.runs)
    if config.export:
        from pneumonia.workflows.export import export_run

        export_run(source, evidence)
    describe(evidence)
    log.info("%s", source.folder / "report.html")
    return evidence


def earlier_of(source: Source) -> dict[str, Any]:
    """The evidence that an earlier call left of these predictions; empty without."""
    earlier = read_json(source.folder / "evidence.json")
    same = earlier.get("schema") == SCHEMA and earlier.get("predictions") == digest_of(source)
    return earlier if same else {}


def probes(
    source: Source, evidence: Mapping[str, Any], earlier: Mapping[str, Any], config: EvaluateConfig
) -> dict[str, Any]:
    """What the model makes of changed films: kept where an earlier command computed it of the same predictions, since
    that needs torch.

    Stress is weighed from stress.csv; the shortcuts of earlier evidence tell their level.
    """
    same = earlier.get("predictions") == evidence["predictions"]
    found = {
        "shortcuts": earlier.get("shortcuts") if same else None,
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
    told = any((source.folder / name).exists() for name in ("run.json", "vote.json"))
    if source.file.name != "predictions.csv" and told:
        raise UserError(
            f"predictions={source.file} lies in a run's folder, whose report it would overwrite; move it elsewhere, or "
            f"type run={source.folder}."
        )


def refuse_of_a_vote(source: Source, config: EvaluateConfig) -> None:
    """Raise UserError for what needs a net, asked of a vote."""
    asked = [name for name in NEED_NET if getattr(config, name)]
    if asked and "vote" in source.run:
        raise UserError(
            f"{asked[0]}=true: {source.folder} is a vote, which has no net of its own; type it beside run= of each "
            f"of its runs ({', '.join(source.run['vote'])}), then compare them again."
        )


def after_training(folder: Path) -> None:
    """The evidence of a run that has just finished; a run is not lost because its evidence can't be drawn."""
    try:
        evaluate(EvaluateConfig(run=str(folder)))
    except (UserError, OSError) as error:
        log.warning("No evidence was written: %s", error)
    except Exception:  # the run is finished and its tables are whole: a page must not make it fail
        log.exception("No evidence was written. Once mended: python -m pneumonia.evaluate run=%s", folder)


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
        cells = [estimate(part["metrics"][name], 4) for part in splits.values()]
        log.info("%-20s%s", name, "".join(f"{text:>28}" for text in cells))
    if stress := evidence["stress"]:
        lowest = f"; lowest under {stress['worst'].replace('_', ' ')}" if stress["worst"] else ""
        mean, pooled, framing = (estimate(stress[name], 4) for name in ("mean", "pooled", "framing"))
        log.info("stress AUROC on val  %s, mean of %d corruptions%s", mean, len(stress["rows"]), lowest)
        log.info("pooled               %s, as they are and under all corruptions in one ranking", pooled)
        if stress["framing"]:
            log.info("framing              %s, as they are, zoomed and stretched in one ranking", framing)
    for note in evidence["notes"]:
        log.warning("%s", note)
    found = evidence["verdict"]
    log.info("%s", found["headline"])
    for finding in found["findings"]:
        log.info("  %s: %s", finding["level"], finding["text"])
