"""Every method as its YAML describes it, cut down to the size of tiny nets."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object

CONF = Path(__file__).parents[2] / "conf" / "attribution"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SMALL = {"occlusion": {"window": 5, "stride": 3}, "lime": {"num_samples": 60, "segmentation": "grid", "n_segments": 9}}


def method_of(name: str, **changes: Any) -> Any:
    """The method that conf/attribution/`name`.yaml describes, with some arguments changed."""
    spec = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return get_object(spec.pop("_target_"))(**{**spec, **changes})


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each method in conf/attribution."""
    return str(request.param)


@pytest.fixture
def method(name: str) -> Any:
    """Each method, with windows and superpixels that fit a film of 17 pixels."""
    return method_of(name, **SMALL.get(name, {}))
