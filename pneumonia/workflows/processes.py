"""Several processes: what started them, that they fit the machine, and that one of them speaks and writes."""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pneumonia.errors import UserError
from pneumonia.launch import launched
from pneumonia.settings import TrainConfig

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING = (signal.SIGINT, signal.SIGTERM)


def check_launch(config: TrainConfig) -> None:
    """Raise UserError when the settings don't fit how the processes were started; still without torch."""
    launch, place = launched(), config.trainer
    if launch.world > 1 and place.strategy != "ddp":
        raise UserError(f"{launch.by} started {launch.world} processes, each would train by itself: type trainer=ddp.")
    if launch.world > 1 and place.devices not in ("auto", str(launch.local)):
        raise UserError(
            f"trainer.devices={place.devices}: {launch.by} started {launch.local} processes on this machine; leave "
            "trainer.devices out."
        )
    port = os.environ.get("MASTER_PORT")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"MASTER_PORT={port}: expected a port from 1 to 65535; export another, or unset it.")
    if place.strategy == "ddp" and launch.world == 1 and port and not free(port):
        raise UserError(f"MASTER_PORT={port} is in use: export another, or unset it for any free one.")


def free(port: str) -> bool:
    """Whether a process of this machine could listen at `port`."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", int(port)))
        except OSError:
            return False
        return True


def one_at_a_time() -> bool:
    """Whether this run has the terminal for itself: it is no job of a launcher that starts several."""
    target = str(HydraConfig.get().launcher._target_)
    return HydraConfig.get().mode != RunMode.MULTIRUN or target.endswith(".BasicLauncher")


def name_lines(job: str) -> None:
    """Begin every line on the terminal with the job that says it; its own log has no need of that."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter(f"{job}  %(message)s"))


@contextmanager
def ending_with_sweep() -> Iterator[None]:
    """A trial of joblib gets SIGTERM when its sweep is gone (Linux), and its process ends then: none is left behind."""
    parent = os.getppid()
    ends = sys.platform == "linux" and str(HydraConfig.get().launcher._target_).endswith(".JoblibLauncher")
    if ends:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        yield
    finally:
        if ends and os.getppid() != parent:
            logging.shutdown()
            os._exit(143)


@contextmanager
def ending_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the run at once wherever it is, as Ctrl-C does: in Lightning's hands only fit would notice it."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a loader process that was forked from this one
            os._exit(143)
        raise SIGTERMException

    former = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SIGTERMException:
        log.warning("Interrupted before the run began.")
        raise SystemExit(143) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def ignore_further_signals() -> None:
    """What a signal broke off is written down whole: the system, torchrun or a user may send it again meanwhile.

    Where a sweep is killed, each thread of it that ends sends its trials one more SIGTERM. Undone by ending_at_sigterm.
    """
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


def end_children() -> None:
    """End the processes that this one started: their checkpoints are whole at any instant."""
    for child in multiprocessing.active_children():
        child.kill()


def fall_silent() -> None:
    """Of several processes the first alone speaks."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


@contextmanager
def own_port() -> Iterator[None]:
    """Lightning leaves the port it found in MASTER_PORT: the next run of a sweep must find its own."""
    given = os.environ.get("MASTER_PORT")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("MASTER_PORT", None)
