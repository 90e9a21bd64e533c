"""Faults at the k-th file operation of a process: SIGKILL, a full disk, an input/output error.

`install` replaces the calls through which Python changes files (open for writing, write, fsync, truncate, rename,
replace, link, mkdir, rmdir, unlink, sendfile) by ones that count, and that fail at the k-th count under `roots`:

    kill      the process is killed before the operation; of a write, half is on disk by then
    ENOSPC    the operation fails, of a write half is on disk, and so does all that needs room from then on
    EIO       the operation fails once, nothing of it is on disk
    journal   nothing fails; `journal` holds every operation with what it changed, for power.py

A write is counted where it reaches the system: files that are opened for writing get a raw file of ours beneath
Python's own buffers. Reading is not touched, nor is what native libraries write on their own.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from typing import Any

KINDS = ("kill", "ENOSPC", "EIO")
FREES = ("unlink", "rmdir", "truncate")


class Shim:
    """Counts operations under `roots` and makes the one numbered `at` (from 1) fail as `kind` says."""

    def __init__(self, kind: str, at: int, roots: list[str]) -> None:
        self.kind = kind
        self.at = at
        self.roots = tuple(os.path.realpath(root) for root in roots)
        self.done: list[str] = []
        self.journal: list[dict[str, Any]] = []
        self.real = {name: getattr(os, name) for name in (*PATHS, *HANDLES, "open", "sendfile")}
        self.real_open = io.open

    def watches(self, path: str) -> bool:
        return any(path == root or path.startswith(root + os.sep) for root in self.roots)

    def step(self, operation: str, path: str, half: Callable[[], Any] | None = None) -> None:
        """Count an operation; fail where it is its turn. `half` does half of a write."""
        self.done.append(f"{operation} {path}")
        n = len(self.done)
        full = self.kind == "ENOSPC" and n > self.at and operation not in FREES
        if n != self.at and not full:
            return
        if half is not None and self.kind in ("kill", "ENOSPC") and n == self.at:
            half()
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = errno.ENOSPC if self.kind == "ENOSPC" else errno.EIO
        if self.kind == "ENOSPC" and operation in FREES:
            return  # what frees room works on a full disk
        raise OSError(code, os.strerror(code), path)

    def note(self, operation: str, path: str, **more: Any) -> None:
        """Add an operation that is done to the journal, under names relative to the first root."""
        if self.kind != "journal" or not self.watches(path):
            return
        root = self.roots[0]
        names = {k: os.path.relpath(v, root) if k == "to" else v for k, v in more.items()}
        self.journal.append({"do": operation, "path": os.path.relpath(path, root), **names})

    def content(self, path: str) -> str:
        """A file's bytes as latin-1 text."""
        with self.real_open(path, "rb") as stream:
            return stream.read().decode("latin-1")

    def install(self) -> None:
        for name in PATHS:
            setattr(os, name, self._by_path(name))
        for name in HANDLES:
            setattr(os, name, self._by_handle(name))
        setattr(os, "open", self._os_open)  # noqa: B010 - mypy takes `os.open = ...` for a wrong signature
        setattr(os, "sendfile", self._sendfile)  # noqa: B010
        builtins.open = io.open = self._open  # type: ignore[assignment]

    # -- the calls ---------------------------------------------------------------------------------------------

    def _by_path(self, name: str) -> Callable[..., Any]:
        real, kind = self.real[name], PATHS[name]

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            where = self._full(path, kwargs.get("dir_fd"))
            if self.watches(where):
                self.step(kind, where)
            result = real(path, *args, **kwargs)
            more = {"to": self._full(args[0], kwargs.get("dst_dir_fd"))} if kind in ("rename", "link") else {}
            more |= {"content": self.content(where)} if kind == "truncate" and self.kind == "journal" else {}
            self.note(kind, where, **more)
            return result

        return call

    def _by_handle(self, name: str) -> Callable[..., Any]:
        real, kind = self.real[name], HANDLES[name]

        def call(handle: Any, *args: Any) -> Any:
            where = self._of(handle if isinstance(handle, int) else handle.fileno())
            if self.watches(where):
                half = (lambda: real(handle, args[0][: len(args[0]) // 2])) if kind == "write" else None
                self.step(kind, where, half)
            result = real(handle, *args)
            if self.kind == "journal" and self.watches(where):
                self.note(kind, where, **({} if kind == "fsync" else {"content": self.content(where)}))
            return result

        return call

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = self._full(path, dir_fd)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self.watches(where):
            self.step("open", where)
        handle = int(self.real["open"](path, flags, mode, dir_fd=dir_fd))
        if flags & os.O_CREAT and self.kind == "journal" and self.watches(where):
            self.note("open", where, content=self.content(where))
        return handle

    def _sendfile(self, out: int, *args: Any, **kwargs: Any) -> Any:
        where = self._of(out)
        if self.watches(where):
            self.step("write", where)
        sent = self.real["sendfile"](out, *args, **kwargs)
        if self.kind == "journal" and self.watches(where):
            self.note("write", where, content=self.content(where))
        return sent

    def _open(  # noqa: PLR0913 - the signature of `open`
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        where = self._of(file) if isinstance(file, int) else self._full(file, None)
        if not set(mode) & set("wax+") or not self.watches(where):
            return self.real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            self.step("open", where)
        raw = _File(self, where, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if self.kind == "journal" and not isinstance(file, int):
            self.note("open", where, content=self.content(where))
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def _full(self, path: Any, dir_fd: int | None) -> str:
        name = os.fsdecode(path) if not isinstance(path, int) else self._of(path)
        base = self._of(dir_fd) if dir_fd is not None else os.getcwd()
        folder, leaf = os.path.split(os.path.join(base, name))
        return os.path.join(os.path.realpath(folder), leaf)

    @staticmethod
    def _of(handle: int) -> str:
        return os.readlink(f"/proc/self/fd/{handle}")


PATHS = {
    "replace": "rename", "rename": "rename", "link": "link", "unlink": "unlink", "remove": "unlink", "mkdir": "mkdir",
    "rmdir": "rmdir", "truncate": "truncate",
}  # fmt: skip
HANDLES = {"write": "write", "fsync": "fsync", "ftruncate": "truncate"}


class _File(io.FileIO):
    """A raw file whose writes and truncations are counted."""

    def __init__(self, shim: Shim, where: str, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        super().__init__(file, mode, closefd, opener)
        self.shim = shim
        self.where = where

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.shim.step("write", self.where, lambda: io.FileIO.write(self, view[: len(view) // 2]))
        written = int(super().write(view))
        self._note("write")
        return written

    def truncate(self, size: int | None = None) -> int:
        self.shim.step("truncate", self.where)
        left = int(super().truncate(size))
        self._note("truncate")
        return left

    def _note(self, operation: str) -> None:
        if self.shim.kind == "journal":
            self.shim.note(operation, self.where, content=self.shim.content(self.where))
