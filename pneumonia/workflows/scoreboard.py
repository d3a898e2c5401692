"""Rank the attribution methods of a run by what they know of its model.

Layout    <run>/explanations/scoreboard.csv    a row a method: rank, then mean, low and high of every measure
          <run>/explanations/scoreboard.json   the same, with n, the methods' agreement, the films and the settings
          <run>/explanations/scoreboard.png
Rank      mean of a method's places in the measures that have a better end; the others only describe. Deletion and
          insertion have one only where all films were called pneumonia (select=tp or fp): of a film called normal
          the regions that speak for pneumonia move the output the other way. A single method has no rank. 95 %
          intervals by percentile bootstrap over films, one film a patient.
"""

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap, rankdata
from torch import Tensor, nn

from pneumonia.attribution.agreement import agreement, randomised, rank_correlation, seed_stability
from pneumonia.attribution.contract import Method
from pneumonia.attribution.faithfulness import deletion_auc, infidelity, insertion_auc, max_sensitivity
from pneumonia.attribution.pointing import central_share, iou_at_equal_area, mass_in_mask, pointing_game
from pneumonia.build import build
from pneumonia.errors import UserError
from pneumonia.evaluation.intervals import wilson
from pneumonia.files import written
from pneumonia.report.figures import save
from pneumonia.report.scoreboard import Measure, scoreboard
from pneumonia.settings import ScoreboardConfig
from pneumonia.training.classifier import Classifier
from pneumonia.training.precision import full_float32
from pneumonia.workflows.explanation import (
    TITLES,
    called,
    into_tensorboard,
    one_view,
    ready,
    shown_to,
    tell_of_report,
    told_plainly,
    warn_of_other_probabilities,
    with_bar,
)
from pneumonia.workflows.record import write_json
from pneumonia.workflows.selection import NAMES, Request, films_to_score

log = logging.getLogger(__name__)

Values = NDArray[np.float64]

MEASURES = (
    Measure("pointing", "true opacity hit by the maximum", "higher"),
    Measure("mass", "share inside the true opacity", "higher"),
    Measure("iou", "overlap with the true opacity", "higher"),
    Measure("deletion", "deletion AUC", "lower"),
    Measure("insertion", "insertion AUC", "higher"),
    Measure("infidelity", "infidelity, logit squared", "lower"),
    Measure("max_sensitivity", "max-sensitivity", "lower"),
    Measure("stability", "stability over seeds", "higher"),
    Measure("randomised", "likeness under random weights", "nearer 0"),
    Measure("randomised_pointing", "opacity hit with random weights", ""),
    Measure("agreement", "agreement with the others", ""),
    Measure("central_share", "share in the central field", ""),
    Measure("seconds", "seconds a film", ""),
)


@dataclass(frozen=True)
class Bench:
    """What every method is measured on: the net, a randomised copy, films [N, 3, H, W], masks of phantoms [N, H, W]."""

    net: nn.Module
    random: nn.Module
    images: Tensor
    masks: Tensor | None
    config: ScoreboardConfig


@full_float32()
def score_methods(config: ScoreboardConfig) -> None:
    """What `python -m pneumonia.scoreboard` does from start to end."""
    request, classifier = ready(films_to_score(config), config.accelerator)
    names = list(config.methods or config.attributions)
    methods: dict[str, Method] = {name: build(f"attributions.{name}", config.attributions[name]) for name in names}
    with suppress(torch.OutOfMemoryError):  # the first method tells what to do then
        warn_of_other_probabilities(request.films, called(classifier, request.films, request))
    benches = benches_of(request, classifier, config)
    log.info("%d films, %s; %s", len(request.films), NAMES.get(config.select, "all outcomes"), request.locked)
    values: dict[str, dict[str, Values]] = {}
    maps: dict[str, Tensor] = {}
    for name, method in methods.items():
        started = time.perf_counter()
        with told_plainly(f"attributions.{name}"):
            maps[name], values[name] = joined([measured(method, bench) for bench in with_bar(benches, name)])
        log.info("%-22s measured in %.1f s", name, time.perf_counter() - started)
    table = agreement({name: attribution.cpu() for name, attribution in maps.items()})
    if len(names) > 1:
        for place, name in enumerate(names):
            values[name]["agreement"] = mean_of_defined(np.delete(table[:, place], place, axis=1), axis=1)
    try:
        write_scoreboard(config, request, values, table, one_view(classifier, config.views))
    except OSError as error:
        raise UserError(f"{request.output} can't be written to: {error}. Mend its permissions.") from error
    tell_of_report(request)


def benches_of(request: Request, classifier: Classifier, config: ScoreboardConfig) -> list[Bench]:
    """The films on the device, each on a bench of its own where its views are averaged; with the masks where every film
    has one (a normal film has none)."""
    shown = shown_to(classifier, request.films, config.views)
    random = shown_to(randomised(classifier, config.seed).eval(), request.films, config.views)
    sizes = [len(images) for _, images in shown]
    masks = [film.mask for film in request.films if film.mask is not None]
    known: Sequence[Tensor | None] = [None] * len(shown)
    if len(masks) == len(request.films):
        known = torch.from_numpy(np.stack(masks)).to(classifier.device).split(sizes)
    return [
        Bench(net, chance, images, part, config)
        for (net, images), (chance, _), part in zip(shown, random, known, strict=True)
    ]


def joined(parts: list[tuple[Tensor, dict[str, Values]]]) -> tuple[Tensor, dict[str, Values]]:
    """What was measured on several benches, as of one."""
    maps = torch.cat([part for part, _ in parts])
    return maps, {name: np.concatenate([found[name] for _, found in parts]) for name in parts[0][1]}


def when_done(images: Tensor) -> float:
    """The clock, in seconds, when all that a GPU was asked for until now is done."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter()


def measured(method: Method, bench: Bench) -> tuple[Tensor, dict[str, Values]]:
    """The maps [N, H, W] of a method and every measure of them, [N] each."""
    config, net, images = bench.config, bench.net, bench.images
    started = when_done(images)
    maps = method.attribute(net, images)
    seconds = (when_done(images) - started) / len(images)
    untrained = method.attribute(bench.random, images)
    noisy = config.noisy_lime if hasattr(method, "num_samples") else config.noisy
    found: dict[str, Any] = {
        "deletion": deletion_auc(net, images, maps, config.steps),
        "insertion": insertion_auc(net, images, maps, config.steps),
        "infidelity": infidelity(net, images, maps, config.perturbations, seed=config.seed),
        "max_sensitivity": max_sensitivity(method, net, images, noisy, seed=config.seed),
        "stability": seed_stability(method, net, images, range(config.seed, config.seed + config.seeds)),
        "randomised": rank_correlation(maps.abs(), untrained.abs()),
        "central_share": central_share(maps),
        "seconds": np.full(len(images), seconds),
    }
    if bench.masks is not None:
        found |= {
            "pointing": pointing_game(maps, bench.masks), "mass": mass_in_mask(maps, bench.masks),
            "iou": iou_at_equal_area(maps, bench.masks),
            "randomised_pointing": pointing_game(untrained, bench.masks),
        }  # fmt: skip
    return maps, {name: as_array(value) for name, value in found.items()}


def as_array(value: Any) -> Values:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, np.float64)


def interval(values: Values, resamples: int, seed: int, hits: bool = False) -> dict[str, float | int | None]:
    """Mean of the defined values with its 95 % interval over films; None where none is defined.

    `hits` and misses get Wilson's interval; a value that is the same for all films has none of width.
    """
    defined = values[np.isfinite(values)]
    if not defined.size:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(defined.mean())
    low = high = mean
    if hits and set(np.unique(defined)) <= {0.0, 1.0}:  # hits of all films would have no bootstrap interval at all
        low, high = wilson(int(defined.sum()), defined.size) or (mean, mean)
    elif defined.size > 1 and np.ptp(defined) > 0:
        drawn = bootstrap(
            (defined,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed), batch=200
        ).confidence_interval
        low, high = float(drawn.low), float(drawn.high)
    return {"mean": mean, "low": low, "high": high, "n": int(defined.size)}


def measures_of(select: str) -> tuple[Measure, ...]:
    """MEASURES, deletion and insertion without a better end unless all films were called pneumonia."""
    if select in ("tp", "fp"):
        return MEASURES
    return tuple(replace(m, better="") if m.name in ("deletion", "insertion") else m for m in MEASURES)


def ranks(means: Mapping[str, Mapping[str, Any]], measures: Sequence[Measure] = MEASURES) -> dict[str, float | None]:
    """Each method's mean place over the measures that have a better end; 1 is best, a tie shares its places.

    A measure that a method has no value for puts it last there. None for a single method.
    """
    if len(means) < 2:
        return dict.fromkeys(means)
    places = []
    for measure in measures:
        column = [means[name].get(measure.name, {}).get("mean") for name in means]
        if not measure.better or all(value is None for value in column):
            continue
        places.append(rankdata([np.inf if value is None else badness(measure, value) for value in column]))
    mean = np.mean(places, axis=0)
    return dict(zip(means, mean.tolist(), strict=True))


def badness(measure: Measure, value: float) -> float:
    """The lower, the better."""
    return {"higher": -value, "lower": value, "nearer 0": abs(value)}[measure.better]


def write_scoreboard(
    config: ScoreboardConfig, request: Request, values: Mapping[str, Mapping[str, Values]], table: Values, note: str
) -> None:
    """The table in three forms, and on the terminal; best method first. `note` goes below the picture."""
    means = {
        name: {key: interval(column, config.resamples, config.seed, "pointing" in key) for key, column in found.items()}
        for name, found in values.items()
    }
    place = ranks(means, measures_of(config.select))
    order = sorted(means, key=lambda name: (place[name] or 0, name))
    measures = [m for m in measures_of(config.select) if any(m.name in means[name] for name in order)]
    names = list(values)
    shown = [names.index(name) for name in order]
    mean_table = mean_of_defined(table, axis=0)[np.ix_(shown, shown)]
    lacking = any(means[name].get(m.name, {}).get("mean") is None for m in measures if m.better for name in order)
    last = "no value counts as the last place" if lacking and len(order) > 1 else ""
    figure = scoreboard(
        [TITLES.get(name, name) for name in order],
        [place[name] for name in order],
        measures,
        {m.name: [means[name].get(m.name, {}) for name in order] for m in measures},
        mean_table,
        f"n = {len(request.films)} {NAMES.get(config.select, 'films')}, one a patient; 95 % intervals over films",
        " \N{MIDDLE DOT} ".join(
            text for text in (f"{config.split} films", request.locked, note, last, request.source) if text
        ),
    )
    request.output.mkdir(parents=True, exist_ok=True)
    write_csv(request.output / "scoreboard.csv", order, place, measures, means)
    content = {
        "n": len(request.films), "select": config.select, "split": config.split, "threshold": request.threshold,
        "films": [film.path for film in request.films],
        "measures": {m.name: {"what": m.title, "better": m.better or None} for m in measures},
        "methods": {name: {"rank": place[name]} | means[name] for name in order},
        "agreement": {"methods": order, "table": [[clean(cell) for cell in row] for row in mean_table.tolist()]},
        "settings": asdict(config),
    }  # fmt: skip
    write_json(request.output / "scoreboard.json", content)
    save(figure, request.output / "scoreboard.png")
    if request.run is not None:
        into_tensorboard(request.run, "explanations/scoreboard", request.output / "scoreboard.png")
    log_table(order, place, measures, means)
    log.info("%s", request.output / "scoreboard.png")


def mean_of_defined(values: Values, axis: int) -> Values:
    """Along `axis`, without what a map without ranks leaves undefined; NaN where nothing is left."""
    mean: Values = np.ma.filled(np.ma.masked_invalid(values).mean(axis=axis), np.nan)
    return mean


def clean(value: float) -> float | None:
    return value if np.isfinite(value) else None


def write_csv(
    file: Path, order: list[str], place: Mapping[str, float | None], measures: list[Measure], means: Mapping[str, Any]
) -> None:
    """One row a method; an empty cell has no value."""
    with written(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["method", "rank", *(f"{m.name}{part}" for m in measures for part in ("", "_low", "_high"))])
        for name in order:
            cells = [means[name].get(m.name, {}).get(part) for m in measures for part in ("mean", "low", "high")]
            writer.writerow([name, ranked(place[name]), *("" if cell is None else f"{cell:.6g}" for cell in cells)])


def ranked(place: float | None) -> str:
    return "" if place is None else f"{place:.3g}"


def log_table(
    order: list[str], place: Mapping[str, float | None], measures: list[Measure], means: Mapping[str, Any]
) -> None:
    """Means on the terminal, best method first; the sign beside a measure says which end is better."""
    sign = {"higher": " +", "lower": " -", "nearer 0": " 0", "": ""}
    heads = [f"{m.name}{sign[m.better]}" for m in measures]
    rows = [["method", "rank", *heads]]
    for name in order:
        cells = [means[name].get(m.name, {}).get("mean") for m in measures]
        rows.append([name, ranked(place[name]) or "-", *("-" if cell is None else f"{cell:.3g}" for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        log.info(
            "%s", first.ljust(widths[0]) + "".join(f"  {text:>{n}}" for text, n in zip(others, widths[1:], strict=True))
        )
    if len(order) > 1:
        log.info("rank: mean place over the measures marked + (higher is better), - (lower) and 0 (nearer 0)")
