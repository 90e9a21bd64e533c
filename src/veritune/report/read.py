"""Everything a study folder holds, read for drawing. A record that is absent or damaged is None and is named.

Nothing is computed here and nothing raises on a bad record: a report of a half-finished or damaged study must still say
what is there and what is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.errors import VerituneError
from veritune.records import RunManifest, RunSummary, TrainingRecord, ZoneLoss, ZoneScore
from veritune.report import shapes
from veritune.report.shapes import fit
from veritune.store import Store, read_json, read_jsonl

Json = Mapping[str, Any]
T = TypeVar("T")
MOST_NAMED = 12


@dataclass(frozen=True)
class Run:
    """One run's records. `seed` is None for the baseline; `scores` are by eval, in the order of the file."""

    run_id: str
    condition: str
    seed: int | None
    manifest: RunManifest
    summary: RunSummary | None = None
    training: TrainingRecord | None = None
    metrics: Sequence[Json] = ()
    telemetry: Sequence[Json] = ()
    scores: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    decoding: Mapping[str, Json] = field(default_factory=dict)
    gap: Json | None = None

    @property
    def is_baseline(self) -> bool:
        return self.condition == BASELINE

    @property
    def losses(self) -> Mapping[str, ZoneLoss]:
        """Loss by zone; empty while the run is not done."""
        return self.summary.nll if self.summary is not None else {}

    def zone_scores(self, name: str) -> Mapping[str, ZoneScore]:
        """One eval's scores by zone; empty where there are none."""
        return self.summary.scores.get(name, {}) if self.summary is not None else {}

    @property
    def label(self) -> str:
        """Condition and seed as the report names a run."""
        return self.condition if self.seed is None else f"{self.condition} ·\u00a0seed\u00a0{self.seed}"

    def path(self, name: str) -> str:
        """A file of this run, relative to the study folder."""
        return f"runs/{self.run_id}/{name}"


@dataclass(frozen=True)
class Records:
    """A study folder for drawing. `problems` name what could not be read and what does not fit together."""

    study: Study
    verdict: Json | None
    contract: Json | None
    runs: tuple[Run, ...]
    strays: tuple[str, ...]
    data: Json | None
    rows: Mapping[str, Json]
    render: Json | None
    split: Json | None
    findings: Sequence[Json]
    live: Mapping[str, Json]
    selection: Json | None
    events: Sequence[Json]
    problems: tuple[str, ...]
    probes: Sequence[tuple[str, Json]] = ()

    @property
    def terms(self) -> Json:
        """The contract's last entry, empty when there is none."""
        entries = (self.contract or {}).get("entries") or [{}]
        found: Json = entries[-1]
        return found

    @property
    def facts(self) -> Json:
        """Facts that the contract froze, else those of the data manifest, else none."""
        frozen = (self.terms.get("terms") or {}).get("facts")
        found: Json = frozen or (self.data or {}).get("facts") or {}
        return found

    @property
    def verdicts(self) -> Sequence[Json]:
        found: Sequence[Json] = (self.verdict or {}).get("verdicts") or []
        return found

    def data_path(self, name: str) -> str:
        return f"data/{self.facts.get('data_version') or (self.data or {}).get('version')}/{name}"


class _Reader:
    """Reads files of one folder and keeps a list of what could not be read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.problems: list[str] = []

    def maybe(self, path: Path, read: Callable[[Path], T], otherwise: T) -> T:
        if not path.exists():
            return otherwise
        try:
            return read(path)
        except (VerituneError, OSError, ValueError) as exc:
            text = exc.message if isinstance(exc, VerituneError) else str(exc)
        except (KeyError, TypeError, AttributeError):
            text = f"{path} has an unexpected shape"
        # Messages name the full path; a report that travels should not.
        self.problems.append(text.replace(f"{self.store.root}/", ""))
        return otherwise

    def json(self, path: Path, shape: Any) -> Json | None:
        found: Json | None = fit(self.maybe(path, read_json, None), shape, self.store.relative(path), self.problems)
        return found

    def jsonl(self, path: Path, shape: Any, read: Callable[[Path], Any] = read_jsonl) -> Sequence[Json]:
        found: Sequence[Json] = fit(self.maybe(path, read, []), [shape], self.store.relative(path), self.problems)
        return found


def read_records(store: Store, study: Study) -> Records:
    """Read the whole study folder. Never raises for a missing or damaged record."""
    reader = _Reader(store)
    kept = reader.json(store.contract_file, shapes.CONTRACT)
    if kept is not None:
        reader.maybe(store.contract_file, lambda _: contract.read(store), None)
    verdict = reader.json(store.verdict_file, shapes.VERDICT)
    found = [_run(reader, path.parent) for path in sorted(store.runs.glob("*/manifest.json"))]
    planned = _planned(store, study, kept)
    runs = sorted((r for r in found if r and (not planned or r.run_id in planned)), key=_order(study))
    trials = ("select", "shape")  # their choice is in selection.json and shapes.json
    strays = tuple(
        r.run_id for r in found if r and planned and r.run_id not in planned and r.manifest.phase not in trials
    )
    folder = _data_folder(store, kept)
    records = Records(
        study=study,
        verdict=verdict,
        contract=kept,
        runs=tuple(runs),
        strays=strays,
        data=reader.json(folder / "manifest.json", shapes.DATA) if folder else None,
        rows=reader.maybe(folder / "rows.parquet", _rows, {}) if folder else {},
        render=reader.json(store.audit("render.json"), shapes.RENDER),
        split=reader.json(store.audit("split.json"), shapes.SPLIT),
        findings=reader.jsonl(store.audit("findings.jsonl"), shapes.FINDING),
        selection=reader.json(store.root / "selection.json", shapes.SELECTION),
        live={n: r for n in study.conditions if (r := reader.json(store.audit(f"live-{n}.json"), shapes.LIVE))},
        events=reader.jsonl(store.events_file, shapes.EVENT),
        problems=(),
        probes=_probes(reader),
    )
    return _with_problems(records, reader.problems, planned)


def _with_problems(records: Records, problems: Sequence[str], planned: Sequence[str]) -> Records:
    from dataclasses import replace

    named = list(problems[:MOST_NAMED])
    if len(problems) > MOST_NAMED:
        named.append(f"and {len(problems) - MOST_NAMED} more of the kind")
    frozen, decided = records.terms.get("hash"), (records.verdict or {}).get("contract")
    if frozen and decided and frozen != decided:
        named.append(
            f"verdict.json was decided under contract {decided[:12]}, the folder now holds contract {frozen[:12]}"
        )
    absent = [run_id for run_id in planned if run_id not in {r.run_id for r in records.runs}]
    if absent:
        named.append(f"runs that the contract plans and that are not on disk: {', '.join(absent)}")
    return replace(records, problems=tuple(named))


def _run(reader: _Reader, folder: Path) -> Run | None:
    manifest = reader.maybe(folder / "manifest.json", RunManifest.load, None)
    if manifest is None:
        return None
    # Scores of an earlier eval contract are kept as <eval>.<hash>.jsonl; an eval's name holds no full stop.
    scores = sorted(path for path in (folder / "scores").glob("*.jsonl") if "." not in path.stem)
    stamps = {path.stem: reader.json(path.with_suffix(".json"), shapes.STAMP) for path in scores}
    summary = reader.maybe(folder / "summary.json", RunSummary.load, None)
    training = reader.maybe(folder / "training.json", TrainingRecord.load, None)
    return Run(
        run_id=folder.name,
        condition=manifest.condition,
        seed=None if manifest.condition == BASELINE else manifest.seed,
        manifest=manifest,
        summary=summary,
        training=training or (summary.training if summary is not None else None),
        metrics=reader.jsonl(folder / "metrics.jsonl", shapes.METRIC),
        telemetry=reader.jsonl(folder / "telemetry.jsonl", shapes.TELEMETRY, _telemetry),
        scores={path.stem: reader.jsonl(path, shapes.SCORE) for path in scores},
        decoding={name: stamp.get("decoding") or {} for name, stamp in stamps.items() if stamp},
        gap=(reader.json(folder / "probes" / "three_zone.json", shapes.GAP) or {}).get("gap"),
    )


def _probes(reader: _Reader) -> list[tuple[str, Json]]:
    """Probe records that lie apart from the runs: by path, those of shadow runs left out."""
    folder = reader.store.root / "probes"
    paths = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    found = [(reader.store.relative(path), reader.json(path, shapes.PROBE)) for path in paths]
    return [(path, record) for path, record in found if record is not None]


def _telemetry(path: Path) -> list[Any]:
    """Only what is drawn of each step: a record by layer is long, and a run has many steps."""
    kept: list[Any] = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise ValueError(f"{path} line {number} is damaged: {exc}") from None
            kept.append(
                row
                if not isinstance(row, dict)
                else {k: row.get(k) for k in ("step", "status", "reason", "share", "grad_norm_at_step")}
            )
    return kept


def _planned(store: Store, study: Study, kept: Json | None) -> list[str]:
    """Ids of the runs that the contract plans to score; empty when that cannot be told."""
    from veritune.train.schedule import main_cells, plan_cells
    from veritune.train.select import chosen

    try:
        facts = kept["entries"][-1]["terms"]["facts"] if kept else {}
        cells = plan_cells(study, facts, chosen(store, study, facts)) if kept else []
    except (KeyError, IndexError, TypeError, VerituneError):
        return []
    return [cell.run_id for cell in main_cells(cells)]


def _order(study: Study) -> Callable[[Run], tuple[int, str, int, str]]:
    names = [BASELINE, *study.conditions]

    def key(run: Run) -> tuple[int, str, int, str]:
        place = names.index(run.condition) if run.condition in names else len(names)
        return place, run.condition, run.seed if isinstance(run.seed, int) else -1, run.run_id

    return key


def _data_folder(store: Store, kept: Json | None) -> Path | None:
    """The data version of the contract; without a contract, the only one there is."""
    try:
        version = str(kept["entries"][-1]["terms"]["facts"]["data_version"]) if kept else None
    except (KeyError, IndexError, TypeError):
        version = None
    if version:
        return store.data(version)
    there = sorted((store.root / "data").glob("*/manifest.json"))
    return there[0].parent if len(there) == 1 else None


def _rows(path: Path) -> dict[str, Json]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {row["id"]: row for row in pq.read_table(path).to_pylist()}
    except pa.ArrowException as exc:
        raise ValueError(f"{path} is damaged: {exc}") from None
