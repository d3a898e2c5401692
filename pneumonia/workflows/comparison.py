"""Which run is best, and is the difference more than chance: what `python -m pneumonia.compare` does. No torch.

Ranked on validation only. Each run's threshold is chosen on its own validation films by one rule; the paired tests are
on test films. Where a run left the test films alone (sweeps) all are tested on validation, and every page says so.
Seeds and folds divide the same films anew: such runs share test and not validation, and each is ranked on its own.
"""

import csv
import hashlib
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_curve

from pneumonia.errors import UserError, one_of
from pneumonia.evaluation.comparison import Entry, Run, check_comparable, leaderboard
from pneumonia.evaluation.ensemble import spread
from pneumonia.evaluation.metrics import METRICS
from pneumonia.evaluation.operating_point import choose_pooled
from pneumonia.report.pages import comparison_html
from pneumonia.settings import FILMS_LAY, HOW, CompareConfig, named_standardize
from pneumonia.workflows.record import write_all
from pneumonia.workflows.resume import composed_settings, flat
from pneumonia.workflows.sources import Source, jobs_of, read_run
from pneumonia.workflows.stressed import needed_stress, same_stress
from pneumonia.workflows.voting import credit_of, drop_vote, vote, voters, write_vote
from pneumonia.workflows.weighing import rounded, told_split

log = logging.getLogger(__name__)

SHOWN = ("auroc", "accuracy", "sensitivity", "specificity", "ece")
POINTS = 200  # of a drawn curve
SETTINGS = 6  # that are shown, of those in which runs differ
LONGEST = 24  # characters of a value that is shown
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
PLACES = ("trainer.", "data.root", "data.manifest", "data.cache", "data.num_workers", "model.image_size")  # say nothing
SEEDS_AND_FOLDS = ("seed", "data.fold", "data.manifest")  # in which runs of one group may differ


def runs_of(config: CompareConfig) -> list[Run]:
    """Every run, checked: the same films, both classes in validation. Raises UserError that names the run."""
    one_of("metric", config.metric, METRICS)
    return checked_runs(sources_of(config), config)


def of_one_kind(sources: dict[str, Source]) -> dict[str, Source]:
    """The tables with what all can be judged on: test films that some alone have are left out. Raises UserError."""
    with_test = [name for name, source in sources.items() if "test" in source.splits]
    if len(with_test) in (0, len(sources)):
        return sources
    without = [name for name in sources if name not in with_test]
    if bare := [name for name in with_test if "val" not in sources[name].splits]:
        raise UserError(
            f"{', '.join(without)} left the test films alone, {', '.join(bare)} holds no others: name runs of a kind."
        )
    return {
        name: replace(source, splits={k: v for k, v in source.splits.items() if k == "val"})
        for name, source in sources.items()
    }


def checked_runs(sources: dict[str, Source], config: CompareConfig) -> list[Run]:
    """The runs of these tables, or a UserError that names the one that does not belong to the others."""
    named = zip(sources.items(), parts_of(sources), strict=True)
    runs = [run_of(name, source, part, config) for (name, source), part in named]
    if config.operating_point.stressed:
        same_stress({run.name: run.stressed or {} for run in runs})
    try:
        check_comparable(runs)
    except ValueError as error:
        raise UserError(str(error)) from error
    return runs


def sources_of(config: CompareConfig) -> dict[str, Source]:
    """{name: tables} of the runs that `runs=` names, in order; a crashed one in a sweep folder is left out."""
    listed = isinstance(config.runs, list | tuple)
    folders = [Path(str(run)).expanduser() for run in config.runs] if listed else [Path(str(config.runs)).expanduser()]
    if not listed and not (folders[0] / "predictions.csv").is_file():
        folders, _ = jobs_of(folders[0])
    names = distinct(folders)
    return of_one_kind({name: read_run(folder) for name, folder in zip(names, folders, strict=True)})


def distinct(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents before them as make them differ. Raises UserError for one listed twice."""
    parts = [folder.resolve().parts for folder in folders]
    if twice := [str(folder) for k, folder in enumerate(folders) if parts[k] in parts[:k]]:
        raise UserError(f"runs: {twice[0]} is listed twice; list each folder once.")
    depths = range(1, 1 + max(map(len, parts)))
    names = (["/".join(part[-depth:]) for part in parts] for depth in depths)
    return next(chosen for chosen in names if len(set(chosen)) == len(chosen))


def parts_of(sources: dict[str, Source]) -> list[int]:
    """Number of each run's validation part: another one only where train and validation together are the same films."""
    pools = [frozenset(r.path for r in source.manifest if r.split != "test") for source in sources.values()]
    parts = [tuple(source.splits["val"].films.path) if "val" in source.splits else () for source in sources.values()]
    known = list(dict.fromkeys(parts))
    return [known.index(part) if pool and pool == pools[0] else 0 for pool, part in zip(pools, parts, strict=True)]


def run_of(name: str, source: Source, part: int, config: CompareConfig) -> Run:
    """One run at the threshold that its validation chooses."""
    if "val" not in source.splits:
        raise UserError(f"{name} has no validation films in its predictions.csv: runs are ranked on them.")
    val = source.splits["val"].films
    rule = config.operating_point
    stressed = needed_stress(source) if rule.stressed else None
    shown = list(stressed.values()) if stressed else [val.probability]
    try:
        point = choose_pooled(val.label, shown, rule.rule, rule.minimum, rule.cost_ratio)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    test = source.splits.get("test", source.splits["val"]).films
    return Run(name, val, test, point.threshold, group_of(source, name), part, stressed)


def differences(sources: dict[str, Source], without: Sequence[str] = ()) -> dict[str, str]:
    """{name: the settings in which the runs differ}, as they are typed, the model first; at most SETTINGS of them, none
    of `without`."""
    known = all(source.choice for source in sources.values() if source.config)
    flat = {name: told_settings(source, known) for name, source in sources.items()}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    differing = [key for key in keys if len({str(settings.get(key)) for settings in flat.values()}) > 1]
    chosen = [key for key in differing if not key.startswith(PLACES) and key not in without]
    more = [ELLIPSIS] if len(chosen) > SETTINGS else []
    return {
        name: " ".join([*(f"{key}={shortened(settings.get(key))}" for key in chosen[:SETTINGS]), *more])
        for name, settings in flat.items()
    }


def told_settings(source: Source, known: bool) -> dict[str, Any]:
    """The settings of a run after its model's name: that of the choice where it is `known` of all runs."""
    settings = settings_of(source)
    settings.pop("model._target_", None)
    return {"model": source.choice if known else source.model} | settings if settings else {}


def shortened(value: Any) -> str:
    """The value as typed, or its beginning."""
    text = str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + ELLIPSIS


@cache
def closed_defaults() -> dict[str, Any]:
    """{dotted name: value} of today's closed settings; composed once, since a sweep has many runs."""
    return {key: value for key, value in composed_settings([]).items() if "." not in key or key.startswith("data.")}


def settings_of(source: Source) -> dict[str, Any]:
    """{dotted name: value} of a run; closed settings that its version did not know are at their default."""
    if not source.config:
        return {}
    told = closed_defaults() | flat(source.config)
    return told | {"standardize": named_standardize(told["standardize"])}


def group_of(source: Source, name: str) -> str:
    """Names what runs of one group share: all settings but seed, fold, manifest and those that make no other net; the
    model's name, a short hash. Without settings, as a vote has none, a group of one: its `name` here."""
    apart = (*SEEDS_AND_FOLDS, *FILMS_LAY, *HOW)
    settings = {key: value for key, value in settings_of(source).items() if key not in apart}
    if not settings:
        return name
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{source.model or 'run'} {digest}"


def compare(config: CompareConfig) -> dict[str, Any]:
    """Rank, test, and write comparison.html, leaderboard.csv and comparison.json; what the last holds."""
    sources = sources_of(config)
    runs = checked_runs(sources, config)
    if isinstance(config.runs, str) and not (Path(config.runs).expanduser() / "predictions.csv").is_file():
        for name in jobs_of(Path(config.runs).expanduser())[1]:
            log.warning("left out %s: no predictions.csv, the run did not finish", name)
    folder = output_of(config)
    try:
        best = voters(runs, config)
        voted = [vote(best, config)] if best else []
        entries = leaderboard([*runs, *voted], config.metric, config.resamples, config.seed, config.level)
    except ValueError as error:
        raise UserError(str(error)) from error
    told = differences(sources)
    recipe = differences(sources, SEEDS_AND_FOLDS)
    recipes = {run.group: recipe[run.name] for run in runs}
    tested_on = "test" if any(run.test is not run.val for run in runs) else "val"
    board = {
        "judged_on": told_split(next(iter(sources.values())), tested_on), "credit": credit_of(list(sources.values())),
        "metric": config.metric, "judged": tested_on, "level": config.level, "resamples": config.resamples,
        "seed": config.seed, "operating_point": asdict(config.operating_point),
        "n": {
            "val": sorted({run.val.label.size for run in runs if run.val}),
            "test": sorted({run.test.label.size for run in runs}),
        },
        "validation_parts": len({run.fold for run in runs}),
        "columns": columns(config.metric, tested_on),
        "rows": [line(entry, voted, told) for entry in entries],
        "spread": [
            asdict(row) | {"settings": recipes[row.group]}
            for row in spread(runs, config.metric)
            if row.split in ("val", tested_on)
        ],
        "roc": {entry.run.name: curve(entry.run) for entry in entries},
    }  # fmt: skip
    board = rounded(board)
    try:
        write_board(folder, board)
        if voted and voted[0].val is not None:
            write_vote(folder / "ensemble", voted[0], {run.name: sources[run.name] for run in best}, config)
        elif (folder / "ensemble" / "vote.json").is_file():
            drop_vote(folder / "ensemble")  # of an earlier comparison, whose page this one replaced
    except OSError as error:
        raise UserError(f"output={folder} can't be written ({error}). Set output=/a/writable/folder.") from error
    describe(board)
    log.info("%s", folder / "comparison.html")
    return board


def columns(metric: str, tested_on: str) -> list[tuple[str, str]]:
    """(split, metric) of the leaderboard: what ranks, then what the tested split says."""
    val = [("val", name) for name in dict.fromkeys((metric, "auroc", "accuracy"))]
    return val + [(tested_on, name) for name in SHOWN if (tested_on, name) not in val]


def line(entry: Entry, voted: Sequence[Run], told: Mapping[str, str]) -> dict[str, Any]:
    return {
        "settings": told.get(entry.run.name, ""),
        "rank": entry.rank,
        "name": entry.run.name,
        "group": entry.run.group,
        "ensemble": entry.run in voted,
        "threshold": entry.run.threshold,
        "val": entry.val,
        "test": entry.test,
        "against": None if entry.against is None else asdict(entry.against),
    }


def curve(run: Run) -> tuple[list[float], list[float]] | None:
    """(1 - specificity, sensitivity) of at most POINTS points; None with one class."""
    films = run.test
    if not 0 < films.label.sum() < films.label.size:
        return None
    x, y, _ = roc_curve(films.label, films.probability)
    step = max(1, len(x) // POINTS)
    keep = sorted({*range(0, len(x), step), len(x) - 1})
    return x[keep].tolist(), y[keep].tolist()


def output_of(config: CompareConfig) -> Path:
    """The folder to write: as told, in the sweep folder, or a new one below outputs/."""
    if config.output:
        folder = Path(config.output).expanduser()
        if (folder / "leaderboard.csv").exists() and not (folder / "comparison.json").exists():
            raise UserError(f"output={folder}: leaderboard.csv is there and not of a comparison: name another folder.")
        return folder
    if isinstance(config.runs, str):
        return Path(config.runs).expanduser() / "comparison"
    return Path("outputs") / time.strftime("comparison_%Y-%m-%d_%H-%M-%S")


def write_board(folder: Path, board: dict[str, Any]) -> None:
    texts = {
        "comparison.html": comparison_html(board),
        "leaderboard.csv": as_csv(board),
        "comparison.json": json.dumps(board, indent=2, allow_nan=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_all(folder, texts)


def as_csv(board: dict[str, Any]) -> str:
    """A row a run: rank, name, threshold, every metric of both splits, the tests; undefined is empty."""
    stream = io.StringIO()
    tests = ("auroc_difference", "delong_p", "delong_holm", "difference", "bootstrap_p", "bootstrap_holm")
    writer = csv.writer(stream, lineterminator="\n")
    splits = ("val", board["judged"]) if board["judged"] != "val" else ("val",)
    named = [f"{split}_{name}" for split in splits for name in METRICS]
    writer.writerow(["rank", "name", "settings", "group", "threshold", *named, *tests])
    for row in board["rows"]:
        values = [(row[split] or {}).get(name) for split in splits for name in METRICS]
        writer.writerow(
            [row["rank"], row["name"], row["settings"], row["group"], row["threshold"], *values]
            + [(row["against"] or {}).get(name) for name in tests]
        )
    return stream.getvalue()


def describe(board: dict[str, Any]) -> None:
    """The leaderboard on the terminal."""
    metric, on = board["metric"], board["judged"]
    if on == "val":
        log.warning("Without test films of all runs they are tested on the films that rank them.")
    if board["validation_parts"] > 1:
        log.warning("The runs validate on different films (another seed or fold): ranks compare unlike figures.")
    width = max(len(row["name"]) for row in board["rows"])
    log.info(
        "rank  %-*s  %12s  %12s  %12s  p (DeLong, Holm)",
        width,
        "run",
        f"val {metric}"[:12],
        f"{on} auroc",
        f"{on} accuracy",
    )
    for row in board["rows"]:
        cells = [(row["val"] or {}).get(metric), row["test"]["auroc"], row["test"]["accuracy"]]
        texts = ["undefined" if cell is None else f"{cell:.4f}" for cell in cells]
        p = None if row["against"] is None else row["against"]["delong_holm"]
        told = "undefined" if p is None else f"{p:.4f}"
        if row["against"] is None:
            told = "best" if row["rank"] == 1 else "its own films"
        log.info(
            "%4d  %-*s  %12s  %12s  %12s  %-9s  %s", row["rank"], width, row["name"], *texts, told, row["settings"][:80]
        )
