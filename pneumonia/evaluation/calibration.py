"""One number or two, fitted on validation, that make probabilities honest and change no ranking.

Temperature  probability = sigmoid(logit / T), T minimises the log loss (Guo et al. 2017, arXiv:1706.04599, 4.2).
             A net that saw one class more often than it is has log odds that are off by a known number, which is added
             as a bias that nothing fits (King, Zeng 2001, Logistic Regression in Rare Events Data, eq. 7).
Platt        probability = sigmoid(logit / T + bias), both minimise it (Platt 1999): where a model's level is off too,
             as on films of another series, a temperature alone can't mend it. No targets are smoothed.
Units        logit float [N], natural log odds of class 1; temperature > 0, above 1 where the model is too sure.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit

from pneumonia.evaluation.checks import Floats, checked_label, checked_score

LOG_TEMPERATURE = (-np.log(100), np.log(100))  # T from 0.01 to 100


def fit_temperature(label: ArrayLike, logit: ArrayLike, bias: float = 0.0) -> float | None:
    """The temperature with the smallest mean log loss beside a known bias; None where no finite positive one is best.

    That is so with one class only, with every film on the right side of logit 0 (the best T is 0), and with logits that
    on average point the wrong way (the best T is infinite). The caller then leaves the probabilities as they are.
    """
    truth = checked_label(label)
    sign = np.where(truth == 1, 1.0, -1.0)
    margin = sign * checked_score("logit", logit, truth.size)
    falls = (margin * expit(-sign * bias)).mean() > 0  # the log loss, as 1 / T leaves 0
    if not 0 < truth.sum() < truth.size or margin.min() >= 0 or not falls:
        return None

    def mean_log_loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margin / np.exp(log_temperature) - sign * bias).mean())

    found = minimize_scalar(mean_log_loss, bounds=LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x))


def fit_platt(label: ArrayLike, logit: ArrayLike) -> tuple[float, float] | None:
    """(temperature, bias) with the smallest mean log loss; None where no finite ones are best: one class only, classes
    that one logit separates, logits that point the wrong way or hardly any (T beyond 0.01 to 100)."""
    from sklearn.linear_model import LogisticRegression  # a third of a second that temperature need not wait for

    truth = checked_label(label)
    score = checked_score("logit", logit, truth.size)
    if not 0 < truth.sum() < truth.size or score[truth == 1].min() >= score[truth == 0].max():
        return None
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(score[:, None], truth)
    slope = float(fitted.coef_[0, 0])
    low, high = np.exp(LOG_TEMPERATURE)
    return (1 / slope, float(fitted.intercept_[0])) if 1 / high <= slope <= 1 / low else None


def calibrate(logit: ArrayLike, temperature: float, bias: float = 0.0) -> Floats:
    """sigmoid(logit / temperature + bias), [N]; no overflow for any finite logit."""
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature={temperature}: expected a positive number. Set temperature=1 to leave it out.")
    return np.asarray(expit(np.asarray(logit, dtype=np.float64) / temperature + bias))
