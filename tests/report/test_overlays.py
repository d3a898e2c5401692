"""Overlays: the colours say what the numbers say, in both palettes; sheets hold their captions."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from pneumonia.report import overlays
from pneumonia.report.figures import save
from pneumonia.report.overlays import Explained, activation_sheet, blend, contact_sheet, smoothed, strongest
from pneumonia.report.scoreboard import Measure, scoreboard

FILM = np.full((8, 8), 128, np.uint8)


def signed() -> np.ndarray:
    """Half of the film for, a quarter against, the rest 0."""
    attribution = np.zeros((8, 8))
    attribution[:4], attribution[4:6] = 2.0, -2.0
    return attribution


def film(**changes: object) -> Explained:
    values = {"film": FILM, "attribution": signed(), "name": "person1_virus_2.jpeg", "subtype": "virus"}
    return Explained(**{**values, "probability": 0.912, "truth": "PNEUMONIA", **changes})  # type: ignore[arg-type]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def test_for_against_and_nothing_have_the_colours_of_the_palette() -> None:
    green_red = blend(FILM, signed(), "green_red", "signed").astype(int)
    red, green = green_red[..., 0], green_red[..., 1]
    assert (green[:4] > red[:4] + 60).all() and (red[4:6] > green[4:6] + 60).all()
    safe = blend(FILM, signed(), "colour_blind", "signed").astype(int)
    assert (safe[:4, :, 0] > safe[:4, :, 2] + 60).all() and (safe[4:6, :, 2] > safe[4:6, :, 0] + 60).all()
    for drawn in (green_red, safe):
        assert (drawn[6:] == 128).all()


def test_the_colour_blind_palette_differs_for_a_viewer_without_red_cones() -> None:
    """Protanopia by Vienot, Brettel and Mollon 1999, on linear RGB: red and green collapse, orange and blue don't."""
    matrix = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])

    def seen_apart(palette: str) -> float:
        drawn = (blend(FILM, signed(), palette, "signed") / 255.0) ** 2.2 @ matrix.T
        hue = drawn / drawn.sum(-1, keepdims=True)
        return float(np.abs(hue[0, 0] - hue[4, 0]).sum())

    assert seen_apart("colour_blind") > 3 * seen_apart("green_red")


def test_a_stronger_attribution_is_deeper_and_a_flat_one_leaves_the_film() -> None:
    ramp = np.tile(np.linspace(0, 1, 8), (8, 1))
    blue = blend(FILM, ramp, "colour_blind", "signed")[0, :, 2].astype(int)
    assert (np.diff(blue) < 0).all()
    assert (blend(FILM, np.zeros((8, 8)), "colour_blind", "signed") == 128).all()


def test_on_a_sheet_a_map_of_next_to_nothing_pales_and_a_weaker_one_does_not() -> None:
    shown = [film(attribution=share * signed()) for share in (1, 0.02, 0.001, 1e-6)]
    figure = contact_sheet(shown, "Saliency", "n = 4", "")
    drawn = [np.asarray(axes.images[0].get_array())[:, -8:].astype(int) for axes in figure.axes if axes.images]
    ink = [int(np.abs(overlay - 128).max()) for overlay in drawn]
    assert ink[0] == ink[1] > 60 and ink[2] == pytest.approx(ink[0] / 10, abs=1) and ink[3] == 0
    assert "scale \N{PLUS-MINUS SIGN}2.0e-06" in words(figure)


def test_the_scale_is_not_set_by_a_single_pixel_but_by_few_superpixels() -> None:
    attribution = np.full((100, 100), 1.0)
    attribution[0, 0] = 1000
    assert strongest(attribution) == 1
    small = np.zeros((100, 100))
    small[0, :10] = -3
    assert strongest(small) == 3


def test_smoothing_keeps_the_sum_and_none_is_none() -> None:
    point = np.zeros((31, 31))
    point[15, 15] = 1
    assert smoothed(point, 2).sum() == pytest.approx(1, abs=1e-3) and smoothed(point, 0) is point


@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_a_sheet_names_every_film_its_subtype_and_probability(tmp_path, count: int) -> None:
    regions = [signed() > 0]
    shown = [film(name=f"person{i}_virus_{i}.jpeg", regions=regions, opacity=signed() < 0) for i in range(count)]
    figure = contact_sheet(shown, "True positives: LIME", f"n = {count} of 96", "probability", note="CC BY 4.0")
    text = words(figure)
    assert all(f"person{i}_virus_{i}.jpeg" in text for i in range(count))
    for part in ("virus", "0.912", "True positives: LIME", f"n = {count} of 96", "for pneumonia", "CC BY 4.0"):
        assert part in text
    assert "against pneumonia" in text and "probability" in text
    save(figure, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def test_a_map_without_a_sign_claims_none() -> None:
    text = words(contact_sheet([film(attribution=abs(signed()))], "t", "n = 1", "logit", sign="magnitude"))
    assert "either way" in text and "for pneumonia" not in text and "against" not in text
    text = words(contact_sheet([film(attribution=abs(signed()))], "t", "n = 1", "", sign="for"))
    assert "for pneumonia" in text and "against" not in text
    text = words(contact_sheet([film(attribution=signed())], "t", "n = 1", "", sign="brighter"))
    assert "brighter" in text and "darker" in text and "against" not in text


def test_an_unknown_palette_is_refused() -> None:
    with pytest.raises(ValueError, match="colour_blind, green_red"):
        contact_sheet([film()], "t", "n = 1", "logit", palette="rainbow")
    assert set(overlays.PALETTES) == {"colour_blind", "green_red"}


def test_an_activation_sheet_tells_ranges_and_flat_layers() -> None:
    maps = [
        ("input", "input", np.linspace(0, 1, 64).reshape(8, 8)), ("features.0", "conv", np.eye(6) - 0.5),
        ("features.2", "pool", np.zeros((3, 3))),
    ]  # fmt: skip
    text = words(activation_sheet(maps, "Activations, before ReLU", "n = 3 maps"))
    for part in ("features.0", "conv", "features.2", "pool", "-0.5 to 0.5", "flat: 0 everywhere", "before ReLU"):
        assert part in text


def test_a_scoreboard_shows_methods_measures_and_missing_values(tmp_path) -> None:
    measures = [Measure("deletion", "deletion AUC", "lower"), Measure("seconds", "seconds a film", "")]
    values = {
        "deletion": [{"mean": 0.2, "low": 0.1, "high": 0.3}, {"mean": None, "low": None, "high": None}],
        "seconds": [{"mean": 0.01, "low": 0.01, "high": 0.01}, {"mean": 2.0, "low": 2.0, "high": 2.0}],
    }
    figure = scoreboard(["LIME", "Grad-CAM"], [1, 2], measures, values, np.array([[1, 0.1], [0.1, 1]]), "n = 9")
    save(figure, tmp_path / "board.png")
    text = words(figure)
    for part in ("LIME", "Grad-CAM", "deletion AUC", "lower is better", "describes", "no value", "n = 9"):
        assert part in text
