"""Families and contamination on a local Ray cluster of several processes: row for row what one process finds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.data.contamination import check_contamination
from veritune.data.families import FamilyResult, find_families
from veritune.data.load import load_rows
from veritune.data.near import ray as near_ray
from veritune.data.shards import shard_families
from veritune.errors import DataError, MachineError
from veritune.records import Message, Row

pytestmark = pytest.mark.skipif(util.find_spec("ray") is None, reason="ray is not installed: veritune[ray]")

NOUNS = (
    "harbor lamp ferry crane quay rope tide bell buoy deck mast keel pump drum anchor radio tower ladder kettle plum"
)
VERBS = "counts carries paints repairs borrows measures weighs polishes counts lifts stacks sorts trades hides ships"


def sentences(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    nouns, verbs = NOUNS.split(), VERBS.split()
    made = []
    for _ in range(n):
        words = [f"{rng.choice(nouns)}{rng.randrange(400)} {rng.choice(verbs)}" for _ in range(9)]
        made.append(f"Solve this: {' '.join(words)} {rng.randrange(99)}?")
    return made


def edited(text: str, rng: random.Random) -> str:
    words = text.split()
    del words[rng.randrange(2, len(words) - 1)]
    return " ".join(words)


def corpus(n: int = 3000) -> list[Row]:
    """Originals, edits of them, exact copies, named families, short rows, and some CJK, in a fixed disorder."""
    rng = random.Random(4)
    originals = sentences(n // 2, 1)
    texts = originals + [edited(rng.choice(originals), rng) for _ in range(n - len(originals) - 40)]
    texts += (
        originals[:20] + ["Continue."] * 10 + [f"请问第{i % 3}艘船上有多少个红色的苹果和蓝色的箱子" for i in range(10)]
    )
    rng.shuffle(texts)
    return [
        Row(
            f"r{i}",
            (Message("user", t), Message("assistant", f"It is {i % 17}.")),
            family="named" if i % 500 == 0 else None,
        )
        for i, t in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = near_ray._ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def same(a: FamilyResult, b: FamilyResult) -> None:
    assert a.memberships == b.memberships
    assert a.summary == b.summary


def meeting_once(pairs: int = 240) -> list[Row]:
    """Rows that have one pair of words with one other row in common: a key or two brings them together, not forty."""
    fresh = (f"{a}{b}{c}" for a in "bdfgklmn" for b in NOUNS.split() for c in VERBS.split())
    rows = []
    for i in range(pairs):
        both = f"{next(fresh)} {next(fresh)}"
        texts = [" ".join(next(fresh) for _ in range(2)) + f" {both} " + next(fresh) for _ in "ab"]
        rows += [Row(f"m{i}{s}", (Message("user", t), Message("assistant", "Done."))) for s, t in zip("ab", texts)]
    return rows


MEETING = {"threshold": 0.1, "min_features": 3}


def spoil(monkeypatch: pytest.MonkeyPatch, step: str, number: int, change: Any) -> None:
    """Change what the `number`-th task of one step is given, in every pass; a pass begins with its join keys."""
    run, seen = near_ray.RayEngine._run, [0]

    def spoilt(self: Any, work: Any, *args: Any, **kwargs: Any) -> Any:
        if work.__name__ == "_keys_block":
            seen[0] = 0
        if work.__name__ == step:
            seen[0] += 1
            if seen[0] == number:
                args = change(args)
        return run(self, work, *args, **kwargs)

    monkeypatch.setattr(near_ray.RayEngine, "_run", spoilt)


NONE = np.zeros(0, np.uint64)
LOSSES: dict[str, tuple[str, int, Any, str]] = {
    "a range of keys": ("_pairs_of_range", 2, lambda a: (*a[:2], NONE), "join keys"),
    "the keys of one block": ("_pairs_of_range", 1, lambda a: (*a[:2], NONE, *a[3:]), "join keys"),
    "the pairs of a range": ("_verify", 1, lambda a: (*a[:3], NONE, *a[4:]), "pairs of rows"),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_what_a_step_did_not_get_stops_the_run_and_changes_the_rows(
    cluster: Any, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_ray, "KEYS_A_RANGE", 4_000)  # several ranges of keys
    rows, (step, number, change, named) = meeting_once(), LOSSES[lost]
    local = find_families(rows, **MEETING)
    assert local.summary["variants"] > 200
    spoil(monkeypatch, step, number, change)
    with pytest.raises(MachineError, match=f"lost data.*{named} were sent"):
        find_families(rows, executor="ray", **MEETING)
    monkeypatch.undo()
    monkeypatch.setattr(near_ray, "KEYS_A_RANGE", 4_000)
    monkeypatch.setattr(near_ray, "_balance", lambda *counts: None)
    spoil(monkeypatch, step, number, change)
    with pytest.raises(AssertionError):  # the comparison by rows sees it without the counts
        same(find_families(rows, executor="ray", **MEETING), local)


def test_families_on_a_cluster_are_those_of_one_process(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_ray, "BLOCK_ROWS", 700)  # five blocks
    monkeypatch.setattr(near_ray, "KEYS_A_RANGE", 20_000)  # six ranges of keys or so
    rows = corpus()
    local = find_families(rows)
    assert {"column", "exact", "similarity"} <= {m.evidence for m in local.memberships}
    assert local.summary["size_max"] >= 5
    same(find_families(rows, executor="ray"), local)
    once = meeting_once()
    same(find_families(once, executor="ray", **MEETING), find_families(once, **MEETING))


def test_two_rows_and_none_need_no_special_care(cluster: Any) -> None:
    rows = corpus()[:2]
    same(find_families(rows, executor="ray"), find_families(rows))
    assert len(find_families([], executor="ray")) == 0


def test_shards_are_read_where_they_are_swept_with_the_ids_and_refusals_of_one_reader(
    cluster: Any, tmp_path: Path
) -> None:
    rows = corpus(1500)
    for s in range(3):
        lines = [
            json.dumps({"prompt": r.messages[0].content, "completion": r.target}) for r in rows[s * 500 : s * 500 + 500]
        ]
        lines[7:7] = ["{broken", json.dumps({"id": "twice", "prompt": f"Question {s}?", "completion": "yes"})]
        (tmp_path / f"part-{s}.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "part-9.jsonl.gz").write_bytes(b"not gzip")
    loaded = load_rows(tmp_path)
    local = find_families(loaded.rows)
    found = shard_families(tmp_path)
    same(found.families, local)
    assert found.n_read == loaded.n_read == 1506
    key = [(f.check, f.source, f.line, f.message) for f in loaded.rejects]
    assert sorted(map(str, key)) == sorted(str((f.check, f.source, f.line, f.message)) for f in found.rejects)
    assert [k[0] for k in key].count("load.duplicate_id") == 2
    assert "load.unreadable" in [k[0] for k in key]
    with pytest.raises(DataError, match="hub id"):
        shard_families("owner/name")


def test_contamination_on_a_cluster_is_that_of_one_process(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_ray, "BLOCK_ROWS", 400)
    rows = corpus(1500)
    rng = random.Random(3)
    long = [r.messages[0].content for r in rows if len(r.messages[0].content.split()) > 9]
    items = [edited(t, rng) for t in long[::50]] + [long[5], *sentences(40, 9)]
    local = check_contamination(rows, {"exam": items})
    there = check_contamination(rows, {"exam": items}, executor="ray")
    assert there.hits == local.hits and len(local.hits) > 20
    assert {"identical", "near"} <= {h.kind for h in local.hits}
    assert there.summary == local.summary


def test_a_forest_connects_what_its_edges_connect() -> None:
    left, right = near_ray._forest(np.array([3, 5, 3, 9]), np.array([5, 7, 7, 12]))
    assert sorted(zip(left.tolist(), right.tolist())) == [(3, 5), (3, 7), (9, 12)]
