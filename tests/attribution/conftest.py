"""Every attribution method as its YAML describes it, cut down to the size of tiny nets."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # attribution_cases.py is found in every import mode of pytest

from attribution_cases import NAMES, method_of

SMALL = {"occlusion": {"window": 5, "stride": 3}, "lime": {"num_samples": 60, "segmentation": "grid", "n_segments": 9}}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each method in conf/attribution."""
    return str(request.param)


@pytest.fixture
def method(name: str) -> Any:
    """Each method, with windows and superpixels that fit a film of 17 pixels."""
    return method_of(name, **SMALL.get(name, {}))
