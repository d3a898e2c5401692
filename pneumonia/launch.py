"""The processes and cores that a command has: alone, or one of those that torchrun or srun started."""

import os
from dataclasses import dataclass

from pneumonia.errors import UserError


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Launch:
    """Which process this is of the `world` that torchrun or srun started together, `local` of them on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 1
    by: str = ""


def launched() -> Launch:
    """From the variables that torchrun and srun set; a process that was started alone is 0 of 1. Raises UserError."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env and "RANK" in env:
        return Launch(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"]), "torchrun")
    if int(env.get("SLURM_NTASKS", 1)) < 2 or "SLURM_PROCID" not in env:
        return Launch()
    if not env.get("SLURM_NTASKS_PER_NODE", "").isdigit():
        raise UserError(
            f"SLURM_NTASKS={env['SLURM_NTASKS']} without SLURM_NTASKS_PER_NODE: ask for --nodes and --ntasks-per-node."
        )
    return Launch(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env["SLURM_NTASKS_PER_NODE"]), "srun")
