"""What can be typed: where conf/ is, its choices and their help, and what is wrong with settings that were typed.

This module must never import torch: a mistake costs half a second and one line.
"""

import copy
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from pneumonia.errors import UserError, nearest
from pneumonia.launch import usable_cores
from pneumonia.settings import lower_is_better

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
OmegaConf.register_new_resolver("short_hash", lambda text: hashlib.sha256(str(text).encode()).hexdigest()[:10])
OmegaConf.register_new_resolver("direction_of", lambda name: "minimize" if lower_is_better(name) else "maximize")
OmegaConf.register_new_resolver("trials_at_once", lambda jobs: usable_cores() if jobs < 0 else jobs)  # -1: every core
SWEPT = {  # an example of a sweep, for commands whose jobs write to different places
    "train": "seed=1,2,3", "prepare": "data.image_size=64,112", "evaluate": "run=outputs/a,outputs/b",
    "explain": "run=outputs/a,outputs/b", "scoreboard": "run=outputs/a,outputs/b",
}  # fmt: skip
OPEN = ("model", "optimizer", "schedule", "augment", "attribution", "attributions")  # sets with arguments of their own


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

    if told := next(filter(None, (several(name, override) for override in overrides)), ""):
        raise UserError(told)
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
        if example := example_of(base, setting):
            return f"{given[-1]}: a section is typed by its settings, as {example}."
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
        value = override.partition("=")[2]
        if value.startswith(("[", "{")):
            return f"{override}: can't be read; look after its brackets, quotes and commas."
        return f'{override}: can\'t be read; a value with a comma, a quote or = is typed as "{key}={quoted(value)}"'
    if parsed.is_sweep_override():
        return (
            f'{override}: several values need -m (a sweep); a list is typed as "{key}=[a,b]", one value with a comma '
            f"in it as \"{key}='...'\""
        )
    return ""


def several(name: str, override: str) -> str:
    """What is wrong with a list of choices, which Hydra takes for a group; else empty."""
    key, _, value = override.lstrip("+~").partition("=")
    if key not in groups(name) or not value.startswith(("[", "{")):
        return ""
    given = next((choice for choice in choices(key) if choice in re.split(r"\W+", value)), choices(key)[0])
    return f"{override}: expected one of {', '.join(choices(key))}; type {key}={given}."


def example_of(config: DictConfig | None, section: str) -> str:
    """One setting of a section as it is typed; empty where `section` is none."""
    content = OmegaConf.select(config, section) if config is not None else None
    if not isinstance(content, DictConfig) or not content:
        return ""
    key, value = next(iter(content.items()))
    return f"{section}.{key!s}={value}"


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
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    searched = any(override.startswith(("search=", "hydra/sweeper=")) for override in overrides)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    values: list[list[str]] = []
    for override in parsed:
        key, value = override.get_key_element(), override.value()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            if not searched:
                raise UserError(
                    f"{override.input_line}: an interval is for a search; type search=cnn or search=vgg16 beside it, "
                    f"or the values themselves, as {key}=1,2."
                )
        elif isinstance(value, Glob):
            if not (found := value.filter(choices(key))):
                raise UserError(f"{override.input_line}: expected some of {', '.join(choices(key)) or 'a group'}.")
            values.append([f"{key}={choice}" for choice in found])
        elif override.is_sweep_override():
            values.append([f"{key}={each}" for each in override.sweep_string_iterator()])
        else:
            values.append([str(override.input_line)])
    first = [options[0] for options in values]
    yield first
    for position, options in enumerate(values):
        for option in options[1:]:
            yield [*first[:position], option, *first[position + 1 :]]


def quoted(path: Path | str) -> str:
    """A path or a text as Hydra's grammar takes it, whatever stands in it."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(str(path), Quote.single).with_quotes()
