"""torchrun that ends with the process that started it, and whose ranks end with it.

Without this a worker that is killed (SIGKILL, out of memory) would leave ranks behind that hold the cell and train on.
"""

from __future__ import annotations

import os

from veritune.machine import PARENT, end_with_parent


def main() -> None:
    """Run torchrun with the command line's arguments. `VERITUNE_PARENT` names the parent process."""
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())
    from torch.distributed.run import main as torchrun  # after the parent is tied: this import takes seconds

    torchrun()


if __name__ == "__main__":
    main()
