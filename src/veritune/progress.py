"""Live progress with an honest estimate of the time left.

The work is known before it starts, in units of its own kind (tokens trained, prompts answered). A kind's speed is
measured as it happens; before its first measurement the estimate says that it is not known yet rather than guess.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import TextIO


class Progress:
    """Counts planned and finished work per kind, and prints one line per stage with the time left.

    On a terminal the current line is redrawn in place; elsewhere a line is printed at most every `every_s` seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, every_s: float = 10.0, silent: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.every_s = every_s
        self.silent = silent
        self.planned: dict[str, float] = defaultdict(float)
        self.done: dict[str, float] = defaultdict(float)
        self.measured: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        self.lent: dict[str, float] = defaultdict(float)
        self.started = time.monotonic()
        self.last_print = 0.0
        self.live = hasattr(self.stream, "isatty") and self.stream.isatty()
        self._open_line = False

    def plan(self, kind: str, units: float) -> None:
        """Add work that has yet to be done."""
        self.planned[kind] += units

    def measure(self, kind: str, units: float, seconds: float) -> None:
        """Set the speed of a kind of work from a measurement elsewhere (a live probe, similar work); it does not count
        as work done.
        """
        if self.measured[kind] == 0:
            self.measured[kind], self.seconds[kind], self.lent[kind] = units, seconds, seconds

    def advance(self, kind: str, units: float, seconds: float, note: str = "") -> None:
        """Record that `units` of `kind` were done in `seconds`."""
        self.done[kind] += units
        self.measured[kind] += units
        self.seconds[kind] += seconds
        self._show(note)

    def skip(self, kind: str, units: float) -> None:
        """Record that `units` of `kind` need not be done."""
        self.planned[kind] -= units

    def spent(self) -> dict[str, float]:
        """Seconds spent on work that was done here, by kind; speeds measured elsewhere are left out."""
        return {kind: self.seconds[kind] - self.lent[kind] for kind in self.seconds if self.done[kind]}

    def left_s(self) -> float | None:
        """Seconds left at the measured speeds; None while the speed of a remaining kind of work is unknown."""
        total = 0.0
        for kind, planned in self.planned.items():
            left = max(planned - self.done[kind], 0.0)
            if left > 0 and self.measured[kind] == 0:
                return None
            if left > 0:
                total += left * self.seconds[kind] / self.measured[kind]
        return total

    def elapsed_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self.started

    def say(self, message: str) -> None:
        """Print one permanent line."""
        if self.silent:
            return
        self._close()
        print(message, file=self.stream, flush=True)

    def tell(self, message: str) -> None:
        """Print one permanent line even if progress is silent, to report how work that this command began has ended."""
        self._close()
        print(f"veritune: {message}", file=self.stream, flush=True)

    def note(self, words: str) -> None:
        """Show one temporary line about work that is done elsewhere."""
        self._show(words, estimate=False)

    def _show(self, note: str, *, estimate: bool = True) -> None:
        if self.silent:
            return
        now = time.monotonic()
        if not self.live and now - self.last_print < self.every_s:
            return
        self.last_print = now
        left = self.left_s()
        eta = "time left: measuring" if left is None else f"about {clock(left)} left"
        line = f"  {clock(now - self.started)}  {note}" + (f"  {eta}" if estimate else "")
        if self.live:
            self._control("\r\x1b[2K")
            print(line[:118], end="", file=self.stream, flush=True)
            self._open_line = True
        else:
            print(line, file=self.stream, flush=True)

    def _close(self) -> None:
        if self._open_line:
            self._control("\r\x1b[2K")
            self._open_line = False

    def _control(self, sequence: str) -> None:
        """Write a sequence for the terminal past the filter that the command line puts before its streams."""
        getattr(self.stream, "control", self.stream.write)(sequence)


def clock(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 10 s` or `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
