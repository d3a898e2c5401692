"""Draw the figures of a run: arrays and counts in, a matplotlib Figure out; `save` puts it on disk.

Films     uint8 [S, S], 0 black .. 255 white
Colours   Okabe and Ito, safe for the colour-blind: NORMAL blue, PNEUMONIA vermilion; train grey, val green
Backend   Figure objects without pyplot: no display, no global list of open figures, nothing shared between threads
Text      file names are drawn as they are: `$` starts no formula, and a glyph the font lacks becomes `?`
"""

import math
import textwrap
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from pneumonia.files import written

Film = NDArray[np.uint8]
Layer = tuple[str, str, tuple[int, ...], int]  # name, kind, output shape without the batch, parameters

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
CLASS_COLOURS = {"NORMAL": BLUE, "PNEUMONIA": VERMILION}
OTHER_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442")  # classes beyond the two: the rest of Okabe and Ito
LAYER_TINTS = {"Conv": "#D9F0E8", "Linear": "#FBF3C4", "Pool": "#F3E1EC", "Norm": "#E3F1FB"}

DPI = 150
TITLE, TEXT, SMALL = 13, 10, 8.5  # font sizes in points
MAX_FILMS = 12  # on one sheet

# Sizes of the structure figure, in inches.
BOX, GAP, COLUMN_GAP, LINE, PAD = 3.3, 0.22, 0.55, 0.19, 0.07


def save(figure: Figure, path: Path) -> None:
    """Write a PNG at 150 dpi; a failed drawing leaves the file that was there, and nothing half-written."""
    with written(path) as temporary:
        # Without the Software entry the same figure gives the same bytes under every matplotlib patch release.
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})


def class_counts(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Films of each class in each split, `{"train": {"NORMAL": 1073, "PNEUMONIA": 3100}, ...}`, as grouped bars.

    Each bar carries its count and its share of the split; a class that a split lacks counts as 0.
    """
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    totals = np.array([sum(split.values()) for split in counts.values()], dtype=np.int64)
    figure = _figure(max(6.4, 1.0 + 1.15 * len(counts) * max(1, len(classes))), 4.8)
    axes = figure.subplots()
    width = 0.8 / max(1, len(classes))
    for index, name in enumerate(classes):
        heights = [split.get(name, 0) for split in counts.values()]
        offset = (index - (len(classes) - 1) / 2) * width
        colour = CLASS_COLOURS.get(name.upper(), OTHER_COLOURS[index % len(OTHER_COLOURS)])
        bars = axes.bar(np.arange(len(counts)) + offset, heights, width * 0.94, color=colour, label=_plain(name))
        labels = [f"{n:,}\n{_percent(n, total)}" for n, total in zip(heights, totals, strict=True)]
        axes.bar_label(bars, labels, padding=3, fontsize=TEXT)
    ticks = [
        f"{_wrap(name, 12 * max(1, len(classes)))}\nn = {total:,}" for name, total in zip(counts, totals, strict=True)
    ]
    axes.set_xticks(np.arange(len(counts)), ticks, fontsize=TEXT)
    axes.set_ylabel("films", fontsize=TEXT)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(0, 1.18 * max([1, *(n for split in counts.values() for n in split.values())]))
    axes.spines[["top", "right"]].set_visible(False)
    if classes:
        figure.legend(loc="outside lower center", ncols=len(classes), frameon=False, fontsize=TEXT)
    _title(figure, "Films per class and split", f"n = {totals.sum():,}")
    return figure


def films(
    normal: Sequence[Film], pneumonia: Sequence[Film], captions: Sequence[tuple[str, str]], source: str = ""
) -> Figure:
    """Normal films above, pneumonia below; captions are (file name, subtype or ""), those of the normal films first.

    source: whom to credit for the films, drawn as a footnote.
    """
    if len(captions) != len(normal) + len(pneumonia):
        raise ValueError(f"Expected {len(normal)} + {len(pneumonia)} captions, one a film; got {len(captions)}.")
    columns = max(1, len(normal), len(pneumonia))
    figure = _figure(max(4.0, 2.7 * columns), 7.1)
    rows: Sequence[SubFigure] = list(figure.subfigures(2, 1, hspace=0.03, squeeze=False).ravel())
    texts = (captions[: len(normal)], captions[len(normal) :])
    for row, name, images, lines in zip(rows, CLASS_COLOURS, (normal, pneumonia), texts, strict=True):
        row.suptitle(f"{name} (n = {len(images)})", color=CLASS_COLOURS[name], fontsize=TITLE, fontweight="bold")
        _grid(row, images, lines, columns, CLASS_COLOURS[name])
    _footnote(figure, source)
    return figure


def film_sheet(images: Sequence[Film] | Film, captions: Sequence[str], title: str, source: str = "") -> Figure:
    """A sheet of up to 12 films [N, S, S], as training sees them; the title says how many of how many are shown."""
    if len(captions) != len(images):
        raise ValueError(f"Expected {len(images)} captions, one a film; got {len(captions)}.")
    shown = min(len(images), MAX_FILMS)
    columns = shown if shown <= 4 else 3 if shown <= 6 else 4
    rows = max(1, math.ceil(shown / max(1, columns)))
    figure = _figure(max(5.4, 2.7 * columns), 0.7 + 2.95 * rows)
    _grid(figure, images[:shown], [(caption, "") for caption in captions[:shown]], max(1, columns), GREY)
    _title(figure, title, f"n = {shown} of {len(images)}" if shown < len(images) else f"n = {shown}")
    _footnote(figure, source)
    return figure


def structure(layers: Sequence[Layer], title: str) -> Figure:
    """The layers in the order of the flow, down each column and on to the next: (name, kind, output shape, parameters).

    A layer without parameters that keeps the shape (ReLU, Dropout) is a line in the box of the layer before it. The
    parts of a block with a `shortcut` do not follow each other: no arrow stands between them, and the title says so.
    """
    residual = {name.partition(".shortcut")[0] for name, *_ in layers if ".shortcut" in name}
    title += "; no arrows within a block, whose shortcut is added" if residual else ""
    columns = _columns(_boxes(layers))
    height = max(sum(_height(box) + GAP for box in column) for column in columns)
    width = max(5.2, len(columns) * (BOX + COLUMN_GAP))
    margin = (width - len(columns) * (BOX + COLUMN_GAP) + COLUMN_GAP) / 2
    figure = Figure(figsize=(width, height), facecolor="white")
    lines = _title(figure, title, f"n = {len(layers)} layers, {sum(layer[3] for layer in layers):,} parameters")
    page = height + 0.25 + 0.22 * lines
    figure.set_size_inches(width, page)
    axes = figure.add_axes((0, 0, 1, height / page), xlim=(0, width), ylim=(height, 0))  # a unit is an inch
    axes.set_axis_off()
    places: list[tuple[float, float, float]] = []  # left, top, height
    for index, column in enumerate(columns):
        left, top = margin + index * (BOX + COLUMN_GAP), GAP / 2
        for box in column:
            _draw_box(axes, box, left, top)
            places.append((left, top, _height(box)))
            top += _height(box) + GAP
    of = [_block(box[0][0], residual) for column in columns for box in column]
    for (start, end), (block, following) in zip(pairwise(places), pairwise(of), strict=True):
        if not block or block != following:
            _draw_arrow(axes, start, end)
    return figure


def curves(history: Sequence[Mapping[str, float | None]], best_epoch: int | None) -> Figure:
    """Accuracy and loss of train and val over the epochs, and the epoch whose weights were kept, drawn from 1 as the
    terminal counts them.

    history: a row an epoch with epoch (from 0, as best_epoch), train/accuracy, val/accuracy, train/loss, val/loss; a
    value that is missing, None or not finite is left out, and the line goes on to the next one.
    """
    history = [{**row, "epoch": None if row["epoch"] is None else row["epoch"] + 1} for row in history]
    figure = _figure(10, 4.6)
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("accuracy", "loss"), strict=True):
        _curve(axes, history, metric)
        _epoch_axis(axes, [row["epoch"] for row in history])
        if best_epoch is not None:
            line = axes.axvline(best_epoch + 1, color="black", linestyle=":", linewidth=1.4, zorder=1)
            line.set_label(f"kept epoch: {best_epoch + 1}")
    panels[0].set_ylim(top=min(1.005, panels[0].get_ylim()[1]))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT)
    _title(figure, "Training history", f"n = {len(history)} epoch{'' if len(history) == 1 else 's'}")
    return figure


def last_validated(history: Sequence[dict[str, float | None]]) -> dict[str, float | None] | None:
    """The last epoch of the history that has figures of validation films."""
    seen = (r for r in reversed(history) if any(r[name] is not None for name in r if name.startswith("val/")))
    return next(seen, None)


def confusion_matrix(tn: int, fp: int, fn: int, tp: int, title: str) -> Figure:
    """True class down, predicted class across; a cell holds its count and its share of the true class.

    The deeper the colour, the larger the share: a row's colour is its class's, and counts never tint a cell, so the
    larger class doesn't look like the better one.
    """
    figure = _figure(5.6, 5.0)
    axes = figure.subplots()
    names = list(CLASS_COLOURS)
    rows = ((tn, fp), (fn, tp))
    for row, (name, cells) in enumerate(zip(names, rows, strict=True)):
        shades = LinearSegmentedColormap.from_list(name, ["white", CLASS_COLOURS[name]])
        for column, count in enumerate(cells):
            colour = to_rgb(shades(count / max(1, sum(cells))))
            axes.fill_between((column - 0.5, column + 0.5), row - 0.5, row + 0.5, color=colour, linewidth=0)
            text, ink = f"{count:,}\n{_percent(count, sum(cells))}", _ink(colour)
            axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=16, linespacing=1.4)
    axes.set_xticks((0, 1), names, fontsize=TEXT)
    ticks = [f"{name}\nn = {sum(cells):,}" for name, cells in zip(names, rows, strict=True)]
    axes.set_yticks((0, 1), ticks, fontsize=TEXT, rotation=90, va="center", ma="center")
    axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), aspect="equal")
    axes.set_xlabel("predicted", fontsize=TEXT + 1, labelpad=8)
    axes.set_ylabel("true", fontsize=TEXT + 1, labelpad=8)
    axes.tick_params(length=0)
    _title(figure, title, f"n = {tn + fp + fn + tp:,}")
    return figure


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches around every axes
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _title(figure: Figure, text: str, size: str) -> int:
    """A bold title and in brackets what it's drawn from, in lines as wide as the figure; how many lines."""
    room = int(8 * figure.get_figwidth())  # about 8 bold characters an inch
    title = _wrap(text, room)
    gap = " " if len(title) + len(size) + 3 <= room else "\n"
    figure.suptitle(f"{title}{gap}({size})", fontsize=TITLE, fontweight="bold")
    return f"{title}{gap}".count("\n") + 1


def _footnote(figure: Figure, text: str) -> None:
    if text:  # an axis label of the whole figure: the layout makes room for it
        figure.supxlabel(_wrap(text, int(14 * figure.get_figwidth())), fontsize=SMALL, color=GREY)


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "no films"


def _ink(colour: tuple[float, float, float]) -> str:
    """Black or white, whichever stands out more (WCAG 2.1, relative luminance: they break even at 0.179)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return "black" if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) > 0.179 else "white"


def _grid(
    figure: FigureBase, images: Sequence[Film] | Film, captions: Sequence[tuple[str, str]], columns: int, colour: str
) -> None:
    """Films in rows of `columns`, each framed in `colour` over its caption of one or two lines."""
    grid = figure.subplots(max(1, math.ceil(len(images) / columns)), columns, squeeze=False).ravel()
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    for axes, image, lines in zip(grid, images, captions, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_anchor("N")  # spare height goes under the caption, not between the title and the film
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=colour, linewidth=1.5)
        axes.set_xlabel("\n".join(_fit(line, 2.35, SMALL) for line in lines if line), fontsize=SMALL)


def _curve(axes: Axes, history: Sequence[Mapping[str, float | None]], metric: str) -> None:
    """One metric of train and val, with a marker on every value, so that one epoch alone shows too."""
    series = {split: _series(history, f"{split}/{metric}") for split in ("train", "val")}
    for (split, (epochs, values)), colour, style in zip(series.items(), (GREY, GREEN), ("o--", "s-"), strict=True):
        axes.plot(epochs, values, style, color=colour, markersize=5, linewidth=1.8, label=split)
    if not any(values for _, values in series.values()):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])
    axes.set_title(metric.capitalize(), fontsize=TEXT + 1)
    axes.set_ylabel(metric, fontsize=TEXT)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _series(history: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have a finite value."""
    points = [(row["epoch"], row.get(key)) for row in history]
    known = [(epoch, y) for epoch, y in points if epoch is not None and y is not None and math.isfinite(y)]
    return [epoch for epoch, _ in known], [y for _, y in known]


def _epoch_axis(axes: Axes, epochs: Sequence[float | None]) -> None:
    """Whole numbers only, and room on both sides: a single epoch needs a width, a best epoch at an end its line."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=TEXT)
    known = [epoch for epoch in epochs if epoch is not None]
    if known:
        room = max(0.5, 0.03 * (max(known) - min(known)))
        axes.set_xlim(min(known) - room, max(known) + room)


def _block(name: str, blocks: Collection[str]) -> str:
    """The block that a layer is part of; nothing for one that is of none."""
    return next((block for block in blocks if name.startswith(f"{block}.")), "")


def _boxes(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers that share a box: one that changes the shape or has parameters, and those after it that do neither."""
    boxes: list[list[Layer]] = []
    for layer in layers:
        if boxes and layer[3] == 0 and layer[2] == boxes[-1][0][2]:
            boxes[-1].append(layer)
        else:
            boxes.append([layer])
    return boxes


def _height(box: Sequence[Layer]) -> float:
    """Inches: a line for the name, one for shape and parameters, one for each layer taken in."""
    return LINE * (1 + len(box)) + 2 * PAD


def _columns(boxes: Sequence[list[Layer]]) -> list[list[list[Layer]]]:
    """Columns of about equal height, as many as make the page about 1.3 times as wide as it is high."""
    ends = np.cumsum([_height(box) + GAP for box in boxes])
    count = max(1, round(math.sqrt(1.3 * float(ends[-1]) / (BOX + COLUMN_GAP))))
    columns: list[list[list[Layer]]] = [[] for _ in range(count)]
    for box, end in zip(boxes, ends, strict=True):
        columns[min(count - 1, int(count * (end - _height(box) / 2 - GAP) / ends[-1]))].append(box)
    return [column for column in columns if column]


def _draw_box(axes: Axes, box: Sequence[Layer], left: float, top: float) -> None:
    name, kind, shape, parameters = box[0]
    tint = next((tint for word, tint in LAYER_TINTS.items() if word in kind), "#F2F2F2")
    axes.add_patch(
        FancyBboxPatch(
            (left, top), BOX, _height(box), boxstyle="round,pad=0,rounding_size=0.06", facecolor=tint, edgecolor=GREY
        )
    )
    output = " \N{MULTIPLICATION SIGN} ".join(f"{size:,}" for size in shape)
    count = f"{parameters:,} parameters" if parameters else "no parameters"
    _draw_line(axes, name, kind, left, top + PAD + LINE / 2, "black", "bold")
    _draw_line(axes, output, count, left, top + PAD + LINE * 1.5, "black", "normal")
    for index, (name, kind, _, _) in enumerate(box[1:], start=2):
        _draw_line(axes, name, f"+ {kind}", left, top + PAD + LINE * (index + 0.5), GREY, "normal")


def _draw_line(axes: Axes, start: str, end: str, left: float, y: float, colour: str, weight: str) -> None:
    """One line of a box: a text at its left edge, another at its right; too long ones lose their middle."""
    room = BOX - 4 * PAD
    start, end = _fit(start, 0.52 * room, SMALL, weight), _fit(end, 0.48 * room, SMALL)
    axes.text(left + PAD, y, start, fontsize=SMALL, fontweight=weight, va="center", color=colour)
    axes.text(left + BOX - PAD, y, end, fontsize=SMALL, va="center", ha="right", color=colour)


def _draw_arrow(axes: Axes, start: tuple[float, float, float], end: tuple[float, float, float]) -> None:
    """From the foot of a box to the head of the next; to the next column from side to side, through the gap."""
    if start[0] == end[0]:
        path = [(start[0] + BOX / 2, start[1] + start[2]), (end[0] + BOX / 2, end[1])]
    else:
        middle, y_start, y_end = end[0] - COLUMN_GAP / 2, start[1] + start[2] / 2, end[1] + end[2] / 2
        path = [(start[0] + BOX, y_start), (middle, y_start), (middle, y_end), (end[0], y_end)]
    axes.plot(*zip(*path[:-1], strict=True), color=GREY, linewidth=1.2, solid_joinstyle="round")
    head = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=path[-1], xytext=path[-2], arrowprops=head)


def _drawable(text: str) -> str:
    """The text with `?` for what the default font cannot draw; matplotlib would warn, or fail on a lone surrogate."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    return "".join(c if c.isprintable() and ord(c) in glyphs else "?" for c in text)


def _plain(text: str) -> str:
    """Text that matplotlib draws as it stands: a `$` begins no formula."""
    return _drawable(text).replace("$", r"\$")


def _wrap(text: str, characters: int) -> str:
    return "\n".join(_plain(line) for line in textwrap.wrap(text, characters))


def _fit(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """The text in plain form, its middle left out as far as it is wider than `inches`: the ends tell films apart."""
    font, text = FontProperties(size=size, weight=weight), _drawable(text)

    def too_wide(candidate: str) -> bool:
        width: float = text_to_path.get_text_width_height_descent(candidate, font, ismath=False)[0]
        return width > 72 * inches

    def shortened(keep: int) -> str:
        return f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"

    if not too_wide(text):
        return _plain(text)
    return _plain(shortened(bisect_left(range(1, len(text)), True, key=lambda keep: too_wide(shortened(keep)))))
