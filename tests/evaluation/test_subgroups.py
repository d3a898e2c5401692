import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumonia.evaluation.intervals import delong, wilson
from pneumonia.evaluation.subgroups import mark_table, subgroup_table


@pytest.fixture
def columns(draw):
    label, probability, patient = draw(240, patients=90)
    rng = np.random.default_rng(5)
    subtype = np.where(label == 0, "", np.where(rng.random(240) < 0.6, "bacteria", "virus"))
    return {
        "label": label,
        "probability": probability,
        "patient": patient,
        "subtype": subtype,
        "width": rng.integers(400, 2000, 240),
        "height": rng.integers(400, 2000, 240),
        "mode": np.where(rng.random(240) < 0.2, "RGB", "L"),
    }


def rows_of(columns, group):
    return [row for row in subgroup_table(threshold=0.5, **columns) if row.group == group]


def test_each_subtype_stands_against_all_normal_films(columns):
    rows = rows_of(columns, "subtype")
    assert [row.name for row in rows] == ["bacteria", "virus"]
    label, probability = columns["label"], columns["probability"]
    for row in rows:
        part = (label == 0) | (columns["subtype"] == row.name)
        assert row.n == part.sum()
        assert row.positives == (columns["subtype"] == row.name).sum()
        assert row.patients == len(set(columns["patient"][part]))
        assert row.auroc.value == pytest.approx(roc_auc_score(label[part], probability[part]))
        assert row.auroc.interval == delong(label[part], probability[part]).interval
        found = int((probability[part & (label == 1)] >= 0.5).sum())
        assert row.sensitivity.value == found / row.positives
        assert row.sensitivity.interval == wilson(found, row.positives)
    assert rows[0].specificity == rows[1].specificity


def test_size_quartiles_part_the_films(columns):
    rows = rows_of(columns, "native_size")
    assert [row.n for row in rows] == [60, 60, 60, 60]
    assert sum(row.positives for row in rows) == columns["label"].sum()
    edges = [int(number) for row in rows for number in row.name.split() if number.isdigit()]
    assert edges == sorted(edges)


def test_few_sizes_make_fewer_groups_and_lose_no_film(columns):
    columns["width"] = np.repeat([100, 200], [200, 40])
    columns["height"] = np.full(240, 10)
    assert [(row.name, row.n) for row in rows_of(columns, "native_size")] == [
        ("1000 to 1000 pixels", 200),
        ("2000 to 2000 pixels", 40),
    ]


def test_colour_modes_part_the_films(columns):
    rows = rows_of(columns, "colour_mode")
    assert {row.name: row.n for row in rows} == {m: (columns["mode"] == m).sum() for m in ("L", "RGB")}


def test_equal_films_are_not_available_with_the_reason(columns):
    columns |= {"width": np.full(240, 224), "height": np.full(240, 224), "mode": np.full(240, "L")}
    (size,), (mode,) = rows_of(columns, "native_size"), rows_of(columns, "colour_mode")
    assert (size.name, size.accuracy, size.reason) == (None, None, "all 240 films have 50176 pixels")
    assert (mode.name, mode.auroc, mode.reason) == (None, None, "all 240 films are L")


def test_columns_not_recorded_are_not_available(columns):
    bare = {name: columns[name] for name in ("label", "probability", "patient")}
    assert [(row.group, row.reason) for row in subgroup_table(threshold=0.5, **bare)] == [
        ("subtype", "not recorded"),
        ("native_size", "not recorded for every film"),
        ("colour_mode", "not recorded"),
    ]
    columns["subtype"] = np.full(240, "")
    assert rows_of(columns, "subtype")[0].reason == "no pneumonia film has a subtype"


def test_a_group_of_one_class_has_no_auroc(columns):
    columns["mode"] = np.where(columns["label"] == 1, "RGB", "L")  # as in the real set: all RGB films are ill
    grey, colour = rows_of(columns, "colour_mode")
    assert colour.auroc.value is colour.auroc.interval is colour.specificity.value is None
    assert grey.sensitivity.value is grey.sensitivity.interval is None
    assert colour.sensitivity.value is not None


def test_a_column_of_another_length_is_refused(columns):
    columns["mode"] = columns["mode"][:10]
    with pytest.raises(ValueError, match=r"mode has shape \(10,\): expected \(240,\)"):
        subgroup_table(threshold=0.5, **columns)


def test_marked_films_stand_beside_those_without(columns):
    label, probability, patient = (columns[name] for name in ("label", "probability", "patient"))
    rng = np.random.default_rng(1)
    marked = {"NORMAL": np.zeros(240, bool), "PNEUMONIA": rng.random(240) < 0.3}
    one, none = mark_table(label, probability, patient, 0.5, marked)
    assert (one.name, one.n) == ("a mark of pneumonia", marked["PNEUMONIA"].sum())
    assert (none.name, none.n) == ("no mark", 240 - one.n)
    normal = marked["PNEUMONIA"] & (label == 0)
    spared = int((probability[normal] < 0.5).sum())
    assert one.specificity.value == spared / normal.sum() and one.specificity.interval == wilson(spared, normal.sum())
    both = mark_table(label, probability, patient, 0.5, {"NORMAL": label == 0, "PNEUMONIA": marked["PNEUMONIA"]})
    assert [row.n for row in both] == [(label == 0).sum(), one.n, (~marked["PNEUMONIA"] & (label == 1)).sum()]
    with pytest.raises(ValueError, match="marked has shape"):
        mark_table(label, probability, patient, 0.5, {"NORMAL": np.zeros(3, bool)})
