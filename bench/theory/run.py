"""False verdicts and coverage of Veritune's own comparisons, claims, gate and zone gap, over designs of known truth.

    python bench/theory/run.py --out DIR                       the whole grid, 2,000 draws a cell (hours)
    python bench/theory/run.py --out DIR --screen 500          500 draws a cell, 2,000 where a rate comes near nominal
    python bench/theory/run.py --out DIR --group families --only 'G = 20'
    python bench/theory/run.py --out DIR --table [--all]       the tables, nothing is drawn

Draws are appended to cells.jsonl in chunks, so that the run can be stopped and taken up at any time; a chunk's draws
depend on the cell's name and the chunk's number alone. Lines written by other code than the present (statistics,
claims, designs) are not used. A cell FAILs where a rate lies above nominal + 3 standard errors, √(q(1 − q)/R).
The exit status is 1 when a cell fails.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import multiprocessing
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from theory_cells import GROUPS, NOMINAL, Cell, all_cells, rates

import veritune

CODE = [f"stats/{name}" for name in ("bounded", "families", "intervals", "multiplicity", "paired", "seeds", "table")]
CODE += ["config/thresholds", "release/gate/noninferior"]
CODE += [f"decide/{name}" for name in ("claims", "evidence", "keeps", "quantities", "shares")]
CODE += ["probe/memorization", "probe/carried", "probe/clusters"]
"""Modules that decide a rate."""

CHUNK = 250
LEVELS = (0.025, 0.05)

HIGH = 0.8
"""A cell whose rate after screening is at least this share of nominal gets the full number of draws."""


@dataclass
class Count:
    """What is known of one cell: draws, and how often each error occurred."""

    draws: int = 0
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    offered: bool = True

    def rate(self, error: str) -> float:
        return self.errors[error] / self.draws

    def allowance(self, error: str) -> float:
        """Three standard errors of a rate that is exactly nominal; next to nothing for what must never occur."""
        q = NOMINAL[error]
        return max(1e-6, 3 * math.sqrt(q * (1 - q) / self.draws))

    def fails(self, error: str) -> bool:
        return self.rate(error) > NOMINAL[error] + self.allowance(error)

    def worst(self) -> str:
        """The error that lies highest above nominal, in standard errors."""
        return max(self.errors, key=lambda e: (self.rate(e) - NOMINAL[e]) / self.allowance(e))


def code_hash() -> str:
    """Fingerprint of everything that decides a rate: the code without its docstrings and comments."""
    package, here = Path(veritune.__file__).parent, Path(__file__).parent
    files = [package / f"{name}.py" for name in CODE]
    files += [here / "theory_designs.py", here / "theory_cells.py"]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    for node in (node for tree in trees for node in ast.walk(tree)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return hashlib.sha256("\n".join(map(ast.dump, trees)).encode()).hexdigest()[:12]


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def read(file: Path, code: str) -> dict[str, Count]:
    """Counts by cell of the lines that this code wrote."""
    counts: dict[str, Count] = defaultdict(Count)
    other = 0
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        row = json.loads(line)
        if row["code"] != code:
            other += 1
            continue
        count = counts[row["cell"]]
        count.offered = row["errors"] is not None
        count.draws += row["draws"] if count.offered else 0
        for name, n in (row["errors"] or {}).items():
            count.errors[name] += n
    if other:
        print(f"{other} lines of other code in {file} are not used", file=sys.stderr)
    return counts


Job = tuple[str, int, int, int]
"""A cell, the number of a chunk, its draws, how many of them go through `judge` as well."""

_CELLS: dict[str, Cell] = {}


def _chunk(job: Job) -> tuple[str, int, dict[str, int] | None, float]:
    key, number, draws, judged = job
    start = time.perf_counter()
    errors = rates(_CELLS[key], draws, zlib.crc32(f"{key}#{number}".encode()), checked=judged)
    return key, draws, errors, time.perf_counter() - start


def jobs(
    cells: Sequence[Cell], counts: Mapping[str, Count], draws: int, judged: int, *, high_only: bool
) -> Iterator[Job]:
    """Chunks that are still to be drawn."""
    for cell in cells:
        count = counts.get(cell.key, Count())
        if not count.offered:
            continue
        if high_only and not any(count.rate(e) >= HIGH * NOMINAL[e] for e in count.errors):
            continue
        for number in range(count.draws // CHUNK, math.ceil(draws / CHUNK)):
            yield cell.key, number, CHUNK, judged


def draw(file: Path, todo: Sequence[Job], processes: int, code: str) -> None:
    """Draw the chunks and append a line for each."""
    if not todo:
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool, file.open("a", encoding="utf-8") as out:
        for done, (key, draws, errors, seconds) in enumerate(pool.imap_unordered(_chunk, todo), 1):
            row = {"cell": key, "draws": draws, "errors": errors, "seconds": round(seconds, 2), "code": code}
            out.write(json.dumps(row) + "\n")
            out.flush()
            if done % 50 == 0 or done == len(todo):
                print(f"{done} of {len(todo)} chunks", file=sys.stderr)


# ---------------------------------------------------------------- tables


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _number(x: float) -> str:
    return f"{x:.3f}".replace("0.", ".", 1)


def worst_table(cells: Sequence[Cell], counts: Mapping[str, Count]) -> Iterator[str]:
    """Per group and size: cells drawn, and the highest rate of each nominal one (limits of every rule left out)."""
    yield _row(["group", "size", "cells", "R", *(f"worst at {_number(q)}" for q in LEVELS), "above nominal + 3 s.e."])
    yield _row(["---"] * (5 + len(LEVELS)))
    for group, size in dict.fromkeys((c.group, c.size) for c in cells):
        mine = [c for c in cells if (c.group, c.size) == (group, size) and not c.limit]
        drawn = [counts[c.key] for c in mine if c.key in counts and counts[c.key].draws]
        if not drawn:
            continue
        low, high = min(x.draws for x in drawn), max(x.draws for x in drawn)
        every_error = [(x, e) for x in drawn for e in x.errors]
        top = [max((x.rate(e) for x, e in every_error if NOMINAL[e] == q), default=None) for q in LEVELS]
        fails = sum(x.fails(e) for x, e in every_error)
        many = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        yield _row([group, size, len(drawn), many, *("–" if t is None else _number(t) for t in top), fails])


def summary(cells: Sequence[Cell], counts: Mapping[str, Count]) -> Iterator[str]:
    """Per group: designs by size, each the rate of the error that lies highest above its nominal one."""
    for group in dict.fromkeys(c.group for c in cells):
        mine = [c for c in cells if c.group == group]
        sizes = list(dict.fromkeys(c.size for c in mine))
        drawn = sorted({counts[c.key].draws for c in mine if counts.get(c.key) and counts[c.key].draws})
        if not drawn:
            continue
        yield f"\n### {group} (R = {drawn[0]:,}" + (f" to {drawn[-1]:,})\n" if len(drawn) > 1 else ")\n")
        yield _row(["design", *sizes])
        yield _row(["---"] * (len(sizes) + 1))
        for design in dict.fromkeys(c.design for c in mine):
            here = [[c for c in mine if c.design == design and c.size == size] for size in sizes]
            yield _row([design, *(_worst(part, counts) for part in here)])


def _worst(cells: Sequence[Cell], counts: Mapping[str, Count]) -> str:
    known = [(c, counts[c.key]) for c in cells if c.key in counts]
    if any(not count.offered for _, count in known):
        return "not offered"
    known = [(c, count) for c, count in known if count.draws]
    if not known:
        return "–"
    cell, count = max(known, key=lambda k: (k[1].rate(e := k[1].worst()) - NOMINAL[e]) / k[1].allowance(e))
    error = count.worst()
    text = f"{_number(count.rate(error))} {error}"
    return f"**{text}**" if count.fails(error) and not cell.limit else text


def every(cells: Sequence[Cell], counts: Mapping[str, Count], *, failing: bool) -> Iterator[str]:
    """One line per cell and error."""
    yield _row(["group", "design", "size", "true value", "error", "nominal", "rate", "R", "3 s.e.", ""])
    yield _row(["---"] * 10)
    for cell in cells:
        count = counts.get(cell.key, Count())
        for error in count.errors if count.draws else ():
            bad = count.fails(error)
            word = "limit" if bad and cell.limit else "FAIL" if bad else "OK"
            if failing and word != "FAIL":
                continue
            numbers = (NOMINAL[error], count.rate(error), f"{count.draws:,}", count.allowance(error))
            shown = [x if isinstance(x, str) else _number(x) for x in numbers]
            yield _row([cell.group, cell.design, cell.size, f"{cell.truth:g}", error, *shown, word])


def main() -> int:
    """Draw what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of cells.jsonl; a run that was stopped goes on")
    parser.add_argument("--group", choices=GROUPS, help="cells of one group")
    parser.add_argument("--only", nargs="+", default=[], help="cells whose name holds all of these words")
    parser.add_argument("--reps", type=int, default=2000)
    parser.add_argument("--screen", type=int, default=0, help="draws for every cell; --reps only where a rate is high")
    parser.add_argument("--judged", type=int, default=1, help="draws of each 250 that go through `judge` as well")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the tables, draw nothing")
    parser.add_argument("--all", action="store_true", help="one line per cell and error as well")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file, code = asked.out / "cells.jsonl", code_hash()
    cells = [c for c in all_cells() if asked.group in (None, c.group) and all(word in c.key for word in asked.only)]
    _CELLS.update({c.key: c for c in cells})
    if not asked.table:
        first = asked.screen or asked.reps
        draw(file, list(jobs(cells, read(file, code), first, asked.judged, high_only=False)), asked.jobs, code)
        if asked.screen:
            draw(file, list(jobs(cells, read(file, code), asked.reps, asked.judged, high_only=True)), asked.jobs, code)
    counts = read(file, code)
    print("\n".join(worst_table(cells, counts)))
    print("\n".join(summary(cells, counts)))
    if asked.all:
        print("\n### Every cell\n\n" + "\n".join(every(cells, counts, failing=False)))
    failing = list(every(cells, counts, failing=True))
    print(f"\n### {len(failing) - 2} rates above nominal + 3 s.e.\n\n" + "\n".join(failing))
    return int(len(failing) > 2)


if __name__ == "__main__":
    sys.exit(main())
