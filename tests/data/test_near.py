"""The engine of near-duplicates: pinned results on four sets, and the definition spelled out in plain Python beside it.

The digests were taken from two engines that agreed: compiled loops, and the same rules as array operations.
A change of the rules changes them on purpose: `python tests/data/test_near.py` prints the new ones.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.data.contamination import check_contamination
from veritune.data.families import find_families
from veritune.data.load import load_rows
from veritune.data.near import TextBuffer, index, join, overlap, sweep
from veritune.data.near.bytes import BYTE_VALUE
from veritune.data.text import prepare
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


# ---------------------------------------------------------------- the definition in plain Python

ALL = 2**64 - 1


def horner(data: bytes, value: Any) -> int:
    total = 0
    for byte in data:
        total = (total * sweep.HORNER + int(value[byte])) & ALL
    return total


def plain_tokens(data: bytes, masked: bool) -> list[int]:
    runs = re.findall(rb"[0-9A-Za-z\x80-\xff]+", data)
    return [horner(re.sub(rb"\d+", b"0", run) if masked else run, BYTE_VALUE) for run in runs]


def plain_hash(data: bytes) -> int:
    visible = re.sub(rb"[\x00-\x08\x0e-\x1f\x7f]", b"", data)
    return horner(b" ".join(visible.split()), BYTE_VALUE)


def plain_pair(left: int, right: int) -> int:
    z = (left * sweep.MIX_1 & ALL) ^ (right + (left >> 29) & ALL)
    return ((z ^ (z >> 32)) * sweep.MIX_2 & ALL) >> 32


def plain_features(tokens: list[int]) -> list[int]:
    distinct = list(dict.fromkeys(plain_pair(*pair) for pair in pairwise(tokens)))
    limit = 2**32
    while len([f for f in distinct if f < limit]) > sweep.ROW_CAP:
        limit //= 2
    return [f for f in distinct if f < limit]


def plain_sketches(features: list[list[int]], least: int) -> list[tuple[list[int], int]]:
    """Ids, ascending, and mass of every row."""
    n, weights = len(features), join.weights_for(len(features))
    mask = 2 ** join.table_bits(n) - 1
    df = Counter(f & mask for row in features for f in row)
    out = []
    for row in features:
        buckets = [int(weights.lut[min(df[f & mask], n)]) for f in row] if len(row) >= least else []
        rarest = sorted((b, i) for i, b in enumerate(buckets) if b)[: join.KEEP]
        ids = [(row[i] * join.SPREAD & 0xFFFFFFE0) | b for b, i in rarest]
        by_bit: dict[int, int] = {}
        for id_ in sorted(ids, key=lambda x: (x & 31, x)):
            by_bit.setdefault(id_ >> 23, id_)
        mass, before = (sum(int(weights.weight[x & 31]) for x in some) for some in (by_bit.values(), ids))
        alone = buckets.count(0) * int(weights.weight[0])
        out.append((sorted(by_bit.values()), mass + alone * mass // max(before, 1)))
    return out


def plain_keys(ids: list[int], rare_below: int) -> list[int]:
    def mix(left: int, right: int, salt: int) -> int:
        z = (left * sweep.MIX_1 + right * sweep.MIX_2 + salt) & ALL
        z = (z ^ (z >> 31)) * sweep.MIX_2 & ALL
        return (z ^ (z >> 29)) >> 32

    rare = [x for x in ids if x & 31 < rare_below][: join.RARE_KEYS]
    common = sorted((x for x in ids if x & 31 >= rare_below), key=lambda x: (x & 31, x))[: join.PAIR_FROM]
    least = [min(part) for p in range(join.MIN_KEYS) if (part := [x for x in ids if x >> 5 & 3 == p])]
    pairs = [mix(min(pair), max(pair), 3) for pair in combinations(common, 2)]
    return [mix(x, 0, 1) for x in rare] + [mix(x, 0, 2) for x in least] + pairs


def plain_components(sketches: list[tuple[list[int], int]], threshold: float) -> list[int]:
    """One pass: rows that share a key and are similar, joined; each row's smallest company."""
    weights = join.weights_for(len(sketches))
    meeting = defaultdict(list)
    for row, (ids, _) in enumerate(sketches):
        for key in plain_keys(ids, weights.rare):
            meeting[key].append(row)
    root = list(range(len(sketches)))
    for rows in meeting.values():
        close = (
            combinations(rows, 2) if len(rows) <= join.ALL_PAIRS_UP_TO else [*pairwise(rows), *product(rows[:1], rows)]
        )
        for x, y in close:
            shared = sum(int(weights.weight[i & 31]) for i in set(sketches[x][0]) & set(sketches[y][0]))
            product_of_masses = float(sketches[x][1]) * float(sketches[y][1])
            if shared and float(shared) * shared >= threshold * threshold * product_of_masses:
                low, high = sorted((root[x], root[y]))
                root = [low if r == high else r for r in root]
    return root


@pytest.mark.parametrize("name", ["edited", "template", "odd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernels_compute_the_plain_definition(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, block in ((sweep, "_BLOCK"), (join, "_ROWS"), (join, "_PARTITION_KEYS")):
        monkeypatch.setattr(module, block, 1000 if block == "_BLOCK" else 70)  # many blocks, many partitions
    rows = SETS[name]()[:240]
    parts = [(r.messages[0].content, r.target or "") for r in rows]
    text = TextBuffer.from_parts(parts)
    heads = [prepare(problem) for problem, _ in parts]
    separator = [("\n\n" if problem and target else "") + target for problem, target in parts]
    bytes_N = [head + prepare(tail) for head, tail in zip(heads, separator)]
    swept = sweep.sweep(text, threads=threads)
    assert swept.hash_N.tolist() == [plain_hash(b) for b in bytes_N]
    assert swept.problem_hash_N.tolist() == [plain_hash(b) for b in heads]
    features = [plain_features(plain_tokens(b, masked=True)) for b in bytes_N]
    ends = zip(swept.start_N.tolist(), swept.length_N.tolist())
    assert [swept.feature_F[a : a + n].tolist() for a, n in ends] == features
    sketch = join.sketches(swept, np.arange(len(rows)), 8, threads=threads)
    plain = plain_sketches(features, 8)
    assert [ids[:n].tolist() for ids, n in zip(sketch.id_N_K, sketch.count_N)] == [ids for ids, _ in plain]
    assert sketch.mass_N.tolist() == [mass for _, mass in plain]
    keys = sorted(key << 32 | row for row, (ids, _) in enumerate(plain) for key in plain_keys(ids, sketch.weights.rare))
    assert sorted(join.keys_by_range(sketch, 3)[0].tolist()) == keys
    first = plain_components(plain, 0.38)
    assert len(set(first)) < 0.9 * len(rows)
    assert join._one_pass(sketch, 0.38, threads).tolist() == first


@pytest.mark.parametrize("n", [sweep.ROW_CAP - 1, sweep.ROW_CAP, sweep.ROW_CAP + 1, 3 * sweep.ROW_CAP])
def test_a_row_keeps_all_its_features_up_to_the_cap_and_a_sample_beyond(n: int) -> None:
    text = " ".join(words(n + 1, random.Random(15)))
    swept = sweep.sweep(TextBuffer.from_strings([text]))
    kept = plain_features(plain_tokens(text.encode(), masked=True))
    assert swept.feature_F[: swept.length_N[0]].tolist() == kept
    assert len(kept) == n if n <= sweep.ROW_CAP else 0 < len(kept) < sweep.ROW_CAP


@pytest.mark.parametrize("name", ["edited", "template", "odd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_both_passes_over_rows_compute_the_plain_definition(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "CHUNK", 1000)
    rows = SETS[name]()[:150]
    items = [text for texts in exam(rows).values() for text in texts]
    text = TextBuffer.from_parts((r.messages[0].content, r.target) for r in rows)
    held = [
        [plain_tokens(prepare(part), masked=False) for part in (r.messages[0].content, r.target or "")] for r in rows
    ]
    wanted = [plain_tokens(prepare(item), masked=False) for item in items]
    built = index.build(TextBuffer.from_strings(items), 5)

    def words(tokens: list[int]) -> set[int]:
        return {plain_pair(index.SINGLE, t) for t in tokens} | {plain_pair(*pair) for pair in pairwise(tokens)}

    def runs(tokens: list[int]) -> set[tuple[int, ...]]:
        return {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}

    vocabulary = sorted(set().union(*map(words, wanted)))
    assert built.vocabulary_V.tolist() == vocabulary
    owners = Counter(run for tokens in wanted for run in runs(tokens))
    own = {run: e for e, tokens in enumerate(wanted) for run in runs(tokens) if owners[run] == 1}
    assert len(built.gram_G) == len(own) > 20
    df_V, df_G = overlap.count(text, built, threads=threads)
    in_row = [set().union(*map(words, parts)) for parts in held]
    assert df_V.tolist() == [sum(w in some for some in in_row) for w in vocabulary]
    assert df_G.sum() == sum(len(set().union(*map(runs, parts)) & own.keys()) for parts in held)
    rule = index.scoring(built, df_V, df_G, len(rows), 0.3, 8)
    weight = dict(zip(vocabulary, rule.weight_V.tolist()))
    ok = {at: bool(good) for at, good in zip(built.gram_G.tolist(), rule.gram_ok_G)}
    listed = set(rule.posting_P.tolist())
    expected = {}
    for i, parts in enumerate(held):
        for e, tokens in enumerate(wanted):
            total = max(sum(weight[w] for w in words(tokens)), 1)
            scores = tuple(sum(weight[w] for w in words(tokens) & words(part)) / total for part in parts)
            shared = {r for part in parts for r in runs(part) if own.get(r) == e}
            run = any(ok[run_hash(r)] for r in shared)
            if run or (e in listed and max(scores) >= 0.3):
                expected[i, e] = scores
    got = overlap.score(text, built, rule, threads=threads)
    pairs = zip(got.row_P.tolist(), got.entry_P.tolist())
    assert dict(zip(pairs, map(tuple, got.score_P_2.tolist()))) == expected
    assert len(expected) > 20


def run_hash(tokens: tuple[int, ...]) -> int:
    total = 0
    for token in tokens:
        total = (total * sweep.HORNER + token) & ALL
    return total


# ---------------------------------------------------------------- pinned

PINNED = {
    "quickstart": {
        "families": "0143532f9ded1bab",
        "words alone": "5c21c1194779e631",
        "contamination": "e1bfe27c4a6bd84d",
    },
    "edited": {"families": "e8d902e2f84f8f31", "words alone": "4bab8c8bcbadfc0c", "contamination": "70b8c375419a462d"},
    "template": {
        "families": "ec95b4e976f0ef25",
        "words alone": "46b13584dc36cdd1",
        "contamination": "21bbaf5902b2f252",
    },
    "odd": {"families": "8db5a200d77e0e80", "words alone": "d7185a5ecdef574b", "contamination": "3a7212103f1ec23c"},
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


KERNELS = """
import importlib, json, pkgutil, sys
from pathlib import Path
import veritune.data.near as near
from veritune.health import prepare

def compiled():
    modules = [importlib.import_module(f"{near.__name__}.{m.name}") for m in pkgutil.iter_modules(near.__path__)]
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            if hasattr(value, "signatures"):
                found[f"{module.__name__}.{name}"] = len(value.signatures)
    return found

prepare()
before = compiled()
from veritune.data.load import load_rows
from veritune.data.families import find_families
from veritune.data.contamination import check_contamination
rows = load_rows(Path(sys.argv[1])).rows
find_families(rows)
check_contamination(rows[:100], {"zone": rows[100:], "same": rows[:20]})
after = compiled()
print(json.dumps([before, after]))
"""


def test_prepare_compiles_all_that_a_first_study_needs() -> None:
    """What is left uncompiled makes the first study of a machine wait 10 s before its contract is frozen."""
    briefs = REPO / "examples" / "quickstart" / "briefs.jsonl"
    done = subprocess.run([sys.executable, "-c", KERNELS, briefs], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert len(before) > 20 and sum(before.values()) >= 12
    assert {name: n for name, n in after.items() if n != before[name]} == {}
