"""What an exported model says of itself, read without torch.

Format  safetensors with one metadata entry, `pneumonia`, of JSON: `hyper_parameters` (of the classifier), and `recipe`:
        image_size, resize, temperature, bias (0 where it is not told), threshold (of the calibrated probability),
        `films` (what it was trained on and whom to cite) and `validation` (its figures there).
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pneumonia.data.decode import RESIZE
from pneumonia.errors import UserError

KEY = "pneumonia"
EXPORTED = ".safetensors"
NEEDED = ("image_size", "resize", "temperature", "threshold")
NUMBERS = ("temperature", "bias", "threshold")


def read_told(file: Path) -> dict[str, Any]:
    """{"hyper_parameters": ..., "recipe": ...}. Raises UserError for a file that is no exported model."""
    try:
        with safe_open(file, "np") as opened:
            told: dict[str, Any] = json.loads((opened.metadata() or {})[KEY])
        if lacking := [name for name in NEEDED if name not in told["recipe"]]:
            raise KeyError(lacking[0])
        for name in NUMBERS:
            value = float(told["recipe"].get(name, 0))
            if not math.isfinite(value) or (name == "temperature" and value <= 0):
                raise ValueError(f"{name} is {told['recipe'][name]}")
        if told["recipe"]["resize"] not in RESIZE or int(told["recipe"]["image_size"]) < 1:
            raise ValueError(f"resize is {told['recipe']['resize']}, image_size {told['recipe']['image_size']}")
        if not told["hyper_parameters"].get("model"):
            raise KeyError("model")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_exported(file, error) from error
    return told


def not_exported(file: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint={file} is not a model that evaluate export=true wrote ({type(error).__name__}: {error})."
    )
