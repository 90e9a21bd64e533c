"""The audit of more rows than memory holds: every shard is read where it is audited, and results are Parquet files.

    read      a shard: what cannot be used, quality, hashes of ids and texts; counts the words of eval items
    meet      the hashes of one range, from all shards: ids used twice, equal texts, equal problems
    compare   a shard again, beside the eval items, whose words weigh what the counts of all shards say

A step is a task a shard (or a range) on this machine's cores or on a Ray cluster; every worker must see the data and
the folder of results. The driver holds counts, and nothing of a row. Quality is judged shard by shard, so what compares
rows with each other (conflicts, outliers) sees one shard, and so do canned answers. Near-duplicates are not looked for:
`veritune.data.shards` does, with some 200 bytes a row in the driver.

K keys of rows · V words of eval items · G runs of words
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veritune.counting import grouped, many
from veritune.data import audit as audits
from veritune.data import contamination, load, quality
from veritune.data.audit import AuditConfig, EvalFacts, EvalSource
from veritune.data.families import FamilyColumns, FamilyConfig
from veritune.data.near import TextBuffer
from veritune.data.near.arrays import I64
from veritune.data.near.engine import available_cores
from veritune.data.near.index import Index, Scoring, build, faint, scoring
from veritune.data.near.overlap import RowsBesideEntries, count, score, standing
from veritune.data.near.ray import session
from veritune.data.near.sweep import sweep
from veritune.errors import ExitCode, InputError, MachineError, VerituneError, first_line
from veritune.files import make_folder, sha256_text, write_json, write_parquet, write_text
from veritune.records import Finding, GateResult, JsonLike, to_json

KINDS = ("id", "text", "problem")
KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("line", "<i8")])
"""A row where it meets others: 16 bytes of its id's BLAKE2, or a text's hash and its number of tokens; and its line."""
ROWS_A_RANGE = 20_000_000
"""Rows whose keys one task sorts: 0.5 GB, twice while they are sorted."""
SHARD_CHECKS_APART = ("duplicate",)
NOT_LOOKED_FOR = (
    "Only equal texts and problems are compared here, not near-duplicates; `shard_families` in Python finds those.",
    "Conflicts, outliers, cut words and canned answers are checked within each shard, not across shards.",
)


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What a worker reports about one shard. `rejects` and `reasons` hold counts and the first case of each; `errors`
    counts findings of that severity.
    """

    name: str
    sha256: str
    n_read: int
    n_rows: int
    rejects: dict[str, tuple[int, str]]
    reasons: dict[str, tuple[int, str]]
    errors: int
    df_V: I64 | None = None
    df_G: I64 | None = None


@dataclass(frozen=True, slots=True)
class Met:
    """Counts for one kind of key: groups of rows that share a key, rows in these groups, and rows beyond the first of
    each group.
    """

    groups: int = 0
    rows: int = 0
    beyond_first: int = 0

    def __add__(self, other: Met) -> Met:
        return Met(self.groups + other.groups, self.rows + other.rows, self.beyond_first + other.beyond_first)


@dataclass(frozen=True)
class ShardHits:
    """Contamination in one shard or in all: rows by eval and status, and each item's strongest status."""

    rows: dict[str, Counter[str]]
    items: dict[str, dict[int, int]]
    rows_of_any: Counter[str]
    exact_only: int = 0


@dataclass(frozen=True)
class ShardedAudit:
    """The result of an audit of shards; the findings about rows are written below `out`.

    `rejects` and `reasons`: how many and the first, by kind. `met`: rows that share an id, a text or a problem.
    """

    source: str
    out: Path
    shards: tuple[ShardFacts, ...]
    met: Mapping[str, Met]
    evals: tuple[EvalFacts, ...]
    eval_findings: tuple[Finding, ...]
    gate: GateResult | None
    wall_s: float

    @property
    def n_read(self) -> int:
        """Number of records read, good and bad."""
        return sum(shard.n_read for shard in self.shards)

    @property
    def n_rows(self) -> int:
        """Number of usable rows, including rows whose id also occurs in another shard."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Hash of the shards' names and hashes."""
        return sha256_text(json.dumps([[shard.name, shard.sha256] for shard in self.shards]))

    def summed(self, of: str) -> dict[str, tuple[int, str]]:
        """`rejects` or `reasons` summed over all shards."""
        found: dict[str, tuple[int, str]] = {}
        for shard in self.shards:
            for reason, (n, first) in getattr(shard, of).items():
                before = found.get(reason)
                found[reason] = (n + (before[0] if before else 0), before[1] if before else first)
        return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[0])))

    @property
    def exit_code(self) -> int:
        """The same as `AuditReport.exit_code`."""
        if self.gate is not None and self.gate.status != "passed":
            return int(ExitCode.NOT_PASSED)
        unread = any(finding.severity == "error" for finding in self.eval_findings)
        wrong = unread or self.met["id"].groups or any(shard.errors for shard in self.shards)
        return int(ExitCode.USER if wrong else ExitCode.FINE)

    def record(self) -> dict[str, JsonLike]:
        """The report as plain JSON values."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "shards": len(self.shards),
            "n_read": self.n_read,
            "n_rows": self.n_rows,
            "n_rejected": self.n_read - self.n_rows,
            "rejects_by_reason": {f"load.{name}": n for name, (n, _) in self.summed("rejects").items()},
            "equal": to_json(dict(self.met)),
            "evals": to_json(self.evals),
            "gate": to_json(self.gate) if self.gate else None,
            "quality": {name: {"rows": n, "n_rows": self.n_rows} for name, (n, _) in self.summed("reasons").items()},
            "eval_findings": to_json(self.eval_findings),
            "not_looked_for": list(NOT_LOOKED_FOR),
            "exit_code": self.exit_code,
            "wall_s": round(self.wall_s, 3),
        }


@dataclass(frozen=True)
class _ShardSearch:
    """What a shard is compared with: entries and their index, and in the second pass what words weigh."""

    entries: contamination.Entries
    index: Index
    config: contamination.ContaminationConfig
    weights: Scoring | None = None


@dataclass(frozen=True)
class _ShardTask:
    """One shard: its number, its file as `files_of` names it, how it is read and judged, where results go."""

    number: int
    file: tuple[Path, str, str]
    reading: dict[str, Any]
    quality: quality.QualityConfig
    out: Path

    def result(self, what: str) -> Path:
        return self.out / what / f"{self.number:06d}.parquet"

    def keys(self, kind: str) -> Path:
        return self.out / "work" / f"{self.number:06d}-{kind}.npy"


# ---------------------------------------------------------------- what a task does


def read_shard(task: _ShardTask, search: _ShardSearch | None) -> ShardFacts:
    """Read one shard, check its rows, and write findings and keys."""
    loaded = load.load_files([task.file], **task.reading)
    judged = quality.check_rows(loaded.rows, task.quality)
    columns = FamilyColumns.from_rows(loaded.rows)
    lines = np.array([row.line or number for number, row in enumerate(loaded.rows, 1)], np.int64)
    for kind, key in _keys(columns, lines).items():
        np.save(task.keys(kind), key)
    found = [*loaded.rejects, *loaded.notes, *judged.findings]
    _write_findings(task.result("findings"), found)
    df_V, df_G = count(columns.text, search.index) if search is not None else (None, None)
    reasons = {
        name: (counted["rows"], next((f.message for f in judged.findings if f.check == f"quality.{name}"), ""))
        for name, counted in judged.counts.items()
    }
    return ShardFacts(
        name=task.file[1],
        sha256=loaded.source_sha256,
        n_read=loaded.n_read,
        n_rows=len(loaded.rows),
        rejects=_by_check(loaded.rejects),
        reasons=reasons,
        errors=sum(finding.severity == "error" for finding in found),
        df_V=df_V,
        df_G=df_G,
    )


def _by_check(found: Sequence[Finding]) -> dict[str, tuple[int, str]]:
    counts = Counter(f.check.removeprefix("load.") for f in found)
    first = {f.check.removeprefix("load."): f"{f.source}:{f.line}: {f.message}" for f in reversed(found)}
    return {check: (n, first[check]) for check, n in counts.items()}


def _keys(columns: FamilyColumns, line_N: I64) -> dict[str, npt.NDArray[Any]]:
    """What rows meet under, sorted; an empty text and a problem too short to name one meet nothing."""
    swept = sweep(columns.text)
    length_N = np.asarray(swept.length_N, np.uint64)
    limit = FamilyConfig().min_problem_tokens
    names_a_problem = (swept.problem_token_N >= limit) | (swept.problem_digit_N > 0)
    digest = np.frombuffer(
        b"".join(blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=16).digest() for row_id in columns.ids),
        "<u8",
    ).reshape(-1, 2)
    return {
        "id": _sorted(digest[:, 0], digest[:, 1], line_N),
        "text": _sorted(swept.hash_N, length_N, line_N, swept.hash_N != 0),
        "problem": _sorted(
            swept.problem_hash_N,
            np.asarray(swept.problem_token_N, np.uint64),
            line_N,
            names_a_problem & (swept.problem_hash_N != 0),
        ),
    }


def _sorted(high: Any, low: Any, line: I64, which: Any = None) -> npt.NDArray[Any]:
    key_K = np.empty(len(line), KEY)
    key_K["high"], key_K["low"], key_K["line"] = high, low, line
    key_K = key_K if which is None else key_K[np.asarray(which, bool)]
    return key_K[np.lexsort((key_K["low"], key_K["high"]))]


def _write_findings(path: Path, found: Sequence[Finding]) -> None:
    write_parquet(
        path,
        {
            "check": [f.check for f in found],
            "severity": [f.severity for f in found],
            "message": [f.message for f in found],
            "row_id": [f.row_id or "" for f in found],
            "source": [f.source or "" for f in found],
            "line": [f.line or 0 for f in found],
            "evidence": [json.dumps(to_json(f.evidence), ensure_ascii=False) for f in found],
        },
    )


def meet(number: int, ranges: int, found: tuple[Path, Sequence[str]]) -> dict[str, Met]:
    """Find rows that share a key in one range of hashes, over all shards; write and count them."""
    out, names = found
    rows: dict[str, list[Any]] = {"kind": [], "group": [], "file": [], "line": []}
    met = {}
    low, high = ((number + i) * 2**64 // ranges for i in range(2))
    for kind in KINDS:
        parts, shards = [], []
        for shard in range(len(names)):
            key_K = np.load(out / "work" / f"{shard:06d}-{kind}.npy", mmap_mode="r")
            begin = np.searchsorted(key_K["high"], np.uint64(low))
            end = np.searchsorted(key_K["high"], np.uint64(high)) if high < 2**64 else len(key_K)
            parts.append(np.array(key_K[begin:end]))
            shards.append(np.full(end - begin, shard, np.int64))
        key_K, shard_K = np.concatenate(parts), np.concatenate(shards)
        order = np.lexsort((key_K["line"], shard_K, key_K["low"], key_K["high"]))
        key_K, shard_K = key_K[order], shard_K[order]
        same = (key_K["high"][1:] == key_K["high"][:-1]) & (key_K["low"][1:] == key_K["low"][:-1])
        shared = np.append(same, False) | np.append(False, same)
        beyond = int(np.count_nonzero(same))
        total = int(np.count_nonzero(shared))
        met[kind] = Met(total - beyond, total, beyond)
        at = np.flatnonzero(shared)
        rows["kind"] += [kind] * len(at)
        rows["group"] += [f"{a:016x}{b:016x}" for a, b in zip(key_K["high"][at].tolist(), key_K["low"][at].tolist())]
        rows["file"] += [names[s] for s in shard_K[at].tolist()]
        rows["line"] += key_K["line"][at].tolist()
    if rows["kind"]:
        write_parquet(out / "equal" / f"{number:06d}.parquet", rows)
    return met


def compare_shard(task: _ShardTask, search: _ShardSearch) -> ShardHits:
    """Compare one shard's rows with the eval items, and write the hits."""
    weights = search.weights
    assert weights is not None
    loaded = load.load_files([task.file], **task.reading)
    columns = FamilyColumns.from_rows(loaded.rows)
    none = faint(search.index, weights.weight_V, search.config.min_features)
    near = RowsBesideEntries(search.index, none, score(columns.text, search.index, weights))
    found = contamination.judge_compared(columns, search.entries, near, standing, search.config)
    hits = found.hits
    if hits:
        names = ("row_id", "eval", "item_id", "item_part", "row_part", "kind", "status", "score", "span")
        parts = {name: [getattr(hit, name) for hit in hits] for name in names}
        lines = [loaded.rows[hit.row].line or hit.row + 1 for hit in hits]
        write_parquet(task.result("contamination"), {"file": [task.file[1]] * len(hits), "line": lines, **parts})
    rows = {
        name: Counter({what: counts[f"rows_{what}"] for what in (*STATUS, "canned")})
        for name, counts in found.by_eval.items()
    }
    summary = found.summary
    of_any = Counter({what: summary[f"rows_{what}"] for what in (*STATUS, "canned")})
    return ShardHits(rows, found.item_status, of_any, found.exact_only)


STATUS = ("exact", "confirmed", "review")


# ---------------------------------------------------------------- the pass


def audit_shards(
    path: str | Path,
    out: str | Path,
    *,
    evals: Mapping[str, EvalSource] | Sequence[EvalSource] = (),
    config: AuditConfig | None = None,
    workers: int = 0,
) -> ShardedAudit:
    """Audit a folder of shards into the new folder `out`, with `workers` processes on this machine (0: as many as
    cores, 1: only this one).

    Raises InputError for what only the audit of rows in memory does, and where `out` holds something; DataError where
    nothing is there to read; MachineError where a worker is lost.
    """
    began, config, root = time.perf_counter(), config or AuditConfig(), Path(out).resolve()
    _refuse(config, root)
    items, facts, findings = audits.load_evals(evals, config)
    files = load.files_of(path)
    reading = {
        "columns": config.columns,
        "family_field": config.family_field,
        "id_field": config.id_field,
        "train_on": config.train_on,
    }
    checks = replace(config.quality, off=(*config.quality.off, *SHARD_CHECKS_APART))
    search = _search(items, config) if facts else None
    tasks = [
        _ShardTask(i, (file.resolve(), name, stem), reading, checks, root) for i, (file, name, stem) in enumerate(files)
    ]
    for name in ("work", "findings", "equal", "contamination"):
        make_folder(root / name)
    with _workers(config, workers) as run:
        shards = list(run(read_shard, [(task,) for task in tasks], search))
        n_rows = sum(shard.n_rows for shard in shards)
        ranges = max(1, -(-n_rows // ROWS_A_RANGE))
        names = [shard.name for shard in shards]
        met = dict.fromkeys(KINDS, Met())
        for part in run(meet, [(number, ranges) for number in range(ranges)], (root, names)):
            met = {kind: met[kind] + part[kind] for kind in KINDS}
        gate = None
        if search is not None:
            weighed = _weighed(search, shards)
            gate = _gate(list(run(compare_shard, [(task,) for task in tasks], weighed)), weighed, facts, n_rows)
    shutil.rmtree(root / "work")
    shards = [replace(shard, df_V=None, df_G=None) for shard in shards]
    wall_s = time.perf_counter() - began
    report = ShardedAudit(str(path), root, tuple(shards), met, facts, tuple(findings), gate, wall_s)
    write_json(root / "report.json", report.record())
    write_text(root / "report.txt", sharded_text(report))
    return report


def _refuse(config: AuditConfig, out: Path) -> None:
    for name in ("embed", "split_field"):
        if getattr(config, name) is not None:
            raise InputError(
                f"{name} needs all rows in memory, but --sharded reads one shard at a time.",
                fix=f"Leave out {name} or --sharded.",
            )
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: it may hold results of another audit.", fix="Name another.")


def _search(items: Mapping[str, Sequence[Any]], config: AuditConfig) -> _ShardSearch:
    entries = contamination.gather(items, config.contamination.answers)
    index = build(TextBuffer.from_strings(entries.texts), config.contamination.ngram)
    return _ShardSearch(entries, index, config.contamination)


def _weighed(search: _ShardSearch, shards: Sequence[ShardFacts]) -> _ShardSearch:
    """With what words weigh by the counts of all shards."""
    df_V = sum((shard.df_V for shard in shards if shard.df_V is not None), np.zeros(len(search.index.df_V), np.int64))
    df_G = sum((shard.df_G for shard in shards if shard.df_G is not None), np.zeros(len(search.index.gram_G), np.int64))
    n, config = sum(shard.n_rows for shard in shards), search.config
    weights = scoring(search.index, df_V, df_G, n, config.review, config.min_features)
    return replace(search, weights=weights)


Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], Any], Iterator[Any]]
"""A function, its calls, and a last argument that all of them share; results in the order of the calls."""


@contextmanager
def _workers(config: AuditConfig, workers: int) -> Iterator[Run]:
    """Runs tasks on a Ray cluster or on this machine's cores. Raises DataError of a task, MachineError for others."""
    if config.executor != "ray":
        yield partial(_on_cores, workers or available_cores())
        return
    with session(config.ray_address) as ray:
        yield partial(_on_ray, ray)


def _on_ray(ray: Any, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], shared: Any) -> Iterator[Any]:
    task, once = ray.remote(work).options(num_cpus=1), ray.put(shared)
    for reference in [task.remote(*call, once) for call in calls]:
        try:
            yield ray.get(reference)
        except ray.exceptions.RayTaskError as exc:
            raise exc.cause if isinstance(exc.cause, VerituneError) else _lost(exc.cause or exc) from exc
        except ray.exceptions.RayError as exc:
            raise _lost(exc) from exc


def _on_cores(workers: int, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], shared: Any) -> Iterator[Any]:
    if workers == 1:
        yield from (work(*call, shared) for call in calls)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(calls) or 1), spawn, initializer=_keep, initargs=(shared,)) as pool:
        try:
            yield from pool.map(partial(_with_shared, work), calls)
        except BrokenProcessPool as exc:
            raise _lost(exc) from exc


_SHARED: list[Any] = []


def _keep(shared: Any) -> None:
    _SHARED[:] = [shared]


def _with_shared(work: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    return work(*call, _SHARED[0])


def _lost(exc: Exception) -> MachineError:
    return MachineError(
        f"a worker of the audit was lost or failed: {first_line(exc)}",
        fix="If memory ran out, make the shards smaller or use fewer workers.",
    )


def _gate(found: Sequence[ShardHits], search: _ShardSearch, facts: Sequence[EvalFacts], n_rows: int) -> GateResult:
    """The contamination gate over all shards: `ContaminationResult.gate`, from counts."""
    rows_of_any: Counter[str] = sum((hits.rows_of_any for hits in found), Counter())
    by_eval = {}
    for name, ids in zip(search.entries.evals, search.entries.item_ids):
        strongest: dict[int, int] = {}
        for hits in found:
            for item, status in hits.items[name].items():
                strongest[item] = min(strongest.get(item, status), status)
        rows: Counter[str] = sum((hits.rows[name] for hits in found), Counter())
        counts = {"items": len(ids)}
        for i, status_name in enumerate(STATUS):
            counts[f"items_{status_name}"] = sum(status == i for status in strongest.values())
            counts[f"rows_{status_name}"] = rows[status_name]
        by_eval[name] = {**counts, "rows_canned": rows["canned"]}
    numbers: dict[str, Any] = {"rows": n_rows, **{f"rows_{what}": rows_of_any[what] for what in (*STATUS, "canned")}}
    numbers |= {"evals": by_eval, "prompts_exact_only": max((hits.exact_only for hits in found), default=0)}
    weakest = STATUS.index(search.config.fail_on)
    bad = sum(rows_of_any[what] for what in STATUS[: weakest + 1])
    items = sum(by_eval[name][f"items_{what}"] for name in by_eval for what in STATUS[: weakest + 1])
    if not search.entries.texts:
        said = GateResult("contamination", "undecided", "no eval item holds a text, so nothing was checked.", numbers)
    elif bad:
        text = f"{bad} of {n_rows} rows hold {items} eval items ({search.config.fail_on})."
        said = GateResult("contamination", "failed", text, numbers, (), "drop these rows, or the evals")
    else:
        near = f"{rows_of_any['confirmed']} near-copies, {rows_of_any['review']} to review"
        text = f"no {search.config.fail_on} overlap of {n_rows} rows with {len(search.entries.texts)} texts; {near}."
        said = GateResult("contamination", "passed", text, numbers)
    return audits.gate_of(said, facts, compared=bool(search.entries.texts))


def sharded_text(report: ShardedAudit) -> str:
    """The report as text for the screen."""
    rejects = report.summed("rejects")
    problems = sum(n for n, _ in rejects.values())
    lines = [
        f"{report.source}  {many(len(report.shards), 'shards')}, sha256 {report.sha256[:12]}",
        f"  {grouped(report.n_read, 'records')} read, {report.n_rows:,} usable, {grouped(problems, 'problems')}",
    ]
    lines += [f"  {n:,} x {reason}: first {first}" for reason, (n, first) in rejects.items()]
    words = {"id": "use an id that another row has", "text": "repeat a text", "problem": "repeat a problem"}
    lines += ["", "Equal rows"]
    for kind, what in words.items():
        met = report.met[kind]
        share = f" ({met.beyond_first / report.n_rows:.1%})" if report.n_rows else ""
        lines.append(f"  {met.beyond_first:,} of {report.n_rows:,} rows{share} {what}, in {met.groups:,} groups")
    lines += ["", "Contamination"]
    if report.gate is None:
        lines.append("  no evals were given")
    else:
        lines.append(f"  {report.gate.status}: {report.gate.message}")
        for name, counts in report.gate.numbers["evals"].items():
            shown = ", ".join(f"{counts[f'items_{what}']:,} {what}" for what in STATUS)
            lines.append(f"  {name}: of {counts['items']:,} items {shown}")
    lines += [f"  {finding.message}" for finding in report.eval_findings]
    lines += ["", "Quality"]
    for name, (n, first) in report.summed("reasons").items():
        lines.append(f"  {n:,} of {report.n_rows:,} rows  {name}: first {first}")
    lines += ["", "What this audit does not look for", *(f"  {text}" for text in (*NOT_LOOKED_FOR, *audits.LIMITS))]
    return (
        "\n".join([*lines, "", f"findings, equal rows and hits: {report.out} (Parquet)", f"{report.wall_s:.1f} s"])
        + "\n"
    )
