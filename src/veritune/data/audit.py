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

from markupsafe import Markup

from veritune.counting import grouped, many
from veritune.data.contamination import (
    ContaminationConfig,
    ContaminationResult,
    Hit,
    Level,
    check_contamination,
    operators_text,
)
from veritune.data.datasheet import write_datasheet
from veritune.data.embed import load_encoder
from veritune.data.families import THRESHOLD, Edge, FamilyResult, find_families, merge_families
from veritune.data.family_decisions import NAME, AppliedDecisions, obey, read_family_decisions
from veritune.data.family_notes import family_notes
from veritune.data.load import Loaded, TrainOn, load_rows, rows_from
from veritune.data.near import Executor
from veritune.data.parity import ALL, check_parity, render_stats
from veritune.data.quality import (
    WEAK_CHECKS,
    QualityConfig,
    QualityResult,
    check_rows,
)
from veritune.data.quality import (
    reasons as known_reasons,
)
from veritune.data.recipe import leave_out
from veritune.data.render import Renderer
from veritune.data.review import Version, lineage, make_pack, make_sample, write_pack, write_version
from veritune.data.split import judge_zones, stratum_of
from veritune.display import short
from veritune.errors import DataError, ExitCode, ModelError, first_line
from veritune.records import (
    Finding,
    GateResult,
    JsonLike,
    Row,
    SplitCounts,
    to_json,
)
from veritune.store import write_json, write_jsonl, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veritune.data.datasheet import DrawVersions
    from veritune.data.parity import RenderStats

WHOLE_FILES = ("unreadable", "empty_file")  # each of these files is named on the screen
_FILES_SHOWN = 20
_ITEMS_SHOWN = 40  # contaminated items that are named on the screen; the files name all
_TO_REVIEW_SHOWN = 8

EvalSource = Any  # a path, a table object, a list of rows or of texts

LIMITS = (
    "Comparing words finds copies and edits, not free paraphrases: rows that a model rewrote are found by a column "
    "that names the original, and in part by embeddings (--embed) and gradients (--gradient-families).",
    "Languages that share a script are not distinguished, and no check here judges whether an answer is true.",
)


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """How to read the data and the evals, and what to check. `split_field` names a column that holds a split to check.

    `max_length` is the number of tokens that rendering is measured against; it matters only with a tokenizer.
    `train_on` and `template_kwargs` are those of a study (`data.train_on`, `model.template_kwargs`).
    `embed` names an encoder that looks for paraphrases, see `veritune.data.embed`. `family_decisions` is a file of what
    people said about families, see `veritune.data.family_decisions`.

    >>> AuditConfig(family_field="original").max_length
    2048
    """

    columns: Mapping[str, str] | None = None
    family_field: str | None = None
    id_field: str | None = None
    train_on: TrainOn = "all"
    template_kwargs: Mapping[str, Any] | None = None
    eval_columns: Mapping[str, str] | None = None
    split_field: str | None = None
    near_duplicates: bool = True
    threshold: float = THRESHOLD
    max_length: int = 2048
    embed: str | None = None
    family_decisions: Path | None = None
    executor: Executor = "local"
    ray_address: str | None = None
    quality: QualityConfig = field(default_factory=QualityConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)


@dataclass(frozen=True, slots=True)
class EvalFacts:
    """An eval that the rows were compared with: how many items were read, and how many could not be read and so were
    not checked.

    `source` is its file, empty where the items were handed over in Python.
    """

    name: str
    items: int
    unread: int
    sha256: str
    source: str = ""


@dataclass(frozen=True, repr=False)
class AuditReport:
    """The result of an audit. `findings` holds everything, worst first; the other fields are counts over it.

    `gate` is None where no eval was given. `record()` is the JSON form; rows and the full results stay in memory.

    >>> from veritune.records import Message, Row
    >>> report = audit_data([Row("r1", (Message("user", "Name a colour."), Message("assistant", "Red.")))])
    >>> isinstance(report, AuditReport), report.gate, report.exit_code
    (True, None, 0)
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
    split: SplitCounts | None
    rendering: RenderStats | None
    parity: Mapping[str, Any] | None
    config: AuditConfig
    wall_s: float
    file: Path | None = None
    decided: AppliedDecisions | None = None

    def __repr__(self) -> str:
        facts = {"rows": len(self.rows), "findings": len(self.findings), "families": len(self.families.names)}
        return short(self, source=self.source, **facts, gate=self.gate.status if self.gate else None)

    def _repr_html_(self) -> str:
        return str(Markup("<pre>{}</pre>").format(render_text(self)))

    def to_dict(self) -> dict[str, JsonLike]:
        """The same as `record()`."""
        return self.record()

    @property
    def exit_code(self) -> int:
        """2 if the contamination gate did not pass, 1 if records could not be used, else 0."""
        if self.gate is not None and self.gate.status != "passed":
            return int(ExitCode.NOT_PASSED)
        return int(ExitCode.USER if any(f.severity == "error" for f in self.findings) else ExitCode.FINE)

    @property
    def versions(self) -> tuple[Version, ...]:
        """The data versions in the lineage of the data's folder."""
        if self.file is None:
            return ()
        return lineage(self.file if self.file.is_dir() else self.file.parent)

    def record(self) -> dict[str, JsonLike]:
        """The report as plain JSON values, findings included."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "n_read": self.n_read,
            "n_rows": len(self.rows),
            "n_rejected": self.n_read - len(self.rows),
            "rejects_by_reason": dict(sorted(Counter(f.check for f in self.rejects).items())),
            "families": to_json(self.families.summary),
            "family_decisions": to_json(self.decided) if self.decided else None,
            "contamination": to_json(self.contamination.summary) if self.contamination else None,
            "gate": to_json(self.gate) if self.gate else None,
            "evals": to_json(self.evals),
            "quality": {"n_rows": self.quality.n_rows, "reasons": to_json(self.quality.counts)},
            "split": to_json(self.split) if self.split else None,
            "rendering": to_json(self.rendering) if self.rendering else None,
            "parity": to_json(self.parity) if self.parity else None,
            "reading": _reading(self.config),
            "limits": list(LIMITS),
            "exit_code": self.exit_code,
            "wall_s": round(self.wall_s, 3),
            "findings": to_json(self.findings),
        }


def _reading(config: AuditConfig) -> dict[str, JsonLike]:
    """How the file was read, so that others find the same rows under the same ids."""
    names = ("columns", "eval_columns", "family_field", "id_field", "train_on")
    return {name: to_json(getattr(config, name)) for name in names}


# ---------------------------------------------------------------- the pass


def audit_data(
    data: Any,
    *,
    evals: Mapping[str, EvalSource] | Sequence[EvalSource] = (),
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    edges: Callable[[Sequence[Row]], Iterable[Edge]] | None = None,
    config: AuditConfig | None = None,
) -> AuditReport:
    """Audit a path, a table object or rows. `evals` are paths or tables, named by their file or by the mapping's keys.

    `tokenizer` is a folder, a hub id or a tokenizer object. `edges` is a pass that sees more than words (gradients): it
    is given the usable rows and returns pairs that join families. Unusable records become findings and the rest is
    audited. Raises DataError when a source does not exist, ModelError when the tokenizer cannot be used.

    >>> from veritune.records import Message, Row
    >>> turns = (Message("user", "How many seconds have three and a half hours?"), Message("assistant", "12600"))
    >>> row = Row("r1", turns)
    >>> report = audit_data([row], evals={"exam": [row]})
    >>> report.n_read, report.exit_code
    (1, 2)
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
    tokenizer: str | PreTrainedTokenizerBase | None,
    edges: Callable[[Sequence[Row]], Iterable[Edge]] | None,
    config: AuditConfig,
) -> AuditReport:
    begin = time.perf_counter()
    loaded = _load(data, "rows", config)
    items, facts, eval_findings = load_evals(evals, config)
    families, embed_findings = _find_families(loaded.rows, edges, config)
    families, decided = _obey(loaded.rows, families, config.family_decisions)
    family_findings = family_notes(loaded.rows, families)
    quality = check_rows(loaded.rows, config.quality)
    near = replace(config.contamination, executor=config.executor, ray_address=config.ray_address)
    contamination = check_contamination(loaded.rows, items, near) if facts else None
    gate = None
    if contamination is not None:
        gate = gate_of(contamination.gate(), facts, compared=bool(contamination.entries.texts))
    split_findings, split = _judge_split(loaded.rows, families, config)
    render_findings, rendering, parity = _rendering(loaded.rows, tokenizer, config)
    found = (
        *loaded.rejects,
        *loaded.notes,
        *eval_findings,
        *(contamination.findings() if contamination is not None else ()),
        *embed_findings,
        *(decided.findings() if decided is not None else ()),
        *family_findings,
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
        decided=decided,
    )


def _find_families(
    rows: Sequence[Row], edges: Callable[[Sequence[Row]], Iterable[Edge]] | None, config: AuditConfig
) -> tuple[FamilyResult, list[Finding]]:
    """Families by words, then by whatever sees more; a note says when thresholds were not measured."""
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


def _obey(
    rows: Sequence[Row], families: FamilyResult, path: Path | None
) -> tuple[FamilyResult, AppliedDecisions | None]:
    """The families as people decided them, and what became of each decision."""
    if path is None:
        return families, None
    return obey(rows, families, read_family_decisions(path), path)


def decisions_in(folder: Path | None) -> Path | None:
    """The decisions file in an audit's folder, as `veritune view` writes it; None if there is none."""
    path = folder / "review" / NAME if folder is not None else None
    return path if path is not None and path.exists() else None


def _load(data: Any, name: str, config: AuditConfig) -> Loaded:
    read = load_rows if isinstance(data, str | Path) else rows_from
    return read(
        data,
        columns=config.columns,
        family_field=config.family_field,
        id_field=config.id_field,
        train_on=config.train_on,
    )


def load_evals(
    evals: Mapping[str, EvalSource] | Sequence[EvalSource], config: AuditConfig
) -> tuple[dict[str, Sequence[Any]], tuple[EvalFacts, ...], list[Finding]]:
    """Items by eval name, counts per eval, and a finding for every eval with items that could not be read."""
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
        file = str(source) if isinstance(source, str | Path) else ""
        facts.append(EvalFacts(name, len(loaded.rows), unread, loaded.source_sha256, file))
        if unread:
            first = loaded.rejects[0]
            says = "nothing could be read, so no row was compared with it"
            if loaded.rows:
                says = f"{unread} of {loaded.n_read} items cannot be read, so no row was compared with these"
            where = f"{first.source}:{first.line}" if first.line else str(first.source)
            # The reader's messages name the option for rows; an eval has its own.
            why = first.message.replace("--columns", "--eval-columns")
            text = f"eval {name}: {says}; first {where}: {why}"
            evidence = {"n": unread, "n_read": loaded.n_read, "first": first.message}
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


def gate_of(gate: GateResult, facts: Sequence[EvalFacts], *, compared: bool) -> GateResult:
    """The contamination gate; it is `undecided` instead of passed if an eval was only partly read.

    `compared`: whether an item held a text that rows were compared with.
    """
    partly = [f for f in facts if f.unread or not f.items]
    if gate.status == "failed" or not partly:
        return gate
    what = ", ".join(f"{f.name} ({f.unread} unread, {f.items} read)" for f in partly)
    rest = f" {gate.message}" if compared else " Nothing was compared."
    return GateResult(gate.gate, "undecided", f"not all eval items could be read: {what}.{rest}", gate.numbers)


def _judge_split(
    rows: Sequence[Row], families: FamilyResult, config: AuditConfig
) -> tuple[list[Finding], SplitCounts | None]:
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
    rows: Sequence[Row], tokenizer: str | PreTrainedTokenizerBase | None, config: AuditConfig
) -> tuple[list[Finding], RenderStats | None, Mapping[str, JsonLike] | None]:
    if tokenizer is None:
        return [], None, None
    renderer = Renderer(load_tokenizer(tokenizer), config.max_length, template_kwargs=config.template_kwargs)
    stats = render_stats(rows, renderer)
    parity, facts = check_parity(rows, renderer)
    parity = [f for f in parity if not f.check.startswith("render.")]  # `stats.problems` holds these already
    cut = stats.truncation.get(ALL)
    if cut is not None and cut.over:
        text = (
            f"{cut.over} of {cut.rows} rows are longer than max_length {cut.limit}: cutting them would cost "
            f"{many(cut.lose_answer, 'rows')} some of their answer and {cut.lose_all} all of it"
        )
        parity.append(Finding("render.too_long", "warning", text, evidence=to_json(cut)))
    return [*stats.problems, *parity], stats, facts


def load_tokenizer(tokenizer: str | PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or hub id; a tokenizer object is returned as it is. Raises ModelError."""
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


def write_clean(
    report: AuditReport,
    path: str | Path,
    *,
    level: Level = "confirmed",
    reasons: Sequence[str] = (),
    keep_sources: Sequence[str] = (),
) -> Version:
    """Write the usable rows as a data version with its lineage, without those whose contamination is of status `level`
    or stronger.

    `reasons`: also leave out rows that a check flags for them; `keep_sources`: keep only rows of these sources. Raises
    DataError when the audit was not made from a file, when the target already exists, or for a reason or source that
    no row has.

    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> lines = ['{"prompt": "Add %d and 7.", "completion": "%d"}' % (i, i + 7) for i in range(4)]
    >>> _ = (folder / "rows.jsonl").write_text("\\n".join(lines))
    >>> report = audit_data(folder / "rows.jsonl", evals={"exam": ["Add 3 and 7."]})
    >>> write_clean(report, folder / "clean.jsonl").rows
    3
    """
    if report.file is None or report.file.is_dir():
        raise DataError(
            "a clean version can be written only for the audit of a single file.", fix="Audit a single file."
        )
    rejects: Counter[str] = Counter(f.check for f in report.rejects)
    kept = {row.id for row in report.rows}
    if report.contamination is not None:
        dropped = report.contamination.drop(level)
        kept = set(dropped.kept_ids)
        rejects.update(dropped.by_reason)
    rows = [row for row in report.rows if row.id in kept]
    if keep_sources:
        leave_out(report.rows, keep_sources=keep_sources)  # refuses a source that no row has, dropped or not
        before = len(rows)
        rows = [row for row in rows if stratum_of(row, "source") in set(keep_sources)]
        rejects["other source"] += before - len(rows)
    rows, why = _without_reasons(report, rows, reasons)
    rejects.update(why)
    if not rows:
        raise DataError(
            "no row is left to write: every row would be left out.",
            fix="Leave out fewer rows: a stricter level, fewer reasons, more sources.",
        )
    evals = ", ".join(f.name for f in report.evals) or "no eval"
    how = f"audit against {evals}, level {level}"
    how += f"; without {', '.join(reasons)}" if reasons else ""
    how += f"; only {', '.join(keep_sources)}" if keep_sources else ""
    return write_version(rows, path, parents=[report.file], rejects=+rejects, how=how)


def _without_reasons(report: AuditReport, rows: list[Row], reasons: Sequence[str]) -> tuple[list[Row], Counter[str]]:
    """Rows that the audit flagged for none of these reasons, and how many went for which."""
    found = {f.check.removeprefix("quality.") for f in report.quality.findings}
    known = {*known_reasons(), *found}
    wrong = [reason for reason in reasons if reason not in known]
    if wrong:
        raise DataError(f"unknown row check reason {wrong[0]!r}.", fix=f"Reasons: {', '.join(sorted(known))}.")
    flagged: dict[str, str] = {}
    for finding in report.quality.findings:
        reason = finding.check.removeprefix("quality.")
        if finding.row_id is not None and reason in reasons:
            flagged.setdefault(finding.row_id, f"quality.{reason}")
    why = Counter(flagged[row.id] for row in rows if row.id in flagged)
    return [row for row in rows if row.id not in flagged], why


def write_report(
    report: AuditReport,
    folder: str | Path,
    *,
    seed: int = 0,
    pack_size: int = 20,
    sample: int = 50,
    draw: DrawVersions | None = None,
) -> tuple[Path, ...]:
    """Everything as files in `folder`: report.json, findings, families, hits, the review packs and the datasheet.

    `pack_size`: rows of every reason in the review pack. `sample`: rows that no check flags, drawn under `seed` into a
    pack of their own, so that a reader can say how many faults the checks miss. `draw` draws the lineage beside the
    datasheet.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    record = report.record()
    del record["findings"]
    write_json(out / "report.json", record)
    write_jsonl(out / "findings.jsonl", report.findings)
    write_jsonl(out / "families.jsonl", report.families.memberships)
    if report.families.joins:
        write_jsonl(out / "joins.jsonl", _joins(report.families))
    if report.contamination is not None:
        write_jsonl(out / "contamination.jsonl", report.contamination.hits)
    (out / "review").mkdir(exist_ok=True)
    pack = make_pack(report.rows, report.findings, per_reason=pack_size, seed=seed)
    write_pack(pack, out / "review" / "pack.jsonl")
    unflagged = make_sample(report.rows, report.findings, n=sample, seed=seed)
    write_pack(unflagged, out / "review" / "unflagged.jsonl")
    sheet = write_datasheet(report, out, draw)
    write_text(out / "report.txt", render_text(report))
    names = [
        "report.json",
        "findings.jsonl",
        "families.jsonl",
        "review/pack.jsonl",
        "review/unflagged.jsonl",
        "report.txt",
    ]
    names += ["contamination.jsonl"] if report.contamination is not None else []
    names += ["joins.jsonl"] if report.families.joins else []
    return (*(out / name for name in names), *sheet)


def _joins(families: FamilyResult) -> list[dict[str, JsonLike]]:
    """The pairs of rows by which embeddings or gradients joined two families, strongest first."""
    ids = families.row_ids
    ordered = sorted(families.joins, key=lambda e: (-(e[2] or 0.0), e[0], e[1]))
    return [
        {"row": ids[i], "other": ids[j], "evidence": kind, "similarity": None if s is None else round(s, 4)}
        for i, j, s, kind in ordered
    ]


def render_text(report: AuditReport) -> str:
    """The report as text for the screen: what was read, families, contamination, quality, rendering, and what the audit
    cannot see.
    """
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
        f"  {grouped(report.n_read, 'records')} read, {len(report.rows):,} usable, {grouped(unusable, 'problems')}",
    ]
    noted = [f for f in report.findings if f.check.startswith("load.") and f.severity != "error"]
    lines += [f"  {'' if f.severity == 'note' else f.severity + ' '}{f.message}" for f in noted]
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
        lines += _held_together(report.families)
    lines += [f"  {text}" for text in report.decided.lines()] if report.decided is not None else []
    for kind, n in s.get("joined_by", {}).items():
        strongest = max((e for e in report.families.joins if e[3] == kind), key=lambda e: e[2] or 0.0)
        ids = report.families.row_ids
        score = "" if strongest[2] is None else f", {strongest[2]:.2f}"
        lines.append(f"  {kind}: {n:,} joins between families, first {ids[strongest[0]]} = {ids[strongest[1]]}{score}")
    return [*lines, *(f"  {f.severity}  {f.message}" for f in report.findings if f.check.startswith("families."))]


def _held_together(families: FamilyResult) -> list[str]:
    """What joined rows into families, so that equal text is not named where similarity did it."""
    names = {"equality": "equal text" if not families.config.column else "a column or equal text"}
    held = [f"{names.get(what, what)} {n['rows']:,} rows in {n['families']:,} families"
            for what, n in families.held_by.items() if n["rows"]]  # fmt: skip
    lines = ["  held together by " + "; ".join(held)] if held else []
    if families.held_by["similarity"]["families"] and families.equal_N is not None:
        groups = families.counts["equal_groups"]
        lines.append(f"  {groups:,} groups by column and equal text, {len(families.names):,} families with similarity")
    return lines


def _contamination(report: AuditReport) -> list[str]:
    if report.gate is None or report.contamination is None:
        return ["Contamination", "  not checked: no eval was given (--eval FILE)"]
    lines = [f"Contamination  gate {report.gate.status.upper()}: {report.gate.message}"]
    lines += [f"  ERROR  {f.message}" for f in report.findings if f.check == "audit.eval_unread"]
    for name, n in report.contamination.by_eval.items():
        items = f"{n['items_exact']:,} exact, {n['items_confirmed']:,} near-copies, {n['items_review']:,} to review"
        canned = f"; {n['items_canned']:,} share a canned answer" if n["items_canned"] else ""
        lines.append(f"  {name}: of {n['items']:,} items {items}{canned}")
    for shown, most in (("exact confirmed", _ITEMS_SHOWN), ("review", _TO_REVIEW_SHOWN)):
        items_found = [hit for hit in report.contamination.items if hit.status in shown]
        lines += [_item_line(hit) for hit in items_found[:most]]
        if len(items_found) > most:
            what = "items to review" if shown == "review" else "items"
            lines.append(f"  and {len(items_found) - most:,} more {what}: --out DIR names every one")
    return lines


def _item_line(hit: Hit) -> str:
    """A contaminated item with its best row."""
    status = "canned" if hit.kind == "canned" else hit.status
    where = f"{hit.row_id} ({hit.row_part}) = {hit.eval}/{hit.item_id} ({hit.item_part})"
    return f"  {status:9} {hit.score:.2f}  {where}{operators_text(hit)}: {hit.span[:90]!r}"


def _quality(report: AuditReport) -> list[str]:
    q = report.quality
    noted = {f.row_id for f in q.findings if f.row_id is not None} - q.flagged
    notes = f", {len(noted):,} more carry only notes" if noted else ""
    lines = [f"Quality  {len(q.flagged):,} of {q.n_rows:,} rows flagged{notes}"]
    for reason, n in q.counts.items():
        first = next(f for f in q.findings if f.check in (f"quality.{reason}", reason))
        if first.row_id is None:
            lines.append(f"  {'note':>9}  {first.message}")
            continue
        where = ", ".join(f"{source} {k:,}" for source, k in list(n["by_source"].items())[:3])
        more = ", ..." if len(n["by_source"]) > 3 else ""
        mark = " (note)" if n["severity"] == "note" else ""
        lines.append(f"  {n['rows']:9,}  {reason}{mark} ({where}{more}); {first.row_id}: {first.message[:90]}")
    weak = [WEAK_CHECKS[reason] for reason in q.counts if reason in WEAK_CHECKS]
    return lines + [f"             {text}" for text in weak]


def _split(report: AuditReport) -> list[str]:
    assert report.split is not None
    sizes = ", ".join(f"{zone} {n:,}" for zone, n in report.split.zones.items())
    found = [f for f in report.findings if f.check.startswith("split.")]
    return [f"Split  {sizes}", *(f"  {f.severity:7} {f.message}" for f in found)] + (
        [] if found else ["  nothing shared"]
    )


def _tokens(report: AuditReport) -> list[str]:
    s = report.rendering
    assert s is not None
    if not s.n_rows:
        return ["Rendering", f"  none of {len(report.rows):,} rows can be rendered", *_unrendered(s.problems)]
    lines = [
        f"Rendering  {grouped(s.n_rows, 'rows')}, {grouped(s.n_tokens, 'tokens')}, {s.n_target:,} "
        f"({s.n_target / s.n_tokens:.0%}) with loss"
    ]
    for source, n in s.tokens.items():
        if source == ALL or len(s.tokens) > 2:
            lines.append(
                f"  tokens {source}: mean {n.mean:.0f}, p50 {n.p50:.0f}, p90 {n.p90:.0f}, p95 {n.p95:.0f}, max {n.max}"
            )
    cut = s.truncation[ALL]
    too_long = f"{cut.over:,} of {cut.rows:,} rows too long"
    lines.append(f"  at max_length {cut.limit}: {too_long}, {cut.lose_answer:,} would lose answer tokens")
    by_source = {source: n for source, n in s.truncation.items() if source != ALL and n.over}
    if len(s.truncation) > 2:
        lines += [
            f"    {source}: {n.over:,} of {n.rows:,} too long, {n.lose_answer:,} lose answer tokens, {n.lose_all:,} all"
            for source, n in by_source.items()
        ]
    share = s.system_tokens / s.n_tokens
    lines.append(f"  system prompts: {s.system_prompts:,} different, {s.system_tokens:,} tokens ({share:.0%})")
    lines.append(
        f"  packing fills {s.packing:.0%} of {s.bins:,} sequences; padded batches of {s.batch} are {s.padding:.0%} full"
    )
    lines += [f"  {f.severity} {f.message}" for f in report.findings if f.check.startswith("parity.")]
    return lines + _unrendered(s.problems)


def _unrendered(problems: Sequence[Finding]) -> list[str]:
    """Why rows cannot be rendered: each reason with its count, its first row, what was found and the remedy."""
    lines = []
    for check, n in Counter(f.check for f in problems).most_common():
        first = next(f for f in problems if f.check == check)
        lines.append(f"  {n:,} x {check.removeprefix('render.')}: first {first.row_id}: {first.evidence['what']}")
        lines.append(
            f"    expected {first.evidence['expected']}, found {first.evidence['found']}. {first.evidence['fix']}"
        )
    return lines
