"""`results.jsonl`: the only file of a results index. Every change is one entry; an entry is never rewritten.

One entry is one append, so that a command that is killed has either recorded it or not. Given again, what was recorded
already is recognised and not recorded twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from veritune.errors import FormatError, InputError, StaleError
from veritune.files import disk_errors, make_folder
from veritune.ledger import CHAIN, Entry, Ledger
from veritune.records import RESULT_ENTRIES, JsonValue, ResultEntry, to_json
from veritune.records.base import of_plain

FILE = "results.jsonl"
KINDS: Mapping[str, type[ResultEntry]] = {
    str(kind.__dataclass_fields__["kind"].default): kind for kind in RESULT_ENTRIES
}
NUMBERED = {"result": "R", "comment": "C", "mistake": "M", "task": "T"}


class ResultsLedger:
    """The entries of one index folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self._chain = Ledger(self.path, head=True)

    def exists(self) -> bool:
        """Whether an index exists, or existed: a head without entries shows that the entries were lost."""
        return self.path.exists() or (self._chain.head is not None and self._chain.head.exists())

    def read(self, expected: str | None = None) -> tuple[list[ResultEntry], str | None]:
        """Every entry, oldest first, and the hash of the newest (None: no entry). `expected` is a head that was kept
        elsewhere.

        Raises InputError where there is no index, StaleError or FormatError naming the entry that is not as written.
        """
        if not self.exists():
            raise InputError(
                f"{self.folder} holds no results index.", fix="Add a finished study: veritune results add STUDY"
            )
        return self._checked(self._chain.read(), expected)

    def _checked(self, raw: Sequence[Entry], expected: str | None) -> tuple[list[ResultEntry], str | None]:
        if expected is not None and not (
            len(expected) >= 8 and any(entry["hash"].startswith(expected.lower()) for entry in raw)
        ):
            raise StaleError(
                f"{self.path} does not hold the entry {expected[:16]}: it was rewritten, or lost its newest entries.",
                fix="Restore the file from a copy; `--head` takes 8 or more characters of a head that was printed.",
            )
        entries = [self._typed(entry, number) for number, entry in enumerate(raw, start=1)]
        return entries, raw[-1]["hash"] if raw else None

    def _typed(self, entry: Entry, number: int) -> ResultEntry:
        place = f"{self.path} line {number}"
        kind = KINDS.get(str(entry.get("kind")))
        if kind is None:
            known = ", ".join(KINDS)
            raise FormatError(
                f"{place}: expected an entry of kind {known}; found {str(entry.get('kind'))[:40]!r}.",
                fix="Read it with the version of Veritune that wrote it.",
            )
        body: dict[str, JsonValue] = {key: value for key, value in entry.items() if key not in CHAIN}
        return of_plain(kind, body, place)

    def append(self, entry: ResultEntry) -> str:
        """Record one entry and return the new head. Call it inside `alone`."""
        return str(self._chain.append(to_json(entry))["hash"])

    @contextmanager
    def alone(self) -> Iterator[list[ResultEntry]]:
        """Lock the index against other writers and yield its entries; the lock ends with the process.

        An index that lost its newest entries, or was edited, takes no further one: raises as `read` does.
        """
        with disk_errors(self.path):
            make_folder(self.folder)
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                entries, head = self._checked(self._chain.read(), None)
                if head is not None:
                    self._chain.settle(head)
                yield entries
            finally:
                os.close(handle)


def next_id(entries: Sequence[ResultEntry], kind: str) -> str:
    """The next id of a kind, such as `R3`; ids count up from 1 and are never reused."""
    letter = NUMBERED[kind]
    return f"{letter}{1 + sum(entry.kind == kind for entry in entries)}"
