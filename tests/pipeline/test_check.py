"""One page about an adapter without a study: what was measured, what was not and why, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.commands.app import app
from veritune.errors import ModelError
from veritune.pipeline.check import CheckRequest, check, check_text
from veritune.train.models import ModelRef, load_base

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Any) -> Path:
    """An adapter, its merge, and rows in two files that share no family."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("check")
    study = new_study(root / "study", tiny_model)
    rows = [json.loads(line) for line in (study.root / "rows.jsonl").read_text("utf-8").splitlines()]
    held = {row["original"] for row in rows[-9:]}
    for name, keep in (("seen", False), ("held", True)):
        lines = [json.dumps(row) + "\n" for row in rows if (row["original"] in held) is keep]
        (root / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_base(ModelRef("tiny", tiny_model, "float32")), config)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.05)
    adapted.save_pretrained(root / "adapter")
    adapted.merge_and_unload().save_pretrained(root / "merged")
    for side, right in (("base", 4), ("tuned", 9)):
        lines = [json.dumps({"id": f"q{i}", "score": int(i < right)}) + "\n" for i in range(12)]
        (root / f"{side}.jsonl").write_text("".join(lines), "utf-8")
    return root


def asked(root: Path, model: Path, **more: Any) -> CheckRequest:
    return CheckRequest(root / "adapter", str(model), root / "seen.jsonl", family_field="original", quick=True, **more)


def test_everything_given_is_measured_on_one_page(made: Path, tiny_model: Path) -> None:
    logs = (f"base={made / 'base.jsonl'}", f"tuned={made / 'tuned.jsonl'}")
    report = check(asked(made, tiny_model, held_out=made / "held.jsonl", merged=made / "merged", logs=logs))
    parts = {part.name: part for part in report.parts}
    assert list(parts) == ["data", "independence", "generalisation", "tokens", "recall", "weights", "merge", "scores"]
    assert report.open == () and not report.failed, check_text(report)
    assert parts["merge"].status == "passed" and "The weights moved by" in parts["weights"].lines[0]
    assert any("tuned" in line and "base" in line for line in parts["scores"].lines)
    text = check_text(report)
    assert "was not checked. One adapter is one seed" in text
    assert "veritune probe gap --model" in text and "Run it without --quick" in text


def test_what_was_not_given_is_not_measured_and_says_what_to_give(made: Path, tiny_model: Path) -> None:
    report = check(asked(made, tiny_model))
    assert report.open == ("generalisation", "tokens", "recall")
    text = check_text(report)
    assert "whether it generalises cannot be told from the rows that it trained on" in text
    assert "give them with --held-out" in text and "give them with --merged" in text


def test_a_merge_that_is_none_fails_the_page(made: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", made / "adapter", "--model", tiny_model, "--data", made / "seen.jsonl", "--merged", tiny_model]
    with pytest.raises(SystemExit) as left:
        app([*map(str, words), "--quick"])
    assert left.value.code == 2
    out = capsys.readouterr().out
    assert "Do not ship the merged weights" in out and "the change is not in the merged weights" in out


def test_an_adapter_that_is_none_is_one_line(made: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds neither adapter_config\.json nor config\.json"):
        check(CheckRequest(tmp_path, str(tiny_model), made / "seen.jsonl"))
