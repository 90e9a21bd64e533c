"""Win words against record files alone: a win, an equality or "memorised nothing" needs a verdict on that contrast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritune.writeup.held_verdicts import read_verdicts
from veritune.writeup.lint import LintFinding, lint_command
from veritune.writeup.lint.free import lint_records
from veritune.writeup.lint.rules import load_rules

SCORES = {
    "base": {"gsm8k": {"accuracy": 0.352}},
    "tuned": {"gsm8k": {"accuracy": 0.541}},
    "wide": {"gsm8k": {"accuracy": 0.55}},
}
WINS = (
    "Tuned outperforms base on GSM8K.",
    "On GSM8K tuned is better than base.",
    "Tuned übertrifft base auf GSM8K.",
    "Verglichen mit base ist tuned deutlich besser auf GSM8K.",
    "Tuned surpasse base sur GSM8K.",
    "Tuned supera a base en GSM8K.",
    "tuned在GSM8K上优于base。",
    "与base相比，tuned在GSM8K上更好。",
)
LOSSES = ("Base outperforms tuned on GSM8K.", "Base übertrifft tuned auf GSM8K.", "base在GSM8K上优于tuned。")
EQUALITIES = (
    "There is no difference between tuned and base on GSM8K.",
    "Zwischen tuned und base gibt es auf GSM8K keinen Unterschied.",
    "Il n'y a aucune différence entre tuned et base sur GSM8K.",
    "No hay diferencia entre tuned y base en GSM8K.",
    "tuned与base在GSM8K上没有差异。",
)
LEARNED = (
    "The tuned model memorised nothing.",
    "Tuned hat nichts auswendig gelernt.",
    "Tuned n'a rien mémorisé.",
    "Tuned no ha memorizado nada.",
    "tuned没有记住任何题目。",
)
OTHERS = (
    "Fine-tuning doubles the accuracy on GSM8K.",
    "It halves the error of the base model on GSM8K.",
    "Tuned improves significantly on GSM8K.",
    "tuned在GSM8K上的准确率翻倍。",
    "Tuned ist auf GSM8K doppelt so gut wie base.",
)
FREE = (
    "Tuned does not outperform base on GSM8K.",
    "Is tuned better than base on GSM8K?",
    "The accuracy of tuned on GSM8K is higher than 0.5.",
    "Miller et al. show that tuned models outperform base models.",
    "This cache doubles your fun.",
    "We wrote the docs as well as the base classes, and won't change them.",
    "Ob tuned base übertrifft, ist offen.",
    "Tuned übertrifft base nicht.",
    "Tuned ne surpasse pas base.",
    "Tuned no supera a base.",
    "tuned不优于base（GSM8K）。",
    "`tuned.better_than(base)` returns a boolean.",
    "The reviewer wrote “tuned outperforms base”.",
)


def compared(decision: str) -> dict[str, object]:
    """What `veritune compare --json` prints, less what lint does not read."""
    return {"comparisons": [{"a": "tuned", "b": "base", "eval": "gsm8k", "decision": decision, "estimates": []}]}


def said(text: str, folder: Path, verdict: object = None) -> list[LintFinding]:
    (folder / "scores.json").write_text(json.dumps(SCORES), encoding="utf-8")
    files = [folder / "scores.json"]
    if verdict is not None:
        files.append(folder / "verdict.json")
        files[-1].write_text(json.dumps(verdict), encoding="utf-8")
    page = folder / "page.md"
    page.write_text(text + "\n", encoding="utf-8")
    return [f for f in lint_records(page, files).findings if f.rule.startswith("speech.")]


@pytest.mark.parametrize("text", [*WINS, *LOSSES, *EQUALITIES, *LEARNED, *OTHERS])
def test_without_a_verdict_a_win_word_is_unsupported_and_never_wrong(text: str, tmp_path: Path) -> None:
    (found,) = said(text, tmp_path)
    assert found.rule == "speech.unsupported" and found.severity == "error"
    assert "is unsupported: no verdict" in found.message and "wrong" not in found.message


@pytest.mark.parametrize("text", FREE)
def test_denials_questions_thresholds_quotes_and_others_are_free(text: str, tmp_path: Path) -> None:
    assert said(text, tmp_path) == []


@pytest.mark.parametrize("text", WINS)
def test_a_verdict_for_the_arm_allows_the_win(text: str, tmp_path: Path) -> None:
    assert said(text, tmp_path, compared("better by the margin")) == []
    assert len(said(text, tmp_path, compared("worse by the margin"))) == 1
    (found,) = said(text, tmp_path, compared("inconclusive"))
    assert "the verdict on tuned against base is inconclusive (verdict.json)" in found.message


@pytest.mark.parametrize("text", LOSSES)
def test_the_same_verdict_allows_no_win_of_the_other_arm(text: str, tmp_path: Path) -> None:
    assert len(said(text, tmp_path, compared("better by the margin"))) == 1
    assert said(text, tmp_path, compared("worse, size unresolved")) == []


@pytest.mark.parametrize("text", EQUALITIES)
def test_an_equality_needs_an_equivalence(text: str, tmp_path: Path) -> None:
    assert said(text, tmp_path, compared("equivalent")) == []
    assert len(said(text, tmp_path, compared("better by the margin"))) == 1


@pytest.mark.parametrize("text", LEARNED)
def test_memorised_nothing_needs_a_gain_that_carries(text: str, tmp_path: Path) -> None:
    assert len(said(text, tmp_path, compared("better by the margin"))) == 1
    carries = {"verdicts": [{"claim": "carries", "kind": "generalises", "status": "supported"}]}
    assert said(text, tmp_path, carries) == []
    carries["verdicts"][0]["status"] = "inconclusive"
    assert len(said(text, tmp_path, carries)) == 1


def test_a_verdict_speaks_of_its_own_arms_alone(tmp_path: Path) -> None:
    verdict = compared("better by the margin")
    (found,) = said("Tuned outperforms wide on GSM8K.", tmp_path, verdict)
    assert "no verdict on this contrast" in found.message
    assert said("Tuned outperforms GPT-4 on GSM8K.", tmp_path, verdict)
    assert said("The baseline is worse than tuned on GSM8K.", tmp_path, verdict) == []
    assert said("The baseline is better than tuned on GSM8K.", tmp_path, verdict)


def test_the_verdicts_of_a_study_name_their_arms_in_the_details(tmp_path: Path) -> None:
    details = {"a": {"condition": "tuned", "mean": 0.5}, "b": {"condition": "base", "mean": 0.3}}
    verdict = {"claim": "learns", "kind": "improves", "status": "supported", "estimates": [{"details": details}]}
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"verdicts": [verdict, {"claim": "other"}, {"a": "x", "b": "y"}]}), encoding="utf-8")
    (held,) = read_verdicts([path])
    assert (held.name, held.arms, held.allows) == ("learns", (frozenset({"tuned"}), frozenset({"base"})), {"win"})
    for kind in ("keeps", "probe"):
        path.write_text(json.dumps({"verdicts": [{**verdict, "kind": kind}]}), encoding="utf-8")
        assert read_verdicts([path])[0].allows == frozenset(), "a win is no claim of this kind"


def test_a_team_may_make_it_a_note_and_the_command_exits_2(tmp_path: Path) -> None:
    said(WINS[0], tmp_path)
    page, scores = tmp_path / "page.md", tmp_path / "scores.json"
    assert lint_command([page], None, [scores])[1] == 2
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: {speech.unsupported: note}\n", encoding="utf-8")
    assert lint_command([page], None, [scores], rules)[1] == 0
    assert load_rules().level("speech.unsupported") == "error"
