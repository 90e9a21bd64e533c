"""Three arms on the same items: the base, the base with a document in its prompt, the tuned model; and the sentence on
whether tuning was needed at all."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.config.claim import Claim
from veritune.config.load import load_study, parse_study
from veritune.decide.claims import ClaimContext, judge
from veritune.errors import StudyError
from veritune.pipeline.decide import scores
from veritune.pipeline.flow import run
from veritune.progress import Progress
from veritune.records import Score, StudyVerdicts
from veritune.stats.table import ScoreTable
from veritune.store import Store

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "three-arms"
DOCUMENT = "harbor gate lamp ferry crane boat quay"
ASKED = {"eval": "exam", "zone": "benchmark"}
CLAIMS = [
    {"name": "guide_helps", "kind": "improves", "condition": "baseline", **ASKED, "eval": "prompted",
     "against_eval": "exam"},
    {"name": "tuning_needed", "kind": "better_by", "condition": "tuned", **ASKED, "against_eval": "prompted",
     "margin": 0.05},
]  # fmt: skip


def three_arms(study: Any) -> Any:
    items = [{"question": f"anchor {i * i} radio {i}?", "answer": f"radio {i}"} for i in range(12)]
    (study.root / "exam.jsonl").write_text("".join(json.dumps(q) + "\n" for q in items), encoding="utf-8")
    exam = {
        "path": "exam.jsonl",
        "columns": {"user": "question", "assistant": "answer"},
        "max_new_tokens": 6,
        "rules": [{"name": "no_e", "absent": ["e"]}, {"name": "letters", "pattern": "[a-z]{2}"}],
    }

    def change(settings: dict[str, Any]) -> None:
        settings["conditions"] = {"tuned": settings["conditions"]["all_layer"]}
        settings["seeds"] = [0]
        settings["train"]["max_steps"] = 2
        settings["evals"] = {"exam": exam, "prompted": {**exam, "system": DOCUMENT}}
        settings["claims"] = CLAIMS

    study.change(change)
    return study


def test_three_arms_end_in_a_sentence_on_whether_tuning_was_needed(study: Any) -> None:
    three_arms(study)
    run(study.root, progress=Progress(silent=True))
    store = Store(study.root)
    helped, needed = StudyVerdicts.load(store.verdict_file).verdicts
    assert "the untouched baseline" in helped.sentence.lower() and "baseline asked as exam" in helped.sentence
    assert "baseline asked as prompted" in needed.sentence
    assert "uning was needed" in needed.sentence or "uning was not needed" in needed.sentence
    assert any("one wording of the prompt" in line for line in needed.may_not)
    tables = scores(study.root)
    own, other = tables["tuned", "exam"], tables["baseline", "prompted"]
    assert needed.estimates[0].value == pytest.approx(own.score_S_N.mean() - other.score_S_N.mean())
    assert [i.removeprefix("exam/") for i in own.items] == [i.removeprefix("prompted/") for i in other.items]
    report = (study.root / "report.html").read_text(encoding="utf-8")
    assert "baseline asked as prompted" in report
    base = next(p for p in store.runs.iterdir() if p.name.startswith("baseline"))
    asked, plain = (Score.load_all(base / "scores" / f"{name}.jsonl") for name in ("prompted", "exam"))
    assert [s.output for s in asked] != [s.output for s in plain]  # the document reached the model


def table(name: str, eval_name: str, mean: float) -> ScoreTable:
    score = np.clip(mean + np.random.default_rng(len(name) + len(eval_name)).normal(0, 0.05, (1, 80)), 0, 1)
    items = tuple(f"{eval_name}/{i}" for i in range(80))
    return ScoreTable(name, eval_name, (name,), items, score, fixed=name == "baseline", missing=({},))


@pytest.mark.parametrize(
    ("prompted", "said"),
    [(0.4, "Tuning was needed: "), (0.8, "Tuning was not needed: "), (0.6, "Whether tuning was needed at all stays")],
)
def test_the_sentence_follows_the_verdict(prompted: float, said: str) -> None:
    claim = Claim(**{**CLAIMS[1], "zone": None})
    tables = {("tuned", "exam"): table("tuned", "exam", 0.65),
              ("baseline", "prompted"): table("baseline", "prompted", prompted)}  # fmt: skip
    scales = {"exam": (0.0, 1.0), "prompted": (0.0, 1.0)}
    (found,) = judge([claim], tables, ClaimContext(scales=scales))
    assert said in found.sentence
    fewer = replace(tables["baseline", "prompted"], items=tuple(f"prompted/x{i}" for i in range(80)))
    (other,) = judge([claim], {**tables, ("baseline", "prompted"): fewer}, ClaimContext(scales=scales))
    assert other.status == "untested" and "same items" in other.sentence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"against_eval": "exams"}, "unknown eval 'exams'"),
        ({"against_eval": "exam"}, ".against_eval: expected a benchmark \\(with `path`\\) other than"),
        ({"kind": "generalises", "share": 0.5, "margin": None}, "takes no `against_eval`"),
    ],
)
def test_a_claim_against_another_prompt_is_checked(study: Any, change: dict[str, Any], message: str) -> None:
    settings = three_arms(study).settings()
    claim = {k: v for k, v in {**CLAIMS[1], **change}.items() if v is not None}
    with pytest.raises(StudyError, match=message):
        parse_study({**settings, "claims": [claim]})


def test_two_evals_that_score_by_other_rules_are_no_pair(study: Any) -> None:
    settings = three_arms(study).settings()
    settings["evals"]["prompted"]["rules"] = settings["evals"]["prompted"]["rules"][:1]
    with pytest.raises(StudyError, match="differ in `rules`"):
        parse_study(settings)


def test_the_example_is_a_study_of_three_arms(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE.parent / "quickstart", tmp_path / "quickstart")
    shutil.copytree(EXAMPLE, tmp_path / "three-arms")
    runpy.run_path(str(tmp_path / "three-arms" / "make_data.py"), run_name="__main__")
    read = load_study(tmp_path / "three-arms" / "study.yaml")
    assert [c.name for c in read.claims] == ["tuning_helps", "guide_helps", "tuning_needed"]
    rows = (tmp_path / "three-arms" / "exam.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 48
