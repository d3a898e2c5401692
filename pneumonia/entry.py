"""The one entry that every command goes through.

A command composes its settings, checks them and answers before a folder is made or torch is loaded: a mistake costs
half a second and one line. This module must never import torch.
"""

import contextlib
import ctypes
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pneumonia.config import (
    CONF,
    OPEN,
    check_open_sets,
    compose,
    groups,
    help_text,
    quoted,
    setting_names,
    single_runs,
    typed,
)
from pneumonia.errors import UserError, nearest
from pneumonia.launch import launched

log = logging.getLogger(__name__)

ELSEWHERE = "Set hydra.run.dir=/a/writable/folder."
EXTRAS = {  # what is typed: (the package it needs, the extra that brings it)
    "search": ("hydra-optuna-sweeper", "optuna"),
    "hydra/sweeper=optuna": ("hydra-optuna-sweeper", "optuna"),
    "hydra/launcher=joblib": ("hydra-joblib-launcher", "joblib"),
    "hydra/launcher=submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "hydra/launcher=submitit_local": ("hydra-submitit-launcher", "slurm"),
}
MALLOC = {  # the names that glibc reads when a process starts: (their numbers in malloc.h, what is set)
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 2**28),
}
HYDRA_FLAGS = ("-sc", "--shell-completion", "--hydra-help", "--info", "-i", "--cfg", "-c", "--version")


def run_command(
    name: str,
    task: Callable[[Any], Any],
    check: Callable[[Any], None] | None = None,
    resolve: Callable[[list[str]], list[str]] = list,
    refused: Callable[[dict[str, Any], UserError], Any] | None = None,
) -> None:
    """Run `task` on the settings of `conf/<name>.yaml` and the command line.

    Composes and checks first: a user's mistake is one line on stderr and exit code 2, with no folder made. Then Hydra
    takes over (run folder, --multirun, --cfg, completion). `check` sees the typed settings before Hydra does; `resolve`
    may put other arguments in the place of those typed, before all else; `refused` is what a job of a sweep returns
    whose settings don't go together, without it the sweep ends there.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages for large tensors, twice as fast on a CPU
    keep_freed_memory()
    for place in ("PNEUMONIA_CACHE", "XDG_CACHE_HOME"):
        if not os.environ.get(place, "."):
            del os.environ[place]  # an empty one is as none (XDG Base Directory Specification)
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        show(help_text(name))
        return
    asks = any(argument.startswith(HYDRA_FLAGS) for argument in arguments)
    theirs: frozenset[str] = frozenset()
    try:
        typed_ones = flags_first(arguments)
        if asks:
            check_question(name, typed_ones)
            sys.argv[1:] = typed_ones
        else:
            check_taken(typed_ones)
            told = [at_home(argument) for argument in without_plus(name, typed_ones)]
            sys.argv[1:], theirs = prepare_arguments(name, resolve(told), check)
    except (UserError, PermissionError) as error:
        if speaks() or isinstance(error, PermissionError):
            print(f"pneumonia.{name}: {plain(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # films may be downloaded and decoded here
        if speaks():
            print(f"pneumonia.{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    try:
        hand_to_hydra(name, task, refused, theirs)
    finally:
        sys.argv[1:] = arguments


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for tensors ask for as much in the next step, and pages that are given back come
    zeroed again: on a CPU `experiment=record` trains 1.08 times as fast. Processes that this one starts do the same.
    What the environment says goes before; with another libc nothing changes."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for name, (number, value) in MALLOC.items():
            if name not in os.environ:
                os.environ[name] = str(value)
                mallopt(number, value)


def show(text: str) -> None:
    """Print, and end quietly when the reader (`| head`) has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_taken(arguments: Sequence[str]) -> None:
    """Raise UserError for ~key: a command counts on its settings."""
    for argument in arguments:
        if argument.startswith("~") and not argument.startswith("~hydra"):
            raise UserError(f"{argument}: a setting can't be taken away; give it another value (see --help).")


def without_plus(name: str, arguments: Sequence[str]) -> list[str]:
    """+key=value and ++key=value of a closed setting as key=value, so that it is checked as that. + may add an argument
    to an open set, and nothing else: a typo must not pass as a new setting. Raises UserError."""
    if not any(argument.startswith("+") for argument in arguments):
        return list(arguments)
    known = [*setting_names(compose(name, [])), *groups(name)]
    plain_ones = []
    for argument in arguments:
        bare = argument.lstrip("+")
        key = bare.partition("=")[0]
        opened = "." in key and key.partition(".")[0] in OPEN
        if not argument.startswith("+") or opened or key.startswith("hydra"):
            plain_ones.append(argument)
        elif key in known:
            plain_ones.append(bare)
        else:
            raise UserError(
                f"{argument}: there is no setting {key}{nearest(key, known) or '; see --help for the list'}"
            )
    return plain_ones


def at_home(argument: str) -> str:
    """The argument with a path that begins with ~ written out, as no shell does behind a =; those of a list are not."""
    key, _, value = argument.partition("=")
    return f"{key}={quoted(os.path.expanduser(value))}" if value.startswith("~") and "," not in value else argument


def check_question(name: str, arguments: Sequence[str]) -> None:
    """Raise UserError for settings that don't compose, where Hydra is asked about them (--cfg, --info)."""
    flag = next(argument for argument in arguments if argument.startswith(HYDRA_FLAGS))
    if flag in ("--shell-completion", "-sc"):
        return  # what is typed so far need not be whole
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(f"-m with {flag}: a sweep has many settings; leave -m out and give each one value.")
    compose(name, [argument for argument in arguments if is_setting(argument)])


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The same with all settings after the last flag: Hydra's parser takes none there where some stand before it."""
    if {"-sc", "--shell-completion"} & set(arguments):
        return list(arguments)  # the flag's own value has a =, too
    return sorted(arguments, key=is_setting)


def is_setting(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def speaks() -> bool:
    """Whether this process is the one of several that tells a mistake."""
    try:
        return launched().rank == 0
    except UserError:
        return os.environ.get("SLURM_PROCID") == "0"


def each_its_own(
    check: Callable[[Any], None], place: Callable[[Any], tuple[str, Hashable]], way: str
) -> Callable[[Any], None]:
    """`check` of one run of -m after another, of which no two may write to the same `place` (what is told of it, and
    what tells it from others); `way`: what to type instead."""
    taken: set[Hashable] = set()

    def both(config: Any) -> None:
        check(config)
        told, key = place(config)
        if key in taken:
            raise UserError(f"{told}: two runs of -m would write it, the second over the first; {way}")
        taken.add(key)

    return both


def prepare_arguments(
    name: str, arguments: list[str], check: Callable[[Any], None] | None
) -> tuple[list[str], frozenset[str]]:
    """Check every run that the arguments ask for; for a single run, name its unused folder, and tell what the user has
    in it ("." for the folder itself). Raises UserError."""
    multirun = bool({"-m", "--multirun"} & set(arguments))
    flags = [argument for argument in arguments if argument.startswith("-")]
    unknown = [flag for flag in flags if flag not in ("-m", "--multirun")]
    if unknown:
        raise UserError(f"{unknown[0]}: there is no such flag; settings are typed as key=value (see --help).")
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    check_extras(overrides)
    check_sweep(overrides, multirun)
    config = checked(name, single_runs(overrides) if multirun else [overrides], check)
    resumed = any(override.startswith("resume=") for override in overrides)
    theirs: frozenset[str] = frozenset()
    if not multirun and config.hydra.output_subdir is None and not resumed:  # a command that leaves no run folder
        return arguments, theirs
    where = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    if f"{where}=" in overrides:
        raise UserError(f"{where}= is empty: name a folder, or leave it out.")
    folder = Path(config.hydra.sweep.dir if multirun else config.hydra.run.dir)
    writable_folder(folder, "Set hydra.sweep.dir=/a/writable/folder." if multirun else ELSEWHERE)
    if multirun and "test" in config and not any(override.startswith("test=") for override in overrides):
        arguments = [*arguments, "test=false"]  # a sweep is ranked on validation
    if multirun:
        return arguments, theirs
    if launched().rank > 0:  # the first of several processes alone has a run folder
        return [*arguments, "hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=terminal"], theirs
    named = any(override.startswith("hydra.run.dir=") for override in overrides)
    if named and not resumed and (folder / "run.json").exists():
        raise UserError(
            f"hydra.run.dir={folder}: a run is there already; type resume={folder} to go on with it, or another folder."
        )
    if named and folder.is_dir():
        theirs = frozenset({".", *(entry.name for entry in folder.iterdir())})
    folder = claimed_folder(folder, named)
    return arguments if named else [*arguments, f"hydra.run.dir={quoted(folder)}"], theirs


def checked(name: str, runs: Iterable[list[str]], check: Callable[[Any], None] | None) -> DictConfig:
    """The settings of the last of `runs` (there is one at least), when all of them were checked. Raises UserError."""
    config = None
    for overrides in runs:
        config = compose(name, overrides)
        check_open_sets(name, overrides, config)
        settings = typed(name, config)
        if check is not None:
            check(settings)
    assert config is not None
    return config


def check_extras(overrides: Sequence[str]) -> None:
    """Raise UserError when something typed needs an extra that is not installed."""
    for override in overrides:
        package, extra = EXTRAS.get(override) or EXTRAS.get(override.partition("=")[0]) or ("", "")
        try:
            _ = extra and override != "search=null" and version(package)
        except PackageNotFoundError:
            raise UserError(
                f"{override}: {package} is not installed; `uv sync --extra {extra}` brings it, or for once "
                f"`uv run --extra {extra} python -m pneumonia.train ...`."
            ) from None


def check_sweep(overrides: Sequence[str], multirun: bool) -> None:
    """Raise UserError for a search without -m, and for a sweep whose folder several processes could not agree on."""
    keys = [override.partition("=")[0] for override in overrides]
    search = next((o for o in overrides if o.startswith("search=") and o != "search=null"), "")
    if search and not multirun and "resume" not in keys:
        raise UserError(f"{search}: a search is a sweep; type -m beside it.")
    launch = launched()
    if multirun and launch.world > 1 and search:
        raise UserError(f"{search}: {launch.by} can't start a search; trainer=ddp alone starts each trial's processes.")
    if multirun and launch.world > 1 and "hydra.sweep.dir" not in keys:
        raise UserError(
            f"-m under {launch.by}: name one folder for all processes, as hydra.sweep.dir=outputs/my_sweep."
        )


def writable_folder(folder: Path, way_out: str = ELSEWHERE) -> None:
    """Raise UserError unless `folder` can be made or written to; makes nothing."""
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{folder} can't be written: {parent} is not a writable folder. {way_out}")


def claimed_folder(folder: Path, named: bool) -> Path:
    """`folder` if it is `named` by the user, made where it is not there; else the first of `folder`, `folder-2`, ...
    that this process could make: that is atomic, so that two runs never share one. Raises UserError."""
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir(parents=True, exist_ok=named)
            return candidate
        except FileExistsError:
            if named:
                raise UserError(f"hydra.run.dir={folder}: a file is there; name a folder.") from None
        except OSError as error:
            raise UserError(f"The run can't be written to {candidate} ({error}). {ELSEWHERE}") from error
    raise AssertionError("unreachable")


def hand_to_hydra(
    name: str,
    task: Callable[[Any], Any],
    refused: Callable[[dict[str, Any], UserError], Any] | None,
    theirs: frozenset[str],
) -> None:
    """Let Hydra make the run folder and call the task; a UserError inside it stays one line, and costs nothing that was
    in the folder before (`theirs`)."""
    logging.raiseExceptions = False  # a reader of the output that left (`| head`) is no error of the run
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    def job(config: DictConfig) -> Any:
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            settings = typed(name, config)
        except UserError as error:
            if multirun and refused is not None:
                return refused(dict(config), error)
            raise
        return task(settings)

    def told(config: DictConfig) -> Any:
        try:
            return job(config)
        except (UserError, PermissionError) as error:
            if isinstance(error, PermissionError) and error.filename is None:
                raise  # of no file
            if HydraConfig.get().mode == RunMode.MULTIRUN and refused is not None:
                raise
            if not speaks() and isinstance(error, UserError):  # what another process may not read it tells itself
                raise SystemExit(2) from None
            # Without an output_subdir there is no run folder: the command runs in the user's own, not to be removed.
            own = HydraConfig.get().output_subdir is None
            if own or discard_unstarted(Path(HydraConfig.get().runtime.output_dir), name, theirs):
                print(f"pneumonia.{name}: {plain(error)}", file=sys.stderr)
            else:
                log.error("pneumonia.%s: %s", name, plain(error))
            raise SystemExit(2) from None

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(told)()
    except KeyboardInterrupt:  # outside a training, which says itself how it goes on
        print(f"pneumonia.{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def plain(error: UserError | PermissionError) -> str:
    """The error's own line; one that comes from a loader process is wrapped in that process's traceback."""
    if isinstance(error, PermissionError):
        return f"{error.filename}: permission denied; mend that, or name what this user may read and write."
    text = str(error)
    return text.strip().splitlines()[-1].partition("UserError: ")[2] if "Original Traceback" in text else text


def discard_unstarted(folder: Path, name: str, theirs: frozenset[str]) -> bool:
    """Remove Hydra's own files from a folder that holds only them and logs, then the folder if that leaves it empty:
    the run never started. What was there before stays, and logs of another name, as that of a job in a queue."""
    unstarted = all(entry.name == ".hydra" or entry.suffix == ".log" for entry in folder.iterdir())
    if unstarted:
        if ".hydra" not in theirs:
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
        if f"{name}.log" not in theirs:
            (folder / f"{name}.log").unlink(missing_ok=True)
        if "." not in theirs and not any(folder.iterdir()):
            folder.rmdir()
    return unstarted
