"""How exactly a finished net is asked: a GPU's convolutions would round float32 to ten bits by themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions in all 23 bits of float32, not in TF32, so that a GPU calls and explains as a CPU does.

    TF32: https://docs.pytorch.org/docs/stable/notes/cuda.html; training keeps what torch has chosen.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
