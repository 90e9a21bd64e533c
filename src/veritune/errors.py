"""Every exception Veritune raises on purpose, in one tree.

    VerituneError                one root: `except VerituneError` catches all of them
    ├── InputError               what the user gave cannot be used                        exit 1
    │   ├── StudyError           study.yaml: unknown key, wrong type, impossible setting
    │   ├── DataError            a data file or a row in it
    │   ├── ModelError           a model, tokenizer, chat template or adapter
    │   │   └── DivergedError    a training loss that is not finite
    │   └── ScoreError           scores or estimates that cannot be compared or computed
    ├── StoreError               the study folder                                         exit 1
    │   ├── LockedError          another process is at work on it                         exit 3
    │   │   └── MovedError       somebody else changed a channel first                    exit 1
    │   ├── StaleError           a record on disk was made from other inputs
    │   └── FormatError          written by another format version, or damaged
    ├── MachineError             disk, memory, a missing optional package                 exit 1
    └── GateError                a gate stops what follows                                exit 2

A message says what was expected, what was found and what to do next. On the screen it is one line;
`--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of commands. 130 and 143 are the shell's own numbers for a process that a signal stopped."""

    FINE = 0
    USER = 1
    NOT_PASSED = 2
    IN_USE = 3
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_CODES = {
    ExitCode.FINE: "fine",
    ExitCode.USER: "the user's input or environment",
    ExitCode.NOT_PASSED: "a gate failed or a claim is not supported",
    ExitCode.IN_USE: "another process is using it",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
    ExitCode.TERMINATED: "stopped by SIGTERM",
}
"""What each exit code means, as the help and the docs print it."""


class VerituneError(Exception):
    """Root of all errors of this package. `fix` is the next thing to do; it is printed after the message."""

    exit_code = ExitCode.USER

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class InputError(VerituneError):
    """What the user gave cannot be used."""


class StudyError(InputError):
    """The study file cannot be used: an unknown key, a wrong type, or settings that exclude each other."""


class DataError(InputError):
    """A data file, or a row in it, cannot be read as it is."""


class ModelError(InputError):
    """A model, tokenizer, chat template or adapter cannot be used."""


class DivergedError(ModelError):
    """The loss of a training run is not finite."""


class ScoreError(InputError):
    """Scores cannot be compared, or are too few for the computation."""


class StoreError(VerituneError):
    """The study folder cannot be read or written."""


class LockedError(StoreError):
    """Another running process holds the study folder or one of its runs."""

    exit_code = ExitCode.IN_USE


class MovedError(LockedError):
    """Somebody else changed a channel or its rules first; read the new state and decide again."""

    exit_code = ExitCode.USER


class StaleError(StoreError):
    """A record on disk was made from inputs that have changed since."""


class FormatError(StoreError):
    """A record is damaged, or was written by a version this one does not read."""


class MachineError(VerituneError):
    """The machine lacks something: disk space, memory, or an optional package."""


class GateError(VerituneError):
    """A gate failed, so the steps after it do not run."""

    exit_code = ExitCode.NOT_PASSED


_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FIXES = {
    **dict.fromkeys(_FULL, "Free some space and run the same command again."),
    **dict.fromkeys(_DENIED, "Make the file readable, or use a copy."),
    **dict.fromkeys(
        (errno.EIO, errno.ENXIO, errno.EREMOTEIO, errno.ESTALE), "Check the disk, then run the same command again."
    ),
    errno.EFBIG: "Raise the limit on file sizes (`ulimit -f`), or use a disk that takes larger files.",
    errno.ENAMETOOLONG: "Use a shorter file name.",
    errno.ENOENT: "Check the path: its folder may have been renamed or removed.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.ELOOP: "Check the path for links that point to each other.",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Raise the limit on open files (`ulimit -n`)."),
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), "Use a folder whose disk has working locks."),
    errno.ETXTBSY: "Wait until no process runs this file.",
    errno.EXDEV: "Keep the study's folder on one disk.",
}
"""What to do after an error of the system, by its number."""


def describe_os_error(exc: OSError, path: os.PathLike[str] | str | None = None) -> tuple[str, str]:
    """Message and fix for an error of the operating system. `path` is the file that was being written, for errors that
    do not name one.
    """
    named = os.fspath(path) if path is not None else exc.filename if isinstance(exc.filename, str) else None
    why = exc.strerror or first_line(exc)
    fix = _FIXES.get(exc.errno or 0, "Check the path and the disk, then run the same command again.")
    if exc.errno in _DENIED and path is not None:
        fix = "Make the folder writable or copy the study elsewhere."
    if exc.errno in _FULL:
        return f"the disk is full: {named} was not written." if named else "the disk is full.", fix
    what = (
        ("cannot write" if path is not None else "cannot use") + f" {named}"
        if named
        else ("the operating system refused")
    )
    return f"{what}: {why}.", fix


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to a wrong one; None where none is similar.

    At least half of the two names' letters match, in order: `difflib` ratio, Ratcliff & Metzener 1988.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'lora_alpha'?)` to stand after the wrong name; empty where no known name is close."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near is not None else ""


def first_line(exc: BaseException) -> str:
    """The first line of another library's error, cut at 200 characters, to be quoted in our own message.

    An error without text gives its class name.
    """
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
