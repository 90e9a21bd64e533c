"""A study of tool conversations from file to verdict, on the tiny model with a template that writes tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import WORDS, TinyStudy, make_tiny_model, run_cli, study_settings
from tests.data.tool_templates import QWEN, TOOLS

from veritune.config.load import parse_study
from veritune.data.prepare import load_prepared, prepare
from veritune.store import Store
from veritune.train.models import ModelRef, load_tokenizer


def tool_rows(families: int = 13, wordings: int = 3) -> list[dict[str, Any]]:
    """Conversations with a call, its result and an answer; every family asks about its own harbour."""
    rows = []
    for f in range(families):
        harbour = WORDS[f]
        for k, ask in enumerate(("tide", "water", "depth")[:wordings]):
            function = {"name": "tide", "arguments": json.dumps({"harbour": harbour})}
            call = {"id": "c1", "type": "function", "function": function}
            turns = [
                {"role": "user", "content": f"{ask} {harbour} {WORDS[20 + f]}?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": f"{WORDS[40 + f]} {f}"},
                {"role": "assistant", "content": f"{harbour} {WORDS[40 + f]}."},
            ]
            shown = turns[:2] if k == 2 else turns
            rows.append({"id": f"f{f:02d}-{k}", "original": f"f{f:02d}", "thing": harbour, "messages": shown, "tools": list(TOOLS)})  # fmt: skip # noqa: E501
    return rows


@pytest.fixture(scope="module")
def tool_study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    folder = tmp_path_factory.mktemp("tools")
    make_tiny_model(folder / "model", chat_template=QWEN.text, context=512)
    settings = study_settings(folder / "model")
    settings["train"] |= {"max_length": 512, "max_steps": 2, "eval_steps": 1}
    settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
    settings["seeds"] = [0]
    settings["claims"] = []
    settings["evals"] = {"calls": {"max_new_tokens": 4, "rules": [{"name": "same", "calls": "equal"}]}}
    study = TinyStudy(folder / "study")
    study.root.mkdir()
    study.write(settings)
    study.write_rows(tool_rows())
    return study


def test_tool_conversations_go_from_file_to_report(tool_study: TinyStudy) -> None:
    done = run_cli("run", tool_study.root / "study.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    (summary,) = (tool_study.root / "runs").glob("*all_layer*/summary.json")
    assert json.loads(summary.read_text())["run_id"] == summary.parent.name
    scores = [json.loads(line) for p in summary.parent.glob("scores/*.jsonl") for line in p.read_text().splitlines()]
    assert scores and all("same" in s["parts"]["rules"] for s in scores if s["value"] is not None)
    assert (tool_study.root / "report.html").is_file()


def test_what_was_prepared_is_read_back_with_its_calls_and_tools(tool_study: TinyStudy, tmp_path: Path) -> None:
    store, study = Store(tool_study.root), parse_study(yaml.safe_load((tool_study.root / "study.yaml").read_text()))
    tokenizer = load_tokenizer(ModelRef("tiny", tool_study.root.parent / "model", "float32"))
    made = prepare(store, study, tokenizer)
    back = load_prepared(store, made.facts)
    assert back.rows == made.rows and back.rows[0].tools is not None
    assert back.rows[0].messages[1].tool_calls is not None
    labelled = [i for i in made.rendered["f00-0"].labels if i >= 0]
    call = '<tool_call>\n{"name": "tide", "arguments": {"harbour": "harbor"}}\n</tool_call>'
    assert tokenizer.decode(labelled) == f"{call}<|im_end|>harbor bench.<|im_end|>"


def test_the_audit_knows_tool_conversations(tool_study: TinyStudy) -> None:
    model = tool_study.root.parent / "model"
    done = run_cli(
        "audit", tool_study.root / "rows.jsonl", "--tokenizer", model, "--family-field", "original", "--json"
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:]
    assert found["families"]["originals"] == 13
    assert found["rendering"]["n_rows"] == 39 and not found["rejects_by_reason"]


def test_a_rule_on_calls_needs_rows_that_call(tool_study: TinyStudy, tmp_path: Path) -> None:
    rows = [
        {**r, "messages": [r["messages"][0], {"role": "assistant", "content": "no."}], "tools": []} for r in tool_rows()
    ]
    other = TinyStudy(tmp_path)
    other.write(tool_study.settings())
    other.write_rows(rows)
    done = run_cli("freeze", tmp_path / "study.yaml", "--quiet")
    assert done.returncode == 1
    assert "rule 'same' compares tool calls, but no item's answer contains one" in done.stderr
