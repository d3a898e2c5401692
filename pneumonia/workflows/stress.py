"""A run's validation films as another hospital's machine might make them, and what the model makes of those.

Validation and not test: recipes may be chosen by what stands here. This loads the model, and with it torch.
"""

from pneumonia.errors import UserError
from pneumonia.evaluation.stress import stress_scores
from pneumonia.training.checkpoint import load_to_predict
from pneumonia.workflows.shortcuts import films_as_judged, probabilities
from pneumonia.workflows.sources import Source
from pneumonia.workflows.stressed import write_stress


def stress_run(source: Source) -> None:
    """Write the probabilities of the suite as stress.csv beside the predictions. Raises UserError."""
    if "val" not in source.splits:
        raise UserError(f"stress=true needs validation films: {source.file} has none.")
    classifier = load_to_predict(source.folder / "checkpoints" / "best.ckpt")
    batches = films_as_judged(source, "val", classifier, "stress=true")
    scores = stress_scores(lambda batch: probabilities(classifier, batch), batches)
    write_stress(source.folder, source.splits["val"].films.path.tolist(), scores)
