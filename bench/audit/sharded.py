"""How much memory and time the audit shard by shard takes, and what the driver holds of a row.

python bench/audit/sharded.py --rows 2000000 --shards 20 [--ray] [--folder FOLDER]

Synthetic rows of some 60 words, 3 % of them copies of others, are written into shards of JSONL; 500 eval items are
looked for, 20 of which stand in rows. Printed are wall seconds, the most that this process held before and at the end,
and what that comes to a row. The shards are kept where a folder is named, and used again.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from veritune.data.audit import AuditConfig
from veritune.data.sharded import KINDS, audit_shards

COPIES = 0.03


def write_shards(folder: Path, rows: int, shards: int) -> None:
    """`rows` rows in `shards` files, and an eval beside them."""
    rng = np.random.default_rng(0)
    words = [f"word{i:05d}" for i in range(20_000)]
    pieces = [" ".join(words[j] for j in rng.integers(0, len(words), 10)) for _ in range(200_000)]
    each = rows // shards
    for shard in range(shards):
        part = rng.integers(0, len(pieces), (each, 6))
        copied = rng.random(each) < COPIES
        part[copied] = part[rng.integers(0, max(each // 10, 1), int(copied.sum()))]
        with (folder / f"part-{shard:05d}.jsonl").open("w", encoding="utf-8") as out:
            for i, places in enumerate(part.tolist()):
                said = [pieces[p] for p in places]
                row = {"id": f"{shard}-{i}", "prompt": " ".join(said[:3]) + "?", "response": " ".join(said[3:]) + "."}
                out.write(json.dumps(row) + "\n")
    items = [" ".join(words[j] for j in rng.integers(0, len(words), 40)) + "?" for _ in range(480)]
    with (folder / "part-00000.jsonl").open(encoding="utf-8") as first:
        items += [json.loads(next(first))["prompt"] for _ in range(20)]
    lines = [json.dumps({"prompt": item, "response": "It is so."}) for item in items]
    (folder.parent / "exam.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def held() -> int:
    """The most memory that this process held so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Write the shards where they are not there, audit them, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="a Ray cluster of this machine's cores")
    parser.add_argument("--folder", type=Path, help="where the shards are kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = given.folder or Path(scratch)
        shards = root / "shards"
        if not shards.exists():
            shards.mkdir(parents=True)
            write_shards(shards, given.rows, given.shards)
        config = AuditConfig(id_field="id", executor="ray" if given.ray else "local")
        small = root / "small"
        if not small.exists():
            small.mkdir()
            lines = (shards / "part-00000.jsonl").read_text("utf-8").splitlines()[:200]
            (small / "part-00000.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        audit_shards(small, Path(scratch) / "warm", evals=[root / "exam.jsonl"], config=config, workers=given.workers)
        before, began = held(), time.perf_counter()
        found = audit_shards(
            shards, Path(scratch) / "out", evals=[root / "exam.jsonl"], config=config, workers=given.workers
        )
        wall, after = time.perf_counter() - began, held()
        of_workers = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{found.n_rows:,} rows in {len(found.shards)} shards, {wall:.0f} s")
        a_row = (after - before) / found.n_rows
        print(f"driver: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB at most: {a_row:.2f} bytes a row")
        cpu, largest = of_workers.ru_utime + of_workers.ru_stime, of_workers.ru_maxrss / 1e3
        print(f"workers: {cpu:.0f} s of processor time, the largest held {largest:.0f} MB")
        assert found.gate is not None
        print({kind: found.met[kind].beyond_first for kind in KINDS}, found.gate.message)


if __name__ == "__main__":
    main()
