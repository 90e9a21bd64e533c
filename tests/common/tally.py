"""Faults tried and survived, by command: the table of docs/security.md, printed at the end of `make test-crash`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

KINDS = ("faults", "power cuts")


@dataclass
class Tally:
    """Counts by (command, kind). `possible` is how many there are where every operation is tried."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    survived: Counter[tuple[str, str]] = field(default_factory=Counter)
    possible: dict[tuple[str, str], int] = field(default_factory=dict)

    def try_one(self, command: str, kind: str, *, of: int) -> None:
        """Count an attempt, before its outcome is known."""
        self.tried[command, kind] += 1
        self.possible[command, kind] = of

    def survive_one(self, command: str, kind: str) -> None:
        """Count an attempt whose outcome held."""
        self.survived[command, kind] += 1

    def lines(self) -> list[str]:
        """The table; empty where nothing was tried."""
        if not self.tried:
            return []
        head = ["| command | faults survived of tried (of all) | power cuts survived of tried (of all) |"]
        head.append("| --- | --- | --- |")
        commands = dict.fromkeys(command for command, _ in self.tried)
        rows = [f"| `{name}` | {' | '.join(self._cell(name, kind) for kind in KINDS)} |" for name in commands]
        return [*head, *rows, f"| all | {' | '.join(self._sum(kind) for kind in KINDS)} |"]

    def _cell(self, command: str, kind: str) -> str:
        place = (command, kind)
        if not self.tried[place]:
            return "none tried"
        return f"{self.survived[place]:,} of {self.tried[place]:,} ({self.possible[place]:,})"

    def _sum(self, kind: str) -> str:
        survived, tried = (sum(n for (_, k), n in c.items() if k == kind) for c in (self.survived, self.tried))
        return f"{survived:,} of {tried:,}"
