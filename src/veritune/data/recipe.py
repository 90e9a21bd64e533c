"""A data set made from others by a recipe: sources, quotas, mixing shares, reasons to leave rows out, a system prompt.

    seed: 0
    rows: 2000                       # with shares: how many in all; left out, as many as the sources allow
    drop_reason: [truncated, refusal]
    sources:
      maths: {path: maths.jsonl, share: 0.7, columns: {user: question, assistant: answer}}
      chat:  {path: chat.jsonl, share: 0.3, keep_source: [forum, wiki]}
      house: {path: style.jsonl, rows: 50}
    system: "Answer in short sentences."

`make_recipe` draws rows in a seeded order, so that a source's smaller quota lies within its larger one, and writes the
result as a data version: its lineage names every source file by hash, the recipe's own hash, and what was left out why.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from veritune.config.fields import Int, Name, Part, Section
from veritune.counting import grouped
from veritune.data.load import TrainOn, load_rows, require_clean
from veritune.data.quality import QualityConfig, check_rows
from veritune.data.quality import reasons as known_checks
from veritune.data.render import Renderer
from veritune.data.review import Version, require_usable, write_version
from veritune.data.split import stratum_of
from veritune.errors import DataError, first_line
from veritune.records import Message, Row
from veritune.store import sha256_file
from veritune.untrusted import MAX_YAML_BYTES, parse_yaml, read_bytes

if TYPE_CHECKING:
    Tokenizer = Any  # a tokenizer of transformers

_SHARES_ADD_UP = 1e-6


class Source(Section):
    """One source of a recipe. Without `rows` and `share`, all of its rows are taken."""

    path: str
    """The file, relative to the recipe."""
    columns: dict[str, str] | None = None
    """Which columns hold the turns, where rows have no `messages`."""
    id_field: str | None = None
    """Column with a unique row id."""
    family_field: str | None = None
    """Column that names a row's original."""
    rows: Annotated[Int, Field(ge=1)] | None = None
    """Quota: exactly so many rows."""
    share: Part | None = None
    """Share of all rows that have a share."""
    keep_source: tuple[str, ...] = ()
    """Keep only rows of these sources (column `source`, else the file's name)."""
    drop_reason: tuple[str, ...] = ()
    """Leave out rows that a row check flags for one of these reasons, beside the recipe's own."""
    train_on: TrainOn = "all"
    """`last`: write weight 0 on every assistant turn but the last of each row."""

    @model_validator(mode="after")
    def _one_size(self) -> Source:
        if self.rows is not None and self.share is not None:
            raise ValueError("rows and share exclude each other: set one")
        return self


class Recipe(Section):
    """The content of a recipe file."""

    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    """The sources by name; the name becomes the row's `source` and the front of its id."""
    seed: Int = 0
    """Seed of the draw."""
    rows: Annotated[Int, Field(ge=1)] | None = None
    """With shares: how many rows the sources with a share give in all."""
    drop_reason: tuple[str, ...] = ()
    """Leave out rows that a row check flags for one of these reasons."""
    system: str | None = None
    """System prompt put in front of every row that has none."""

    @model_validator(mode="after")
    def _shares(self) -> Recipe:
        shares = [source.share for source in self.sources.values() if source.share is not None]
        if shares and abs(sum(shares) - 1) > _SHARES_ADD_UP:
            raise ValueError(f"sources: the shares add up to {sum(shares):g}; make them add up to 1")
        if self.rows is not None and not shares:
            raise ValueError("rows: no source has a share to divide them; write `rows` in the sources instead")
        if self.system is not None and not self.system.strip():
            raise ValueError("system: the prompt is empty; write one, or leave the key out")
        return self


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What one source contributed: rows read, rows left after the filters, rows taken, and rows left out by reason."""

    name: str
    read: int
    usable: int
    taken: int
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Mixed:
    """The rows of a recipe, with what each source contributed; `system_added` counts the rows that got the system
    prompt.
    """

    rows: tuple[Row, ...]
    sources: tuple[SourceFacts, ...]
    system_added: int

    @property
    def rejects(self) -> dict[str, int]:
        """Number of rows left out, by source and reason."""
        return {f"{s.name}: {why}": n for s in self.sources for why, n in s.left_out.items()}


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file. Raises DataError naming the key, what was expected and what was found."""
    try:
        raw = parse_yaml(read_bytes(Path(path), MAX_YAML_BYTES))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"recipe {path} cannot be read: {first_line(error)}.", fix="It is YAML in UTF-8.") from error
    if not isinstance(raw, dict):
        raise DataError(
            f"recipe {path} holds a {type(raw).__name__}; expected a mapping.", fix="Write `sources:` with a path each."
        )
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        says = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"].lower()
        known = f"Keys of a recipe: {', '.join(Recipe.model_fields)}; of a source: {', '.join(Source.model_fields)}."
        raise DataError(f"recipe {path}: {where}: {says}.", fix=known) from error


def mix(recipe: Recipe, folder: str | Path) -> Mixed:
    """Read, filter and draw the rows of a recipe. Raises DataError if a source cannot be used or has too few rows for
    its quota.
    """
    usable: dict[str, list[Row]] = {}
    read: dict[str, int] = {}
    left_out: dict[str, Counter[str]] = {}
    for name, source in recipe.sources.items():
        path = Path(folder) / source.path
        loaded = require_clean(
            load_rows(
                path,
                columns=source.columns,
                id_field=source.id_field,
                family_field=source.family_field,
                train_on=source.train_on,
            )
        )
        require_usable(path, loaded.source_sha256, loaded.rows)
        read[name] = len(loaded.rows)
        reasons = tuple(dict.fromkeys((*recipe.drop_reason, *source.drop_reason)))
        usable[name], left_out[name] = leave_out(loaded.rows, reasons=reasons, keep_sources=source.keep_source)
    sizes = _sizes(recipe, {name: len(rows) for name, rows in usable.items()})
    rows: list[Row] = []
    facts = []
    for name, own in usable.items():
        order = sorted(own, key=lambda row: hashlib.sha256(f"{recipe.seed}\0{name}\0{row.id}".encode()).digest())
        taken = {row.id for row in order[: sizes[name]]}
        rows += [_named(row, name) for row in own if row.id in taken]
        if len(own) > sizes[name]:
            left_out[name]["not drawn"] += len(own) - sizes[name]
        facts.append(SourceFacts(name, read[name], len(own), sizes[name], dict(left_out[name])))
    with_system = [_with_system(row, recipe.system) for row in rows]
    added = sum(a is not b for a, b in zip(rows, with_system))
    return Mixed(tuple(with_system), tuple(facts), added)


def leave_out(
    rows: Sequence[Row], *, reasons: Sequence[str] = (), keep_sources: Sequence[str] = ()
) -> tuple[list[Row], Counter[str]]:
    """Rows of the kept sources that no check flags for one of `reasons`, and the rows left out by reason.

    Raises DataError for a source that no row has, and for a reason that is none.
    """
    why: Counter[str] = Counter()
    kept = list(rows)
    if keep_sources:
        there = Counter(stratum_of(row, "source") for row in rows)
        unknown = [name for name in keep_sources if name not in there]
        if unknown:
            known = ", ".join(f"{name!r} ({n:,})" for name, n in there.most_common(10))
            raise DataError(f"unknown source {unknown[0]!r}: no row has it.", fix=f"Sources there: {known}.")
        kept = [row for row in rows if stratum_of(row, "source") in set(keep_sources)]
        why["other source"] += len(rows) - len(kept)
    if reasons:
        known_reasons = known_checks()
        wrong = [reason for reason in reasons if reason not in known_reasons]
        if wrong:
            known = ", ".join(known_reasons)
            raise DataError(f"unknown row check reason {wrong[0]!r}.", fix=f"Reasons: {known}.")
        flagged: dict[str, str] = {}
        for finding in check_rows(kept, QualityConfig()).findings:
            reason = finding.check.removeprefix("quality.")
            if finding.row_id is not None and reason in reasons:
                flagged.setdefault(finding.row_id, reason)
        why.update(flagged[row.id] for row in kept if row.id in flagged)
        kept = [row for row in kept if row.id not in flagged]
    return kept, why


def _sizes(recipe: Recipe, there: Mapping[str, int]) -> dict[str, int]:
    """How many rows each source gives. Raises DataError where one has too few."""
    sizes = {name: there[name] if s.rows is None else s.rows for name, s in recipe.sources.items()}
    shares = {name: s.share for name, s in recipe.sources.items() if s.share is not None}
    if shares:
        most = min(int(there[name] / share + 1e-9) for name, share in shares.items())
        total = recipe.rows if recipe.rows is not None else most
        exact = {name: share * total for name, share in shares.items()}
        sizes |= {name: int(size + 1e-9) for name, size in exact.items()}
        short = total - sum(sizes[name] for name in shares)
        for name in sorted(shares, key=lambda n: (sizes[n] - exact[n], n))[:short]:  # largest remainders
            sizes[name] += 1
    for name, size in sizes.items():
        if size > there[name]:
            raise DataError(
                f"source {name!r} must give {grouped(size, 'rows')} but has {there[name]:,} after its filters.",
                fix="Lower `rows` or its share, or filter out fewer rows.",
            )
        if size == 0:
            raise DataError(f"source {name!r} contributes no row.", fix="Raise `rows` or its share, or remove it.")
    return sizes


def _named(row: Row, name: str) -> Row:
    """The row with its source's name in front of its id and as its `source`; an older `source` moves aside."""
    meta = {**row.meta, "source": name}
    if "source" in row.meta:
        meta["original_source"] = row.meta["source"]
    return replace(row, id=f"{name}/{row.id}", meta=meta)


def _with_system(row: Row, system: str | None) -> Row:
    if system is None or any(message.role in ("system", "developer") for message in row.messages):
        return row
    return replace(row, messages=(Message("system", system), *row.messages))


@dataclass(frozen=True, slots=True)
class SystemCost:
    """What a system prompt costs: tokens of all rows without and with it, and rows that become too long."""

    rows: int
    without: int
    tokens: int
    over_without: int
    over: int
    max_length: int


def system_cost(recipe: Recipe, folder: str | Path, tokenizer: Tokenizer, max_length: int = 2048) -> SystemCost:
    """Render the recipe's rows with and without its system prompt and count. Raises DataError as `mix` does.

    A template may have a default system prompt of its own: what is counted is the difference that training sees.
    """
    from veritune.data.parity import ALL, render_stats

    renderer = Renderer(tokenizer, max_length)
    bare, full = (
        render_stats(mix(recipe.model_copy(update={"system": system}), folder).rows, renderer)
        for system in (None, recipe.system)
    )
    return SystemCost(
        full.n_rows, bare.n_tokens, full.n_tokens, bare.truncation[ALL].over, full.truncation[ALL].over, max_length
    )


def render_cost(cost: SystemCost) -> str:
    """The cost in one line: tokens per row, in total and as a share, and rows that no longer fit."""
    more = cost.tokens - cost.without
    share = more / cost.without if cost.without else 0.0
    fit = f"; rows over {cost.max_length:,} tokens {cost.over_without:,} -> {cost.over:,}"
    each = more / cost.rows if cost.rows else 0.0
    change = f"{cost.without:,} -> {cost.tokens:,}"
    return f"  system prompt costs {grouped(more, 'tokens')} ({each:.1f} a row, {share:+.1%}): {change}{fit}"


def make_recipe(path: str | Path, out: str | Path) -> tuple[Mixed, Version]:
    """Mix a recipe's rows and write them to `out` as a data version with its lineage."""
    recipe = load_recipe(path)
    mixed = mix(recipe, Path(path).parent)
    parents = [Path(path).parent / source.path for source in recipe.sources.values()]
    how = f"recipe {Path(path).name} {sha256_file(Path(path))[:12]}"
    return mixed, write_version(mixed.rows, out, parents=parents, rejects=mixed.rejects, how=how)


def render_mixed(mixed: Mixed) -> str:
    """What each source contributed, as text for the screen."""
    lines = []
    for s in mixed.sources:
        out = ", ".join(f"{n:,} {why}" for why, n in s.left_out.items())
        share = s.taken / len(mixed.rows) if mixed.rows else 0.0
        lines.append(f"  {s.name}: {s.taken:,} of {s.read:,} rows ({share:.1%})" + (f"; without {out}" if out else ""))
    if mixed.system_added:
        lines.append(f"  system prompt added to {mixed.system_added:,} rows")
    return "\n".join(lines)
