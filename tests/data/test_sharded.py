"""The audit shard by shard says what the audit of all rows in memory says, of what both look for."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from veritune.arrow import parquet_rows
from veritune.data.audit import AuditConfig, audit_data
from veritune.data.sharded import audit_shards, sharded_text
from veritune.errors import InputError

WORDS = [f"word{i:03d}" for i in range(400)]


def row_of(rng: random.Random, row_id: str) -> dict[str, str]:
    prompt, answer = (" ".join(rng.choice(WORDS) for _ in range(n)) for n in (30, 20))
    return {"id": row_id, "prompt": f"{prompt}?", "response": f"{answer}."}


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, Path]:
    """Three shards of 40 rows and an empty one: rows repeated across shards, broken records, copies of eval items."""
    rng, folder = random.Random(0), tmp_path / "shards"
    folder.mkdir()
    rows = [[row_of(rng, f"{s}-{i}") for i in range(40)] for s in range(3)]
    rows[1][7] |= {"prompt": rows[0][5]["prompt"], "response": rows[0][5]["response"]}
    rows[2][8] |= {"prompt": rows[0][5]["prompt"], "response": rows[0][5]["response"]}
    rows[2][9]["prompt"] = rows[1][9]["prompt"]
    items = [row_of(rng, f"item-{i}") for i in range(6)]
    rows[0][20] |= {"prompt": items[0]["prompt"]}
    words = items[1]["prompt"].split()
    rows[2][20]["prompt"] = " ".join([*words[:22], *rows[2][20]["prompt"].split()[22:]])  # a near-copy
    lines = [[json.dumps(row) for row in part] for part in rows]
    lines[1][30] = "{broken"
    (folder / "a.jsonl").write_text("\n".join(lines[0]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(("\n".join(lines[1]) + "\n").encode()))
    (folder / "c.jsonl").write_text("\n".join(lines[2]) + "\n")
    (folder / "d.jsonl").write_text("")
    (tmp_path / "exam.jsonl").write_text("\n".join(json.dumps(item) for item in items) + "\n")
    return folder, tmp_path / "exam.jsonl"


def rows_in(out: Path, what: str) -> list[dict[str, Any]]:
    return [row for path in sorted((out / what).glob("*.parquet")) for row in parquet_rows(path)]


def test_shard_by_shard_and_in_memory_the_same_is_said(shards: tuple[Path, Path], tmp_path: Path) -> None:
    folder, exam = shards
    config, out = AuditConfig(id_field="id"), tmp_path / "out"
    found = audit_shards(folder, out, evals=[exam], config=config, workers=1)
    whole = audit_data(folder, evals=[exam], config=config)
    assert (found.n_read, found.n_rows) == (whole.n_read, len(whole.rows))
    assert found.record()["rejects_by_reason"] == whole.record()["rejects_by_reason"]
    assert whole.contamination is not None and whole.gate is not None and found.gate is not None
    kept = ("row_id", "eval", "item_id", "item_part", "row_part", "kind", "status", "score", "span")
    expected = [{name: getattr(hit, name) for name in kept} for hit in whole.contamination.hits]
    hits = [{name: hit[name] for name in kept} for hit in rows_in(out, "contamination")]
    assert hits == expected and {hit["status"] for hit in hits} >= {"exact", "confirmed"}
    assert (found.gate.status, whole.gate.status) == ("failed", "failed")
    for name, counts in found.gate.numbers["evals"].items():
        assert counts == {key: whole.contamination.by_eval[name][key] for key in counts}
    duplicates = whole.record()["quality"]["reasons"]["duplicate"]["rows"]
    assert found.met["text"].beyond_first == duplicates == 2 and found.met["text"].groups == 1
    assert found.met["problem"].beyond_first == 3 and found.met["id"].groups == 0
    texts = [row for row in rows_in(out, "equal") if row["kind"] == "text"]
    assert [(row["file"].split("/")[-1], row["line"]) for row in texts] == [
        ("a.jsonl", 6),
        ("b.jsonl.gz", 8),
        ("c.jsonl", 9),
    ]
    in_memory = Counter(f.check for f in whole.findings if f.row_id and f.check.startswith("quality."))
    sharded = Counter(f["check"] for f in rows_in(out, "findings") if f["row_id"] and f["check"].startswith("quality."))
    between_shards = {"quality.duplicate", "quality.several_answers"}  # two prompts that are equal lie in two shards
    assert sharded == {check: n for check, n in in_memory.items() if check not in between_shards}
    assert between_shards <= set(in_memory)
    assert found.exit_code == whole.exit_code == 2 and not (out / "work").exists()
    assert "2 of 119 rows (1.7%) repeat a text, in 1 groups" in sharded_text(found)
    assert json.loads((out / "report.json").read_text())["gate"]["status"] == "failed"


def test_an_id_that_two_shards_use_is_an_error_that_names_both(shards: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = shards
    text = (folder / "c.jsonl").read_text()
    (folder / "b.jsonl.gz").unlink()
    (folder / "d.jsonl").unlink()
    (folder / "c.jsonl").write_text(text.replace('"2-3"', '"0-4"'))
    found = audit_shards(folder, tmp_path / "out", config=AuditConfig(id_field="id"), workers=1)
    assert found.exit_code == 1 and found.met["id"].groups == 1 and found.gate is None
    named = [
        (row["file"].split("/")[-1], row["line"]) for row in rows_in(tmp_path / "out", "equal") if row["kind"] == "id"
    ]
    assert named == [("a.jsonl", 5), ("c.jsonl", 4)]
    (folder / "c.jsonl").write_text(text)
    again = audit_shards(folder, tmp_path / "again", config=AuditConfig(id_field="id"), workers=1)
    assert again.exit_code == 0 and again.met["id"].groups == 0


def test_what_needs_all_rows_in_memory_is_refused(shards: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = shards
    with pytest.raises(InputError, match="embed needs all rows in memory"):
        audit_shards(folder, tmp_path / "out", config=AuditConfig(embed="wordllama"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="is not empty"):
        audit_shards(folder, tmp_path / "full")


@pytest.mark.cluster
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_on_workers_the_same_files_are_written(shards: tuple[Path, Path], tmp_path: Path, executor: Any) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    folder, exam = shards
    audit_shards(folder, tmp_path / "one", evals=[exam], config=AuditConfig(id_field="id"), workers=1)
    config = AuditConfig(id_field="id", executor=executor)
    audit_shards(folder, tmp_path / "two", evals=[exam], config=config, workers=2)
    one, two = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.glob("*/*.parquet"))}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two and one
