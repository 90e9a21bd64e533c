"""A lease beside a lock, for disks whose locks lie: where `flock` succeeds for everybody, one of two still stops.

NFS and Lustre may lock per host, so that two processes on two hosts hold one run at once. A lease is a file with the
holder and a fencing token that grows by one each time it is taken. Its holder renews it every few seconds and looks at
it before every append and rename in the study: whoever finds another holder there stops. So of two that started at the
same moment the last to write the lease goes on, and the first ends with an error at its next write.

Who takes a lease that is there first decides whether its holder lives. On the same host (by boot id) the lock has just
told: whoever gets it knows that the holder is gone. On another host a living holder renews, so the lease is watched for
`FRESH_S`; where nothing moves, it is taken over.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from veritune.errors import FormatError, LockedError
from veritune.files import holding, now, read_json, remove, write_json

RENEW_S = 3.0
"""How often a holder renews its lease and looks whether it still has it."""
FRESH_S = 12.0
"""How long a stranger's lease is watched before it is taken over: four renewals."""
LOOK_S = 0.25
READ_FRESH_S = 60.0
"""How old a stranger's lease may be for a reader to call its holder at work: twenty renewals, as clocks differ."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lease. `token` grows with every new holder; `boot` distinguishes hosts, also hosts of
    the same name.
    """

    token: int
    id: str
    host: str
    pid: int
    boot: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def boot_id() -> str:
    """An id of the current boot of this host's kernel; the host's name where the system gives no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return os.uname().nodename


def holder_elsewhere(path: Path) -> str | None:
    """The holder of the lease at `path` if it runs on another host and renewed the lease recently; else None.

    For readers on a file system whose locks do not work across hosts. Clocks of two hosts may differ by seconds.
    """
    holder = _holder(path)
    if holder is None or holder.boot == boot_id():
        return None
    age_s = time.time() - _stamp(path)[0] / 1e9
    return str(holder) if age_s < READ_FRESH_S else None


@contextlib.contextmanager
def leased(path: Path, what: str, root: Path) -> Iterator[None]:
    """Hold the lease at `path` for work in `root` until the block ends. The caller also holds the file lock, which may
    not work between hosts.

    Raises LockedError where a process on another host renews it, and from every write in `root` once it is lost.
    """
    mine = _take(path, what)
    lost, done = threading.Event(), threading.Event()

    def check() -> None:
        if lost.is_set() or _holder(path) != mine:
            lost.set()
            raise LockedError(
                f"{what} was taken over by {_holder(path) or 'nobody: its lease is gone'}.",
                fix="Let that process finish. The disk's locks do not work between hosts (docs/cells.md).",
            )

    renewing = threading.Thread(target=_renew, args=(path, mine, lost, done), name=f"lease {what}", daemon=True)
    renewing.start()
    try:
        with holding(root, check):
            yield
    finally:
        done.set()
        renewing.join()
        if not lost.is_set() and _holder(path) == mine:
            with contextlib.suppress(Exception):  # what is left there is taken over by the next holder
                remove(path)


def _take(path: Path, what: str) -> Holder:
    before = _holder(path)
    if before is not None and before.boot != boot_id():
        _watch(path, before, what)
    token = (before.token if before is not None else 0) + 1
    mine = Holder(token, uuid.uuid4().hex, os.uname().nodename, os.getpid(), boot_id(), now())
    write_json(path, asdict(mine))
    return mine


def _watch(path: Path, before: Holder, what: str) -> None:
    """Raises LockedError where the lease is renewed or taken while it is watched."""
    stood, end = _stamp(path), time.monotonic() + FRESH_S
    while time.monotonic() < end:
        time.sleep(LOOK_S)
        if _stamp(path) != stood and _holder(path) is not None:
            raise LockedError(
                f"{what} is in use by {_holder(path) or before}.",
                fix="Wait until it ends, or watch it with `veritune status`.",
            )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


def _renew(path: Path, mine: Holder, lost: threading.Event, done: threading.Event) -> None:
    while not done.wait(RENEW_S):
        try:
            held = _holder(path) == mine
            if held:
                os.utime(path)
        except OSError:
            continue  # a disk that hangs for a moment; the next look decides
        if not held:
            lost.set()
            return


def _holder(path: Path) -> Holder | None:
    """Who the lease says holds it; None where there is none, or one that cannot be read."""
    try:
        return Holder(**read_json(path))
    except (FileNotFoundError, FormatError, TypeError):
        return None
