"""The run's figures/: films and structure before the training, curves and confusion matrices after it."""

from pathlib import Path
from typing import Any

import numpy as np

from pneumonia.data.datamodule import FilmDataModule
from pneumonia.data.split import class_counts
from pneumonia.models.cnn import layer_table
from pneumonia.report import figures
from pneumonia.training.classifier import Classifier
from pneumonia.workflows.films import Films

History = list[dict[str, float | None]]


def draw_before(folder: Path, films: Films, datamodule: FilmDataModule, classifier: Classifier) -> None:
    """class_counts.png, films.png, augmented.png and model.png."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    figures.save(figures.class_counts(class_counts(films.records)), target / "class_counts.png")
    figures.save(normal_beside_pneumonia(films, datamodule), target / "films.png")
    figures.save(augmented_sheet(films, datamodule), target / "augmented.png")
    side = datamodule.datasets["train"].read(0).shape[0]
    kind = type(classifier.net).__name__
    figures.save(
        figures.structure(layer_table(classifier.net, side), f"{kind}, input 3 x {side} x {side}"), target / "model.png"
    )


def normal_beside_pneumonia(films: Films, datamodule: FilmDataModule) -> Any:
    """The first four training films of each class; for pneumonia two of each subtype where there are."""
    records, read = films.of("train"), datamodule.datasets["train"].read
    normal = [i for i, r in enumerate(records) if r.label == 0][:4]
    ill = [i for i, r in enumerate(records) if r.label == 1]
    second = [i for i in ill if records[i].subtype != records[ill[0]].subtype][:2]
    chosen = [*[i for i in ill if i not in second][: 4 - len(second)], *second]
    captions = [(Path(records[i].path).name, records[i].subtype) for i in [*normal, *chosen]]
    return figures.films([read(i) for i in normal], [read(i) for i in chosen], captions, films.credit)


def augmented_sheet(films: Films, datamodule: FilmDataModule) -> Any:
    """Twelve training films as the first epoch sees them."""
    index = np.linspace(0, len(films.of("train")) - 1, 12).astype(int).tolist()
    batch = datamodule.datasets["train"].__getitems__([(0, i, 0) for i in index])
    names = [Path(films.of("train")[i].path).name for i in index]
    return figures.film_sheet(batch["image"][:, 0].numpy(), names, "Augmented training films", films.credit)


def draw_after(folder: Path, metrics: dict[str, dict[str, Any]], history: History, best: int | None) -> None:
    """curves.png with the kept epoch marked, and a confusion matrix for each split."""
    target = folder / "figures"
    figures.save(figures.curves(history, best), target / "curves.png")
    for split, values in metrics.items():
        counts = {name: values[name] for name in ("tn", "fp", "fn", "tp")}
        matrix = figures.confusion_matrix(**counts, title=f"{split}, threshold {values['threshold']:g}")
        figures.save(matrix, target / f"confusion_matrix_{split}.png")
