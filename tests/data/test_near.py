"""The engine of near-duplicates: pinned results on four sets, and the definition spelled out in plain Python beside it.

The digests were taken from two engines that agreed: compiled loops, and the same rules as array operations.
A change of the rules changes them on purpose: `python tests/data/test_near.py` prints the new ones.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.data.contamination import check_contamination
from veritune.data.families import find_families
from veritune.data.load import load_rows
from veritune.records import Message, Row

REPO = Path(__file__).resolve().parents[2]
LETTERS = "bdfgklmnprst"
CJK = "请问第三艘船上有多少个红色的苹果和蓝色的箱子火车从北京出发开往上海途中停靠每站"


def words(n: int, rng: random.Random) -> list[str]:
    """`n` distinct made-up words."""
    made: dict[str, None] = {}
    while len(made) < n:
        made["".join(rng.choice(LETTERS) + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))] = None
    return list(made)


def row(i: int, problem: str, target: str, family: str | None = None) -> Row:
    """A row of one question and one answer."""
    return Row(f"r{i}", (Message("user", problem), Message("assistant", target)), family=family)


def quickstart() -> list[Row]:
    """The briefs that the quickstart trains on."""
    briefs = REPO / "examples" / "quickstart" / "briefs.jsonl"
    return list(load_rows(briefs, family_field="original", id_field="id").rows)


def edited() -> list[Row]:
    """1,500 rows: originals, copies with words deleted, replaced or swapped, other numbers, exact copies, a column."""
    rng = random.Random(11)
    bag = words(700, rng)
    originals = [" ".join(rng.choices(bag, k=rng.randint(9, 60))) + f" {rng.randrange(900)}?" for _ in range(500)]
    texts = list(originals)
    while len(texts) < 1500:
        parts = rng.choice(originals[:300]).split()
        for _ in range(rng.randint(0, len(parts) // 5)):
            at = rng.randrange(len(parts))
            parts[at] = rng.choice(bag) if rng.random() < 0.5 else str(rng.randrange(99))
            if rng.random() < 0.3 and len(parts) > 9:
                del parts[rng.randrange(len(parts))]
        texts.append(" ".join(parts))
    rng.shuffle(texts)
    return [row(i, t, f"It is {i % 13}.", "named" if i % 211 == 0 else None) for i, t in enumerate(texts)]


def template() -> list[Row]:
    """1,200 rows of one template told apart by a few words; arithmetic one-liners; one-word and empty rows."""
    rng = random.Random(12)
    bag = words(60, rng)
    form = "Look at the {} lamp on the {} quay, number {}, and say in one sentence whether it is safe to light it."
    texts = [form.format(rng.choice(bag), rng.choice(bag), i) for i in range(900)]
    texts += (
        [f"{i} + {i + 5} =" for i in range(200)] + [rng.choice(bag[:9]) for _ in range(80)] + [""] * 5 + [" \n"] * 15
    )
    rng.shuffle(texts)
    return [row(i, t, rng.choice(("Yes.", "No, it is not.", ""))) for i, t in enumerate(texts)]


def odd() -> list[Row]:
    """400 rows outside plain ASCII, longer than the cap on features, chained, or with characters nobody sees."""
    rng = random.Random(13)
    bag = words(900, rng)
    walk = rng.choices(bag, k=400)
    texts = [" ".join(walk[i * 5 : i * 5 + 40]) for i in range(70)]  # each shares most words with the next alone
    long = [rng.choices(bag, k=600) for _ in range(15)]
    texts += [" ".join(t) for t in long] + [" ".join(w if rng.random() > 0.04 else "new" for w in t) for t in long]
    for _ in range(100):
        line = "".join(rng.choices(CJK, k=rng.randint(4, 40)))
        texts += [line, line.replace(rng.choice(CJK), "12"), f"{line[:6]}—’{line[6:]}…"]
    marks = ("\u200b", "\u00a0", "\x1f", "é", "ﬁ", "ß", "\ud800", "²", "🙂", "ﷺ", "\u2028")
    texts = [t if rng.random() < 0.7 else t.upper().replace(" ", rng.choice(marks), 3) for t in texts]
    rng.shuffle(texts)
    return [row(i, t, "数字 12" if i % 3 else "") for i, t in enumerate(texts)]


SETS = {"quickstart": quickstart, "edited": edited, "template": template, "odd": odd}


def exam(rows: list[Row]) -> dict[str, list[str]]:
    """Eval items: some rows' prompts as they are, with words missing, inside another sentence, and strangers."""
    rng = random.Random(14)
    prompts = [r.messages[0].content for r in rows if r.messages[0].content.strip()]
    some = [rng.choice(prompts) for _ in range(40)]
    thinned = [" ".join(w for w in t.split() if rng.random() > 0.15) for t in some[:15]]
    inside = [f"Kindly help me with this before noon. {t} Thank you!" for t in some[15:25]]
    strangers = [" ".join(words(30, rng)) for _ in range(10)]
    return {"a": [*some[25:], *thinned], "b": [*inside, *strangers, "", "Yes.", *some[:3]]}


# ---------------------------------------------------------------- pinned

PINNED = {
    "quickstart": {
        "families": "733a09d63c644d81",
        "words alone": "b224684429223325",
        "contamination": "3f85c25bd27bbe61",
    },
    "edited": {"families": "b751b68ddb32a24b", "words alone": "43c53e36bc59b265", "contamination": "70b8c375419a462d"},
    "template": {
        "families": "01e86ba89ba9a420",
        "words alone": "07ccc74884d32593",
        "contamination": "21bbaf5902b2f252",
    },
    "odd": {"families": "18aa5d53e4042121", "words alone": "85c6a0aae6a45398", "contamination": "3a7212103f1ec23c"},
}


def digest(*parts: Any) -> str:
    """SHA-256 over arrays' dtypes and bytes, and anything else as its JSON text."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            hashed.update(part.dtype.str.encode() + np.ascontiguousarray(part).tobytes())
        else:
            hashed.update(json.dumps(part, sort_keys=True).encode())
    return hashed.hexdigest()[:16]


def digests(name: str, **settings: Any) -> dict[str, str]:
    """Digests of what both passes say about a set."""
    rows = SETS[name]()
    out = {}
    for key, more in (("families", {}), ("words alone", {"exact": False, "column": False, "threshold": 0.32})):
        result = find_families(rows, **more, **settings)
        arrays = result.code_N, result.evidence_N, result.similarity_N
        out[key] = digest(*arrays, result.names, dict(result.counts))
    hits = check_contamination(rows, exam(rows), **settings)
    out["contamination"] = digest(
        hits.row_P, hits.entry_P, hits.part_P, hits.kind_P, hits.status_P, hits.score_P, hits.exact_only
    )
    return out


@pytest.mark.parametrize("name", SETS)
def test_results_are_those_that_were_pinned(name: str) -> None:
    assert digests(name) == PINNED[name]


if __name__ == "__main__":
    for name in SETS:
        print(f'    "{name}": {digests(name)},')
