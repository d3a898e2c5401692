"""Checkpoints that are whole or not there, and that hold nothing but tensors and plain values."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pneumonia.data.exported import EXPORTED
from pneumonia.errors import UserError
from pneumonia.files import written
from pneumonia.training.classifier import Classifier
from pneumonia.training.export import read_exported


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: a kill or a full disk leaves the former checkpoint whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: object = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written(target) as temporary:
                with temporary.open("wb") as stream:
                    torch.save(checkpoint, stream)
                    stream.flush()
                    os.fsync(stream.fileno())  # on the disk before the one that it takes the place of moves
                if target.name == "last.ckpt" and target.exists():
                    os.replace(target, target.with_name("previous.ckpt"))  # what resuming falls back to
        except (OSError, RuntimeError) as error:  # torch has its own kind for a write that failed
            if signal := signal_behind(error):
                raise signal from None
            raise UserError(
                f"{target} can't be written ({error}): make room, then go on with resume={target.parent.parent}; "
                "the checkpoint before it is whole."
            ) from error


def signal_behind(error: BaseException) -> BaseException | None:
    """The Ctrl-C or SIGTERM that broke off a write, over which torch complains of the file that is not whole then."""
    cause = error.__context__
    while cause is not None and not isinstance(cause, KeyboardInterrupt | SystemExit | SIGTERMException):
        cause = cause.__context__
    return cause


def load_classifier(path: Path) -> Classifier:
    """The classifier of a checkpoint or exported model, on the CPU in eval mode; nothing but tensors and plain values
    is read.

    Raises UserError when the file is missing, no checkpoint of this project, or damaged.
    """
    if not path.is_file():
        raise UserError(f"checkpoint={path}: no such file; expected <run>/checkpoints/best.ckpt.")
    state, spec = read_exported(path) if path.suffix == EXPORTED else read_checkpoint(path)
    try:
        classifier = Classifier(**spec | {"model": without_download(spec["model"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint={path}: its settings are not those of a model of this version ({error}); "
            "expected <run>/checkpoints/best.ckpt."
        ) from error
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint={path}: its weights don't fit the model that it names ({str(error).splitlines()[0]})"
        ) from error
    return classifier.eval()


def load_to_predict(path: Path) -> Classifier:
    """`load_classifier`, on a GPU where there is one."""
    return load_classifier(path).to("cuda" if torch.cuda.is_available() else "cpu")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, hyper_parameters) of a checkpoint. Raises UserError for a file that is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of a pickle that is none of its files
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return dict(checkpoint["state_dict"]), dict(checkpoint["hyper_parameters"])
    except Exception as error:  # torch.load raises many kinds on a file that is not its own
        raise UserError(
            f"checkpoint={path} is not a checkpoint of this project ({type(error).__name__}); "
            "expected <run>/checkpoints/best.ckpt."
        ) from error


def without_download(model: dict[str, Any]) -> dict[str, Any]:
    """The model spec with no weights to fetch: the checkpoint's own take their place."""
    return model | {"weights": None} if "weights" in model else model
