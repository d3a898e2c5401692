"""A trained model as one file that carries all it needs: weights, model spec, preprocessing, temperature, threshold.

Format  safetensors, weights as float16, and what data/exported.py says in its metadata. Nothing in it can run code, and
        equal runs give equal bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pneumonia.data.exported import KEY, not_exported, read_told
from pneumonia.files import written


def write_exported(
    file: Path, state: dict[str, torch.Tensor], hyper_parameters: dict[str, Any], recipe: dict[str, Any]
) -> None:
    """Write `state` and what belongs to it."""
    halves = {name: half(value).contiguous() for name, value in state.items()}
    told = json.dumps({"hyper_parameters": hyper_parameters, "recipe": recipe}, sort_keys=True)
    with written(file) as temporary:
        save_file(halves, temporary, {KEY: told})


def half(value: torch.Tensor) -> torch.Tensor:
    """float16 where it is a float that float16 can hold; batch normalisation's variances may be larger."""
    fits = value.is_floating_point() and bool((value.abs() < torch.finfo(torch.float16).max).all())
    return value.half() if fits else value


def read_exported(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(state, hyper_parameters) of an exported model. Raises UserError for a file that is none."""
    try:
        state = load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise not_exported(file, error) from error
    return {name: whole(value) for name, value in state.items()}, dict(read_told(file)["hyper_parameters"])


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value
