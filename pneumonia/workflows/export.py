"""evaluate export=true: a run's best weights as one file that carries its preprocessing, calibration and threshold."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from pneumonia.errors import UserError
from pneumonia.training.checkpoint import read_checkpoint
from pneumonia.training.export import write_exported
from pneumonia.workflows.sources import Source

log = logging.getLogger(__name__)

MEASURED = ("accuracy", "auroc", "sensitivity", "specificity", "ece")


def export_run(source: Source, evidence: dict[str, Any]) -> Path:
    """Write model.safetensors into the run folder, say how large it is and what its SHA-256 is."""
    state, spec = read_checkpoint(source.folder / "checkpoints" / "best.ckpt")
    file = source.folder / "model.safetensors"
    try:
        write_exported(file, state, spec, recipe_of(source, evidence))
    except OSError as error:
        raise UserError(f"{file} can't be written ({error}). Mend its folder's permissions.") from error
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    log.info("%s: %.2f MB, SHA-256 %s", file, size / 1e6, digest)
    return file


def recipe_of(source: Source, evidence: dict[str, Any]) -> dict[str, Any]:
    """What a film goes through on its way to a call, and how good the calls were on validation."""
    point, data = evidence["operating_point"], source.data
    measured = evidence["splits"].get("val", {}).get("metrics", {})
    return {
        "image_size": data.image_size,
        "resize": data.resize,
        "temperature": float(point.get("temperature", 1.0)),
        "bias": float(point.get("bias", 0.0)),
        "threshold": float(f"{point.get('threshold_calibrated', point['threshold']):.6g}"),
        "films": source.credit,
        "validation": {name: measured[name] for name in MEASURED if name in measured},
    }
