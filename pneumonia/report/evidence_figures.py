"""Figures of the evidence: plain arrays in, a matplotlib Figure out; `inline` makes it a data URI.

The look is that of `figures`: Okabe and Ito, no pyplot. Validation is green and dashed, the judged split black.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from pneumonia.report.figures import (
    CLASS_COLOURS,
    GREEN,
    GREY,
    OTHER_COLOURS,
    TEXT,
    TITLE,
    Film,
    _figure,
    _plain,
    _title,
)

DPI = 110
LINES = ("#0072B2", "#D55E00", "#009E73", *OTHER_COLOURS[:3], "#000000")
STYLES = ("-", "--", ":", "-.")
ENLARGED = 4  # pixels a side for one of a corner
WIDTH = 1100  # pixels, at most, of a sheet in a page
FRAME = "#E69F00"


def inline(figure: Figure) -> str:
    """A PNG data URI; equal figures give equal text."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def inline_film(film: Film) -> str:
    """A film uint8 [S, S] as a small JPEG data URI."""
    return jpeg_uri(Image.fromarray(film))


def inline_framed(corner: Film, place: tuple[int, int], size: tuple[int, int]) -> str:
    """A corner uint8 [H, W] ENLARGED, an orange frame around a window (top, left; height, width): a data URI."""
    picture = Image.fromarray(corner.repeat(ENLARGED, 0).repeat(ENLARGED, 1)).convert("RGB")
    (top, left), (height, width) = place, size
    frame = (ENLARGED * left - 2, ENLARGED * top - 2, ENLARGED * (left + width) + 1, ENLARGED * (top + height) + 1)
    ImageDraw.Draw(picture).rectangle(frame, outline=FRAME, width=2)
    return jpeg_uri(picture)


def inline_sheet(file: Path) -> str:
    """A picture file as a JPEG data URI at most WIDTH pixels wide."""
    with Image.open(file) as picture:
        sheet = picture.convert("RGB")
    sheet.thumbnail((WIDTH, 10 * WIDTH))
    return jpeg_uri(sheet)


def jpeg_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def curves_with_bands(splits: Mapping[str, Mapping[str, Any]], level: float) -> Figure:
    """ROC and precision-recall of every split that has them, each with its band, and the operating point."""
    figure = _figure(10, 4.9)
    panels = figure.subplots(1, 2)
    for kind, axes in zip(("roc", "pr"), panels, strict=True):
        for name, split in splits.items():
            if split["curves"]:
                draw_band(axes, split["curves"][kind], name)
                draw_point(axes, split, kind, name)
    roc, pr = panels
    roc.plot((0, 1), (0, 1), color="#BBBBBB", linewidth=1, linestyle=":")
    square(roc, "ROC", "1 - specificity", "sensitivity")
    square(pr, "Precision and recall", "recall (sensitivity)", "precision (PPV)")
    handles, labels = roc.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=TEXT)
    _title(figure, "Ranking", f"bands: {100 * level:g} % over patients; circle: locked threshold")
    return figure


def draw_band(axes: Axes, band: Mapping[str, Sequence[float]], name: str) -> None:
    colour, style = (GREEN, "--") if name == "val" else ("black", "-")
    axes.fill_between(band["grid"], band["low"], band["high"], color=colour, alpha=0.15, linewidth=0)
    axes.plot(band["grid"], band["estimate"], color=colour, linestyle=style, linewidth=1.8, label=name)


def draw_point(axes: Axes, split: Mapping[str, Any], kind: str, name: str) -> None:
    value = {key: split["metrics"][key]["value"] for key in ("sensitivity", "specificity", "ppv")}
    x = None if value["specificity"] is None else 1 - value["specificity"]
    pair = (x, value["sensitivity"]) if kind == "roc" else (value["sensitivity"], value["ppv"])
    if pair[0] is not None and pair[1] is not None:
        axes.plot(
            pair[0], pair[1], "o", color=GREEN if name == "val" else "black", markersize=8, markerfacecolor="white",
            clip_on=False, zorder=3,
        )  # fmt: skip


def square(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(title, fontsize=TEXT + 1)
    axes.set_xlabel(across, fontsize=TEXT)
    axes.set_ylabel(up, fontsize=TEXT)
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def score_histograms(splits: Mapping[str, Mapping[str, Any]], threshold: float) -> Figure:
    """Films by probability, a panel a split, a colour a class, and the locked threshold."""
    figure = _figure(10, 3.9)
    panels = figure.subplots(1, len(splits), squeeze=False).ravel()
    edges = np.linspace(0, 1, 21)
    for axes, (name, split) in zip(panels, splits.items(), strict=True):
        for label, counts in split["histogram"].items():
            axes.stairs(counts, edges, color=CLASS_COLOURS[label], fill=True, alpha=0.45)
            axes.stairs(counts, edges, color=CLASS_COLOURS[label], linewidth=1.6, label=label)
        axes.axvline(threshold, color="black", linestyle=":", linewidth=1.4, label=f"threshold {threshold:.3f}")
        axes.set_title(f"{name} (n = {split['n']:,})", fontsize=TEXT + 1)
        axes.set_xlabel("probability of pneumonia", fontsize=TEXT)
        axes.set_ylabel("films", fontsize=TEXT)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT)
    figure.suptitle("Scores by class", fontsize=TITLE, fontweight="bold")
    return figure


def reliability(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], name: str, scaling: str
) -> Figure:
    """Share of pneumonia against predicted probability, before and after `scaling`; area: films of a bin."""
    figure = _figure(10, 4.9)
    panels = figure.subplots(1, 2)
    titles = ("Before", f"After, {scaling}")
    for axes, bins, title in zip(panels, (before, after), titles, strict=True):
        known = [b for b in bins if b["films"]]
        films = np.array([b["films"] for b in known], float)
        x, y = [b["mean_probability"] for b in known], [b["positive_rate"] for b in known]
        axes.plot((0, 1), (0, 1), color="#BBBBBB", linewidth=1, linestyle=":")
        axes.plot(x, y, color="black", linewidth=1.2)
        axes.scatter(
            x, y, s=18 + 320 * films / max(1.0, films.max()), color=CLASS_COLOURS["NORMAL"], alpha=0.7, zorder=3,
            clip_on=False,
        )  # fmt: skip
        square(axes, title, "predicted probability", "share with pneumonia")
    _title(figure, f"Reliability on {name}", "dotted: probabilities that can be taken at their word")
    return figure


def risk_against_coverage(curve: Mapping[str, Any], name: str) -> Figure:
    """Errors among the films that are called, when only the surest share is called."""
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    axes.plot(curve["coverage"], curve["risk"], "o-", color="black", markersize=4, linewidth=1.6)
    axes.set(xlim=(0, 1.02), ylim=(0, max(0.02, 1.15 * max(curve["risk"]))))
    axes.set_xlabel("share of films called, surest first", fontsize=TEXT)
    axes.set_ylabel("share of errors among them", fontsize=TEXT)
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _title(figure, f"Abstention on {name}", f"area {curve['aurc']:.4f}")
    return figure


def metric_drift(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Test minus validation of every metric, named by `names`, with its interval; to the right: more on test."""
    known = [(row, name) for row, name in zip(rows, names, strict=True) if row["interval"]]
    figure = _figure(7.2, 1.2 + 0.34 * max(1, len(known)))
    axes = figure.subplots()
    for place, (row, _) in enumerate(reversed(known)):
        low, high = row["interval"]
        clear = low > 0 or high < 0
        colour = CLASS_COLOURS["PNEUMONIA"] if clear else GREY
        axes.plot((low, high), (place, place), color=colour, linewidth=2.2)
        axes.plot(row["difference"], place, "o", color=colour, markersize=6)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(known)), [name for _, name in reversed(known)], fontsize=TEXT)
    axes.set_xlabel("test minus validation", fontsize=TEXT)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Drift (orange: more than chance)", fontsize=TITLE, fontweight="bold")
    return figure


def overlaid_roc(curves: Mapping[str, Sequence[Sequence[float]]], split: str, films: str) -> Figure:
    """ROC curves of several runs, {name: (1 - specificity [K], sensitivity [K])}, best first, and of how many films."""
    figure = _figure(7.2, 6.4 + 0.22 * len(curves))
    axes = figure.subplots()
    for index, (name, (x, y)) in enumerate(curves.items()):
        colour, style = LINES[index % len(LINES)], STYLES[index // len(LINES) % len(STYLES)]
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, label=_plain(name)[:60])
    axes.plot((0, 1), (0, 1), color="#BBBBBB", linewidth=1, linestyle=":")
    square(axes, "", "1 - specificity", "sensitivity")
    figure.legend(loc="outside lower center", ncols=2 if len(curves) > 4 else 1, frameon=False, fontsize=TEXT)
    _title(figure, f"ROC on {split}", f"n = {films} films")
    return figure
