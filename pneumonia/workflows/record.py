"""run.json: when, where and from what a run was made, and how it ended; it differs between equal runs."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pneumonia.files import written
from pneumonia.launch import usable_cores

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "albumentations",
    "hydra-core",
    "numpy",
    "opencv-python-headless",
    "scikit-learn",
)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none or it was cut short."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def told_of(folder: Path) -> dict[str, Any]:
    """A run's run.json or a vote's vote.json."""
    return read_json(folder / "run.json") or read_json(folder / "vote.json")


def home_of(file: Path) -> Path:
    """What the paths of a list are relative to: the films of the run or vote whose table it is, else its own folder."""
    folder = file.resolve().parent
    root = told_of(folder).get("data_root")
    return Path(root).absolute() if isinstance(root, str) else folder


def write_json(file: Path, content: Any) -> None:
    """Keys keep their order, nan is refused."""
    with written(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write every text of {name: text}; they are renamed when all are whole."""
    with ExitStack() as stack:
        for name, text in texts.items():
            stack.enter_context(written(folder / name)).write_text(text, encoding="utf-8")


class RunRecord:
    """The content of run.json; every change is on disk at once, so a killed run still says `running` and since when."""

    def __init__(self, file: Path, **content: Any) -> None:
        from pneumonia import __version__

        earlier = earlier_attempts(file)
        self.file = file
        self.started = time.time()
        self.content: dict[str, Any] = {
            "status": "running",
            "started": stamp(self.started),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "pneumonia": __version__,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "git_commit": git_commit(),
            "machine": machine(),
            "earlier_attempts": earlier,
        } | content
        write_json(file, self.content)

    def update(self, **content: Any) -> None:
        self.content |= content
        write_json(self.file, self.content)

    def end(self, status: str, reason: str = "") -> None:
        """`finished`, `interrupted` or `failed`, with the reason of the last two."""
        now = time.time()
        ending = {"status": status, "ended": stamp(now), "seconds": round(now - self.started, 1)}
        self.update(**ending | ({"reason": reason} if reason else {}))


def earlier_attempts(file: Path) -> list[dict[str, Any]]:
    """When a run that is gone on with was started before, and how those attempts ended."""
    if not file.exists():
        return []
    try:
        former = dict(json.loads(file.read_text()))
    except ValueError:  # emptied by a crash of the machine
        return [{"status": "damaged"}]
    told = {name: former.get(name) for name in ("started", "ended", "status", "command", "git_commit")}
    return [*former.get("earlier_attempts", []), told]


def stamp(seconds: float) -> str:
    """Local time with its offset, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def git_commit() -> str | None:
    """The commit of the code that runs, with `+` when files differ from it; None where no repository holds it, as that
    around a virtual environment doesn't."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no", str(folder)) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores and GPUs."""
    import torch

    cores = usable_cores()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }
