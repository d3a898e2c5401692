"""Draw the scoreboard of attribution methods: one panel per measure, one row per method, best method on top."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pneumonia.report.figures import BLUE, GREY, SMALL, TEXT, VERMILION, _figure, _fit, _footnote, _plain, _title

COLUMNS = 5


@dataclass(frozen=True)
class Measure:
    """`better` is higher, lower or "": which end of it is the good one."""

    name: str
    title: str
    better: str


def scoreboard(
    methods: Sequence[str], rank: Sequence[float | None], measures: Sequence[Measure],
    values: Mapping[str, Sequence[Mapping[str, Any]]], agreement: NDArray[np.floating], size: str, note: str = "",
) -> Figure:  # fmt: skip
    """Mean and interval of every method in every measure, and the table of agreement [M, M].

    values: {measure: [{"mean": 0.9, "low": 0.8, "high": 1.0}, ...]} in the order of `methods`; None is not drawn.
    """
    panels = 2 + len(measures)  # the ranks first, the agreement last
    rows = math.ceil(panels / COLUMNS)
    height = 1.2 + 0.3 * len(methods)
    figure = _figure(3.0 * COLUMNS + 1.0, 0.8 + height * rows)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    flat = list(grid.ravel())
    _rank_panel(flat[0], rank)
    for axes, measure in zip(flat[1:], measures, strict=False):
        _panel(axes, measure, values[measure.name])
    _agreement_panel(flat[panels - 1], agreement)
    for axes in flat[panels:]:
        axes.set_axis_off()
    for place, axes in enumerate(flat[:panels]):
        labels = [_fit(name, 1.6, SMALL) for name in methods] if place % COLUMNS == 0 else [""] * len(methods)
        axes.set_yticks(range(len(methods)), labels, fontsize=SMALL)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=SMALL)
    _title(figure, "Attribution methods, best first", size)
    coloured = "orange: the best mean of a measure" if any(measure.better for measure in measures) else ""
    _footnote(figure, " \N{MIDDLE DOT} ".join(text for text in (coloured, note) if text))
    return figure


def _rank_panel(axes: Axes, places: Sequence[float | None]) -> None:
    rank = [place for place in places if place is not None]
    axes.set_title("mean rank\n(lower is better)", fontsize=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    if not rank:
        axes.text(0.5, 0.5, "a single method has none", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    axes.barh(range(len(rank)), rank, color=BLUE, height=0.62)
    for place, value in enumerate(rank):
        axes.text(value, place, f" {value:.1f}", va="center", fontsize=SMALL)
    axes.set_xlim(0, 1.18 * max(rank))


def _panel(axes: Axes, measure: Measure, values: Sequence[Mapping[str, Any]]) -> None:
    """Dots with their intervals; the best mean is filled orange."""
    known = [(place, value) for place, value in enumerate(values) if value.get("mean") is not None]
    means = [value["mean"] for _, value in known]
    best = None if not measure.better or not means else best_of(means, measure.better)
    for place, value in known:
        colour = VERMILION if value["mean"] == best else BLUE if measure.better else GREY
        axes.plot((value["low"], value["high"]), (place, place), color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(value["mean"], place, "o", color=colour, markersize=5)
    for place in sorted(set(range(len(values))) - {place for place, _ in known}):
        axes.text(0.5, place, "no value", transform=axes.get_yaxis_transform(), ha="center", va="center", color=GREY)
    if means and min(means) > 0 and max(means) / min(means) > 50:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=4)
    way = f"({measure.better} is better)" if measure.better else "(describes)"
    axes.set_title(f"{_plain(measure.title)}\n{way}", fontsize=TEXT)
    axes.grid(axis="both", color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def best_of(means: Sequence[float], better: str) -> float:
    return max(means) if better == "higher" else min(means, key=abs) if better == "nearer 0" else min(means)


def _agreement_panel(axes: Axes, table: NDArray[np.floating]) -> None:
    """Rank correlation of |attribution| between methods, in the order of the rows."""
    axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*table.shape):
        value = table[row, column]
        ink = "white" if value < 0.5 or not np.isfinite(value) else "black"
        text = f"{value:.1f}" if np.isfinite(value) else "-"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=ink)
    axes.set_xticks([])
    axes.set_title("agreement, rank correlation\n(columns as the rows)", fontsize=TEXT)
