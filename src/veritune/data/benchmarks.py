"""Benchmarks of a study: items from files of their own, asked of every arm and trained on by none.

A benchmark is read, drawn, grouped into families and rendered once; what is asked lies beside the data version, and its
hash, the file's hash and the ids drawn are facts of the contract.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from veritune.config.evals import Eval
from veritune.data.choices import filled, options_of
from veritune.data.families import SPLIT_SAFE_THRESHOLD, find_families
from veritune.data.load import load_rows, require_clean
from veritune.data.render import Renderer
from veritune.data.stored import row_columns, row_of
from veritune.errors import StaleError, StudyError
from veritune.files import benchmark_name
from veritune.records import BenchmarkFacts, Message, Row
from veritune.store import hash_of, read_parquet, write_parquet


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's items as its file has them, their families, and the prompts given to models.

    `n_rows` is how many the file has, `sha256` the hash of the file.
    """

    rows: tuple[Row, ...]
    family_of: Mapping[str, str]
    prompts: Mapping[str, tuple[int, ...]]
    n_rows: int
    sha256: str

    @property
    def digest(self) -> str:
        """Hash of items, families and prompts."""
        return hash_of([self.rows, sorted(self.family_of.items()), [list(self.prompts[r.id]) for r in self.rows]])

    def facts(self) -> BenchmarkFacts:
        """The facts about the benchmark that the contract freezes."""
        return BenchmarkFacts(
            sha256=self.sha256,
            rows=self.n_rows,
            items=tuple(row.id for row in self.rows),
            families=len(set(self.family_of.values())),
            items_sha256=self.digest,
        )


def load_benchmarks(
    root: Path, evals: Mapping[str, Eval], renderer: Renderer, taken: Collection[str]
) -> dict[str, Benchmark]:
    """The benchmarks among `evals`, by name. `taken` are the ids already used by the data's rows. Raises DataError,
    StudyError.
    """
    found = {name: _load(root, name, spec, renderer) for name, spec in evals.items() if spec.path is not None}
    for name, benchmark in found.items():
        same = sorted(row.id for row in benchmark.rows if row.id in taken)
        if same:
            raise StudyError(
                f"evals.{name}: item {same[0]} has the same id as a row in data.path.", fix="Rename the eval."
            )
    return found


def _load(root: Path, name: str, spec: Eval, renderer: Renderer) -> Benchmark:
    loaded = load_rows(
        root / str(spec.path),
        columns=spec.columns,
        id_field=spec.id_field,
        family_field=spec.family_field,
        require_target=False,
    )
    require_clean(loaded)
    if spec.family_field is not None and all(row.family is None for row in loaded.rows):
        columns = ", ".join(sorted({key for row in loaded.rows for key in row.meta})) or "none"
        raise StudyError(
            f"evals.{name}.family_field: no item has a value in {spec.family_field!r}.", fix=f"Columns: {columns}."
        )
    rows = tuple(replace(row, id=f"{name}/{row.id}") for row in _drawn(name, spec, loaded.rows))
    families = find_families(rows, near=True, threshold=SPLIT_SAFE_THRESHOLD)
    return Benchmark(
        rows,
        {m.row_id: f"{name}/{m.family}" for m in families.memberships},
        {row.id: renderer.prompt_ids(as_asked(name, spec, row)) for row in rows},
        len(loaded.rows),
        loaded.source_sha256,
    )


def _drawn(name: str, spec: Eval, rows: tuple[Row, ...]) -> list[Row]:
    """All rows, or `items` of them drawn by `items_seed`, in the order of the file."""
    if spec.items is None:
        return list(rows)
    if spec.items > len(rows):
        raise StudyError(
            f"evals.{name}.items: expected at most the {len(rows)} rows of {spec.path}, found {spec.items}.",
            fix="Lower it, or leave it out to ask all.",
        )
    return [rows[i] for i in sorted(random.Random(spec.items_seed).sample(range(len(rows)), spec.items))]


def as_asked(name: str, spec: Eval, row: Row) -> Row:
    """A benchmark's item with the eval's system turn and template applied. Raises StudyError for options that cannot be
    used.
    """
    messages = list(row.prompt)
    options = options_of(name, spec, row) if spec.kind == "choice" else None
    messages[-1] = replace(messages[-1], content=filled(spec, messages[-1].content, options))
    if spec.system is not None and messages[0].role not in ("system", "developer"):
        messages.insert(0, Message("system", spec.system))
    return replace(row, messages=(*messages, *row.messages[len(row.prompt) :]))


# ---------------------------------------------------------------- on disk


def benchmark_file(folder: Path, name: str, digest: str) -> Path:
    """The path of the file, in the folder of the data version, that holds a benchmark's items."""
    return folder / benchmark_name(name, digest)


def write_benchmarks(folder: Path, benchmarks: Mapping[str, Benchmark]) -> dict[str, BenchmarkFacts]:
    """Write the items of every benchmark; returns the facts that the contract freezes."""
    facts = {name: benchmark.facts() for name, benchmark in benchmarks.items()}
    for name, benchmark in benchmarks.items():
        path = benchmark_file(folder, name, facts[name].items_sha256)
        if path.exists():
            continue
        rows = benchmark.rows
        columns = row_columns(rows)
        columns["own_family"] = columns["family"]
        columns["family"] = [benchmark.family_of[row.id] for row in rows]
        columns["prompt_ids"] = [list(benchmark.prompts[row.id]) for row in rows]
        write_parquet(path, columns)
    return facts


def read_benchmarks(folder: Path, facts: Mapping[str, BenchmarkFacts]) -> dict[str, Benchmark]:
    """The frozen benchmarks, read back. Raises StaleError if a file is missing or differs from the frozen one."""
    found = {}
    for name, frozen in facts.items():
        path = benchmark_file(folder, name, frozen.items_sha256)
        if not path.exists():
            raise StaleError(f"{path} is missing.", fix="Write it again: veritune freeze STUDY")
        read = read_parquet(path)
        rows = tuple(row_of({**r, "family": r["own_family"]}) for r in read)
        families, prompts = {r["id"]: r["family"] for r in read}, {r["id"]: tuple(r["prompt_ids"]) for r in read}
        benchmark = Benchmark(rows, families, prompts, frozen.rows, frozen.sha256)
        if benchmark.digest != frozen.items_sha256:
            raise StaleError(
                f"{path} was edited: it differs from the frozen file.",
                fix="Restore the file from a copy, or write it again: veritune freeze STUDY. Nothing trained.",
            )
        found[name] = benchmark
    return found
