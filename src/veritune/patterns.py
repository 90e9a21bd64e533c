"""A bound on patterns that a user wrote: a regular expression that backtracks without end stops instead of hanging.

Python's `re` looks for signals while it matches, so a timer of the process's own processor time can interrupt it with
the exact semantics of `re` kept. Processor time, not the clock: a busy machine makes no pattern slow. The bound holds
in a process's main thread, on systems with `setitimer`; elsewhere patterns run without one.
"""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from veritune.errors import InputError, first_line

LIMIT_S = 5.0
"""Processor seconds that one pattern may take on one text."""


class PatternTooSlow(Exception):
    """A user's pattern took longer than its time limit."""


@contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    """Raise PatternTooSlow once the block has used this many seconds of processor time."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise PatternTooSlow(f"longer than {seconds:g} s on one text")

    before = signal.signal(signal.SIGVTALRM, stop)
    left, every = signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, left, every)
        signal.signal(signal.SIGVTALRM, before)


def compiled(text: str, flags: int = 0) -> re.Pattern[str]:
    """The compiled form of a pattern that a user wrote. Raises ValueError saying what is wrong with it.

    `[[a]` is a set with an opening bracket in it: Python means to change that one day and warns; the user sees nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(text, flags)
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(first_line(exc)) from exc


def search(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """`pattern.search(text, start)` within a time limit. Raises InputError naming the pattern."""
    try:
        with limited():
            return pattern.search(text, start)
    except PatternTooSlow as exc:
        what = f"the pattern {pattern.pattern!r} took {exc}."
        raise InputError(what, fix="Write the pattern without nested repeats such as (a+)+.") from None
