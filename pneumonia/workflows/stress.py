"""A run's validation films as another hospital's machine might make them, and what the model makes of those.

Validation and not test: recipes may be chosen by what stands here. This loads the model, and with it torch.
"""

from pneumonia.evaluation.stress import stress_scores
from pneumonia.settings import UserError
from pneumonia.training.checkpoint import load_to_predict
from pneumonia.workflows.shortcuts import films_in_batches, probabilities
from pneumonia.workflows.sources import Source
from pneumonia.workflows.stressed import write_stress


def stress_run(source: Source) -> None:
    """Write the probabilities of the suite as stress.csv beside the predictions. Raises UserError."""
    if "val" not in source.splits:
        raise UserError(f"stress=true needs validation films: {source.file} has none.")
    classifier = load_to_predict(source.folder / "checkpoints" / "best.ckpt")
    paths = source.splits["val"].films.path.tolist()
    batches = films_in_batches(source, paths, "stress=true")
    write_stress(source.folder, paths, stress_scores(lambda batch: probabilities(classifier, batch), batches))
