"""Early checks, and the one entry that every command goes through.

A command composes its settings, checks them and answers before a folder is made or torch is loaded: a mistake costs
half a second and one line. This module must never import torch.
"""

import contextlib
import copy
import ctypes
import functools
import hashlib
import itertools
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from pneumonia.settings import UserError, launched, nearest, usable_cores

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
OmegaConf.register_new_resolver("short_hash", lambda text: hashlib.sha256(str(text).encode()).hexdigest()[:10])
OmegaConf.register_new_resolver("direction_of", lambda name: "minimize" if name.endswith("loss") else "maximize")
OmegaConf.register_new_resolver("trials_at_once", lambda jobs: usable_cores() if jobs < 0 else jobs)  # -1: every core
SWEPT = {  # an example of a sweep, for commands whose jobs write to different places
    "train": "seed=1,2,3", "prepare": "data.image_size=64,112", "evaluate": "run=outputs/a,outputs/b",
    "explain": "run=outputs/a,outputs/b", "scoreboard": "run=outputs/a,outputs/b",
}  # fmt: skip
OPEN = ("model", "optimizer", "schedule", "augment", "attribution", "attributions")  # sets with arguments of their own
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


def choices(group: str) -> list[str]:
    """Names that can be typed after `group=`, from the files of conf/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@functools.cache
def groups(name: str) -> tuple[str, ...]:
    """The groups of a command, in the order of its defaults list."""
    file = OmegaConf.load(CONF / f"{name}.yaml")
    assert isinstance(file, DictConfig)
    keys = [str(next(iter(entry))) for entry in file.defaults if isinstance(entry, DictConfig)]
    return tuple(key for key in keys if not key.startswith("override "))


def optional_group(name: str, group: str) -> bool:
    """Whether nothing is chosen of the group by default, as of search."""
    file = OmegaConf.load(CONF / f"{name}.yaml")
    assert isinstance(file, DictConfig)
    return any(isinstance(entry, DictConfig) and entry.get(group, "") is None for entry in file.defaults)


def help_text(name: str) -> str:
    """Every choice with the first comment line of its file, then every setting with its comment, as in the files."""
    lines = [f"python -m pneumonia.{name} [group=choice ...] [setting=value ...]", ""]
    for group in groups(name):
        lines.append(f"{group}=")
        lines += [f"  {choice:<20} {first_comment(CONF / group / f'{choice}.yaml')}" for choice in choices(group)]
    lines += ["", "settings (defaults shown; null means none):"]
    lines += [f"  {line}" for line in body(CONF / f"{name}.yaml")]
    for group, file in (("data", "chest_xray"), ("trainer", "auto")):
        if group in groups(name):
            lines += ["", f"{group}: settings (type {group}.NAME=value)"]
            lines += [f"  {line}" for line in body(CONF / group / f"{file}.yaml")]
    lines.append("")
    if name in SWEPT:
        lines.append(f"-m runs a sweep over comma-separated values: python -m pneumonia.{name} -m {SWEPT[name]}")
    lines += ["--cfg job prints the composed settings; --hydra-help lists Hydra's own flags."]
    return "\n".join(lines)


def show(text: str) -> None:
    """Print, and end quietly when the reader (`| head`) has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def first_comment(file: Path) -> str:
    """First comment of a YAML file that is not a Hydra directive; empty when there is none."""
    comments = (line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def body(file: Path) -> list[str]:
    """The setting lines of a YAML file with their comments, without its defaults list and hydra section."""
    lines, inside = [], True
    for line in file.read_text().splitlines():
        if re.match(r"[\w/]+:", line):
            inside = not line.startswith(("defaults:", "hydra:"))
        if inside and line and not line.startswith(("#", "_target_")):
            lines.append(line)
    return lines


def compose(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose `conf/<name>.yaml` with `overrides`; Hydra's own section included. Raises UserError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), job_name=name, version_base="1.3"):
            return hydra_compose(name, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(name, error, overrides)) from error


def explain(name: str, error: Exception, overrides: Sequence[str]) -> str:
    """One line for a failed composition: the override at fault, what was expected, the nearest valid name."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if "=" not in override and not override.startswith("~"):
            return f"{override}: expected key=value, as in seed=1 (see --help)."
        if told := unreadable(override):
            return told
        if key in groups(name) and value not in choices(key):
            optional = value == "null" and optional_group(name, key)
            hint = "; leave it out for none" if optional else nearest(value, choices(key))
            return f"{key}={value}: expected one of {', '.join(choices(key))}{hint}"
    base = compose(name, [o for o in overrides if o.partition("=")[0] in groups(name)]) if overrides else None
    known = list(setting_names(base)) if base is not None else []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key not in (*known, *groups(name)) and not key.startswith("hydra"):
            return f"{override}: there is no setting {key}{nearest(key, known) or '; see --help for the list'}"
    cause = str(error.__cause__ or error).splitlines()[0]
    setting = getattr(error.__cause__ or error, "full_key", None)
    if setting and (given := [o for o in overrides if o.lstrip("+").partition("=")[0] == setting]):
        return f"{given[-1]}: " + (f"expected a list, as {setting}=[a,b]" if "ListConfig" in cause else cause)
    culprit = next((o for o in overrides if o.partition("=")[2] and f"'{o.partition('=')[2]}'" in cause), "")
    return f"{culprit}{': ' if culprit else ''}{cause}"


def unreadable(override: str) -> str:
    """What is wrong with an override that Hydra's grammar can't read, or that gives several values; else empty."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key = override.partition("=")[0]
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return f"{override}: can't be read; a value with a comma, a quote or = is typed as \"{key}='...'\""
    if parsed.is_sweep_override():
        return f"{override}: several values need -m (a sweep); one with a comma in it is typed as \"{key}='...'\""
    return ""


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


def setting_names(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of every setting and section, Hydra's own left out."""
    for key in map(str, config):
        name = f"{prefix}{key}"
        if name == "hydra":
            continue
        yield name
        child = None if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key) else config[key]
        if isinstance(child, DictConfig):
            yield from setting_names(child, f"{name}.")


@functools.cache
def chosen_settings(name: str, chosen: tuple[str, ...]) -> DictConfig:
    """The settings of these choices with no value set, the same for every job of a sweep; not to be written to."""
    return compose(name, chosen)


def check_open_sets(name: str, overrides: Sequence[str], config: DictConfig) -> None:
    """Values typed for an open set (model, optimizer, ...) must have the type that its YAML shows; all together compose
    to `config`. The other sections check themselves. Raises UserError."""
    last = {override.partition("=")[0]: override for override in overrides}  # of a key typed twice
    opened = [override for override in last.values() if override.partition(".")[0] in OPEN]
    chosen = tuple(o for o in overrides if o.partition("=")[0] in groups(name))
    base = chosen_settings(name, chosen) if opened else config
    for override in opened:
        key, _, _ = override.partition("=")
        default, given = OmegaConf.select(base, key), OmegaConf.select(config, key)
        if default is not None and given is not None and not same_kind(default, given):
            raise UserError(f"{override}: expected {kind(default)}, as {key}={default}.")


def same_kind(default: Any, given: Any) -> bool:
    """A float setting takes an int; otherwise the kinds must be equal."""
    return kind(default) == kind(given) or (kind(default) == "a number" and kind(given) == "a whole number")


def kind(value: Any) -> str:
    """What a value is, in a user's words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    return "a list" if isinstance(value, ListConfig) else "a section" if isinstance(value, DictConfig) else "a name"


def typed(name: str, config: DictConfig) -> Any:
    """The command's dataclass, checked by its own __post_init__; Hydra's section dropped. Raises UserError."""
    from omegaconf.errors import OmegaConfBaseException

    settings = copy.deepcopy(config)
    with open_dict(settings), read_write(settings):
        settings.pop("hydra", None)
    try:
        return OmegaConf.to_object(settings)
    except OmegaConfBaseException as error:
        raise UserError(f"{getattr(error, 'full_key', '') or name}: {str(error).splitlines()[0]}") from error


def single_runs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Of a sweep's overrides: the first value of each, then each further value beside the first of the others."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    values: list[list[str]] = []
    for override in parsed:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            continue  # an interval is the search's business
        if override.is_sweep_override():
            values.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            values.append([str(override.input_line)])
    first = [options[0] for options in values]
    yield first
    for position, options in enumerate(values):
        for option in options[1:]:
            yield [*first[:position], option, *first[position + 1 :]]


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


def quoted(path: Path | str) -> str:
    """A path or a text as Hydra's grammar takes it, whatever stands in it."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(str(path), Quote.single).with_quotes()


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
    try:
        typed_ones = flags_first(arguments)
        if asks:
            check_question(name, typed_ones)
            sys.argv[1:] = typed_ones
        else:
            check_taken(typed_ones)
            told = [at_home(argument) for argument in without_plus(name, typed_ones)]
            sys.argv[1:] = prepare_arguments(name, resolve(told), check)
    except (UserError, PermissionError) as error:
        if speaks() or isinstance(error, PermissionError):
            print(f"pneumonia.{name}: {plain(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # films may be downloaded and decoded here
        if speaks():
            print(f"pneumonia.{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    try:
        hand_to_hydra(name, task, refused)
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


def prepare_arguments(name: str, arguments: list[str], check: Callable[[Any], None] | None) -> list[str]:
    """Check every run that the arguments ask for; for a single run, name its unused folder. Raises UserError."""
    multirun = bool({"-m", "--multirun"} & set(arguments))
    flags = [argument for argument in arguments if argument.startswith("-")]
    unknown = [flag for flag in flags if flag not in ("-m", "--multirun")]
    if unknown:
        raise UserError(f"{unknown[0]}: there is no such flag; settings are typed as key=value (see --help).")
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    check_extras(overrides)
    check_sweep(overrides, multirun)
    config = None
    for single in single_runs(overrides) if multirun else [overrides]:
        config = compose(name, single)
        check_open_sets(name, single, config)
        settings = typed(name, config)
        if check is not None:
            check(settings)
    assert config is not None
    resumed = any(override.startswith("resume=") for override in overrides)
    if not multirun and config.hydra.output_subdir is None and not resumed:  # a command that leaves no run folder
        return arguments
    folder = Path(config.hydra.sweep.dir if multirun else config.hydra.run.dir)
    writable_folder(folder, "Set hydra.sweep.dir=/a/writable/folder." if multirun else ELSEWHERE)
    if multirun and "test" in config and not any(override.startswith("test=") for override in overrides):
        arguments = [*arguments, "test=false"]  # a sweep is ranked on validation
    if multirun:
        return arguments
    if launched().rank > 0:  # the first of several processes alone has a run folder
        return [*arguments, "hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=terminal"]
    named = any(override.startswith("hydra.run.dir=") for override in overrides)
    if named and not resumed and (folder / "run.json").exists():
        raise UserError(
            f"hydra.run.dir={folder}: a run is there already; type resume={folder} to go on with it, or another folder."
        )
    folder = claimed_folder(folder, named)
    return arguments if named else [*arguments, f"hydra.run.dir={quoted(folder)}"]


def hand_to_hydra(
    name: str, task: Callable[[Any], Any], refused: Callable[[dict[str, Any], UserError], Any] | None
) -> None:
    """Let Hydra make the run folder and call the task; a UserError inside it stays one line."""
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
            if own or discard_unstarted(Path(HydraConfig.get().runtime.output_dir), name):
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


def discard_unstarted(folder: Path, name: str) -> bool:
    """Remove Hydra's own files from a folder that holds only them and logs, then the folder if that leaves it empty:
    the run never started. Logs of another name are the user's, as that of a job in a queue."""
    unstarted = all(entry.name == ".hydra" or entry.suffix == ".log" for entry in folder.iterdir())
    if unstarted:
        shutil.rmtree(folder / ".hydra", ignore_errors=True)
        (folder / f"{name}.log").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return unstarted
