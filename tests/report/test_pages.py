"""Words and figures of the pages: one film, no minus before nought, what was fitted."""

import pytest

from pneumonia.report.pages import counted, estimate, number, scaling


def test_one_film_is_no_films_and_thousands_are_parted() -> None:
    assert [counted(n, "film") for n in (0, 1, 2, 2000)] == ["0 films", "1 film", "2 films", "2,000 films"]
    assert [counted(n, "film was", "films were") for n in (1, 3)] == ["1 film was", "3 films were"]


@pytest.mark.parametrize(
    ("value", "shown"), [(-0.0001, "0.000"), (-0.0, "0.000"), (-0.0006, "-0.001"), (None, "undefined")]
)
def test_what_rounds_to_nought_has_no_sign(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_an_interval_is_told_as_its_value_is() -> None:
    assert estimate({"value": 0.5, "interval": (-0.00001, 1)}, 4) == "0.5000 [0.0000, 1.0000]"
    assert estimate({"value": 0.5, "interval": None}) == "0.500" and estimate(None) == "undefined"


def test_a_temperature_is_told_only_where_one_was_fitted() -> None:
    point = {"temperature_fitted": True, "temperature": 1.5, "bias": 0.0}
    assert scaling(point) == "temperature 1.5" and scaling(point | {"bias": -0.25}) == "temperature 1.5, bias -0.25"
    assert scaling(point | {"temperature_fitted": False, "temperature": 1.0}) == "nothing fitted"
