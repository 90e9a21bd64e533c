"""The processes that a command has started."""

from __future__ import annotations

import psutil


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process; none once it has ended."""
    try:
        return [child.pid for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []
