"""What people said about families: two rows are one family, or are not. A file that audits and studies obey.

One decision a line; the last line about a pair of rows counts: `{"a": id, "b": id, "same": true, "a_sha256": ...,
"b_sha256": ..., "time": ...}`; `same` is null where it was taken back. Each decision names what the two rows said, so
that it never falls on other rows that carry the same ids. Rows with one text stay together whatever was said: apart
they would leak from a trained zone into a held-out one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from veritune.counting import grouped
from veritune.data.families import EVIDENCE, FamilyResult, merge_families, said
from veritune.data.near import components
from veritune.data.near.arrays import I64
from veritune.data.review import row_sha256
from veritune.data.text import canonical
from veritune.errors import DataError, FormatError
from veritune.files import whole_lines
from veritune.records import FamilyDecision, Finding, Row
from veritune.records.base import parse
from veritune.untrusted import read_bytes

NAME = "families.decisions.jsonl"
_SHOWN = 5


@dataclass(frozen=True)
class AppliedDecisions:
    """What became of each decision of a file: each pair is in exactly one of the tuples. `changed_rows` counts rows
    whose family has other members now.

    `joined` and `separated` changed a family, `already` held before; of the others nothing was applied: `unknown` names
    rows that are not there, `stale` rows that say something else now, `same_text` would part equal texts.
    """

    file: str
    sha256: str
    joined: tuple[tuple[str, str], ...] = ()
    separated: tuple[tuple[str, str], ...] = ()
    already: tuple[tuple[str, str], ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    stale: tuple[tuple[str, str], ...] = ()
    same_text: tuple[tuple[str, str], ...] = ()
    unknown_rows: tuple[str, ...] = ()
    families_before: int = 0
    families_after: int = 0
    changed_rows: int = 0

    @property
    def decisions(self) -> int:
        """Number of row pairs that the file decides."""
        return sum(len(pairs) for pairs in (*self._applied, *self._left_out.values()))

    @property
    def _applied(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        return self.joined, self.separated, self.already

    @property
    def _left_out(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        return {"unknown": self.unknown, "stale": self.stale, "same_text": self.same_text}

    def lines(self) -> list[str]:
        """Which decisions were applied and what they changed, as lines for the screen."""
        obeyed = sum(map(len, self._applied))
        return [
            f"decisions of {self.file}: {obeyed} of {self.decisions} applied ({len(self.joined)} joined, "
            f"{len(self.separated)} separated, {len(self.already)} were true already)",
            f"  {grouped(self.families_before, 'families')} before, {self.families_after:,} after; the family of "
            f"{grouped(self.changed_rows, 'rows')} changed",
        ]

    def findings(self) -> list[Finding]:
        """One warning for each kind of decision that was not applied, with its rows."""
        texts = {
            "unknown": f"name a row that is not in this data ({_names(self.unknown_rows)})",
            "stale": f"were made on rows whose text has changed since ({_pairs(self.stale)})",
            "same_text": f"would separate rows with equal text, which stay one family ({_pairs(self.same_text)})",
        }
        return [
            Finding(
                f"families.decision_{kind}",
                "warning",
                f"{len(pairs)} of {self.decisions} decisions of {self.file} {texts[kind]}: not applied",
                pairs[0][0],
                evidence={"file": self.file, "pairs": [list(pair) for pair in pairs]},
            )
            for kind, pairs in self._left_out.items()
            if pairs
        ]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return _names([f"{a} and {b}" for a, b in pairs])


@dataclass(frozen=True, slots=True)
class ReadDecisions:
    """The content of a decisions file, and the hash of its bytes."""

    decisions: tuple[FamilyDecision, ...]
    sha256: str


def read_family_decisions(path: str | Path) -> ReadDecisions:
    """The last decision on each pair of rows, in the order of the file; an incomplete last line is ignored.

    Raises DataError for a line that is no decision, and for decisions that contradict each other.
    """
    path = Path(path)
    last: dict[frozenset[str], FamilyDecision] = {}
    try:
        content = read_bytes(path)
        lines = whole_lines(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", fix="Save it as a JSONL file in UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        try:
            decision = parse(FamilyDecision, line.encode(), f"{path} line {number}")
        except FormatError as error:
            raise DataError(error.message, fix="Correct the line, or delete it.") from error
        if decision.a == decision.b:
            raise DataError(f"{path}:{number}: expected two rows, found {decision.a!r} twice.", fix="Delete the line.")
        last.pop(decision.pair, None)
        last[decision.pair] = decision
    standing = tuple(d for d in last.values() if d.same is not None)
    if (text := contradiction(standing)) is not None:
        raise DataError(f"{path}: {text}.", fix="Undo one of these decisions, or delete its line.")
    return ReadDecisions(standing, hashlib.sha256(content).hexdigest())


def contradiction(decisions: Sequence[FamilyDecision]) -> str | None:
    """The first pair that was decided to be apart but is joined by other decisions; None if there is none."""
    next_to: dict[str, list[str]] = defaultdict(list)
    for d in decisions:
        if d.same:
            next_to[d.a].append(d.b)
            next_to[d.b].append(d.a)
    for d in decisions:
        if d.same is False and (way := _way(d.a, d.b, next_to)):
            chain = " = ".join(way)
            return f"decisions contradict each other: {d.a} and {d.b} are not one family, but {chain}"
    return None


def _way(start: str, end: str, next_to: Mapping[str, Sequence[str]]) -> list[str]:
    """Rows from one to the other, each one family with the next by a decision; empty where there is no way."""
    came: dict[str, str] = {start: ""}
    queue = [start]
    for row in queue:
        for other in next_to.get(row, ()):
            if other not in came:
                came[other] = row
                queue.append(other)
    if end not in came:
        return []
    way = [end]
    while came[way[-1]]:
        way.append(came[way[-1]])
    return way[::-1]


# ---------------------------------------------------------------- obeying


def obey(
    rows: Sequence[Row], families: FamilyResult, read: ReadDecisions, path: str | Path
) -> tuple[FamilyResult, AppliedDecisions]:
    """The families with people's decisions applied, and what became of each decision. `path` is the file's name for the
    records.

    "One family" joins the families of both rows; then "not one family" takes `b` out of what holds `a`, with the rows
    that a decision or an equal text ties to it. Rows taken out of one family stay together unless they are said to be
    apart as well. Nothing depends on the order of rows or lines.
    """
    place = {row.id: n for n, row in enumerate(rows)}
    usable, sorted_out = _usable(rows, place, read.decisions)
    sha256 = read.sha256
    joins = [(place[d.a], place[d.b], d.pair_of_ids) for d in usable if d.same]
    parts = [(place[d.a], place[d.b], d.pair_of_ids) for d in usable if not d.same]
    tied_N = _tied(rows, [(a, b) for a, b, _ in joins])
    same_text = tuple(ids for a, b, ids in parts if tied_N[a] == tied_N[b])
    parts = [found for found in parts if tied_N[found[0]] != tied_N[found[1]]]
    merged = merge_families(families, [(a, b, None, "decided") for a, b, _ in joins], bounded=False)
    apart = [found for found in parts if merged.code_N[found[0]] == merged.code_N[found[1]]]
    after = _split(merged, rows, tied_N, [(a, b) for a, b, _ in apart])
    newly = [ids for a, b, ids in joins if families.code_N[a] != families.code_N[b]]
    done = {*newly, *(ids for _, _, ids in apart)}
    return after, AppliedDecisions(
        file=str(path),
        sha256=sha256,
        joined=tuple(newly),
        separated=tuple(ids for _, _, ids in apart),
        already=tuple(ids for _, _, ids in (*joins, *parts) if ids not in done),
        same_text=same_text,
        families_before=len(families.names),
        families_after=len(after.names),
        changed_rows=_changed(families.code_N, after.code_N),
        **sorted_out,
    )


def _usable(
    rows: Sequence[Row], place: Mapping[str, int], decisions: Sequence[FamilyDecision]
) -> tuple[list[FamilyDecision], dict[str, Any]]:
    """Decisions on rows that are there and say what they said, and the others by what is wrong."""
    usable, unknown, stale = [], [], []
    missing: dict[str, None] = {}
    for d in sorted(decisions, key=lambda d: d.pair_of_ids):
        gone = [i for i in d.pair_of_ids if i not in place]
        missing |= dict.fromkeys(gone)
        told = ((d.a, d.a_sha256), (d.b, d.b_sha256))
        if gone:
            unknown.append(d.pair_of_ids)
        elif any(row_sha256(rows[place[i]]) != sha for i, sha in told):
            stale.append(d.pair_of_ids)
        else:
            usable.append(d)
    return usable, {"unknown": tuple(unknown), "stale": tuple(stale), "unknown_rows": tuple(missing)}


def _tied(rows: Sequence[Row], joins: Sequence[tuple[int, int]]) -> I64:
    """A number for each row: equal for rows that must stay together, by a decision or by an equal text."""
    texts: dict[str, int] = {}
    first_N = np.array([texts.setdefault(_text(row), n) for n, row in enumerate(rows)], np.int64)
    left = np.concatenate((np.arange(len(rows)), np.array([a for a, _ in joins], np.int64)))
    right = np.concatenate((first_N, np.array([b for _, b in joins], np.int64)))
    return components(len(rows), left, right)


def same_text(a: Row, b: Row) -> bool:
    """Whether two rows have equal text, so that no decision may separate them."""
    return _text(a) == _text(b)


def _text(row: Row) -> str:
    """What the row says, as families compare it; an empty one equals nothing."""
    return canonical(said(row.messages)) or f"\0{row.id}"


def _split(families: FamilyResult, rows: Sequence[Row], tied_N: I64, apart: Sequence[tuple[int, int]]) -> FamilyResult:
    """Each family with such a pair in it, in parts that hold none. The part of the undecided rows keeps the name."""
    if not apart:
        return families
    foes: dict[int, set[int]] = defaultdict(set)
    lean: dict[int, int] = defaultdict(int)
    for a, b in apart:
        left, right = int(tied_N[a]), int(tied_N[b])
        foes[left].add(right)
        foes[right].add(left)
        lean[left] -= 1
        lean[right] += 1
    members: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    hit = {int(families.code_N[a]) for a, _ in apart}
    for n in np.flatnonzero(np.isin(families.code_N, list(hit))).tolist():
        members[int(families.code_N[n])][int(tied_N[n])].append(n)
    code_N, names = families.code_N.copy(), list(families.names)
    evidence_N, similarity_N = families.evidence_N.copy(), families.similarity_N.copy()
    decided = EVIDENCE.index("decided")
    for code in sorted(hit):
        for number, part in enumerate(_parts(members[code], foes, lean, rows)):
            if number:
                first = min(rows[n].id for n in part)
                names.append(_free(f"{families.names[code]}.{first}", names))
                code_N[part] = len(names) - 1
            if number or len(part) == 1:
                evidence_N[part], similarity_N[part] = decided, np.nan
    order, dense_N = _in_order(code_N)
    return dataclasses.replace(
        families,
        code_N=dense_N,
        names=tuple(names[c] for c in order),
        evidence_N=evidence_N,
        similarity_N=similarity_N,
    )


def _parts(
    atoms: Mapping[int, list[int]], foes: Mapping[int, set[int]], lean: Mapping[int, int], rows: Sequence[Row]
) -> Iterator[list[int]]:
    """Rows in parts: the undecided ones first, then those that others were taken from, then those taken out."""
    order = sorted(atoms, key=lambda t: (t in foes, lean.get(t, 0), min(rows[n].id for n in atoms[t])))
    parts: list[set[int]] = []
    for atom in order:
        fits = next((part for part in parts if not part & foes.get(atom, set())), None)
        if fits is None:
            parts.append({atom})
        else:
            fits.add(atom)
    for part in parts:
        yield sorted(n for atom in part for n in atoms[atom])


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _in_order(code_N: I64) -> tuple[list[int], I64]:
    """Codes by first appearance, and each row's place in that order."""
    codes, first, inverse = np.unique(code_N, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(codes), np.int64)
    rank[order] = np.arange(len(codes))
    return codes[order].tolist(), rank[inverse].astype(np.int64)


def _changed(before_N: I64, after_N: I64) -> int:
    """Rows whose set of fellow rows is another one."""
    if not len(before_N):
        return 0
    both, inverse = np.unique(np.stack((before_N, after_N)), axis=1, return_inverse=True)
    size_P = np.bincount(inverse.ravel())
    size_before, size_after = np.bincount(before_N), np.bincount(after_N)
    same_P = (size_P == size_before[both[0]]) & (size_P == size_after[both[1]])
    return int(len(before_N) - size_P[same_P].sum())
