"""Several processes for one cell: how many there are, who writes, and how a cell is started on several.

`torchrun` starts them; `accelerate`, inside the Trainer, does the rest. Rank 0 writes every record. The ranks that were
asked for are counted: fewer is an error, never a slower run of another experiment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from veritune.errors import MachineError

OWN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def world_size() -> int:
    """Processes of this cell: what torchrun says, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if all(name in os.environ for name in OWN_VARIABLES) else 1


def is_main() -> bool:
    """Whether this process writes the records."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def check_ranks(asked: int) -> None:
    """Raises MachineError when another number of processes runs than the study declares."""
    if world_size() not in (1, asked):
        raise MachineError(
            f"train.devices is {asked}, and {world_size()} processes were started.",
            fix=f"Start {asked}, or let `veritune cell` start them.",
        )


def command(arguments: Sequence[str], devices: int) -> list[str]:
    """`veritune ARGUMENTS` on so many processes of this machine, through torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)]
    return [sys.executable, *launcher, "-m", "veritune.cli", *arguments]


def launch(study: Path, run_id: str, devices: int) -> int:
    """Run one cell on several processes of this machine; torchrun's exit status. Its words go to standard error."""
    shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // devices, 1)))}
    arguments = ["cell", str(study), run_id, "--quiet"]
    done = subprocess.run(
        command(arguments, devices), env={**os.environ, **shared}, stdout=subprocess.DEVNULL, check=False
    )
    return done.returncode


def leave_group() -> None:
    """Wait for the others, then end the process group: what follows is rank 0's alone."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
