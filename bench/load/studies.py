"""Finished and sealed studies of any size as files, without a model: real record types, drawn numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.pipeline.decide import decide
from veritune.records import (
    BaseFacts,
    CheckpointCandidate,
    DataManifest,
    DecodingNotes,
    Facts,
    MachineFacts,
    MemoryPeak,
    MetricRow,
    NamedModel,
    RunManifest,
    RunSummary,
    Score,
    ScoreStamp,
    Trainable,
    TrainedRows,
    TrainingRecord,
    ZoneLoss,
    ZoneSize,
)
from veritune.report.page import write_report
from veritune.seal import finish_run, seal
from veritune.store import Store, now, sha256_file, write_jsonl, write_parquet
from veritune.train.cells import score_summary
from veritune.train.schedule import Cell, plan_cells, summary_hasher

WORDS = (
    "boat",
    "quay",
    "lamp",
    "rope",
    "tide",
    "storm",
    "bell",
    "deck",
    "mast",
    "sail",
    "keel",
    "oar",
    "pump",
    "crate",
)
ZONES = ("stranger", "stranger", "stranger", "sibling", "seen")
STEPS = 12


@dataclass(frozen=True)
class Size:
    """How large a study is: trained conditions, seeds of each, items of its one eval, words of an output."""

    conditions: int
    seeds: int
    items: int
    words: int = 60


def build(root: Path, size: Size) -> tuple[Store, Study]:
    """Write the study, decided, drawn and sealed, into `root`."""
    root.mkdir(parents=True)
    names = [f"arm{n:02d}" for n in range(size.conditions)]
    (root / "study.yaml").write_text(yaml.safe_dump(_settings(names, size), sort_keys=False), "utf-8")
    store, study = Store(root), load_study(root / "study.yaml")
    zone_of = {f"i{n:05d}": ZONES[n // 4 % len(ZONES)] for n in range(size.items)}
    facts = _facts(zone_of)
    _write_data(store, facts, zone_of)
    contract.freeze(store, study, facts)
    made_from, cells = summary_hasher(study, facts), plan_cells(study, facts)
    for cell in cells:
        _finish(store, study, cell, made_from(cell), zone_of, size)
    decide(store, study, [cell.run_id for cell in cells], contract.read(store))
    write_report(store, study)
    seal(store)
    return store, study


def _settings(names: Sequence[str], size: Size) -> Mapping[str, object]:
    lora = {"method": "lora", "target_modules": "all-linear"}
    pairs = [(names[0], None), *zip(names[1:3], names[:2])]
    return {
        "name": "load",
        "question": "Does a large study stay light?",
        "model": {"path": "builtin:smollm2-135m-instruct"},
        "data": {"path": "rows.jsonl", "family_field": "original"},
        "train": {"max_steps": STEPS},
        "conditions": {name: {**lora, "r": 4 + n} for n, name in enumerate(names)},
        "factor": ["r"],
        "seeds": list(range(size.seeds)),
        "evals": {"style": {"max_new_tokens": 64, "rules": [{"name": "opens", "pattern": "^Subject"}]}},
        "claims": [
            {"name": f"claim{n}", "kind": "improves", "condition": a, **({"against": b} if b else {})}
            for n, (a, b) in enumerate(pairs)
        ],
    }


def _facts(zone_of: Mapping[str, str]) -> Facts:
    zones = {zone: ZoneSize(n := list(zone_of.values()).count(zone), -(-n // 4)) for zone in sorted(set(ZONES))}
    return Facts(
        data_version="feed5eedf00d",
        data_sha256="a1" * 32,
        template_sha256="b2" * 32,
        tokenizer_sha256="c3" * 32,
        rendered_sha256="d4" * 32,
        zones={**zones, "validation": ZoneSize(0, 0)},
        families={"rows": len(zone_of), "originals": -(-len(zone_of) // 4)},
        tokens={zone: 100 * part.rows for zone, part in zones.items()},
        target_tokens={zone: 40 * part.rows for zone, part in zones.items()},
        contamination=None,
        template_kwargs=None,
        data_sets_sha256=None,
        model=BaseFacts("SmallLM", "bfloat16", {"model.safetensors": "e5" * 32}),
        packages={"torch": "9.8.7"},
        code={"package": "f6" * 32, "evaluate": "07" * 32, "decide": "18" * 32},
    )


def _write_data(store: Store, facts: Facts, zone_of: Mapping[str, str]) -> None:
    folder, ids, draw = store.data(facts.data_version), list(zone_of), random.Random(0)
    turns = [
        [{"role": "user", "content": f"Write about {_text(draw, 12)}"}, {"role": "assistant", "content": "Subject: it"}]
        for _ in ids
    ]
    columns = {"id": ids, "source": ["rows.jsonl"] * len(ids), "line": list(range(1, len(ids) + 1))}
    write_parquet(folder / "rows.parquet", {**columns, "messages": turns, "meta": ["{}"] * len(ids)})
    write_parquet(folder / "families.parquet", {"id": ids, "family": [_family(n) for n in range(len(ids))]})
    write_parquet(folder / "split.parquet", {"id": ids, "zone": list(zone_of.values())})
    DataManifest(facts.data_version, now(), (), {}, facts.of_data()).save(folder / "manifest.json")


def _family(number: int) -> str:
    return f"f{number // 4:05d}"


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def _finish(
    store: Store, study: Study, cell: Cell, made_from: str, zone_of: Mapping[str, str], size: Size
) -> None:  # fmt: skip
    """One cell's records, the summary last, as a run leaves them."""
    folder, base, draw = store.run(cell.run_id), cell.phase == BASELINE, random.Random(cell.run_id)
    _manifest(study, cell).save(folder / "manifest.json")
    training = None if base else _training(folder, cell, draw)
    right = 0.3 if base else 0.4 + 0.02 * list(study.conditions).index(cell.condition)
    scores = [_score(cell, draw, (n, item, zone), right, size) for n, (item, zone) in enumerate(zone_of.items())]
    path = folder / "scores" / "style.jsonl"
    write_jsonl(path, scores)
    ScoreStamp(made_from, sha256_file(path), len(scores), DecodingNotes(True, 64, 32)).save(path.with_suffix(".json"))
    store.log("scored", file=store.relative(path), inputs=made_from, sha256=sha256_file(path))
    nll = {zone: ZoneLoss(2.5 - right, size.items, 40 * size.items) for zone in sorted(set(ZONES))}
    summary = RunSummary(
        input_hash=made_from,
        run_id=cell.run_id,
        phase=cell.phase,
        condition=cell.condition,
        seed=None if base else cell.seed,
        lr=None if base else cell.lr,
        exploratory=False,
        failed=None,
        training=training,
        scoring_memory=None,
        nll=nll,
        scores={"style": score_summary(scores)},
        finished=now(),
    )
    finish_run(store, cell.run_id, summary)


def _score(cell: Cell, draw: random.Random, item: tuple[int, str, str], right: float, size: Size) -> Score:
    number, item_id, zone = item
    held = draw.random() < right
    output = ("Subject: " if held else "") + _text(draw, size.words)
    parts = {"ended": "stop_token", "n_tokens": size.words, "rules": {"opens": held}, "found": {"opens": []}}
    where = {"family": _family(number), "zone": zone}
    return Score(cell.run_id, "style", item_id, float(held), output=output, parts=parts, **where)


def _manifest(study: Study, cell: Cell) -> RunManifest:
    condition = study.conditions.get(cell.condition)
    return RunManifest(
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
        machine=MachineFacts("Linux", "x86_64", "3.11.7", 2, 2, 2, None, "AVX2", 1 << 34, (), None, False),
        created=now(),
        steps=None,
        seeds={},
        git=None,
        exploratory=False,
        command="veritune run study.yaml",
        host="bench",
    )


def _training(folder: Path, cell: Cell, draw: random.Random) -> TrainingRecord:
    rows = [
        MetricRow(cell.run_id, cell.condition, cell.seed, step, "seen", 3 / step + draw.random(), 0.5, None, None, None)
        for step in range(1, STEPS + 1)
    ]
    write_jsonl(folder / "metrics.jsonl", rows)
    share = {"type": {"q": 0.21, "v": 0.79}, "group": {"attention": 1.0}}
    write_jsonl(folder / "telemetry.jsonl", [{"step": s, "status": "ok", "share": share} for s in range(1, STEPS + 1)])
    record = TrainingRecord(
        input_hash=cell.input_hash,
        steps=STEPS,
        processes=1,
        checkpoint=f"runs/{cell.run_id}/checkpoints/step-{STEPS}",
        best_step=STEPS,
        validation_nll=2.0,
        candidates=(CheckpointCandidate(STEPS, 2.0, f"runs/{cell.run_id}/checkpoints/step-{STEPS}"),),
        final_loss=0.5,
        trainable=Trainable.of("lora", {"target_modules": ["q_proj"]}, ("layers.0.q_proj",), 4096, 131_072),
        rows_compared_with_contract=48,
        train_s=60.0,
        tokens=2000,
        peak_memory=MemoryPeak(None, None, "none", "made up"),
    )
    record.save(folder / "training.json")
    return record
