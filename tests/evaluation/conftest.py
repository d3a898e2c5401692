import numpy as np
import pytest
from scipy.special import expit


@pytest.fixture
def draw():
    """draw(n, seed, decimals, patients) -> label, probability, patient; few decimals: ties, few patients: clusters."""

    def _draw(n: int = 300, seed: int = 0, decimals: int = 12, patients: int | None = None):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 2, n)
        probability = np.round(expit(1.5 * label - 0.75 + rng.normal(size=n)), decimals)
        patient = np.array([f"child{k}" for k in rng.integers(0, patients or 10 * n, n)])
        return label, probability, patient

    return _draw
