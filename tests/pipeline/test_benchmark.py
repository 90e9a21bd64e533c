"""A benchmark as an eval of a study: its own file, asked of every arm, kept from the trained rows, frozen, decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import parse_study
from veritune.data.prepare import load_prepared, prepare
from veritune.errors import GateError, StaleError, StudyError
from veritune.evaluate.judge import MAX_TOKENS, Judge
from veritune.store import Store, hash_of
from veritune.train.models import ModelRef, load_tokenizer

N_ITEMS, N_DRAWN = 20, 14
WORDS = (
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven"),
    *("inlet", "jetty", "knoll", "lagoon", "marsh", "nook", "ocean"),
)
MINE = """
def letters(output, item):
    if "never" in item["id"]:
        raise ValueError("no")
    return sum(c.isalpha() for c in output) / len(output)
"""


def quiz(n: int = N_ITEMS) -> list[dict[str, Any]]:
    words = WORDS
    return [
        {
            "question": f"{words[i % 15]} {words[(3 * i + 4) % 15]} {i * i} and {i}?",
            "answer": f"#### {i}",
            "options": [str(i), str(i + 1), str(i * i + 2)],
            "right": str(i),
        }
        for i in range(n)
    ]


def with_quiz(study: Any, *, manner: bool = False, **more: Any) -> Any:
    """The tiny study with the quiz as an eval; `manner` asks it all a second time and scores the manner by rules."""
    (study.root / "quiz.jsonl").write_text("".join(json.dumps(q) + "\n" for q in quiz()), encoding="utf-8")
    (study.root / "mine.py").write_text(MINE, encoding="utf-8")
    spec = {
        "path": "quiz.jsonl",
        "columns": {"user": "question", "assistant": "answer"},
        "kind": "answer",
        "items": N_DRAWN,
        "template": "{question} \\boxed{}",
        "max_new_tokens": 8,
        **more,
    }

    def change(settings: dict[str, Any]) -> None:
        settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
        settings["evals"] = {"style": {**settings["evals"]["style"], "zones": ["stranger"]}, "quiz": spec}
        claim = {"kind": "not_worse", "condition": "all_layer", "margin": 0.2, "eval": "quiz", "zone": "benchmark"}
        settings["claims"] = [{"name": "keeps", **claim}]
        if manner:
            rules = [{"name": "letters", "pattern": "[a-z]{2}"}, {"name": "no_e", "absent": ["e"]}]
            own = {"path": "quiz.jsonl", "columns": spec["columns"], "rules": rules, "max_new_tokens": 8}
            settings["evals"]["manner"] = own
            settings["claims"].append({**settings["claims"][0], "name": "manner", "eval": "manner"})
            pick = {"kind": "choice", "choices": "options", "expected": "right", "choices_as": "letters"}
            settings["evals"]["pick"] = {"path": "quiz.jsonl", "columns": spec["columns"], **pick}
            settings["claims"].append({**settings["claims"][0], "name": "picks", "eval": "pick"})
            settings["evals"]["mine"] = {"kind": "function", "path": "mine.py:letters", "zones": ["stranger"]}

    study.change(change)
    return study


def prepared(study: Any, tiny_model: Path) -> Any:
    tokenizer = load_tokenizer(ModelRef("tiny", tiny_model, "float32"))
    return prepare(Store(study.root), parse_study(study.settings()), tokenizer), tokenizer


# ---------------------------------------------------------------- prepared and frozen


def test_items_are_drawn_by_the_seed_and_belong_to_no_zone_of_the_data(study: Any, tiny_model: Path) -> None:
    data, tokenizer = prepared(with_quiz(study), tiny_model)
    frozen = data.facts.benchmarks["quiz"]
    items = data.benchmarks["quiz"].rows
    assert (frozen.rows, len(frozen.items)) == (N_ITEMS, N_DRAWN)
    assert list(frozen.items) == [row.id for row in items] == sorted(frozen.items, key=lambda i: int(i.split(":")[1]))
    assert not set(frozen.items) & set(data.zone_of)
    assert {data.place_of(i)[1] for i in frozen.items} == {"benchmark"}
    text = tokenizer.decode(data.prompt_of(items[0].id))
    assert f"{items[0].messages[0].content} \\boxed{{}}<|im_end|>" in text and "####" not in text

    other, _ = prepared(with_quiz(study, items_seed=1), tiny_model)
    assert other.facts.benchmarks["quiz"].items != frozen.items
    assert other.facts.data_version == data.facts.data_version
    whole, _ = prepared(with_quiz(study, items=None), tiny_model)
    assert len(whole.benchmarks["quiz"].rows) == N_ITEMS


def test_frozen_items_are_read_back_and_an_edited_file_is_refused(study: Any, tiny_model: Path) -> None:
    data, _ = prepared(with_quiz(study), tiny_model)
    store = Store(study.root)
    assert load_prepared(store, data.facts).benchmarks == data.benchmarks
    path = next(store.data(data.version).glob("benchmark-quiz-*.parquet"))
    path.unlink()
    with pytest.raises(StaleError, match="is missing"):
        load_prepared(store, data.facts)


def test_a_trained_row_that_holds_an_item_stops_the_study(study: Any, tiny_model: Path) -> None:
    with_quiz(study, items=None, template="{question} Think step by step and put the final answer in a box.")
    data, _ = prepared(study, tiny_model)
    seen = next(row for row in data.rows if data.zone_of[row.id] == "seen")
    copied = {"question": seen.messages[0].content, "answer": "#### 3"}
    (study.root / "quiz.jsonl").write_text(json.dumps(copied) + "\n", encoding="utf-8")
    with pytest.raises(GateError, match=r"contamination: .*benchmark quiz"):
        prepared(study, tiny_model)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"items": 21}, "expected at most the 20 rows of quiz.jsonl, found 21"),
        ({"template": "no place"}, "`template` needs {question} exactly once"),
        ({"zones": ["stranger"]}, "with `path` the only zone is `benchmark`"),
        ({"rules": [{"name": "a", "contains": "b"}]}, "`kind: answer` takes no `rules`"),
        ({"path": None}, "`columns` can only be used with `path`"),
    ],
)
def test_a_benchmark_that_cannot_be_asked_is_refused_in_one_line(
    study: Any, tiny_model: Path, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(StudyError) as caught:
        prepared(with_quiz(study, **more), tiny_model)
    assert says in caught.value.message


def test_a_claim_on_a_benchmark_names_its_zone(study: Any) -> None:
    settings = with_quiz(study).settings()
    del settings["claims"][0]["zone"]
    with pytest.raises(StudyError, match="write `zone: benchmark`"):
        parse_study(settings)


def test_a_study_without_a_benchmark_has_the_contract_it_had(study: Any) -> None:
    dumped = parse_study(study.settings()).evals["style"].model_dump(mode="json")
    assert not {"path", "columns", "items", "items_seed", "template", "system"} & set(dumped)


# ---------------------------------------------------------------- from plan to report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Callable[..., Any]) -> Any:
    """A study with a benchmark, run to its report."""
    study = with_quiz(new_study(tmp_path_factory.mktemp("benchmark") / "study", tiny_model), manner=True)
    done = _cli("run", study.root)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    return study


def _cli(*args: object) -> Any:
    import subprocess
    import sys

    command = [sys.executable, "-m", "veritune", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_every_arm_answers_the_drawn_items_and_failures_are_counted_apart(finished: Any) -> None:
    summaries = [json.loads(p.read_text("utf-8")) for p in finished.root.glob("runs/*/summary.json")]
    assert len(summaries) == 3
    for summary in summaries:
        zone = summary["scores"]["quiz"]["benchmark"]
        assert zone["items"] == N_DRAWN
        assert zone["scored"] + sum(zone["missing"].values()) == N_DRAWN
        assert set(zone["missing"]) <= {"extraction_failed", "empty_output"}
    plan = json.loads((finished.root / "plan.json").read_text("utf-8"))
    assert plan["data"]["items"]["quiz"] == N_DRAWN and "quiz" in plan["probe"]["answers"]["evals"]


def test_options_and_a_function_of_the_study_s_own_are_scored_in_every_arm(finished: Any) -> None:
    contract = json.loads((finished.root / "contract.lock.json").read_text("utf-8"))
    frozen = contract["entries"][0]["terms"]["facts"]["scorers"]["mine"]
    assert frozen["path"] == "mine.py" and len(frozen["sha256"]) == 64
    asked: list[list[str]] = []
    for path in sorted((finished.root / "runs").glob("*/scores/pick.jsonl")):
        scores = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        asked.append([s["item_id"] for s in scores])
        for s in scores:
            likeliest = max(range(3), key=lambda k, s=s: s["parts"]["log_likelihood"][k])
            assert s["parts"]["options"] == ["A", "B", "C"] and s["parts"]["right"] == 0
            assert s["value"] == float(likeliest == 0) and s["zone"] == "benchmark"
    assert len(asked) == 3 and asked[0] == asked[1] == asked[2] and len(asked[0]) == N_ITEMS
    for path in (finished.root / "runs").glob("*/scores/mine.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            s = json.loads(line)
            if s["value"] is not None:
                assert s["value"] == sum(c.isalpha() for c in s["output"]) / len(s["output"])
    plan = json.loads((finished.root / "plan.json").read_text("utf-8"))
    scored = [c["scoring_tokens"] for c in plan["cells"]]
    assert len(set(scored)) == 1 and plan["total"]["scoring_tokens"] == sum(scored) > 0
    verdicts = json.loads((finished.root / "verdict.json").read_text("utf-8"))["verdicts"]
    assert any(v["claim"] == "picks" for v in verdicts)


def test_a_judge_decides_only_what_it_was_measured_for(study: Any) -> None:
    from veritune.pipeline.judges import judges_agree
    from veritune.pipeline.ready import make_ready
    from veritune.progress import Progress

    judge = {"kind": "judge", "base_url": "http://127.0.0.1:9/v1", "model": "m", "prompt": "{output}"}
    study.change(lambda s: s["evals"].update(style={**judge, "zones": ["stranger", "seen"]}))
    with pytest.raises(
        StudyError,
        match=r"the eval is a judge whose agreement with people was not measured",
    ):
        parse_study(study.settings())
    study.change(lambda s: s.update(claims=[{**c, "correction": "exploratory"} for c in s["claims"]]))
    parse_study(study.settings())
    study.change(lambda s: s["evals"]["style"].update(agreement="labelled.jsonl"))
    study.change(lambda s: s.update(claims=[{**c, "correction": "confirmatory"} for c in s["claims"]]))
    (study.root / "labelled.jsonl").write_text(json.dumps({"output": "x", "label": "yes"}) + "\n")
    store, settings = Store(study.root), parse_study(study.settings())
    ready = make_ready(store, settings, Progress(silent=True))
    assert ready.facts.scorers is not None and ready.facts.scorers["style"].path == "labelled.jsonl"
    answer = {"url": judge["base_url"], "body": {}, "said": "yes", "format": 2}
    asked = Judge.of(settings.evals["style"], store.root / "audit" / "judge")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": MAX_TOKENS}
    path = asked.cache / f"{hash_of({'url': judge['base_url'], 'body': body})}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(answer))
    with pytest.raises(GateError, match=r"claim learns depends on a judge that may not decide: m agrees with 1 of 1"):
        judges_agree(ready)
    study.change(lambda s: s.update(claims=[{**c, "correction": "exploratory"} for c in s["claims"]]))
    again = make_ready(store, parse_study(study.settings()), Progress(silent=True))
    assert not judges_agree(again)["style"].may_decide


def test_claims_are_decided_on_the_zone_benchmark(finished: Any) -> None:
    verdicts = json.loads((finished.root / "verdict.json").read_text("utf-8"))["verdicts"]
    keeps, manner, _picks = sorted(verdicts, key=lambda v: v["claim"])
    assert keeps["status"] == "untested"  # a random model gives no number
    assert f"every score is missing on both sides ({3 * N_DRAWN} extraction_failed)" in keeps["sentence"]
    assert manner["status"] in ("supported", "refuted", "inconclusive")
    assert "benchmark items of manner" in manner["sentence"]
    assert manner["estimates"][0]["n"] == N_ITEMS
    assert "memorised was not tested" not in " ".join(manner["may_not"])


def test_the_report_shows_the_zone_and_the_items(finished: Any) -> None:
    done = _cli("report", finished.root)
    assert done.returncode == 0, done.stderr
    page = (finished.root / "report.html").read_text("utf-8")
    assert "benchmark" in page
    items = json.loads((finished.root / "contract.lock.json").read_text("utf-8"))["entries"][0]["terms"]["facts"]
    first = min(items["benchmarks"]["quiz"]["items"])
    asked = {f"quiz/quiz:{i + 1}": q["question"] for i, q in enumerate(quiz())}
    assert asked[first] in page


def test_a_changed_benchmark_is_not_what_was_frozen(finished: Any) -> None:
    path = finished.root / "quiz.jsonl"
    before = path.read_text("utf-8")
    path.write_text(before.replace('#### 3"', '#### 4"'), encoding="utf-8")
    try:
        done = _cli("freeze", finished.root)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1 and "facts.benchmarks.quiz" in done.stdout + done.stderr
