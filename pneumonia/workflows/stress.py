"""A run's validation films as another hospital's machine might make them, and what the model makes of those.

Validation and not test: recipes may be chosen by what stands here. This loads the model, and with it torch.
"""

from dataclasses import asdict
from typing import Any

import torch

from pneumonia.evaluation.stress import stress_scores, stress_table
from pneumonia.settings import EvaluateConfig, UserError
from pneumonia.training.checkpoint import load_classifier
from pneumonia.workflows.shortcuts import films_in_batches, probabilities
from pneumonia.workflows.sources import Source


def stress_of(source: Source, threshold: float, config: EvaluateConfig) -> dict[str, Any]:
    """The suite at `threshold`, as plain values, with the options that it was computed with. Raises UserError."""
    if "val" not in source.splits:
        raise UserError(f"stress=true needs validation films: {source.file} has none.")
    classifier = load_classifier(source.folder / "checkpoints" / "best.ckpt")
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    films = source.splits["val"].films
    batches = films_in_batches(source, films.path.tolist(), "stress=true")
    scores = stress_scores(lambda batch: probabilities(classifier, batch), batches, config.seed)
    found = stress_table(scores, films.label, threshold, films.patient, config.seed, config.level, config.resamples)
    return asdict(found) | {"level": config.level, "seed": config.seed, "resamples": config.resamples}
