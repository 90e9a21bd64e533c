"""Writes the data of the three-arms study from the quickstart's recipe: 36 briefs to train on, 12 others to be asked.

    python examples/three-arms/make_data.py

Nobody trains on the 12; each is asked in all four wordings (`original` groups them).
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

HERE = Path(__file__).resolve().parent
ASKED = 12


def main() -> None:
    """Write briefs.jsonl and exam.jsonl beside this file."""
    rows = runpy.run_path(str(HERE.parent / "quickstart" / "make_data.py"))["make_rows"](11)
    families = sorted({row["original"] for row in rows})
    asked = set(families[-ASKED:])
    for name, own in (("briefs", [r for r in rows if r["original"] not in asked]),
                      ("exam", [r for r in rows if r["original"] in asked])):  # fmt: skip
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own)
        (HERE / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(own)} rows -> {HERE / name}.jsonl")


if __name__ == "__main__":
    main()
