"""Every exception Veritune raises on purpose, in one tree.

    VerituneError                one root: `except VerituneError` catches all of them
    ├── InputError               what the user gave cannot be used                        exit 1
    │   ├── StudyError           study.yaml: unknown key, wrong type, impossible setting
    │   ├── DataError            a data file or a row in it
    │   ├── ModelError           a model, tokenizer, chat template or adapter
    │   │   └── DivergedError    a training loss that is not finite
    │   └── ScoreError           scores or estimates that cannot be compared or computed
    ├── StoreError               the study folder                                         exit 1
    │   ├── LockedError          another process is at work on it
    │   ├── StaleError           a record on disk was made from other inputs
    │   └── FormatError          written by another format version, or damaged
    ├── MachineError             disk, memory, a missing optional package                 exit 1
    └── GateError                a gate stops what follows                                exit 2

A message says what was expected, what was found and what to do next. On the screen it is one line;
`--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VerituneError(Exception):
    """Root of the tree. `fix` is the next thing to do; it is printed after the message."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class InputError(VerituneError):
    """What the user gave cannot be used."""


class StudyError(InputError):
    """The study file: an unknown key, a wrong type, settings that exclude each other."""


class DataError(InputError):
    """A data file, or a row in it, that cannot be read as it stands."""


class ModelError(InputError):
    """A model, tokenizer, chat template or adapter that cannot be used."""


class DivergedError(ModelError):
    """A training run whose loss is not finite."""


class ScoreError(InputError):
    """Scores that cannot be compared, or too few to compute what was asked."""


class StoreError(VerituneError):
    """The study folder cannot be read or written as asked."""


class LockedError(StoreError):
    """Another living process holds the study folder."""


class StaleError(StoreError):
    """A record on disk was made from inputs that have changed since."""


class FormatError(StoreError):
    """A record is damaged, or was written by a version this one does not read."""


class MachineError(VerituneError):
    """The machine lacks something: disk, memory, an optional package."""


class GateError(VerituneError):
    """A gate failed: what comes after it does not run."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a wrong one most likely meant; None where none is close.

    At least half of the two names' letters match, in order: `difflib` ratio, Ratcliff & Metzener 1988.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'lora_alpha'?)` to stand after the wrong name; empty where no known name is close."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near is not None else ""


def first_line(exc: BaseException) -> str:
    """The first line of another library's error, cut at 200 characters, for a message of ours that names it.

    An error without text gives its class name.
    """
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
