"""Draw explanations: each film beside itself with its attribution laid over it, and what every layer makes of a film.

Colours   for and against pneumonia: colour_blind orange and blue (the colours of the classes in every other figure),
          green_red green and red, as in the notebooks
Scale     each film has its own, from its 99.5th percentile of |attribution| down to 0; the caption gives its value
Ink       the deeper the colour, the stronger the attribution; none leaves the film grey, and a film whose scale is less
          than a hundredth of the sheet's largest pales by as much, for its map tells next to nothing
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pneumonia.report.figures import (
    BLUE,
    CLASS_COLOURS,
    GREY,
    SMALL,
    TEXT,
    VERMILION,
    Film,
    _figure,
    _fit,
    _footnote,
    _plain,
    _title,
)

Map = NDArray[np.floating]
PALETTES = {"colour_blind": (VERMILION, BLUE), "green_red": ("#00B030", "#E00000")}  # for, against
SIGNS = ("signed", "brighter", "for", "magnitude")
TWO_SIDED = ("signed", "brighter")
MAGNITUDE = "#E69F00"  # of maps without a sign: no claim for or against
DEEPEST = 0.72  # opacity of the strongest attribution
STRONGEST = 99.5  # percentile
FAINT = 0.01  # of the sheet's largest scale; below it a map pales
GAP = 0.04  # of the side, between a film and its overlay


@dataclass(frozen=True)
class Explained:
    """A film uint8 [S, S] and its attribution [S, S]; `regions` bool [S, S] are outlined.

    `truth` is NORMAL, PNEUMONIA or "" and colours the frame; `opacity` bool [S, S] is where a phantom is ill.
    """

    film: Film
    attribution: Map
    name: str
    subtype: str
    probability: float
    truth: str = ""
    regions: Sequence[NDArray[np.bool_]] = field(default_factory=list)
    opacity: NDArray[np.bool_] | None = None


def strongest(attribution: Map) -> float:
    """The |attribution| that gets the deepest colour; the largest where the percentile is 0 (few superpixels)."""
    magnitude = np.abs(attribution)
    return float(np.percentile(magnitude, STRONGEST)) or float(magnitude.max())


def smoothed(attribution: Map, pixels: float) -> Map:
    """Gaussian blur, for the eye only: single pixels can't be seen over a film."""
    return np.asarray(gaussian_filter(np.asarray(attribution, np.float64), pixels)) if pixels else attribution


def blend(film: Film, attribution: Map, palette: str, sign: str, largest: float = 0.0) -> NDArray[np.uint8]:
    """The film in grey under its attribution in colour, uint8 [S, S, 3]; `largest` is the largest scale beside it."""
    top = strongest(attribution)
    share = np.clip(attribution / top, -1, 1) if top > 0 else np.zeros_like(attribution)
    colours = np.array([to_rgb(colour) for colour in inks(palette, sign)])
    ink = np.where(share[..., None] >= 0, colours[0], colours[1])
    deepest = DEEPEST * min(1.0, top / (FAINT * largest)) if largest else DEEPEST
    opacity = deepest * np.abs(share)[..., None] ** 0.8
    grey = np.repeat(film[..., None] / 255.0, 3, axis=2)
    return np.rint(255 * (grey * (1 - opacity) + ink * opacity)).astype(np.uint8)


def inks(palette: str, sign: str) -> tuple[str, str]:
    """Colours of what is above and below 0."""
    return (MAGNITUDE, MAGNITUDE) if sign == "magnitude" else PALETTES[palette]


def contact_sheet(
    films: Sequence[Explained], title: str, size: str, unit: str, palette: str = "colour_blind", sign: str = "signed",
    smooth: float = 0.0, note: str = "",
) -> Figure:  # fmt: skip
    """Every film beside its overlay, framed in the colour of its true class, with a scale of the colours below.

    `size` stands in brackets after the title (n = 6 of 96); `unit` is that of the attribution; `note` is a footnote.
    """
    if palette not in PALETTES or sign not in SIGNS:
        raise ValueError(
            f"palette={palette}, sign={sign}: expected one of {', '.join(PALETTES)} and of {', '.join(SIGNS)}"
        )
    columns = max(1, min(3, math.ceil(len(films) / 2))) if len(films) <= 6 else 3
    rows = max(1, math.ceil(len(films) / columns))
    figure = _figure(max(6.6, 4.4 * columns), 1.35 + 2.62 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(films) :]:
        axes.set_axis_off()
    maps = [smoothed(film.attribution, smooth) for film in films]
    largest = max(map(strongest, maps), default=0.0)
    for axes, film, attribution in zip(grid, films, maps, strict=False):
        _pair(axes, film, attribution, blend(film.film, attribution, palette, sign, largest), sign, unit)
    _scale(figure, grid, palette, sign)
    _title(figure, title, size)
    _footnote(figure, note)
    return figure


def _pair(axes: Axes, film: Explained, attribution: Map, overlay: NDArray[np.uint8], sign: str, unit: str) -> None:
    """The film on the left, the overlay on the right, two lines of caption below."""
    side = film.film.shape[0]
    gap = max(1, round(GAP * side))
    plain = np.repeat(film.film[..., None], 3, axis=2)
    between = np.full((side, gap, 3), 255, np.uint8)
    axes.imshow(np.concatenate([plain, between, overlay], axis=1), interpolation="nearest")
    for region in film.regions:
        _outline(axes, region, side + gap, "#FFFFFF", 2.0)
        _outline(axes, region, side + gap, "#000000", 0.8)
    if film.opacity is not None and film.opacity.any():
        _outline(axes, film.opacity, 0, "#F0E442", 1.2)
        if not film.regions:
            _outline(axes, film.opacity, side + gap, "#F0E442", 1.2)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, 2 * side + gap - 0.5), ylim=(side - 0.5, -0.5))
    axes.set_anchor("N")
    axes.spines[:].set(color=CLASS_COLOURS.get(film.truth, GREY), linewidth=1.8)
    both_ways = "\N{PLUS-MINUS SIGN}" if sign in TWO_SIDED else ""
    scale = f"scale {both_ways}{_short(strongest(attribution))} {unit}".strip()
    facts = [film.subtype or film.truth.lower(), f"p(pneumonia) = {film.probability:.3f}", scale]
    lines = [_fit(film.name, 4.0, SMALL), _plain(" \N{MIDDLE DOT} ".join(fact for fact in facts if fact))]
    axes.set_xlabel("\n".join(lines), fontsize=SMALL)


def _outline(axes: Axes, region: NDArray[np.bool_], left: int, colour: str, width: float) -> None:
    """The border of a region, drawn `left` pixels to the right; closed at the border of the film too."""
    padded = np.pad(region.astype(float), 1)
    x, y = np.arange(-1, region.shape[1] + 1) + left, np.arange(-1, region.shape[0] + 1)
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=width)


def _short(value: float) -> str:
    """Two significant digits."""
    return f"{value:.2g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"


def _scale(figure: Figure, axes: Sequence[Axes] | NDArray[np.object_], palette: str, sign: str) -> None:
    """A bar of the colours on grey, with words at its ends."""
    above, below = inks(palette, sign)
    middle = tuple(np.array(to_rgb("#B8B8B8")))
    ends = [above] if sign not in TWO_SIDED else [below, above]
    stops = [tuple((1 - DEEPEST) * np.array(middle) + DEEPEST * np.array(to_rgb(end))) for end in ends]
    colours = [middle, stops[0]] if sign not in TWO_SIDED else [stops[0], middle, stops[1]]
    shades = LinearSegmentedColormap.from_list("scale", colours)
    norm = Normalize(0 if sign not in TWO_SIDED else -1, 1)
    bar = figure.colorbar(
        ScalarMappable(norm, shades), ax=list(axes), location="bottom", fraction=0.03, pad=0.02, aspect=50, shrink=0.62
    )
    bar.outline.set_visible(False)
    places, labels = {
        "signed": ([-1, 0, 1], ["against pneumonia", "0", "for pneumonia"]),
        "brighter": ([-1, 0, 1], ["darker would speak for pneumonia", "0", "brighter would"]),
        "for": ([0, 1], ["0", "for pneumonia"]),
        "magnitude": ([0, 1], ["0", "strong effect, either way"]),
    }[sign]
    bar.set_ticks(places, labels=labels)
    bar.ax.tick_params(labelsize=TEXT, length=0)


def activation_sheet(maps: Sequence[tuple[str, str, Map]], title: str, size: str, note: str = "") -> Figure:
    """One panel per layer, (name, kind, map [h, w]), dark for its smallest value and yellow for its largest.

    The range stands below each panel; a layer that answers the same everywhere is said to be flat.
    """
    columns = min(5, max(1, len(maps)))
    rows = max(1, math.ceil(len(maps) / columns))
    figure = _figure(max(6.6, 2.35 * columns), 0.75 + 2.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(maps) :]:
        axes.set_axis_off()
    for axes, (name, kind, shown) in zip(grid, maps, strict=False):
        low, high = float(shown.min()), float(shown.max())
        cmap = "gray" if kind == "input" else "cividis"
        axes.imshow(shown, cmap=cmap, vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_anchor("N")
        axes.spines[:].set(color=GREY, linewidth=0.8)
        heading = name if kind == name else f"{name} \N{MIDDLE DOT} {kind}"
        axes.set_title(_fit(heading, 2.0, TEXT), fontsize=TEXT)
        answer = f"{_short(low)} to {_short(high)}" if high > low else f"flat: {_short(low)} everywhere"
        axes.set_xlabel(
            f"{shown.shape[0]} \N{MULTIPLICATION SIGN} {shown.shape[1]} \N{MIDDLE DOT} {answer}", fontsize=SMALL
        )
    _title(figure, title, size)
    _footnote(figure, note)
    return figure
