import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from pneumonia.report import figures

COUNTS = {
    "train": {"NORMAL": 1073, "PNEUMONIA": 3100},
    "val": {"NORMAL": 268, "PNEUMONIA": 775},
    "test (development half)": {"NORMAL": 117, "PNEUMONIA": 195},
}
HISTORY: list[dict[str, float | None]] = [
    {"epoch": 0, "train/accuracy": 0.856, "val/accuracy": 0.945, "train/loss": 1.40, "val/loss": 0.15},
    {"epoch": 1, "train/accuracy": 0.922, "val/accuracy": None, "train/loss": 0.20},
    {"epoch": 2, "train/accuracy": 0.921, "val/accuracy": 0.935, "train/loss": float("nan"), "val/loss": 0.17},
]
LONG = f"person{'W' * 240}_virus_2442.jpeg"


def vgg16() -> list[figures.Layer]:
    """The 38 layers of VGG16 with a dense head of 512-256-128-64-1, and the input."""
    layers: list[figures.Layer] = [("input", "Input", (3, 224, 224), 0)]
    width, size, index = 3, 224, 0
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for out in block:
            layers.append((f"features.{index}", "Conv2d", (out, size, size), 9 * width * out + out))
            layers.append((f"features.{index + 1}", "ReLU", (out, size, size), 0))
            width, index = out, index + 2
        size //= 2
        layers.append((f"features.{index}", "MaxPool2d", (width, size, size), 0))
        index += 1
    layers += [("avgpool", "AdaptiveAvgPool2d", (512, 7, 7), 0), ("flatten", "Flatten", (25088,), 0)]
    width = 25088
    for index, out in enumerate((512, 256, 128, 64, 1)):
        layers.append((f"head.{2 * index}", "Linear", (out,), width * out + out))
        layers.append((f"head.{2 * index + 1}", "ReLU", (out,), 0))
        width = out
    return layers[:-1]


def films(n: int) -> list[figures.Film]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16), dtype=np.uint8))


def texts(figure: Figure) -> Iterator[Text]:
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text():
            yield text


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def pixels(figure: Figure) -> NDArray[np.uint8]:
    buffer = BytesIO()
    figure.savefig(buffer, format="rgba", dpi="figure")
    return np.frombuffer(buffer.getvalue(), np.uint8)


FIGURES: dict[str, Callable[[], Figure]] = {
    "counts": lambda: figures.class_counts(COUNTS),
    "films": lambda: figures.films(films(2), films(4), [(LONG, "")] * 2 + [(LONG, "virus")] * 4, "Kermany et al. 2018"),
    "one film": lambda: figures.films(films(0), films(1), [("a.jpeg", "bacteria")]),
    "sheet": lambda: figures.film_sheet(films(7), [LONG] * 7, "Films after augmentation", "Kermany et al. 2018"),
    "vgg16": lambda: figures.structure(vgg16(), "VGG16 with a dense head"),
    "long names": lambda: figures.structure([(LONG, LONG, (4, 8, 8), 9)] * 3, "A title wider than its page " * 4),
    "curves": lambda: figures.curves(HISTORY, best_epoch=2),
    "one epoch": lambda: figures.curves(HISTORY[:1], best_epoch=0),
    "no epoch": lambda: figures.curves([], best_epoch=None),
    "matrix": lambda: figures.confusion_matrix(76, 41, 4, 191, "Development half of the official test set, at 0.5"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
@pytest.mark.filterwarnings("error")
def test_no_text_is_cut_or_lies_on_another(draw: Callable[[], Figure]) -> None:
    figure = draw()
    pixels(figure)
    ticks = {id(label) for axes in figure.findobj(Axes) for label in hidden_ticks(axes)}
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure) if id(t) not in ticks]
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, name
    for (name, box), (other, another) in combinations(boxes, 2):
        assert not box.padded(-1).overlaps(another.padded(-1)), (name, other)


def hidden_ticks(axes: object) -> list[Text]:
    """Labels of ticks outside the limits, which matplotlib keeps but doesn't draw, and those of axes switched off."""
    assert isinstance(axes, Axes)
    hidden: list[Text] = [] if axes.axison else [*axes.get_xticklabels(), *axes.get_yticklabels()]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        hidden += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
        hidden += [tick.label2 for tick in axis.get_major_ticks()]
    return hidden


def test_bar_heights_are_the_counts_and_bars_carry_count_and_share() -> None:
    figure = figures.class_counts(COUNTS)
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == [1073, 268, 117, 3100, 775, 195]
    assert {"1,073\n25.7 %", "3,100\n74.3 %", "117\n37.5 %", "195\n62.5 %"} <= set(written(figure))
    assert [bar.get_facecolor()[:3] for bar in bars] == [to_rgb(figures.BLUE)] * 3 + [to_rgb(figures.VERMILION)] * 3


def test_a_class_missing_from_a_split_is_a_bar_of_zero_and_an_empty_split_has_no_share() -> None:
    figure = figures.class_counts({"train": {"NORMAL": 2, "PNEUMONIA": 2}, "val": {"NORMAL": 3}, "test": {}})
    heights = [patch.get_height() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert heights == [2, 3, 0, 2, 0, 0]
    assert {"0\n0.0 %", "0\nno films"} <= set(written(figure))


def test_each_film_stands_over_its_own_caption() -> None:
    normal, pneumonia = films(8)[:4], films(8)[4:]
    captions = [(f"IM-{i}.jpeg", "") for i in range(4)] + [(f"person{i}_virus_1.jpeg", "virus") for i in range(4)]
    figure = figures.films(normal, pneumonia, captions)
    drawn = {axes.get_xlabel(): axes.images[0].get_array() for axes in figure.axes}
    np.testing.assert_array_equal(drawn["IM-2.jpeg"], normal[2])
    np.testing.assert_array_equal(drawn["person3_virus_1.jpeg\nvirus"], pneumonia[3])
    assert len(drawn) == 8


def test_films_are_drawn_on_the_full_grey_scale_not_stretched_each_to_its_own() -> None:
    figure = figures.film_sheet(np.full((1, 8, 8), 100, np.uint8), ["a"], "Sheet")
    assert figure.axes[0].images[0].get_clim() == (0, 255)


def test_a_caption_too_few_is_an_error_and_not_a_shifted_caption() -> None:
    with pytest.raises(ValueError, match=r"2 \+ 1 captions.*got 2"):
        figures.films(films(2), films(1), [("a", ""), ("b", "")])
    with pytest.raises(ValueError, match=r"3 captions.*got 2"):
        figures.film_sheet(films(3), ["a", "b"], "Sheet")


def test_a_sheet_says_how_many_films_it_leaves_out() -> None:
    figure = figures.film_sheet(films(14), [f"film {i}" for i in range(14)], "Sheet")
    captions = [axes.get_xlabel() for axes in figure.axes if axes.images]
    assert captions == [f"film {i}" for i in range(12)]
    assert figure.get_suptitle() == "Sheet (n = 12 of 14)"


def test_a_long_name_loses_its_middle_and_keeps_its_ends() -> None:
    caption = figures.film_sheet(films(1), [LONG], "Sheet").axes[0].get_xlabel()
    assert caption.startswith("personW") and caption.endswith("_2442.jpeg") and "…" in caption
    short = "NORMAL2-IM-0386-0001.jpeg"
    assert figures.film_sheet(films(1), [short], "Sheet").axes[0].get_xlabel() == short


@pytest.mark.parametrize("name", ["$x^2$.jpeg", "a$b.jpeg", r"\$a\$ $\frac$", "$$", "_{a}^b %#&~"])
def test_a_dollar_in_a_file_name_is_drawn_as_such(name: str) -> None:
    drawn, literal = (figures.film_sheet(films(1), [name], "Sheet") for _ in range(2))
    label = literal.axes[0].xaxis.label
    label.set_parse_math(False)
    label.set_text(name)
    np.testing.assert_array_equal(pixels(drawn), pixels(literal))


@pytest.mark.filterwarnings("error")
def test_glyphs_that_the_font_lacks_neither_raise_nor_warn(tmp_path: Path) -> None:
    name = "肺炎 🫁 \udcff \x00\n\t é.jpeg"  # \udcff: a byte of a file name that isn't UTF-8
    figure = figures.film_sheet(films(1), [name], name)
    figures.save(figure, tmp_path / "sheet.png")
    assert figure.axes[0].get_xlabel() == "?? ? ? ??? é.jpeg"


def test_structure_names_every_layer_and_the_total() -> None:
    layers = vgg16()
    figure = figures.structure(layers, "VGG16")
    lines = written(figure)
    assert [line for line in lines if line in {name for name, *_ in layers}] == [name for name, *_ in layers]
    assert f"(n = {len(layers)} layers, 27,732,801 parameters)" in figure.get_suptitle()
    assert {
        "512 \N{MULTIPLICATION SIGN} 14 \N{MULTIPLICATION SIGN} 14",
        "12,845,568 parameters",
        "Conv2d",
        "+ ReLU",
    } <= set(lines)


def test_only_layers_that_change_nothing_countable_share_a_box() -> None:
    conv, relu, norm, pool = (
        ("c", "Conv2d", (4, 8, 8), 40), ("r", "ReLU", (4, 8, 8), 0), ("n", "BatchNorm2d", (4, 8, 8), 8),
        ("p", "MaxPool2d", (4, 4, 4), 0),
    )  # fmt: skip
    assert len(figures.structure([conv, relu], "").axes[0].patches) == 1
    assert len(figures.structure([conv, norm, relu, pool], "").axes[0].patches) == 3


def test_no_arrow_stands_between_the_parts_of_a_block_whose_shortcut_is_added() -> None:
    names = ("stem", "1.conv1", "1.conv2", "1.shortcut.0", "2.conv1", "2.conv2", "10.conv1", "head")
    layers: list[figures.Layer] = [(name, "Conv2d", (4, 8, 8), 9) for name in names]
    figure = figures.structure(layers, "Net")
    assert "whose shortcut is added" in " ".join(figure.get_suptitle().split())
    assert len(figure.axes[0].patches) == 8
    assert len(figure.axes[0].lines) == 5  # seven, but for conv1 to conv2 and conv2 to shortcut of block 1
    plain = figures.structure([(name.replace("shortcut", "more"), *rest) for name, *rest in layers], "Net")  # type: ignore[misc]
    assert len(plain.axes[0].lines) == 7 and "shortcut" not in plain.get_suptitle()


def test_line_data_is_the_history_without_the_values_that_are_missing() -> None:
    figure = figures.curves(HISTORY, best_epoch=2)
    drawn = {
        (axes.get_ylabel(), line.get_label()): np.asarray(line.get_xydata())
        for axes in figure.axes
        for line in axes.lines
    }
    np.testing.assert_array_equal(drawn["accuracy", "train"], [(1, 0.856), (2, 0.922), (3, 0.921)])
    np.testing.assert_array_equal(drawn["accuracy", "val"], [(1, 0.945), (3, 0.935)])
    np.testing.assert_array_equal(drawn["loss", "train"], [(1, 1.40), (2, 0.20)])
    np.testing.assert_array_equal(drawn["loss", "val"], [(1, 0.15), (3, 0.17)])
    assert drawn["loss", "kept epoch: 3"][:, 0].tolist() == [3, 3]


@pytest.mark.parametrize("epochs", [1, 2, 7, 250])
def test_epoch_ticks_are_whole_and_every_value_has_a_marker(epochs: int) -> None:
    figure = figures.curves([{**HISTORY[0], "epoch": epoch} for epoch in range(epochs)], best_epoch=None)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(float(tick).is_integer() for tick in ticks)
        assert all(line.get_marker() not in ("", "None") for line in axes.lines)


def test_a_history_without_accuracy_says_so() -> None:
    figure = figures.curves([{"epoch": 0, "train/loss": 1.0}], best_epoch=None)
    assert written(figure).count("not recorded") == 1


def test_each_cell_holds_its_count_and_its_share_of_the_true_class() -> None:
    figure = figures.confusion_matrix(tn=76, fp=41, fn=4, tp=191, title="Test")
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}  # (predicted, true)
    assert cells == {(0, 0): "76\n65.0 %", (1, 0): "41\n35.0 %", (0, 1): "4\n2.1 %", (1, 1): "191\n97.9 %"}
    assert figure.get_suptitle() == "Test (n = 312)"
    assert {"NORMAL\nn = 117", "PNEUMONIA\nn = 195"} <= set(written(figure))
    assert figure.axes[0].yaxis_inverted()  # true NORMAL is the upper row


@pytest.mark.parametrize("right", range(0, 101, 10))
def test_cell_text_stands_out_from_its_cell(right: int) -> None:
    axes = figures.confusion_matrix(right, 100 - right, 100 - right, right, "Test").axes[0]
    cells = [cell for cell in axes.collections if isinstance(cell, Collection)]
    for cell, text in zip(cells, axes.texts, strict=True):
        assert contrast(np.asarray(cell.get_facecolor())[0, :3], to_rgb(text.get_color())) >= 4.5  # WCAG 2.1, level AA


def contrast(one: object, other: object) -> float:
    channels = np.asarray([one, other], dtype=float)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return float((light + 0.05) / (dark + 0.05))


def test_a_class_without_films_has_no_rate() -> None:
    assert written(figures.confusion_matrix(3, 1, 0, 0, "Test")).count("0\nno films") == 2


def test_save_writes_the_png_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "counts.png"
    path.write_bytes(b"an older figure")
    figures.save(figures.class_counts(COUNTS), path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    figures.save(figures.class_counts(COUNTS), path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_drawing_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "counts.png"
    path.write_bytes(b"an older figure")
    figure = figures.class_counts(COUNTS)
    figure.suptitle(r"$\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        figures.save(figure, path)
    assert path.read_bytes() == b"an older figure"
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_needs_neither_pyplot_nor_torch(tmp_path: Path) -> None:
    probe = (
        "import sys; from pathlib import Path; from pneumonia.report import figures as f\n"
        f"f.save(f.confusion_matrix(1, 2, 3, 4, 'Test'), Path({str(tmp_path / 'matrix.png')!r}))\n"
        "sys.exit(', '.join({'torch', 'matplotlib.pyplot'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_a_scoreboard_explains_its_colour_and_tells_of_no_p() -> None:
    from pneumonia.report.scoreboard import Measure, scoreboard

    def note(better: str) -> str:
        values = {"deletion": [{"mean": 0.2, "low": 0.1, "high": 0.3}, {"mean": 0.4, "low": 0.3, "high": 0.5}]}
        measures = [Measure("deletion", "deletion AUC", better)]
        figure = scoreboard(["a", "b"], [1.0, 2.0], measures, values, np.eye(2), "n = 3", "test films")
        return " ".join(figure.get_supxlabel().split())

    assert note("lower") == "orange: the best mean of a measure \N{MIDDLE DOT} test films" and note("") == "test films"
