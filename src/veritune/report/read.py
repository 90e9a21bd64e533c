"""Everything a study folder holds, read for drawing. A record that is absent or damaged is None and is named.

Nothing is computed here and nothing raises on a bad record: a report of a half-finished or damaged study must still say
what is there and what is not.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from veritune import arrow, contract
from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.errors import VerituneError
from veritune.files import benchmark_name
from veritune.ledger import Entry
from veritune.records import (
    Contract,
    DataFacts,
    DataManifest,
    Evidence,
    Finding,
    Json,
    LiveProbe,
    MetricRow,
    Record,
    RenderAudit,
    RunManifest,
    RunPlan,
    RunSummary,
    Score,
    ScoreStamp,
    Selection,
    ShapeTimings,
    SplitAudit,
    StudyVerdicts,
    ThreeZoneGap,
    TrainingRecord,
    Verdict,
    ZoneGapRecord,
    ZoneLoss,
    ZoneScore,
)
from veritune.records.base import parse
from veritune.seal import edited_records
from veritune.store import Store, read_json, read_jsonl

T = TypeVar("T")
R = TypeVar("R", bound=Record)
MOST_NAMED = 12
MOST_DRAWN = 120
"""Runs that the page draws; of more, as many of each arm, and all of them stand in figures/runs.csv. A run takes 6 kB
of the page, its figures included."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The fields of a score that figures and lists use; None for `value`, `zone`, `family` as in `records.Score`."""

    item_id: str
    value: float | None
    zone: str | None
    family: str | None


@dataclass(frozen=True)
class Items:
    """Ids, zones and families of the items of a score file, in its order; shared by the runs of one eval."""

    ids: tuple[str, ...] = ()
    zones: tuple[str | None, ...] = ()
    families: tuple[str | None, ...] = ()

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The position in the file of each item's first score."""
        found: dict[str, int] = {}
        for number, item_id in enumerate(self.ids):
            found.setdefault(item_id, number)
        return found


@dataclass(frozen=True)
class ScoreFile:
    """One run's scores on one eval: values in memory (16 bytes per score), texts read from the file when they are
    drawn.

    `values` holds NaN where a score has none; `offsets` says at which byte of the file each line begins.
    """

    path: Path
    items: Items = Items()
    values: array[float] = field(default_factory=lambda: array("d"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))

    def __iter__(self) -> Iterator[ScoreRow]:
        """Each score, in the order of the file; none where the file is damaged, which the reader has named."""
        for number, value in enumerate(self.values):
            named = self.items.ids[number], self.items.zones[number], self.items.families[number]
            yield ScoreRow(named[0], None if math.isnan(value) else value, *named[1:])

    def __len__(self) -> int:
        return len(self.values)

    def read(self, item_ids: Iterable[str]) -> dict[str, Score]:
        """The first score of each of these items, with its text."""
        found: dict[str, Score] = {}
        with self.path.open("rb") as stream:
            for item_id in item_ids:
                place = self.items.places.get(item_id)
                if place is not None:
                    stream.seek(self.offsets[place])
                    line = stream.readline().rstrip(b"\n")
                    found[item_id] = parse(Score, line, f"{self.path} line {place + 1}")
        return found


@dataclass(frozen=True)
class RowFile:
    """The rows of a data version, read from the file by id when they are drawn."""

    path: Path | None

    def pick(self, ids: Collection[str]) -> dict[str, Json]:
        """The rows with these ids; none if the file is missing or damaged, which the reader has reported."""
        if self.path is None or not ids:
            return {}
        return {row["id"]: row for row in arrow.parquet_pick(self.path, "id", ids)}


@dataclass(frozen=True)
class ShareStep:
    """How the squared gradient norm of one optimizer step divides among module types."""

    step: int
    by_type: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One run's records. `seed` is None for the baseline; `scores` are by eval, read when they are drawn."""

    run_id: str
    condition: str
    seed: int | None
    manifest: RunManifest
    summary: RunSummary | None = None
    training: TrainingRecord | None = None
    metrics: Sequence[MetricRow] = ()
    shares: Sequence[ShareStep] = ()
    scores: Mapping[str, ScoreFile] = field(default_factory=dict)
    stamps: Mapping[str, ScoreStamp] = field(default_factory=dict)
    gap: ThreeZoneGap | None = None

    @property
    def is_baseline(self) -> bool:
        return self.condition == BASELINE

    @property
    def losses(self) -> Mapping[str, ZoneLoss]:
        """Loss by zone; empty while the run is not done."""
        return self.summary.nll if self.summary is not None else {}

    def zone_scores(self, name: str) -> Mapping[str, ZoneScore]:
        """One eval's scores by zone; empty if there are none."""
        return self.summary.scores.get(name, {}) if self.summary is not None else {}

    @property
    def label(self) -> str:
        """Condition and seed, as the report labels a run."""
        return self.condition if self.seed is None else f"{self.condition} ·\u00a0seed\u00a0{self.seed}"

    def path(self, name: str) -> str:
        """A file of this run, relative to the study folder."""
        return f"runs/{self.run_id}/{name}"


@dataclass(frozen=True)
class Records:
    """A study folder's records for drawing. `problems` name what could not be read and what does not fit together."""

    study: Study
    verdict: StudyVerdicts | None
    contract: Contract | None
    runs: tuple[Run, ...]
    every_run: tuple[Run, ...]
    strays: tuple[str, ...]
    data: DataManifest | None
    rows: RowFile
    render: RenderAudit | None
    split: SplitAudit | None
    findings: Sequence[Finding]
    live: Mapping[str, LiveProbe]
    selection: Selection | None
    events: Sequence[Entry]
    problems: tuple[str, ...]
    probes: Sequence[tuple[str, Json]] = ()
    benchmarks: Mapping[str, RowFile] = field(default_factory=dict)
    plan: RunPlan | None = None
    shapes: ShapeTimings | None = None
    serving: Evidence | None = None

    @property
    def contract_hash(self) -> str | None:
        """Hash of the contract's last entry, None when nothing is frozen."""
        return self.contract.last.hash if self.contract is not None else None

    @property
    def facts(self) -> DataFacts | None:
        """The facts that the contract froze, else those of the data manifest, else none."""
        if self.contract is not None:
            return self.contract.facts
        return self.data.facts if self.data is not None else None

    @property
    def verdicts(self) -> Sequence[Verdict]:
        return self.verdict.verdicts if self.verdict is not None else ()

    def items_path(self, name: str) -> str:
        """The file with the items of an eval: the data's rows, or a benchmark's own file."""
        frozen = ((self.facts.benchmarks if self.facts is not None else None) or {}).get(name)
        return self.data_path(benchmark_name(name, frozen.items_sha256) if frozen else "rows.parquet")

    def data_path(self, name: str) -> str:
        version = self.facts.data_version if self.facts is not None else None
        return f"data/{version}/{name}"


class _Reader:
    """Reads files of one folder and keeps a list of what could not be read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.problems: list[str] = []
        self.items: dict[str, Items] = {}

    def scores(self, path: Path) -> ScoreFile:
        """A score file with each line checked once. Raises FormatError for the first line that is not a score."""
        ids, zones, families = [], [], []
        values, offsets, at = array("d"), array("Q"), 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                score = parse(Score, line.rstrip(b"\n"), f"{path} line {number}")
                ids.append(sys.intern(score.item_id))
                zones.append(sys.intern(score.zone) if score.zone is not None else None)
                families.append(sys.intern(score.family) if score.family is not None else None)
                values.append(math.nan if score.value is None else score.value)
                offsets.append(at)
                at += len(line)
        items = Items(tuple(ids), tuple(zones), tuple(families))
        if self.items.get(path.stem) != items:
            self.items[path.stem] = items
        return ScoreFile(path, self.items[path.stem], values, offsets)

    def maybe(self, path: Path, read: Callable[[Path], T], otherwise: T) -> T:
        if not path.exists():
            return otherwise
        try:
            return read(path)
        except (VerituneError, OSError, ValueError) as exc:
            text = exc.message if isinstance(exc, VerituneError) else str(exc)
        # Messages name the full path; a report that travels should not.
        self.problems.append(text.replace(f"{self.store.root}/", ""))
        return otherwise

    def record(self, kind: type[R], path: Path) -> R | None:
        """The file as a record of its class; None if it is absent or damaged."""
        return self.maybe(path, kind.load, None)


def read_records(store: Store, study: Study) -> Records:
    """Read the whole study folder. Never raises for a missing or damaged record."""
    reader = _Reader(store)
    frozen = reader.maybe(store.contract_file, lambda _: contract.read(store), None)
    verdict = reader.record(StudyVerdicts, store.verdict_file)
    there = [run for path in sorted(store.runs.glob("*/manifest.json")) if (run := _listed(reader, path))]
    counted = frozenset(verdict.runs) if verdict is not None else frozenset(r.run_id for r in there if _is_scored(r))
    runs = sorted((r for r in there if r.run_id in counted), key=_order(study))
    folder = _data_folder(store, frozen)
    records = Records(
        study=study,
        verdict=verdict,
        contract=frozen,
        runs=tuple(_run(reader, run) for run in _drawn(runs)),
        every_run=tuple(runs),
        strays=tuple(r.run_id for r in there if r.run_id not in counted and _is_scored(r)),
        data=reader.record(DataManifest, folder / "manifest.json") if folder else None,
        rows=RowFile(reader.maybe(folder / "rows.parquet", _rows, None) if folder else None),
        render=reader.record(RenderAudit, store.audit("render.json")),
        split=reader.record(SplitAudit, store.audit("split.json")),
        findings=reader.maybe(store.audit("findings.jsonl"), Finding.load_all, []),
        selection=reader.record(Selection, store.root / "selection.json"),
        live={n: r for n in study.conditions if (r := reader.record(LiveProbe, store.audit(f"live-{n}.json")))},
        events=reader.maybe(store.events_file, _events, []),
        problems=(),
        probes=_probes(reader),
        plan=reader.record(RunPlan, store.root / "plan.json"),
        shapes=reader.record(ShapeTimings, store.root / "shapes.json"),
        serving=reader.record(Evidence, store.release("serving.json")),
    )
    benchmarks = (records.facts.benchmarks if records.facts is not None else None) or {}
    asked = {name: store.root / records.items_path(name) for name in benchmarks}
    records = replace(records, benchmarks={n: RowFile(reader.maybe(p, _rows, None)) for n, p in asked.items()})
    return _with_problems(records, [*edited_records(store), *reader.problems], counted)


def _is_scored(run: Run) -> bool:
    """Whether a run is one that is compared; what the others chose is in `selection.json` and `shapes.json`."""
    return run.manifest.phase in (BASELINE, "main")


def _with_problems(records: Records, problems: Sequence[str], counted: Collection[str]) -> Records:
    named = list(problems[:MOST_NAMED])
    if len(problems) > MOST_NAMED:
        named.append(f"and {len(problems) - MOST_NAMED} more of this kind")
    frozen, decided = records.contract_hash, records.verdict.contract if records.verdict is not None else None
    if frozen and decided and frozen != decided:
        named.append(
            f"verdict.json was decided under contract {decided[:12]}, the folder now holds contract {frozen[:12]}"
        )
    on_disk = {r.run_id for r in records.every_run}
    absent = sorted(run_id for run_id in counted if run_id not in on_disk)
    if absent:
        more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
        listed = ", ".join(absent[:MOST_NAMED])
        named.append(f"runs that verdict.json was decided on and that are not on disk: {listed}{more}")
    return replace(records, problems=tuple(named))


def _listed(reader: _Reader, path: Path) -> Run | None:
    """A run's manifest, summary and stamps: what a table of many runs shows, and what its runs are compared by."""
    manifest = reader.record(RunManifest, path)
    if manifest is None:
        return None
    seed = None if manifest.condition == BASELINE else manifest.seed
    summary = reader.record(RunSummary, path.parent / "summary.json")
    named = [file for file in sorted((path.parent / "scores").glob("*.json")) if "." not in file.stem]
    stamps = {file.stem: stamp for file in named if (stamp := reader.record(ScoreStamp, file))}
    return Run(path.parent.name, manifest.condition, seed, manifest, summary, stamps=stamps)


def _drawn(runs: Sequence[Run]) -> list[Run]:
    """The runs that the page draws: all where they are few, else as many of each arm, in the order of their seeds."""
    if len(runs) <= MOST_DRAWN:
        return list(runs)
    each = max(MOST_DRAWN // len({run.condition for run in runs}), 1)
    seen: Counter[str] = Counter()
    kept = []
    for run in runs:
        seen[run.condition] += 1
        if seen[run.condition] <= each:
            kept.append(run)
    return kept


def _run(reader: _Reader, listed: Run) -> Run:
    """The run with everything that is drawn of it."""
    folder, summary = reader.store.run(listed.run_id), listed.summary
    # Scores of an earlier eval contract are kept as <eval>.<hash>.jsonl; an eval's name holds no full stop.
    scores = sorted(path for path in (folder / "scores").glob("*.jsonl") if "." not in path.stem)
    training = reader.record(TrainingRecord, folder / "training.json")
    gap = reader.record(ZoneGapRecord, folder / "probes" / "three_zone.json")
    return replace(
        listed,
        training=training or (summary.training if summary is not None else None),
        metrics=reader.maybe(folder / "metrics.jsonl", MetricRow.load_all, []),
        shares=reader.maybe(folder / "telemetry.jsonl", _shares, []),
        scores={path.stem: reader.maybe(path, reader.scores, ScoreFile(path)) for path in scores},
        gap=gap.gap if gap is not None else None,
    )


def _probes(reader: _Reader) -> list[tuple[str, Json]]:
    """Probe records that lie apart from the runs: by path, those of shadow runs left out."""
    folder = reader.store.root / "probes"
    paths = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    records = [(reader.store.relative(path), reader.maybe(path, read_json, None)) for path in paths]
    return [(path, record) for path, record in records if record is not None]


def _shares(path: Path) -> list[ShareStep]:
    """Recorded shares by module type; a step whose gradients could not be seen is left out, not drawn as 0.

    Only this is kept of a step: its record by layer is long, and a run has many steps.
    """
    steps = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            if row["status"] == "ok":
                steps.append(ShareStep(int(row["step"]), {k: float(v) for k, v in row["share"]["type"].items()}))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ValueError(f"{path} line {number} is not a step of a run: {type(exc).__name__} {exc}") from exc
    return steps


def _order(study: Study) -> Callable[[Run], tuple[int, str, int, str]]:
    names = [BASELINE, *study.conditions]

    def key(run: Run) -> tuple[int, str, int, str]:
        place = names.index(run.condition) if run.condition in names else len(names)
        return place, run.condition, run.seed if isinstance(run.seed, int) else -1, run.run_id

    return key


def _data_folder(store: Store, frozen: Contract | None) -> Path | None:
    """The data version of the contract; without a contract, the only one there is."""
    if frozen is not None:
        return store.data(frozen.facts.data_version)
    there = sorted((store.root / "data").glob("*/manifest.json"))
    return there[0].parent if len(there) == 1 else None


def _events(path: Path) -> list[Entry]:
    """The timeline as it stands; its chain is for `verify`. Raises ValueError for a line that is no event."""
    events = read_jsonl(path)
    for number, event in enumerate(events, start=1):
        if not (isinstance(event, dict) and isinstance(event.get("time"), str) and isinstance(event.get("event"), str)):
            raise ValueError(f"{path} line {number} is not a valid event record")
    return events


def _rows(path: Path) -> Path:
    """The path, once every row of the file was found to have an id. Raises ValueError where the file is damaged."""
    try:
        for _ in arrow.parquet_column(path, "id"):
            pass
    except (KeyError, OSError, ValueError) as exc:
        raise ValueError(f"{path} is damaged: {exc}") from exc
    return path


def summary_paths(records: Records) -> tuple[str, ...]:
    """The summaries of the runs that have one, as sources of a figure."""
    return tuple(run.path("summary.json") for run in records.runs if run.summary)
