import subprocess
import sys

import numpy as np
import pytest

from pneumonia.evaluation.bootstrap import bootstrap_draws
from pneumonia.evaluation.films import Films
from pneumonia.evaluation.intervals import delong
from pneumonia.evaluation.metrics import at_prevalence, point_metrics


@pytest.mark.parametrize(
    ("label", "probability", "message"),
    [
        ([], [], "at least one film.*split is not empty"),
        ([0, 1], [0.1, np.nan], "probability holds 1 value.*nan at row 1"),
        ([0, 1], [0.1, 1.5], r"outside \[0, 1\], the first 1.5.*sigmoid"),
        ([0, 1], [0.1], r"probability has shape \(1,\), label has shape \(2,\)"),
        ([0, 2], [0.1, 0.2], "label holds 1 value.*expected 0 .normal. or 1"),
        ([0, np.nan], [0.1, 0.2], "label holds 1 value.*nan"),
        ([[0, 1]], [[0.1, 0.2]], r"label has shape \(1, 2\)"),
    ],
)
def test_bad_arrays_are_refused_with_a_reason(label, probability, message):
    with pytest.raises(ValueError, match=message):
        point_metrics(label, probability, 0.5)


def test_missing_patients_are_refused():
    with pytest.raises(ValueError, match=r"patient is missing for 1 film.*row 1"):
        bootstrap_draws([0, 1], [0.1, 0.2], ["a", ""], 0.5)
    with pytest.raises(ValueError, match=r"patient has shape \(1,\)"):
        bootstrap_draws([0, 1], [0.1, 0.2], ["a"], 0.5)


def test_infinite_scores_are_refused():
    with pytest.raises(ValueError, match=r"score holds 1 value.*not finite"):
        delong([0, 1], [0.0, np.inf])


def test_a_prevalence_in_percent_is_refused():
    with pytest.raises(ValueError, match="prevalence=10: expected a share"):
        at_prevalence(0.9, 0.9, 10)


def test_a_path_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match=r"1 path.*more than once \(a.jpeg\)"):
        Films(["a.jpeg", "b.jpeg", "a.jpeg"], [0, 1, 0], [0.1, 0.2, 0.3], ["p", "q", "r"])
    with pytest.raises(ValueError, match=r"path has shape \(1,\)"):
        Films(["a.jpeg"], [0, 1], [0.1, 0.2], ["p", "q"])


def test_evaluation_never_loads_torch():
    probe = (
        "import sys, pkgutil, importlib, sklearn.metrics;"
        "brought = {'pandas'} & set(sys.modules);"  # scikit-learn loads it by itself where it is installed
        "import pneumonia.evaluation as room;"
        "[importlib.import_module(f'pneumonia.evaluation.{m.name}') for m in pkgutil.iter_modules(room.__path__)];"
        "sys.exit(any(name in sys.modules for name in {'torch', 'lightning', 'pandas', 'hydra'} - brought))"
    )
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
