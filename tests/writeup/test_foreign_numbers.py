"""Numbers in German, French, Spanish and Chinese: words, decimal commas, digits of full width, and their records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veritune.writeup.lint.foreign_words import chinese_amount
from veritune.writeup.lint.free import lint_records
from veritune.writeup.lint.numbers import scan

HELD = {
    "base": {"gsm8k": {"accuracy": 0.352, "n": 1319}},
    "tuned": {"gsm8k": {"accuracy": 0.541, "n": 1319}},
    "items": {"easy": {"share": 0.9}},
    "seeds": [0, 1, 2],
    "epochs": 20,
    "train": {"rows": 1500000},
}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Neun von zehn Antworten sind richtig.", [(0.9, "", "share")]),
        ("Das sind neunzehn Punkte mehr.", [(19, "points", "")]),
        ("Um 18,9 Prozentpunkte besser.", [(18.9, "points", "")]),
        ("Fünfundzwanzig Prozent, zwei Drittel.", [(25, "%", ""), (2 / 3, "", "share")]),
        ("Die Hälfte der Fragen.", [(0.5, "", "share")]),
        ("Es ist doppelt so gut und dreimal so teuer.", [(2, "", "ratio"), (3, "", "ratio")]),
        ("Neuf sur dix, soit dix-neuf points.", [(0.9, "", "share"), (19, "points", "")]),
        ("Soit quatre-vingt-dix-neuf pour cent.", [(99, "%", "")]),
        ("Il double la précision, trois fois.", [(2, "", "ratio"), (3, "", "ratio")]),
        ("Nueve de cada diez y diecinueve puntos.", [(0.9, "", "share"), (19, "points", "")]),
        ("El doble de errores; treinta y uno por ciento.", [(2, "", "ratio"), (31, "%", "")]),
        ("十分之九的回答正确，九成五。", [(0.9, "", "share"), (0.95, "", "share")]),
        ("提高了十九个百分点，翻倍。", [(19, "points", ""), (2, "", "ratio")]),
        ("三倍，减半。", [(3, "", "ratio"), (0.5, "", "ratio")]),
        ("百分之五十四点一，准确率为５４．１％。", [(54.1, "%", ""), (54.1, "%", "")]),
        ("1,5 Millionen, 1.5万, 0,541.", [(1.5e6, "", ""), (1.5e4, "", ""), (0.541, "", "")]),
        ("Der eine von zwei, une fois, 成功率, once upon a time, six hundred.", []),
    ],
)  # fmt: skip
def test_numbers_in_other_languages_are_read(text: str, read: list[tuple[float, str, str]]) -> None:
    assert [(pytest.approx(n.value), n.percent, n.form) for n in scan(text)] == read


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Neun von zehn der Items sind easy (share).", "bound"),
        ("Auf GSM8K steigt die accuracy von base zu tuned um neunzehn Punkte.", "bound"),
        ("Die Genauigkeit von tuned auf GSM8K beträgt 54,1 %.", "bound"),
        ("Wir messen auf GSM8K mit tuned 1.319 Fragen, und die Zahl n ist nicht gerundet.", "bound"),
        ("Sur GSM8K tuned gagne dix-neuf points sur base.", "bound"),
        ("Tuned est 1,5 fois plus précis que base sur GSM8K.", "bound"),
        ("En GSM8K tuned gana diecinueve puntos sobre base.", "bound"),
        ("tuned在GSM8K上的准确率为５４．１％。", "bound"),
        ("tuned在GSM8K上比base高十九个百分点。", "bound"),
        ("训练了三个种子。", "bound"),
        ("Drei Seeds.", "bound"),
        ("Wir trainieren auf 1,5 Millionen Zeilen (train rows).", "bound"),
        ("Auf GSM8K steigt die accuracy von base zu tuned um siebzehn Punkte.", "absent"),
        ("Acht von zehn der Items sind easy (share).", "absent"),
        ("Die Genauigkeit von tuned auf GSM8K beträgt 51,4 %.", "absent"),
        ("tuned在GSM8K上的准确率为５１．４％。", "absent"),
        ("Sur GSM8K tuned perd dix-sept points sur base.", "absent"),
        ("Auf dem Dev-Teil von GSM8K beträgt die Genauigkeit von tuned 0,51.", "absent"),
    ],
)
def test_they_are_held_against_the_records_and_nobody_is_accused(text: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(HELD), encoding="utf-8")
    (tmp_path / "p.md").write_text(text + "\n", encoding="utf-8")
    found = lint_records(tmp_path / "p.md", [tmp_path / "r.json"]).readings
    assert [r.outcome for r in found] == [outcome], [(r.text, r.message) for r in found]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Tuned gains nineteen points over base on GSM8K.", "bound"),
        ("Base gains nineteen points over tuned on GSM8K.", "absent"),
        ("On GSM8K tuned loses 18.9 points against base.", "absent"),
        ("Tuned: −18.9 points against base on GSM8K.", "absent"),
        ("Tuned reduces the error of base on GSM8K by 29 %.", "bound"),
    ],
)
def test_a_difference_the_wrong_way_round_does_not_pass(text: str, outcome: str, tmp_path: Path) -> None:
    test_they_are_held_against_the_records_and_nobody_is_accused(text, outcome, tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 99))
def test_chinese_numbers_up_to_99(n: int) -> None:
    digits = "零一二三四五六七八九"
    tens, ones = divmod(n, 10)
    word = ("" if tens == 0 else ("" if tens == 1 else digits[tens]) + "十") + ("" if ones == 0 else digits[ones])
    assert chinese_amount(word) == n
