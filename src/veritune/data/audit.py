"""The audit of a dataset in one pass: bad rows, families, contamination, quality, and rendering with a tokenizer.

No model is needed, and nothing heavy is imported unless a tokenizer is given. `audit` gives records, `render_text` the
screen, `write_report` the files, `write_clean` the data without what should not be trained on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.data.contamination import ContaminationConfig, ContaminationResult, Level, check_contamination
from veritune.data.families import THRESHOLD, Edge, FamilyResult, find_families, merge_families
from veritune.data.load import Loaded, load_rows, rows_from
from veritune.data.near import Executor
from veritune.data.quality import QualityConfig, QualityResult, check_rows
from veritune.data.review import Version, lineage, make_pack, write_pack, write_version
from veritune.data.split import judge_zones
from veritune.errors import DataError, ModelError, first_line
from veritune.records import Finding, GateResult, Row, to_json
from veritune.store import write_json, write_jsonl, write_text

if TYPE_CHECKING:
    from veritune.data.parity import RenderStats

WHOLE_FILES = ("unreadable", "empty_file")  # each of these files is named on the screen
_FILES_SHOWN = 20

EvalSource = Any  # a path, a table object, a list of rows or of texts

LIMITS = (
    "Comparing words finds copies and edits, not free paraphrases: rows that a model rewrote are found by a column "
    "that names the original, and in part by embeddings (--embed) and gradients (--gradient-families).",
    "Languages that share a script are not told apart, and no check here judges whether an answer is true.",
)


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """How to read the data and the evals, and what to check. `split_field` names a column that holds a split to judge.

    `max_length` is the number of tokens that rendering is measured against; it matters only with a tokenizer.
    `embed` names an encoder that looks for paraphrases, see `veritune.data.embed`.
    """

    columns: Mapping[str, str] | None = None
    family_field: str | None = None
    id_field: str | None = None
    eval_columns: Mapping[str, str] | None = None
    split_field: str | None = None
    near_duplicates: bool = True
    threshold: float = THRESHOLD
    max_length: int = 2048
    embed: str | None = None
    executor: Executor = "local"
    ray_address: str | None = None
    quality: QualityConfig = field(default_factory=QualityConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)


@dataclass(frozen=True, slots=True)
class EvalFacts:
    """An eval that rows were compared with: items read, items that could not be read and so were not checked."""

    name: str
    items: int
    unread: int
    sha256: str


@dataclass(frozen=True)
class AuditReport:
    """What the audit found. `findings` holds everything, worst first; the other fields are counts over it.

    `gate` is None where no eval was given. `record()` is the JSON form; rows and the full results stay in memory.
    """

    source: str
    sha256: str
    n_read: int
    rows: tuple[Row, ...]
    rejects: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    families: FamilyResult
    quality: QualityResult
    evals: tuple[EvalFacts, ...]
    gate: GateResult | None
    contamination: ContaminationResult | None
    split: Mapping[str, Any] | None
    rendering: RenderStats | None
    parity: Mapping[str, Any] | None
    config: AuditConfig
    wall_s: float
    file: Path | None = None

    @property
    def exit_code(self) -> int:
        """2 when the contamination gate did not pass, 1 when records could not be used, else 0."""
        if self.gate is not None and self.gate.status != "passed":
            return 2
        return 1 if any(f.severity == "error" for f in self.findings) else 0

    @property
    def versions(self) -> tuple[Version, ...]:
        """The lineage of the folder the data lies in."""
        if self.file is None:
            return ()
        return lineage(self.file if self.file.is_dir() else self.file.parent)

    def record(self) -> dict[str, Any]:
        """The report as plain JSON values, findings included."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "n_read": self.n_read,
            "n_rows": len(self.rows),
            "n_rejected": self.n_read - len(self.rows),
            "rejects_by_reason": dict(sorted(Counter(f.check for f in self.rejects).items())),
            "families": to_json(self.families.summary),
            "contamination": to_json(self.contamination.summary) if self.contamination else None,
            "gate": to_json(self.gate) if self.gate else None,
            "evals": to_json(self.evals),
            "quality": {"n_rows": self.quality.n_rows, "reasons": to_json(self.quality.counts)},
            "split": to_json(self.split) if self.split else None,
            "rendering": to_json(self.rendering) if self.rendering else None,
            "parity": to_json(self.parity) if self.parity else None,
            "limits": list(LIMITS),
            "exit_code": self.exit_code,
            "wall_s": round(self.wall_s, 3),
            "findings": to_json(self.findings),
        }


# ---------------------------------------------------------------- the pass


def audit(
    data: Any,
    *,
    evals: Mapping[str, EvalSource] | Sequence[EvalSource] = (),
    tokenizer: Any = None,
    edges: Callable[[Sequence[Row]], Iterable[Edge]] | None = None,
    config: AuditConfig | None = None,
) -> AuditReport:
    """Audit a path, a table object or rows. `evals` are paths or tables, named by their file or by the mapping's keys.

    `tokenizer` is a folder, a hub id or a tokenizer object. `edges` is a pass that sees more than words (gradients): it
    is given the usable rows and returns pairs that join families. Unusable records become findings and the rest is
    audited. Raises DataError when a source does not exist, ModelError when the tokenizer cannot be used.
    """
    config = config or AuditConfig()
    if config.executor == "ray":
        from veritune.data.near.ray import session

        with session(config.ray_address):  # one cluster for all steps
            return _audit(data, evals, tokenizer, edges, config)
    return _audit(data, evals, tokenizer, edges, config)


def _audit(
    data: Any,
    evals: Mapping[str, EvalSource] | Sequence[EvalSource],
    tokenizer: Any,
    edges: Callable[[Sequence[Row]], Iterable[Edge]] | None,
    config: AuditConfig,
) -> AuditReport:
    begin = time.perf_counter()
    loaded = _load(data, "rows", config)
    items, facts, eval_findings = _load_evals(evals, config)
    families, embed_findings = _find_families(loaded.rows, edges, config)
    quality = check_rows(loaded.rows, config.quality)
    near = replace(config.contamination, executor=config.executor, ray_address=config.ray_address)
    contamination = check_contamination(loaded.rows, items, near) if facts else None
    gate = _gate(contamination, facts) if contamination is not None else None
    split_findings, split = _judge_split(loaded.rows, families, config)
    render_findings, rendering, parity = _rendering(loaded.rows, tokenizer, config)
    found = (
        *loaded.rejects,
        *loaded.notes,
        *eval_findings,
        *(contamination.findings() if contamination is not None else ()),
        *embed_findings,
        *split_findings,
        *quality.findings,
        *render_findings,
    )
    rank = {"error": 0, "warning": 1, "note": 2}
    path = Path(data) if isinstance(data, str | Path) else None
    return AuditReport(
        source=str(data) if path is not None else "rows",
        sha256=loaded.source_sha256,
        n_read=loaded.n_read,
        rows=loaded.rows,
        rejects=loaded.rejects,
        findings=tuple(sorted(found, key=lambda f: rank[f.severity])),
        families=families,
        quality=quality,
        evals=facts,
        gate=gate,
        contamination=contamination,
        split=split,
        rendering=rendering,
        parity=parity,
        config=config,
        wall_s=time.perf_counter() - begin,
        file=path if path is not None and path.exists() else None,
    )


def _find_families(
    rows: Sequence[Row], edges: Callable[[Sequence[Row]], Iterable[Edge]] | None, config: AuditConfig
) -> tuple[FamilyResult, list[Finding]]:
    """Families by words, then by whatever sees more; a note says when thresholds were not measured."""
    from veritune.data.embed import load_encoder

    encoder = load_encoder(config.embed) if config.embed else None
    families = find_families(
        rows,
        near=config.near_duplicates,
        threshold=config.threshold,
        embed=encoder,
        executor=config.executor,
        ray_address=config.ray_address,
    )
    if edges is not None:
        families = merge_families(families, edges(rows), bounded=False)
    if encoder is None or encoder.measured:
        return families, []
    text = (
        f"embedding families used {encoder.name} at cosine {encoder.threshold} (same numbers) and {encoder.sure}: "
        "these thresholds were measured on other encoders, read the joins before you trust them"
    )
    return families, [Finding("audit.embed_unmeasured", "note", text, evidence={"encoder": encoder.name})]


def _load(data: Any, name: str, config: AuditConfig) -> Loaded:
    read = load_rows if isinstance(data, str | Path) else rows_from
    return read(data, columns=config.columns, family_field=config.family_field, id_field=config.id_field)


def _load_evals(
    evals: Mapping[str, EvalSource] | Sequence[EvalSource], config: AuditConfig
) -> tuple[dict[str, Sequence[Any]], tuple[EvalFacts, ...], list[Finding]]:
    """Items by eval name, facts, and a finding for every eval of which something could not be read."""
    if isinstance(evals, str | Path):
        evals = [evals]
    named = dict(evals) if isinstance(evals, Mapping) else _names(evals)
    items: dict[str, Sequence[Any]] = {}
    facts: list[EvalFacts] = []
    findings: list[Finding] = []
    for name, source in named.items():
        if isinstance(source, list | tuple) and source and all(isinstance(s, str) for s in source):
            items[name] = source
            facts.append(EvalFacts(name, len(source), 0, ""))
            continue
        read = load_rows if isinstance(source, str | Path) else rows_from
        loaded = read(source, columns=config.eval_columns, require_target=False, id_field=None)
        unread = len(loaded.rejects)
        items[name] = loaded.rows
        facts.append(EvalFacts(name, len(loaded.rows), unread, loaded.source_sha256))
        if unread:
            text = f"eval {name}: {unread} of {loaded.n_read} items cannot be read, so nothing was compared with them"
            evidence = {"n": unread, "n_read": loaded.n_read, "first": loaded.rejects[0].message}
            findings.append(Finding("audit.eval_unread", "error", text, source=name, evidence=evidence))
        findings += [
            Finding("audit.eval_columns", "note", f"eval {name}: {n.message}", source=name, evidence=n.evidence)
            for n in loaded.notes
        ]
    return items, tuple(facts), findings


def _names(evals: Iterable[EvalSource]) -> dict[str, EvalSource]:
    """Evals by file stem; of two with one stem the second gets its folder's name in front."""
    named: dict[str, EvalSource] = {}
    for i, source in enumerate(evals):
        name = Path(source).name.split(".")[0] if isinstance(source, str | Path) else f"eval{i + 1}"
        if name in named:
            name = f"{Path(source).parent.name}/{name}" if isinstance(source, str | Path) else f"{name}-{i + 1}"
        if name in named:
            raise DataError(f"two evals are called {name!r}.", fix="Give them other names (in Python: a mapping).")
        named[name] = source
    return named


def _gate(contamination: ContaminationResult, facts: Sequence[EvalFacts]) -> GateResult:
    """The contamination gate; a pass over evals that were only partly read is `undecided`."""
    gate = contamination.gate()
    partly = [f for f in facts if f.unread or not f.items]
    if gate.status != "passed" or not partly:
        return gate
    what = ", ".join(f"{f.name} ({f.unread} unread, {f.items} read)" for f in partly)
    return GateResult(gate.gate, "undecided", f"not all eval items could be read: {what}. {gate.message}", gate.numbers)


def _judge_split(
    rows: Sequence[Row], families: FamilyResult, config: AuditConfig
) -> tuple[list[Finding], Mapping[str, Any] | None]:
    name = config.split_field
    if name is None:
        return [], None
    if not any(name in row.meta for row in rows):
        columns = ", ".join(sorted({key for row in rows for key in row.meta})) or "none"
        raise DataError(f"split_field: no row has a column {name!r}.", fix=f"Columns there: {columns}.")
    zones: dict[str, list[Row]] = {}
    for row in rows:
        zones.setdefault(str(row.meta.get(name)), []).append(row)
    return judge_zones(zones, dict(zip(families.row_ids, families.families)))


def _rendering(
    rows: Sequence[Row], tokenizer: Any, config: AuditConfig
) -> tuple[list[Finding], RenderStats | None, Mapping[str, Any] | None]:
    if tokenizer is None:
        return [], None, None
    from veritune.data.parity import ALL, check_parity, render_stats
    from veritune.data.render import Renderer

    renderer = Renderer(load_tokenizer(tokenizer), config.max_length)
    stats = render_stats(rows, renderer)
    parity, facts = check_parity(rows, renderer)
    parity = [f for f in parity if not f.check.startswith("render.")]  # `stats.problems` holds these already
    cut = stats.truncation.get(ALL)
    if cut is not None and cut.over:
        text = (
            f"{cut.over} of {cut.rows} rows are longer than max_length {cut.limit}: cutting them would cost "
            f"{cut.lose_answer} rows some of their answer and {cut.lose_all} all of it"
        )
        parity.append(Finding("render.too_long", "warning", text, evidence=to_json(cut)))
    return [*stats.problems, *parity], stats, facts


def load_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer from a folder or hub id; an object is handed back as it is. Raises ModelError."""
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(tokenizer))
    except Exception as error:  # the library raises many unrelated types here
        first = first_line(error)
        raise ModelError(
            f"{tokenizer} holds no tokenizer: {first}", fix="Name a folder with tokenizer.json."
        ) from error


# ---------------------------------------------------------------- what comes out


def write_clean(report: AuditReport, path: str | Path, *, level: Level = "confirmed") -> Version:
    """Write the usable rows without those contaminated at `level` or stronger, as a data version with its lineage.

    Raises DataError when the audit was not made from a file, or when the target is there already.
    """
    if report.file is None or report.file.is_dir():
        raise DataError("only the audit of one file can write its clean version.", fix="Audit a single file.")
    rejects: Counter[str] = Counter(f.check for f in report.rejects)
    kept = {row.id for row in report.rows}
    if report.contamination is not None:
        dropped = report.contamination.drop(level)
        kept = set(dropped.kept_ids)
        rejects.update(dropped.by_reason)
    rows = [row for row in report.rows if row.id in kept]
    evals = ", ".join(f.name for f in report.evals) or "no eval"
    return write_version(
        rows, path, parents=[report.file], rejects=rejects, how=f"audit against {evals}, level {level}"
    )


def write_report(report: AuditReport, folder: str | Path, *, seed: int = 0) -> tuple[Path, ...]:
    """Everything as files in `folder`: report.json, findings, families, hits, the review pack and the datasheet."""
    from veritune.data.datasheet import write_datasheet

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    record = report.record()
    findings = record.pop("findings")
    write_json(out / "report.json", record)
    write_jsonl(out / "findings.jsonl", findings)
    write_jsonl(out / "families.jsonl", report.families.memberships)
    if report.families.joins:
        write_jsonl(out / "joins.jsonl", _joins(report.families))
    if report.contamination is not None:
        write_jsonl(out / "contamination.jsonl", report.contamination.hits)
    (out / "review").mkdir(exist_ok=True)
    write_pack(make_pack(report.rows, report.findings, seed=seed), out / "review" / "pack.jsonl")
    sheet = write_datasheet(report, out)
    write_text(out / "report.txt", render_text(report))
    names = ["report.json", "findings.jsonl", "families.jsonl", "review/pack.jsonl", "report.txt"]
    names += ["contamination.jsonl"] if report.contamination is not None else []
    names += ["joins.jsonl"] if report.families.joins else []
    return (*(out / name for name in names), *sheet)


def _joins(families: FamilyResult) -> list[dict[str, Any]]:
    """The pairs of rows by which embeddings or gradients joined two families, strongest first."""
    ids = families.row_ids
    ordered = sorted(families.joins, key=lambda e: (-(e[2] or 0.0), e[0], e[1]))
    return [
        {"row": ids[i], "other": ids[j], "evidence": kind, "similarity": None if s is None else round(s, 4)}
        for i, j, s, kind in ordered
    ]


def render_text(report: AuditReport) -> str:
    """The report for the screen: what was read, families, contamination, quality, rendering, and what it cannot see."""
    parts = [_head(report), _families(report), _contamination(report), _quality(report)]
    if report.split is not None:
        parts.append(_split(report))
    if report.rendering is not None:
        parts.append(_tokens(report))
    parts.append(["What this audit cannot see", *(f"  {text}" for text in LIMITS)])
    parts.append([f"{report.wall_s:.1f} s"])
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _head(report: AuditReport) -> list[str]:
    unusable = len(report.rejects)
    lines = [
        f"{report.source}  sha256 {report.sha256[:12]}",
        f"  {report.n_read:,} records read, {len(report.rows):,} usable, {unusable:,} problems",
    ]
    lines += [f"  {f.message}" for f in report.findings if f.check in ("load.columns", "load.mixed_schemas")]
    for reason, n in Counter(f.check.removeprefix("load.") for f in report.rejects).most_common():
        found = [f for f in report.rejects if f.check == f"load.{reason}"]
        lines.append(f"  {n:,} x {reason}: first {found[0].source}:{found[0].line}: {found[0].message}")
        if reason in WHOLE_FILES:
            lines += [f"    also {f.source}: {f.message}" for f in found[1:_FILES_SHOWN]]
            lines += [f"    and {n - _FILES_SHOWN:,} more files"] if n > _FILES_SHOWN else []
    return lines


def _families(report: AuditReport) -> list[str]:
    s = report.families.summary
    if not s["rows"]:
        return ["Families", "  no rows"]
    variants = f"{s['variants']:,} rows ({s['variant_share']:.1%}) are variants"
    lines = ["Families", f"  {s['rows']:,} rows, {s['originals']:,} originals; {variants}"]
    if s["variants"]:
        sizes = ", ".join(f"{count:,} of {size}" for size, count in list(s["sizes"].items())[:6])
        lines.append(f"  family sizes: {sizes}{', ...' if len(s['sizes']) > 6 else ''}; largest {s['size_max']:,}")
        lines.append("  found by " + ", ".join(f"{k} {n:,}" for k, n in s["evidence"].items() if n))
    for kind, n in s.get("joined_by", {}).items():
        strongest = max((e for e in report.families.joins if e[3] == kind), key=lambda e: e[2] or 0.0)
        ids = report.families.row_ids
        score = "" if strongest[2] is None else f", {strongest[2]:.2f}"
        lines.append(f"  {kind}: {n:,} joins between families, first {ids[strongest[0]]} = {ids[strongest[1]]}{score}")
    return lines


def _contamination(report: AuditReport) -> list[str]:
    if report.gate is None or report.contamination is None:
        return ["Contamination", "  not checked: no eval was given (--eval FILE)"]
    lines = [f"Contamination  gate {report.gate.status.upper()}: {report.gate.message}"]
    for name, n in report.contamination.by_eval.items():
        items = f"{n['items_exact']:,} exact, {n['items_confirmed']:,} near-copies, {n['items_review']:,} to review"
        lines.append(f"  {name}: of {n['items']:,} items {items}")
    shown = sorted(
        report.contamination.hits, key=lambda h: (("exact", "confirmed", "review").index(h.status), -h.score)
    )
    for hit in shown[:8]:
        where = f"{hit.row_id} ({hit.row_part})"
        lines.append(
            f"  {hit.status:9} {hit.score:.2f}  {where} = {hit.eval}/{hit.item_id} ({hit.item_part}): {hit.span[:90]!r}"
        )
    if len(shown) > 8:
        lines.append(f"  and {len(shown) - 8:,} more")
    return lines


def _quality(report: AuditReport) -> list[str]:
    q = report.quality
    lines = [f"Quality  {len(q.flagged):,} of {q.n_rows:,} rows flagged"]
    for reason, n in q.counts.items():
        first = next(f for f in q.findings if f.check in (f"quality.{reason}", reason))
        if first.row_id is None:
            lines.append(f"  {'note':>9}  {first.message}")
            continue
        where = ", ".join(f"{source} {k:,}" for source, k in list(n["by_source"].items())[:3])
        more = ", ..." if len(n["by_source"]) > 3 else ""
        lines.append(f"  {n['rows']:9,}  {reason} ({where}{more}); {first.row_id}: {first.message[:90]}")
    return lines


def _split(report: AuditReport) -> list[str]:
    assert report.split is not None
    sizes = ", ".join(f"{zone} {n:,}" for zone, n in report.split["zones"].items())
    found = [f for f in report.findings if f.check.startswith("split.")]
    return [f"Split  {sizes}", *(f"  {f.severity:7} {f.message}" for f in found)] + (
        [] if found else ["  nothing shared"]
    )


def _tokens(report: AuditReport) -> list[str]:
    from veritune.data.parity import ALL

    s = report.rendering
    assert s is not None
    if not s.n_rows:
        return ["Rendering", f"  none of {len(report.rows):,} rows can be rendered"]
    lines = [
        f"Rendering  {s.n_rows:,} rows, {s.n_tokens:,} tokens, {s.n_target:,} ({s.n_target / s.n_tokens:.0%}) with loss"
    ]
    for source, n in s.tokens.items():
        if source == ALL or len(s.tokens) > 2:
            lines.append(
                f"  tokens {source}: mean {n.mean:.0f}, p50 {n.p50:.0f}, p90 {n.p90:.0f}, p95 {n.p95:.0f}, max {n.max}"
            )
    cut = s.truncation[ALL]
    too_long = f"{cut.over:,} of {cut.rows:,} rows too long"
    lines.append(f"  at max_length {cut.limit}: {too_long}, {cut.lose_answer:,} would lose answer tokens")
    share = s.system_tokens / s.n_tokens
    lines.append(f"  system prompts: {s.system_prompts:,} different, {s.system_tokens:,} tokens ({share:.0%})")
    lines.append(
        f"  packing fills {s.packing:.0%} of {s.bins:,} sequences; padded batches of {s.batch} are {s.padding:.0%} full"
    )
    lines += [f"  {f.severity} {f.message}" for f in report.findings if f.check.startswith("parity.")]
    reasons = Counter(f.check for f in s.problems)
    lines += [f"  {n:,} x {reason}" for reason, n in reasons.most_common()]
    return lines
