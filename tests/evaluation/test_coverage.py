"""Do 95 % intervals of AUROC hold the truth 95 times in 100? Simulated: 300 films of 200 children, true AUROC 0.90.

A child has one class. Score = class shift + sqrt(rho) child effect + sqrt(1 - rho) film noise, all normal: a positive
outranks a negative of another child with probability Phi(shift / sqrt 2) = 0.90 whatever rho, the correlation of two
films of one child. The table in `intervals` comes from covered(1000, rho, 2000).
"""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from pneumonia.evaluation.bootstrap import bootstrap_draws
from pneumonia.evaluation.intervals import delong

TRUE_AUROC = 0.90
FILMS, CHILDREN = 300, 200


def simulate(rng: np.random.Generator, rho: float, children: int = CHILDREN):
    """label, score, patient, all [FILMS]; every child has one film at least, 60 % of children are ill."""
    child = np.concatenate([np.arange(children), rng.integers(children, size=FILMS - children)])
    label = (rng.random(children) < 0.6).astype(int)[child]
    shift = np.sqrt(2) * norm.ppf(TRUE_AUROC)
    noise = np.sqrt(rho) * rng.normal(size=children)[child] + np.sqrt(1 - rho) * rng.normal(size=FILMS)
    return label, label * shift + noise, child.astype(str)


def covered(draws: int, rho: float, resamples: int, children: int = CHILDREN) -> dict[str, float]:
    rng = np.random.default_rng(2018)
    hits = {"delong": 0, "bootstrap": 0}
    for seed in range(draws):
        label, score, patient = simulate(rng, rho, children)
        drawn = bootstrap_draws(label, expit(score), patient, 0.5, resamples, seed, metrics=("auroc",))
        for name, interval in (("delong", delong(label, score).interval), ("bootstrap", drawn.intervals()["auroc"])):
            assert interval is not None
            hits[name] += interval[0] <= TRUE_AUROC <= interval[1]
    return {name: hit / draws for name, hit in hits.items()}


def test_intervals_cover_in_a_small_simulation():
    found = covered(draws=200, rho=0.2, resamples=300)
    three_standard_errors = 0.046  # of 200 draws
    assert all(abs(share - 0.95) <= three_standard_errors for share in found.values()), found


def test_only_the_clustered_interval_survives_strong_clustering():
    found = covered(draws=200, rho=0.9, resamples=300, children=60)
    assert found["bootstrap"] >= 0.85  # 60 children are few: a percentile interval stays a little short
    assert found["delong"] <= found["bootstrap"] - 0.1, found


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_intervals_cover_93_to_97_percent(rho):
    found = covered(draws=1000, rho=rho, resamples=2000)
    print(rho, found)
    assert all(0.93 <= share <= 0.97 for share in found.values()), found
