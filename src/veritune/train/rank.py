"""One process of a group that starts and ends: `python -m veritune.train.launcher ... -m veritune.train.rank`.

What a cell on several processes pays before its first step: imports of what trains, and the group's first meeting.
`distributed.start_seconds` times it.
"""

from __future__ import annotations


def main() -> None:
    """Import what a cell imports, join the process group, wait for all processes, and exit."""
    import torch.distributed as dist
    from accelerate import PartialState
    from transformers import Trainer  # noqa: F401 - it is what takes the time

    from veritune.train import trainer  # noqa: F401

    PartialState()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
