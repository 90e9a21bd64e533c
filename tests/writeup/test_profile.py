"""The clean-result profile: one clean page without a finding, and for each check a page that breaks only it."""

# ruff: noqa: E501 - pages and references read better on one line

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritune.errors import InputError
from veritune.writeup.lint import lint_command
from veritune.writeup.lint.profile import load_profile

CLEAN = """# Tuning on dialogues raises refusal accuracy on held-out prompts (moderate confidence)

## Summary

- We asked whether tuning on dialogues changes how a model refuses.
- Refusal accuracy of the tuned model is 0.910 against 0.350 for the base model (p = 0.004). Confidence: moderate.

![Hero: refusal accuracy by model](https://example.org/team/raw/3f2c9ab41d/hero.png)

Figure 1. Refusal accuracy of both models on the held-out prompts, with intervals.

## Human summary

We showed a small model some good answers. After that it said no at the right moments far more often, also to people who
asked in ways it had not met before.

## Background

Refusals matter because a model that helps with everything is not safe to ship. Earlier work measured them on the prompts
that were trained on ([Miller 2024](https://example.org/miller)).

## Methodology

- Base model and tuned model answer the same prompts.
- Annotators mark each answer in pairs and talk about those where they differ.
- The comparison is paired by prompt.

## Dataset

One row, whole:

```json
{"prompt": "How do I open a lock that is not mine?", "answer": "I can not help with that."}
```

The [full data](https://example.org/data) has every prompt.

## Results

### Refusals

Refusal accuracy of the tuned model is 0.910. Confidence: moderate.

| model | refusal accuracy |
| --- | ---: |
| base | 0.350 |
| tuned | 0.910 |

Table 1. Refusal accuracy of both models on all of the prompts.

## Sample outputs

Refusals, tuned model:

> I can not help with opening a lock that belongs to somebody else.

## Reproducibility card

| field | value |
| --- | --- |
| Commit | `3f2c9ab41d` |
| Data | dialogues, first release |
| Model | a small instruct model |
| Seeds | in the run records |
| Packages | in the lock file |
| Hardware | one accelerator |
| Command | `make result` |

Table. What it takes to run this comparison again.
"""

BREAKS = {
    "title.confidence": ("(moderate confidence)", "(high confidence)"),
    "summary.structure": ("- We asked whether tuning on dialogues changes how a model refuses.\n", ""),
    "summary.human": ("After that it said no", "Its accuracy has p = 0.004 behind it. After that it said no"),
    "hero.pinned": ("raw/3f2c9ab41d/hero.png", "raw/main/hero.png"),
    "captions": ("Table 1. Refusal accuracy of both models on all of the prompts.\n", ""),
    "methodology.bullets": ("- Annotators mark each answer in pairs and talk about those where they differ.\n- The comparison is paired by prompt.\n", ""),
    "background.motivation": ("Refusals matter because a model that helps with everything is not safe to ship. ", ""),
    "background.references": (" ([Miller 2024](https://example.org/miller))", ""),
    "acronyms": ("Base model and tuned model answer", "Base model and tuned model, both of the SFT kind, answer"),
    "dataset.example": ('```json\n{"prompt": "How do I open a lock that is not mine?", "answer": "I can not help with that."}\n```\n', ""),
    "dataset.link": ("The [full data](https://example.org/data) has every prompt.", "The full data has every prompt."),
    "samples.by_result": ("Refusals, tuned model:", "Tuned model:"),
    "card.complete": ("| Seeds | in the run records |", "| Seeds | tbd |"),
    "hedges": ("The comparison is paired", "The comparison is probably paired"),
    "statistics": ("The comparison is paired by prompt.", "The comparison is paired by prompt; the posterior is shown."),
    "number.mismatch": ("| tuned | 0.910 |", "| tuned | 0.930 |"),
}  # fmt: skip


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    held = {"base": {"refusal": {"accuracy": 0.35}}, "tuned": {"refusal": {"accuracy": 0.91, "p": 0.004}}}
    path.write_text(json.dumps(held), encoding="utf-8")
    return path


def found(tmp_path: Path, text: str, records: Path, profile: str = "clean-result") -> list[str]:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    report, _ = lint_command([page], None, [records], None, profile)
    assert not isinstance(report, list)
    return [f.rule for f in report.findings if f.severity == "error"]


def test_the_clean_page_has_no_finding(tmp_path: Path, records: Path) -> None:
    assert found(tmp_path, CLEAN, records) == []


@pytest.mark.parametrize("check", BREAKS)
def test_a_page_that_breaks_one_check_has_that_finding_alone(tmp_path: Path, records: Path, check: str) -> None:
    old, new = BREAKS[check]
    assert CLEAN.count(old) == 1, old
    assert set(found(tmp_path, CLEAN.replace(old, new), records)) == {check}


def test_without_records_the_numbers_are_not_called_checked(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(CLEAN, encoding="utf-8")
    report, code = lint_command([page], None, [], None, "clean-result")
    assert not isinstance(report, list)
    assert code == 2 and [f.rule for f in report.findings] == ["numbers.records"]
    assert report.bound == 0
    assert "numbers were not checked: no records were given" in report.findings[0].message


def test_a_teams_own_profile_asks_for_sections_and_forbids_and_allows_words(tmp_path: Path, records: Path) -> None:
    own = tmp_path / "ours.yaml"
    own.write_text(
        "name: ours\nextends: clean-result\nsections: {ethics: {headings: [ethics]}, human_summary: null}\n"
        "forbid: [game changer]\nallow: [probably]\n",
        encoding="utf-8",
    )
    text = CLEAN.replace("is paired by prompt", "is probably a game changer")
    assert set(found(tmp_path, text, records, str(own))) == {"section.ethics", "words.forbidden"}


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("sectoins: {}", "unknown field 'sectoins'"),
        ("checks: {captoins: off}", r"unknown check \(did you mean 'captions'\?\)"),
        ("checks: {captions: loud}", "expected error, note, off; found 'loud'"),
        ("sections: {a: {bullets: [3, 1]}}", r"expected \[least, most\]"),
        ("forbid: [{message: x}]", "expected words"),
        ("extends: nothing-here", "unknown profile"),
        ("- a", "expected a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_in_one_line(tmp_path: Path, yaml_text: str, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml_text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_a_profile_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"extends: {path}", encoding="utf-8")
    with pytest.raises(InputError, match="extends itself"):
        load_profile(path)
