"""Evidence becomes pages: one self-contained HTML file, and Markdown. Plain dicts in, text out.

Everything in the HTML is escaped by Jinja (autoescape): a film named `<script>` stays text. In Markdown what would be
markup is escaped by `plain`. Pictures are data URIs; a policy in the page forbids every request.
"""

import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pneumonia.report import evidence_figures as drawn
from pneumonia.report.figures import confusion_matrix, last_validated
from pneumonia.report.figures import curves as history_curves
from pneumonia.report.seed import MATRIX, MATRIX_ACCURACY, REPORTED

TEMPLATES = Path(__file__).resolve().parent / "templates"
NAMES = {
    "auroc": "AUROC", "ppv": "PPV", "npv": "NPV", "f1": "F1", "mcc": "MCC", "ece": "ECE", "brier": "Brier score",
    "log_loss": "log loss",
}  # fmt: skip
MARKUP = re.compile(r"([\\`*_\[\]#!|~$])")


@cache
def environment(markdown: bool = False) -> Environment:
    """Templates that stop at a name they don't know; HTML is escaped always."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=not markdown, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {
        "thousands": thousands,
        "counted": counted,
        "number": number,
        "estimate": estimate,
        "percent": percent,
        "level": level,
        "label": label,
        "plain": plain,
        "p": p_value,
    }
    return made


def report_html(evidence: Mapping[str, Any], page: Mapping[str, Any]) -> str:
    """report.html."""
    seed = {"reported": REPORTED, "matrix": MATRIX, "accuracy": MATRIX_ACCURACY}
    return (
        environment()
        .get_template("report.html.j2")
        .render(e=evidence, page=page, seed=seed, figures=figures(evidence, page))
    )


def report_markdown(evidence: Mapping[str, Any], page: Mapping[str, Any]) -> str:
    """report.md: the tables without the figures."""
    return environment(markdown=True).get_template("report.md.j2").render(e=evidence, page=page)


def model_card(evidence: Mapping[str, Any], page: Mapping[str, Any]) -> str:
    """model_card.md: intended use, data and licence, figures, limits."""
    return environment(markdown=True).get_template("model_card.md.j2").render(e=evidence, page=page)


def comparison_html(comparison: Mapping[str, Any]) -> str:
    """comparison.html; its own script sorts the table."""
    curves = {name: curve for name, curve in comparison["roc"].items() if curve}
    films = " or ".join(map(thousands, comparison["n"][comparison["judged"]]))
    picture = drawn.inline(drawn.overlaid_roc(curves, comparison["judged"], films)) if curves else ""
    return environment().get_template("comparison.html.j2").render(c=comparison, picture=picture)


def figures(evidence: Mapping[str, Any], page: Mapping[str, Any]) -> dict[str, str]:
    """{name: data URI} of the figures that these data have."""
    name, point = evidence["judged"], evidence["operating_point"]
    split = evidence["splits"][name]
    bins = split["reliability"]
    made = {
        "scores": drawn.score_histograms(evidence["splits"], point["threshold"]),
        "reliability": drawn.reliability(bins["before"], bins["after"], name, scaling(point)),
        "matrix": confusion_matrix(**split["counts"], title=f"{name}, threshold {point['threshold']:.3f}"),
        "abstention": drawn.risk_against_coverage(evidence["abstention"], name),
    }
    if any(part["curves"] for part in evidence["splits"].values()):
        made["curves"] = drawn.curves_with_bands(evidence["splits"], evidence["options"]["level"])
    if evidence["drift"] is not None:
        rows = [row for row in evidence["drift"]["metrics"] if row["interval"]]
        if rows:
            made["drift"] = drawn.metric_drift(rows, [label(row["metric"]) for row in rows])
    if page["history"] and "epoch" in page["history"][0]:
        made["history"] = history_curves(page["history"], best_epoch(page))
    return {key: drawn.inline(figure) for key, figure in made.items()}


def scaling(point: Mapping[str, Any]) -> str:
    """What was fitted to the probabilities."""
    if not point["temperature_fitted"]:
        return "nothing fitted"
    return f"temperature {point['temperature']:.3g}" + (f", bias {point['bias']:.3g}" if point["bias"] else "")


def best_epoch(page: Mapping[str, Any]) -> int | None:
    """The epoch whose weights were kept: the last that was validated, or the first that reached the run's objective,
    where it is told."""
    if page["keep"] == "last":
        row = last_validated(page["history"])
        return None if row is None else int(row["epoch"] or 0)
    told = page["objective"] or {}
    rows = [row for row in page["history"] if row.get(told.get("name", "")) is not None]
    value = told.get("value")
    return next((int(row["epoch"]) for row in rows if row[told["name"]] == value), None)


def thousands(films: int) -> str:
    """A whole number with commas between thousands."""
    return f"{films:,}"


def counted(count: int, one: str, many: str = "") -> str:
    """1 film, 2,000 films; `many` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def number(value: float | None, digits: int = 3) -> str:
    """No minus before what rounds to 0."""
    return "undefined" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f} %"


def level(share: float) -> str:
    """The level of an interval as it was asked for: 95 %, 99.9 %."""
    return f"{100 * share:.10g} %"


def estimate(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A value with its interval in brackets."""
    if not found or found["value"] is None:
        return "undefined"
    return number(found["value"], digits) + interval(found["interval"], digits)


def interval(low_high: Sequence[float] | None, digits: int = 3) -> str:
    return f" [{number(low_high[0], digits)}, {number(low_high[1], digits)}]" if low_high else ""


def p_value(value: float | None) -> str:
    return "undefined" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def label(name: str) -> str:
    """A metric's name for a reader."""
    return NAMES.get(name, name.replace("_", " "))


def plain(text: object) -> str:
    """Text that Markdown shows as it stands: one line, no markup, no HTML."""
    return MARKUP.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
