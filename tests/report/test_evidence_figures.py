"""What the figures of a report show: read back from their axes."""

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pneumonia.report.evidence_figures import (
    curves_with_bands,
    metric_drift,
    overlaid_roc,
    reliability,
    score_histograms,
)
from pneumonia.report.figures import BLUE, GREY, VERMILION
from pneumonia.report.pages import best_epoch


def points(figure: Figure, panel: int) -> list[tuple[float, float]]:
    """Where the markers of a panel are."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))  # type: ignore[index]
        for line in figure.axes[panel].lines
        if line.get_marker() == "o"
    ]


def test_the_circle_on_both_curves_is_the_locked_threshold() -> None:
    band = {name: [0.0, 0.5, 1.0] for name in ("grid", "low", "high", "estimate")}
    metrics = {"sensitivity": 0.8, "specificity": 0.9, "ppv": 0.7}
    split = {
        "curves": {"roc": band, "pr": band}, "metrics": {name: {"value": value} for name, value in metrics.items()},
    }  # fmt: skip
    figure = curves_with_bands({"test": split}, 0.95)
    assert points(figure, 0) == [pytest.approx((0.1, 0.8))]
    assert points(figure, 1) == [pytest.approx((0.8, 0.7))]
    assert not any(line.get_clip_on() for axes in figure.axes for line in axes.lines if line.get_marker() == "o")


def test_reliability_before_stands_left_of_after() -> None:
    def bins(rate: float) -> list[dict[str, Any]]:
        return [{"films": 5, "mean_probability": 0.25, "positive_rate": rate}, {"films": 0}]

    figure = reliability(bins(0.1), bins(0.9), "test", "temperature 1.5")
    for axes, title, rate in zip(figure.axes, ("Before", "After, temperature 1.5"), (0.1, 0.9), strict=True):
        assert axes.get_title() == title
        assert axes.collections[0].get_offsets().tolist() == [[0.25, rate]]  # type: ignore[union-attr]


def test_each_class_keeps_its_colour_and_its_films() -> None:
    counts = {"NORMAL": [3] * 20, "PNEUMONIA": [7] * 20}
    figure = score_histograms({"val": {"histogram": counts, "n": 200}}, 0.3)
    drawn = {str(patch.get_label()): patch for patch in figure.axes[0].patches}
    for name, colour in (("NORMAL", BLUE), ("PNEUMONIA", VERMILION)):
        assert to_rgb(drawn[name].get_edgecolor()) == to_rgb(colour)
        assert np.array_equal(drawn[name].get_data().values, counts[name])  # type: ignore[attr-defined]
    [line] = figure.axes[0].lines
    assert line.get_xdata()[0] == 0.3  # type: ignore[index]


def test_a_fall_on_test_lies_left_of_nought_and_what_may_be_chance_is_grey() -> None:
    rows = [
        {"difference": -0.2, "interval": [-0.3, -0.1]}, {"difference": 0.1, "interval": [-0.1, 0.3]},
        {"difference": 0.5, "interval": None},
    ]  # fmt: skip
    figure = metric_drift(rows, ["fallen", "steady", "unknown"])
    assert points(figure, 0) == [(0.1, 0.0), (-0.2, 1.0)]  # the first row on top
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [to_rgb(colour) for colour in colours] == [to_rgb(GREY), to_rgb(VERMILION)]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["steady", "fallen"]


def test_the_kept_epoch_is_the_first_that_reached_the_objective_or_the_last_where_that_is_kept() -> None:
    history = [{"epoch": k, "val/auroc": value} for k, value in enumerate((0.7, 0.9, 0.9, 0.8))]
    page = {"keep": "best", "history": history, "objective": {"name": "val/auroc", "value": 0.9}}
    assert best_epoch(page) == 1
    assert best_epoch(page | {"keep": "last"}) == 3
    assert best_epoch(page | {"objective": None}) is None


def test_each_run_has_its_own_curve_and_the_best_stands_first() -> None:
    curves = {f"run {k}": ([0.0, 0.1 * k, 1.0], [0.0, 1 - 0.1 * k, 1.0]) for k in range(9)}
    figure = overlaid_roc(curves, "test", "1,312")
    assert figure.get_suptitle() == "ROC on test (n = 1,312 films)"
    *drawn, chance = figure.axes[0].lines
    assert [str(line.get_label()) for line in drawn] == list(curves)
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in drawn] == list(curves.values())  # type: ignore[arg-type]
    assert len({(str(line.get_color()), line.get_linestyle()) for line in drawn}) == 9
    assert list(chance.get_xdata()) == list(chance.get_ydata()) == [0, 1]  # type: ignore[arg-type]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(curves)
    assert figure.axes[0].get_xlabel() == "1 - specificity" and figure.axes[0].get_ylabel() == "sensitivity"
