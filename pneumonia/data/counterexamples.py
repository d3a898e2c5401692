"""Which films a shortcut gets wrong: a model that can't see lungs, and the films whose class it misjudges.

Nets that validate on such films, and never trained on them, are judged where the shortcut points the wrong way: what is
left is what they read beside it. The films a simple model gets wrong are the adversarial filter of Le Bras et al. 2020
(arXiv:2002.04108); that a biased model finds the films which go against its bias is from Nam et al. 2020
(arXiv:2007.02561).

Shortcuts  greys   the histogram of the grey values: exposure, contrast and tone, no place of anything
           border  the outer eighth of each side in cells of a sixteenth: frame, page, how near the child is
Pixels     those that the net gets: at another image_size other films may be the most wrong. To compare sizes, give all
           runs the manifest.csv of the first.
Model      logistic regression on standardised features, out of fold over FOLDS folds; no patient on both sides of one.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Films = NDArray[np.uint8]  # [N, S, S], 0 black .. 255 white
Floats = NDArray[np.float64]

FOLDS = 5
BINS = 32
CELLS = 16  # a side
RING = 2  # cells
FLOOR = 0.15  # the weight of a film that every shortcut gets right; one that both get wrong weighs two more


def greys(films: Films) -> Floats:
    """[N, S, S] -> [N, BINS]: the square root of each bin's share, whose scatter is alike in full and empty bins."""
    return np.stack([np.sqrt(np.histogram(film, BINS, (0, 256))[0] / film.size) for film in films])


def border(films: Films) -> Floats:
    """[N, S, S] -> [N, cells]: mean greys of the outer RING of CELLS x CELLS."""
    ring = np.ones((CELLS, CELLS), bool)
    ring[RING:-RING, RING:-RING] = False
    small = [cv2.resize(film.astype(np.float64), (CELLS, CELLS), interpolation=cv2.INTER_AREA) for film in films]
    return np.stack(small)[:, ring]


SHORTCUTS: dict[str, Callable[[Films], Floats]] = {"greys": greys, "border": border}


def misjudged(films: Films, label: NDArray[np.int64], group: NDArray[np.int64], shortcut: str, seed: int) -> Floats:
    """How far on the wrong side of the line the shortcut puts each film [N], in logits; the higher, the more wrong.

    `group` [N]: films that belong together. Each class needs FOLDS groups.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    features = SHORTCUTS[shortcut](films)
    logit = cross_val_predict(model, features, label, groups=group, cv=folds, method="decision_function")
    return np.where(label == 1, -logit, logit)


def against_marks(has: NDArray[np.bool_], label: NDArray[np.int64]) -> Floats:
    """Factor [N] that goes half the way to marks which tell nothing of the class: the root of how often a film's class
    and marks would come together were they independent, over how often they do (reweighing: Kamiran and Calders 2012,
    doi:10.1007/s10115-011-0463-8; by all of it a few films would be drawn very often, and only the root was tried).
    `has` [2, N]: a mark that comes with normal, with pneumonia."""
    marks = has[0] + 2 * has[1]
    together = np.bincount(4 * label + marks, minlength=8) / len(label)
    alone = np.bincount(marks, minlength=4)[marks] * np.bincount(label)[label] / len(label) ** 2
    return np.sqrt(alone / together[4 * label + marks])


def against_shortcuts(films: Films, label: NDArray[np.int64], group: NDArray[np.int64], seed: int) -> Floats:
    """Weight [N] by which films are drawn so that no shortcut pays: the probability that each puts on the wrong class,
    summed up over FLOOR, the only one tried (in the manner of Nam et al. 2020, known shortcuts for a biased net)."""
    wrong = [expit(misjudged(films, label, group, shortcut, seed)) for shortcut in SHORTCUTS]
    return FLOOR + np.sum(wrong, axis=0)
