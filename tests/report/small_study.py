"""A finished small study as its stages would leave it: real record types, invented numbers, no model.

The numbers are odd on purpose: a sum or mean that a page computed from them would be no number of any record.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.records import (
    BaseFacts,
    CheckpointCandidate,
    DataManifest,
    DecodingNotes,
    Estimate,
    Facts,
    Finding,
    LiveMemory,
    LiveProbe,
    MachineFacts,
    MemoryPeak,
    Message,
    MetricRow,
    NamedModel,
    RenderAudit,
    RenderedExample,
    Row,
    RowLosses,
    RuleCount,
    RunManifest,
    RunSummary,
    Score,
    ScoreStamp,
    SplitAudit,
    SplitCounts,
    StopTokens,
    StudyVerdicts,
    TokenLengths,
    Trainable,
    TrainedRows,
    TrainingRecord,
    Verdict,
    ZoneLoss,
    ZonePair,
    ZoneScore,
    ZoneSize,
    dumps,
)
from veritune.store import Store, now, sha256_file, write_jsonl, write_parquet
from veritune.train.schedule import Cell, plan_cells

STUDY = """
name: small
question: Did it learn{question}?
model: {{path: builtin:smollm2-135m-instruct}}
data: {{path: rows.jsonl, family_field: original}}
conditions:
  narrow: {{method: lora, target_modules: attention, r: 4}}
  wide: {{method: lora, target_modules: all-linear, r: 4}}
seeds: [3, 11]
evals:
  style:
    max_new_tokens: 37
    rules:
      - {{name: opens, pattern: 'Subject'}}
      - {{name: asks, pattern: '[?]', count: 1}}
claims:
  - {{name: learns, kind: improves, condition: wide}}
  - {{name: carries, kind: generalises, condition: wide, share: 0.6}}
  - {{name: same, kind: equivalent, condition: narrow, against: wide, margin: 0.071}}
  - {{name: harmless, kind: no_regression, condition: narrow, margin: 0.13}}
"""
ZONE_OF = {"a-0": "seen", "a-1": "seen", "a-2": "sibling", "b-0": "stranger", "b-1": "stranger", "c-0": "stranger"}


def build(folder: Path, *, evil: str = "") -> tuple[Store, Study]:
    """Write the whole study under `folder`. `evil` is put wherever a user, a data row or a model may put text."""
    folder.mkdir(parents=True, exist_ok=True)
    quoted = evil.replace("\\", "\\\\").replace('"', '\\"')
    text = STUDY.format(question="").replace("Did it learn?", f'"Did it learn?{quoted}"')
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    store = Store(folder)
    study = load_study(folder / "study.yaml")
    facts = _facts()
    _data(store, facts, evil)
    contract.freeze(store, study, facts)
    for cell in plan_cells(study, facts):
        _run(store, study, cell, evil)
    _audits(store, study, evil)
    _verdict(store, study, evil)
    store.log("ran", cells=5, wall_s=417.9, note=evil)
    return store, study


def _facts() -> Facts:
    return Facts(
        data_version="feed5eedf00d",
        data_sha256="a1" * 32,
        template_sha256="b2" * 32,
        tokenizer_sha256="c3" * 32,
        rendered_sha256="d4" * 32,
        zones={
            "seen": ZoneSize(2, 1),
            "sibling": ZoneSize(1, 1),
            "stranger": ZoneSize(3, 2),
            "validation": ZoneSize(0, 0),
        },
        families={
            "rows": 6,
            "originals": 3,
            "variants": 3,
            "singletons": 1,
            "size_max": 3,
            "evidence": {"column": 6},
            "sizes": {"3": 1, "2": 1, "1": 1},
        },
        tokens={"seen": 211, "sibling": 107, "stranger": 331, "validation": 0},
        target_tokens={"seen": 97, "sibling": 43, "stranger": 151, "validation": 0},
        contamination=None,
        template_kwargs=None,
        data_sets_sha256=None,
        model=BaseFacts("SmallLM", "bfloat16", {"model.safetensors": "e5" * 32}),
        packages={"torch": "9.8.7", "veritune": "0.1.0"},
        code={"package": "f6" * 32, "evaluate": "07" * 32, "decide": "18" * 32},
    )


def _data(store: Store, facts: Facts, evil: str) -> None:
    folder = store.data(facts.data_version)
    messages = (Message("user", f"Write about boats.{evil}"), Message("assistant", f"Subject: Boats{evil}"))
    rows = [Row(row_id, messages, source="rows.jsonl", line=i) for i, row_id in enumerate(ZONE_OF, start=1)]
    turns = [[{"role": m.role, "content": m.content} for m in row.messages] for row in rows]
    ids = [row.id for row in rows]
    columns = {"id": ids, "source": [r.source for r in rows], "line": [r.line for r in rows]}
    write_parquet(folder / "rows.parquet", {**columns, "messages": turns, "meta": ["{}"] * len(rows)})
    write_parquet(folder / "families.parquet", {"id": ids, "family": [i[0] for i in ids]})
    write_parquet(folder / "split.parquet", {"id": ids, "zone": list(ZONE_OF.values())})
    DataManifest(facts.data_version, now(), (), {}, facts.of_data()).save(folder / "manifest.json")


def _run(store: Store, study: Study, cell: Cell, evil: str) -> None:
    folder, base = store.run(cell.run_id), cell.phase == BASELINE
    condition = study.conditions.get(cell.condition)
    manifest = RunManifest(
        run_id=cell.run_id,
        phase=cell.phase,
        condition=cell.condition,
        seed=cell.seed,
        lr=cell.lr,
        input_hash=cell.input_hash,
        model=NamedModel("SmallLM", "bfloat16"),
        method=condition.model_dump(mode="json") if condition else {},
        train=study.train.model_dump(mode="json"),
        data=TrainedRows("feed5eedf00d", ()),
        packages={"torch": "9.8.7"},
        machine=MachineFacts(f"Linux{evil}", "x86_64", "3.11.7", 6, 6, 6, None, "AVX2", 1 << 34, (), None, False),
        created=now(),
        steps=None,
        seeds={},
        git=None,
        exploratory=False,
        command="veritune run study.yaml",
        host="bench-1",
    )
    manifest.save(folder / "manifest.json")
    shift = 0.0 if base else {"narrow": 0.3137, "wide": 0.4673}[cell.condition] + cell.seed / 1009
    training = None if base else _training(folder, cell, shift)
    zones = ("seen", "sibling", "stranger")
    write_jsonl(folder / "scores" / "style.jsonl", [_score(cell, row_id, evil) for row_id in ZONE_OF])
    scores = folder / "scores" / "style.jsonl"
    stamp = ScoreStamp("x", sha256_file(scores), len(ZONE_OF), DecodingNotes(True, 37, 32))
    stamp.save(scores.with_suffix(".json"))
    nll = {z: ZoneLoss(3.1279 - 4 * shift + i / 7, 19, 733) for i, z in enumerate(zones)}
    RowLosses("x", "nats per target token", nll, ()).save(folder / "probes" / "nll.json")
    summary = RunSummary(
        input_hash="x",
        run_id=cell.run_id,
        phase=cell.phase,
        condition=cell.condition,
        seed=None if base else cell.seed,
        lr=None if base else cell.lr,
        exploratory=False,
        failed=None,
        training=training,
        scoring_memory=None,
        nll={**nll, "validation": ZoneLoss(3.0417 - shift, 13, 577)},
        scores={"style": {z: _zone(0.2719 + shift + i / 101, evil) for i, z in enumerate(zones)}},
        finished=now(),
    )
    summary.save(folder / "summary.json")


def _zone(mean: float, evil: str) -> ZoneScore:
    rules = {"opens": RuleCount(23, 29), "asks": RuleCount(17, 29)}
    return ZoneScore(mean, 29, 31, {f"empty_output{evil}": 2}, 5, rules)


def _training(folder: Path, cell: Cell, shift: float) -> TrainingRecord:
    blank = MetricRow(cell.run_id, cell.condition, cell.seed, 1, None, None, None, None, None, None)
    steps = range(1, 13)
    metrics = [replace(blank, step=s, split="seen", loss=3.3391 / s, cost=0.7) for s in steps]
    kept = f"runs/{cell.run_id}/checkpoints/step-8"
    candidates = tuple(CheckpointCandidate(s, 2.9173 / s - shift / 9, kept if s == 8 else None) for s in (4, 8, 12))
    for c in candidates:
        metrics.append(replace(blank, step=c.step, split="validation", loss=c.validation_nll, token_count=577))
    write_jsonl(folder / "metrics.jsonl", metrics)
    share = {"type": {"q": 0.21, "v": 0.79}, "group": {"attention": 1.0}}
    lost = {"step": 5, "status": "unavailable", "reason": "not seen", "share": None}
    telemetry = [lost if s == 5 else {"step": s, "status": "ok", "share": share} for s in steps]
    write_jsonl(folder / "telemetry.jsonl", telemetry)
    record = TrainingRecord(
        input_hash=cell.input_hash,
        steps=12,
        processes=1,
        checkpoint=kept,
        best_step=8,
        validation_nll=candidates[1].validation_nll,
        candidates=candidates,
        final_loss=0.4671,
        trainable=_trainable(),
        rows_compared_with_contract=47,
        train_s=61.7,
        tokens=2689,
        peak_memory=MemoryPeak(None, None, "none", "made up"),
    )
    record.save(folder / "training.json")
    return record


def _trainable() -> Trainable:
    options = {"target_modules": ["q_proj", "v_proj"], "r": 4}
    return Trainable.of("lora", options, ("layers.0.q_proj",), 4099, 131101)


def _score(cell: Cell, row_id: str, evil: str) -> Score:
    parts = {"ended": "length", "n_tokens": 37, "rules": {"asks": False, "opens": True}, "found": {"opens": [evil]}}
    output = f"Subject: Boats of {cell.condition}{evil}"
    where = {"family": row_id[0], "zone": ZONE_OF[row_id]}
    if row_id == "c-0":
        return Score(cell.run_id, "style", row_id, None, reason=f"empty_output{evil}", output="", **where)
    return Score(cell.run_id, "style", row_id, 0.5, output=output, parts=parts, **where)


def _audits(store: Store, study: Study, evil: str) -> None:
    stops = StopTokens(("<|end|>",), ("<|end|>",), "generation_config.json", ())
    example = RenderedExample("a-0", f"<|user|>Write about boats.{evil}", f"Subject: Boats{evil}<|end|>")
    RenderAudit("b2" * 32, "c3" * 32, 6, TokenLengths(649, 109, 127), 291, example, {}, stops).save(
        store.audit("render.json")
    )
    pair = ZonePair("seen", "sibling", ids=0, texts=0, prompts=1, answers=0, families=1, near=1, n_a=2, n_b=1)
    finding = Finding("split.families", "note", f"a sibling is in seen{evil}")
    counts = SplitCounts(
        {zone: list(ZONE_OF.values()).count(zone) for zone in ("seen", "sibling", "stranger")}, (pair,)
    )
    SplitAudit(counts, (finding,), (evil,)).save(store.audit("split.json"))
    memory = LiveMemory(None, None, None, None, None, None, None, "none", "made up", None)
    for name in study.conditions:
        probe = LiveProbe("x", name, 3.4177, 1.93, 101.0, 0.31, 89, 2.03, memory, 7, 53, 106, _trainable())
        probe.save(store.audit(f"live-{name}.json"))


def _estimate(runs: list[str], value: float, evil: str, **more: Any) -> Estimate:
    a, b = {"condition": "wide", "runs": runs[:2]}, {"condition": "narrow", "runs": runs[2:]}
    kept: dict[str, Any] = {"low": value - 0.11, "high": value + 0.11, "p": 0.0313, "p_method": "t test"}
    kept |= {"n_clusters": 17, "n_seeds": 2, "warnings": (f"few families{evil}",), "details": {"a": a, "b": b}}
    return Estimate(name="gap", value=value, level=0.95, n=29, method=f"crossed{evil}", **{**kept, **more})


def _verdict(store: Store, study: Study, evil: str) -> None:
    runs = [path.parent.name for path in sorted(store.runs.glob("*/manifest.json"))]
    grade = {"grade": "low", "evidence": {"seeds": {"state": "weak", "why": f"two seeds{evil}"}}}
    corrected = {"p_corrected": 0.0417, "claims_in_family": 3, "simultaneous_interval": [0.09, 0.51]}

    def verdict(claim: str, kind: str, status: Any, **more: Any) -> Verdict:
        kept: dict[str, Any] = {"may_not": (f"Never write that {claim} is causal.{evil}",), "confidence": grade}
        return Verdict(claim, kind, status, f"The sentence about {claim} may be written.{evil}", **{**kept, **more})

    first = _estimate(runs, 0.2953, evil)
    verdicts = [
        verdict("learns", "improves", "supported", estimates=(first,), details=corrected, detectable=0.0893),
        verdict("carries", "generalises", "inconclusive", estimates=(_estimate(runs, 0.8117, evil),)),
        verdict(
            "same",
            "equivalent",
            "refuted",
            estimates=(_estimate(runs, -0.1773, evil),),
            margin=0.071,
            detectable=0.0937,
            needed_n=1283,
            exploratory=True,
        ),
        verdict("harmless", "no_regression", "untested", margin=0.13, warnings=("no scores",), confidence={}),
    ]
    frozen = contract.read(store).last.hash
    StudyVerdicts("x", frozen, tuple(runs), {}, tuple(verdicts)).save(store.verdict_file)


def texts_of(store: Store) -> str:
    """All records of the folder as one text, for looking numbers up."""
    import pyarrow.parquet as pq

    parts = [p.read_text(encoding="utf-8") for p in sorted(store.root.rglob("*.json*")) if "figures" not in p.parts]
    parts += [dumps(pq.read_table(p).to_pylist()) for p in sorted(store.root.rglob("*.parquet"))]
    return "\n".join([*parts, store.study_file.read_text(encoding="utf-8")])
