"""The house is in order: lint, types, floors; a command answers without torch; every choice has its line in --help."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pneumonia.config import CONF, choices, compose, first_comment, groups, help_text, single_runs
from pneumonia.entry import MALLOC

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "check", ["ruff check .", "ruff format --check .", "mypy", "lint-imports"], ids=lambda check: check.split()[0:2]
)
def test_the_code_passes(check: str) -> None:
    tool, *arguments = check.split()
    done = subprocess.run([BIN / tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_command_loads_no_torch() -> None:
    probe = "import sys, pneumonia.prepare, pneumonia.train; sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT).returncode == 0


def test_help_and_a_typo_are_answered_without_torch() -> None:
    probe = (
        "import sys, pneumonia.train\n"
        "sys.argv[1:] = [{argument!r}]\n"
        "try: pneumonia.train.main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({{'torch', 'lightning'}} & set(sys.modules)))"
    )
    for argument in ("--help", "data.rot=/x", "data.root=/nowhere"):
        done = subprocess.run([sys.executable, "-c", probe.format(argument=argument)], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, (argument, done.stderr)


def test_help_lists_every_choice_with_a_line_on_each() -> None:
    text = help_text("train")
    for group in groups("train"):
        for choice in choices(group):
            line = first_comment(CONF / group / f"{choice}.yaml")
            assert line, f"conf/{group}/{choice}.yaml says nothing of itself"
            assert any(choice in row and line in row for row in text.splitlines())


def test_the_settings_of_every_command_in_the_readme_are_there() -> None:
    """Those of its shell functions too; <names> and $variables stand for what a user types."""
    readme = (ROOT / "README.md").read_text()
    for name, command in re.findall(r'^(\w+)\(\) { (.+) "\$@"; }$', readme, re.M):
        readme = re.sub(rf"(^|do ){name} ", rf"\\1{command} ", readme, flags=re.M)
    typed = re.findall(r"python -m pneumonia\.(\w+) ([^`\n#;]*)", readme)
    assert len(typed) > 50
    for name, text in typed:
        arguments = shlex.split(re.sub(r"<\w+>|\$\w+", "1", text))
        settings = [argument for argument in arguments if "=" in argument]
        for single in single_runs(settings) if "-m" in arguments else [settings]:
            compose(name, single)


def test_evaluation_needs_no_torch() -> None:
    probe = "import sys, pneumonia.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT).returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_a_command_and_what_it_starts_keep_what_they_free() -> None:
    """60 MB that were used and freed stay with the process, where they would go back."""
    use = (
        "import numpy, subprocess, sys, pneumonia.entry\n"
        "def pages(): return int(open('/proc/self/statm').read().split()[1])\n"
        "if 'keep' in sys.argv: pneumonia.entry.keep_freed_memory()\n"
        "before = pages()\n"
        "numpy.ones(60_000_000, numpy.uint8)\n"
        "stays = (pages() - before) * 4096 > 50_000_000\n"
    )
    started = "sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode or not stays)"
    clean = {name: value for name, value in os.environ.items() if name not in MALLOC}
    for program, arguments, kept in (
        (use + started, (use + "sys.exit(not stays)", "keep"), True),
        (use + "sys.exit(not stays)", (), False),
    ):
        done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, env=clean)
        assert (done.returncode == 0) == kept


@pytest.mark.slow
def test_the_wheel_ships_its_settings(tmp_path: Path) -> None:
    import zipfile

    subprocess.run(["uv", "build", "--wheel", "-o", tmp_path, ROOT], check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    shipped = {name.removeprefix("pneumonia/conf/") for name in names if name.startswith("pneumonia/conf/")}
    assert shipped == {file.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml")}
    assert {"pneumonia/py.typed", "pneumonia/report/templates/report.html.j2"} <= set(names)


@pytest.mark.parametrize(
    ("typed", "offered"), [("mod", "model="), ("model=vg", "model=vgg16"), ("data.im", "data.image_size=")]
)
def test_tab_completion_offers_what_can_be_typed(typed: str, offered: str) -> None:
    line = f"pneumonia-train {typed}"
    told = subprocess.run(
        [BIN / "pneumonia-train", "-sc", "query=bash"],
        capture_output=True, text=True,
        env={"COMP_LINE": line, "COMP_POINT": str(len(line)), "PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/tmp"},
    )  # fmt: skip
    assert offered in told.stdout.split(), told


def test_the_requirements_are_hashed_and_name_no_host() -> None:
    text = (ROOT / "docker" / "requirements.txt").read_text()
    pins = [line for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    assert len(pins) > 80 and text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text and "--index" not in text and "--find" not in text


def test_the_requirements_are_of_the_versions_that_are_asked_for() -> None:
    """The image installs without asking for dependencies again."""
    text = (ROOT / "docker" / "requirements.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in map(Requirement, [*project["dependencies"], *extras["optuna"], *extras["joblib"]]):
        assert wanted.specifier.contains(pinned[wanted.name]), wanted
