"""How a run that did not get to its end is written down and told."""

import contextlib
import errno
import logging
import os
import re
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessRaisedException

from pneumonia.config import quoted
from pneumonia.errors import UserError
from pneumonia.launch import launched
from pneumonia.workflows.processes import end_children, ignore_further_signals
from pneumonia.workflows.record import RunRecord

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def ending(error: BaseException, trainer: L.Trainer, folder: Path, record: RunRecord) -> BaseException:
    """Write down that the run was interrupted or failed, say how it goes on, and give what is to be raised."""
    if name := signal_of(error, trainer):
        ignore_further_signals()
        end_children()
        record.end("interrupted", name)
        last = folder / "checkpoints" / "last.ckpt"
        kept = f"{last} holds the last whole epoch" if last.exists() else "no epoch was finished"
        log.warning('Interrupted; %s. "resume=%s" goes on.', kept, quoted(folder))
        return SystemExit(143 if name == "SIGTERM" else 130)
    told = of_child(error, folder)
    with contextlib.suppress(OSError):  # a full disk takes no run.json either
        record.end("failed", f"{type(told).__name__}: {told}")
    return told


def signal_of(error: BaseException, trainer: L.Trainer) -> str:
    """What interrupted the run: a signal, or the end of another of its processes, which may have had it first."""
    if trainer.received_sigterm or isinstance(error, SIGTERMException):
        return "SIGTERM"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "SIGINT"
    return "another process ended" if launched().world > 1 and " by peer" in str(error) else ""


def of_child(error: BaseException, folder: Path) -> BaseException:
    """A user's error that was raised in a spawned process comes wrapped in that process's traceback: its own line.

    A full disk and a port that another program took are a user's to mend, too.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return UserError(f"The run can't be written on ({error}): make room, then go on with resume={quoted(folder)}.")
    if "EADDRINUSE" in text:
        return UserError(f"MASTER_PORT={os.environ.get('MASTER_PORT')} is in use: export another, or unset it.")
    own = re.search(r"\npneumonia\.\S+\.(?:UserError|NonFiniteLoss): (.*)", text, re.DOTALL)
    return UserError(own[1].strip()) if isinstance(error, ProcessRaisedException) and own else error
