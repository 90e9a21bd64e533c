"""Paraphrases by embedding: what counts as a pair, what keeps clusters bounded, and the packaged encoder."""

from __future__ import annotations

import json
import logging
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from veritune.data.audit import AuditConfig, audit_data, render_text, write_report
from veritune.data.embed import Encoder, embedding_edges, load_encoder, numbers_agree, numbers_of
from veritune.data.families import FamilyColumns, find_families, merge_families
from veritune.data.near import TextBuffer
from veritune.errors import ModelError
from veritune.records import Message, Row

REPO = Path(__file__).resolve().parents[2]
needs_wordllama = pytest.mark.skipif(util.find_spec("wordllama") is None, reason="pip install 'veritune[embed]'")


def row(i: object, text: str) -> Row:
    return Row(str(i), (Message("user", text), Message("assistant", "Done.")))


def letters(n: int) -> str:
    return "".join("abcdefghij"[int(c)] for c in str(n))


def by_angle(texts: list[str]) -> np.ndarray:
    """A text that ends on `@da` points 30 degrees up: digits as letters, so that the angle is no number."""
    digits = str.maketrans("abcdefghij", "0123456789")
    degrees = np.radians([float(t.rpartition("@")[2].translate(digits)) for t in texts])
    return np.stack((np.cos(degrees), np.sin(degrees)), axis=1).astype(np.float32)


def text_at(i: int, degrees: int, numbers: str = "3 and 8") -> str:
    words = " ".join(f"w{letters(i)}x{letters(k)}" for k in range(8))
    return f"{words} {numbers} @{letters(degrees)}"


def angles(sure: float = 0.99, threshold: float = 0.8) -> Encoder:
    return Encoder("angles", by_angle, threshold, sure, True)


def test_numbers_agree_on_two_in_common_and_most_of_all() -> None:
    assert numbers_of("She paid $1,200.00 for three lamps and 2.50 more") == {"1200", "3", "2.5"}
    assert numbers_agree(numbers_of("2 of 7"), numbers_of("seven, two"))
    assert not numbers_agree(numbers_of("7"), numbers_of("7"))
    assert numbers_agree(frozenset("123"), frozenset("1234")) and not numbers_agree(
        frozenset("123"), frozenset("12456")
    )


def test_a_pair_needs_the_numbers_or_near_certainty() -> None:
    encoder = angles()
    assert np.cos(np.radians(30)) > encoder.threshold > np.cos(np.radians(40))
    texts = [text_at(0, 0), text_at(1, 30), text_at(2, 32, "4 and 9"), text_at(3, 80), text_at(4, 31, "5 and 6")]
    found = {(i, j) for i, j, _, _ in embedding_edges(TextBuffer.from_strings(texts), encoder)}
    named = {tuple(sorted(p)) for p in found}
    assert (0, 1) in named  # the same numbers
    assert (0, 2) not in named and (0, 4) not in named  # other numbers
    assert (1, 2) in named and (2, 4) in named  # 2 degrees apart: sure
    assert not any(3 in p for p in named)


def test_blocks_lose_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    texts = [
        text_at(i, int(d), f"{n} and {n + 1}")
        for i, (d, n) in enumerate(zip(rng.integers(0, 900, 90), rng.integers(0, 4, 90)))
    ]
    buffer = TextBuffer.from_strings(texts)
    whole = embedding_edges(buffer, angles())
    unit = by_angle(texts)
    cosine = unit @ unit.T
    expected = {
        (i, j)
        for i in range(90)
        for j in range(i + 1, 90)
        if cosine[i, j] >= 0.99 or (cosine[i, j] >= 0.8 and numbers_agree(numbers_of(texts[i]), numbers_of(texts[j])))
    }
    assert {tuple(sorted((i, j))) for i, j, _, _ in whole} == expected
    monkeypatch.setattr("veritune.data.embed._BLOCK", 7)
    monkeypatch.setattr("veritune.data.embed._WIDE", 16)
    again = embedding_edges(buffer, angles())
    assert {tuple(sorted(e[:2])) for e in again} == expected


def test_chains_do_not_glue_and_every_member_has_its_evidence() -> None:
    """Seven texts 25 degrees apart: neighbours are close enough, the ends are strangers."""
    rows = [row(i, text_at(i, 25 * i)) for i in range(7)]
    result = find_families(rows, embed=angles())
    assert result.summary["size_max"] == 3
    columns = FamilyColumns.from_rows(rows)
    chained = merge_families(find_families(rows), embedding_edges(columns.text, angles()), bounded=False)
    assert chained.summary["size_max"] == 7  # what would happen without the bound
    joined = [m for m in result.memberships if m.evidence == "embedding"]
    assert all(m.similarity is not None and m.similarity >= 0.8 for m in joined)
    assert len(joined) + result.summary["evidence"]["singleton"] == 7
    assert result.summary["joined_by"] == {"embedding": len(result.joins)}
    turned = find_families(rows[::-1], embed=angles())
    assert dict(zip(turned.row_ids, turned.families)) == dict(zip(result.row_ids, result.families))


@needs_wordllama
def test_the_packaged_encoder_finds_most_rephrasings_and_leaves_unrelated_questions_alone(gsm8k: Path) -> None:
    before = (logging.getLogger().level, list(logging.getLogger().handlers))
    encoder = load_encoder("wordllama")
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
    questions = [json.loads(line)["question"] for line in (gsm8k / "train.jsonl").read_text("utf-8").splitlines()]
    pairs = [json.loads(line) for line in (REPO / "bench/audit/paraphrases.jsonl").read_text("utf-8").splitlines()]
    told = {p["row"] for p in pairs}
    rows = [row(i, q) for i, q in enumerate(questions) if i in told or i < 400]
    rows += [row(f"{s}-{p['row']}", p[s]) for p in pairs for s in ("L1", "L3")]
    result = find_families(rows, embed=encoder)
    family = dict(zip(result.row_ids, result.families))
    assert sum(family[str(p["row"])] == family[f"L1-{p['row']}"] for p in pairs) >= 17
    assert sum(family[str(p["row"])] == family[f"L3-{p['row']}"] for p in pairs) == 0
    strangers = [e for e in result.joins if "-" not in rows[e[0]].id and "-" not in rows[e[1]].id]
    assert len(strangers) <= 2


@needs_wordllama
def test_the_audit_says_what_embeddings_joined(tmp_path: Path) -> None:
    rows = [
        row(
            "a",
            "A road has 40 houses on one side and three times as many homes on the other. How many are there?",
        ),
        row(
            "b",
            "On one side of the road stand 40 houses, on the other three times that. How many homes in all?",
        ),
        row(
            "c",
            "Bread rises for 2 hours and bakes for 1 hour. How long does a baker wait for four loaves made in turn?",
        ),
    ]
    report = audit_data(rows, config=AuditConfig(embed="wordllama"))
    assert "embedding: 1 joins between families, first" in render_text(report)
    write_report(report, tmp_path)
    written = [json.loads(line) for line in (tmp_path / "families.jsonl").read_text("utf-8").splitlines()]
    assert [w["evidence"] for w in written] == ["embedding", "embedding", "singleton"]
    (join,) = [json.loads(line) for line in (tmp_path / "joins.jsonl").read_text("utf-8").splitlines()]
    assert {join["row"], join["other"]} == {"a", "b"} and join["similarity"] == written[0]["similarity"]


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown encoder 'bert-of-the-hub'"):
        load_encoder("bert-of-the-hub")
    with pytest.raises(ModelError, match="holds no encoder"):
        load_encoder(tmp_path)


def test_a_plain_folder_is_read_by_mean_pooling(tiny_model: Path) -> None:
    encoder = load_encoder(tiny_model)
    vectors = encoder.encode(["a ferry", "a ferry crosses the harbor at night"])
    assert vectors.shape == (2, 64) and not encoder.measured
    alone = encoder.encode(["a ferry"])
    np.testing.assert_allclose(vectors[0], alone[0], atol=1e-4)  # padding takes no part
    report = audit_data([row(0, "one"), row(1, "two")], config=AuditConfig(embed=str(tiny_model)))
    assert any(f.check == "audit.embed_unmeasured" for f in report.findings)
