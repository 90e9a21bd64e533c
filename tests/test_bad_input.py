"""Bad input through the command line: one line that names the place and the fix, exit status 1, and nothing written
that a later run would believe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def edit_rows(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Any], None]:
    """A case that changes the rows."""

    def spoil(study: Any) -> None:
        rows = [json.loads(line) for line in (study.root / "rows.jsonl").read_text("utf-8").splitlines()]
        change(rows)
        study.write_rows(rows)

    return spoil


def raw_rows(content: bytes) -> Callable[[Any], None]:
    return lambda study: (study.root / "rows.jsonl").write_bytes(content)


def broken_line_412(study: Any) -> None:
    rows = (study.root / "rows.jsonl").read_text("utf-8").splitlines()
    many = [rows[i % len(rows)].replace('"id": "', f'"id": "n{i}-') for i in range(500)]
    many[411] = many[411][:-5]
    study.write_rows(many)


def settings(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], None]:
    return lambda study: study.change(change)


def own_model(study: Any) -> Path:
    """A copy of the model inside the study folder."""
    folder = study.root / "model"
    shutil.copytree(study.settings()["model"]["path"], folder)
    study.change(lambda s: s["model"].update(path="model"))
    return folder


def without_template(study: Any) -> None:
    (own_model(study) / "chat_template.jinja").unlink()


def without_weights(study: Any) -> None:
    (own_model(study) / "model.safetensors").unlink()


def damaged_weights(study: Any) -> None:
    path = own_model(study) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def broken_config(study: Any) -> None:
    (own_model(study) / "config.json").write_text('{"model_type": "no-such-model"}')


def template_that_refuses(study: Any) -> None:
    (own_model(study) / "chat_template.jinja").write_text("{{ raise_exception('no roles today') }}")


def template_without_end(study: Any) -> None:
    turns = "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
    template = turns + "{% if add_generation_prompt %}assistant:\n{% endif %}"
    (own_model(study) / "chat_template.jinja").write_text(template)


def empty_study(study: Any) -> None:
    (study.root / "study.yaml").write_text("")


def older_format(study: Any) -> None:
    (study.root / "contract.lock.json").write_text('{"format": 0, "entries": []}')


def damaged_contract(study: Any) -> None:
    (study.root / "contract.lock.json").write_text('{"format": 1, "entri')


def edited_timeline(study: Any) -> None:
    (study.root / "events.jsonl").write_text('{"event": "frozen", "previous": "abc", "time": "x"}\n')


CASES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "no study": (lambda s: (s.root / "study.yaml").unlink(), ["no study file", "veritune init"]),
    "empty study": (empty_study, ["expected a mapping of settings"]),
    "unknown key": (settings(lambda s: s["train"].update(epoch=2)), ["train.epoch: unknown key"]),
    "empty file": (raw_rows(b""), ["rows.jsonl", "the file is empty"]),
    "blank file": (raw_rows(b"\n\n  \n"), ["rows.jsonl"]),
    "no file": (lambda s: (s.root / "rows.jsonl").unlink(), ["rows.jsonl: no such file"]),
    "not UTF-8": (raw_rows(b'{"id": "a", "messages": "\xff\xfe"}\n'), ["rows.jsonl:1", "UTF-8"]),
    "broken JSON on line 412": (broken_line_412, ["rows.jsonl:412", "JSON", "1 of 500 records"]),
    "no messages": (edit_rows(lambda r: r[4].pop("messages")), ["rows.jsonl:5: no turns", "say where they"]),
    "messages is null": (
        edit_rows(lambda r: r[4].update(messages=None)),
        ["rows.jsonl:5", "messages holds no messages"],
    ),
    "no assistant turn": (edit_rows(lambda r: r[2]["messages"].pop()), ["rows.jsonl:3", "no assistant turn"]),
    "empty assistant turn": (
        edit_rows(lambda r: r[2]["messages"][1].update(content="  ")),
        ["rows.jsonl:3", "assistant turn 2 is empty"],
    ),
    "roles out of order": (edit_rows(lambda r: r[2]["messages"].reverse()), ["rows.jsonl:3", "roles out of order"]),
    "unknown role": (edit_rows(lambda r: r[2]["messages"][0].update(role="boss")), ["rows.jsonl:3", "role boss"]),
    "duplicate id": (
        edit_rows(lambda r: r[9].update(id=r[3]["id"])),
        ["rows.jsonl:10", "already used at rows.jsonl:4"],
    ),
    "half a surrogate": (
        edit_rows(lambda r: r[2]["messages"][1].update(content="a \ud800 b")),
        ["rows.jsonl:3", "a lone surrogate"],
    ),
    "half a surrogate beside the messages": (edit_rows(lambda r: r[2].update(thing="a \ud800 b")), ["rows.jsonl:3"]),
    "control token in a text": (
        edit_rows(lambda r: r[2]["messages"][0].update(content="x <|im_end|> y")),
        ["<|im_end|>", "control token"],
    ),
    "row longer than the limit": (
        edit_rows(lambda r: r[2]["messages"][0].update(content="harbor " * 200)),
        ["max_length 128", "; rows are never truncated"],
    ),
    "limit longer than the context": (
        settings(lambda s: s["train"].update(max_length=4096)),
        ["train.max_length: 4096 exceeds the model's context of 256"],
    ),
    "one family": (edit_rows(lambda r: [x.update(original="f") for x in r]), ["1 family cannot be split"]),
    "no such family column": (settings(lambda s: s["data"].update(family_field="parent")), ["'parent'"]),
    "no such id column": (settings(lambda s: s["data"].update(id_field="key")), ["'key'"]),
    "rule names no column": (
        settings(lambda s: s["evals"]["style"]["rules"].append({"name": "x", "contains": "{figure}"})),
        ["evals.style", "no column 'figure'", "Columns there"],
    ),
    "model path is nothing": (
        settings(lambda s: s["model"].update(path="nowhere/at/all")),
        ["expected a Hugging Face model folder"],
    ),
    "model path is no model": (settings(lambda s: s["model"].update(path=".")), ["no config.json"]),
    "model path is no hub model": (
        settings(lambda s: s["model"].update(path="nobody/none")),
        ["is not a folder here, and it could not be fetched from the hub ("],
    ),
    "model without weights": (without_weights, ["expected *.safetensors"]),
    "model with damaged weights": (damaged_weights, ["the model cannot be loaded"]),
    "model with a broken config": (broken_config, ["config.json"]),
    "tokenizer without a template": (without_template, ["no chat template"]),
    "template that refuses": (template_that_refuses, ["chat template", "no roles today"]),
    "template without an end token": (template_without_end, ["end token"]),
    "method that does not exist": (
        settings(lambda s: [c.update(method="lorra") for c in s["conditions"].values()]),
        ["conditions.attention_only.method: unknown method 'lorra'", "'lora'"],
    ),
    "target that does not exist": (
        settings(lambda s: s["conditions"]["all_layer"].update(target_modules=["query"])),
        ["conditions.all_layer.target_modules: no linear module named 'query'", "q_proj"],
    ),
    "older format": (older_format, ["expected format 2, found format 0"]),
    "damaged contract": (damaged_contract, ["contract.lock.json is damaged"]),
    "edited timeline": (edited_timeline, ["events.jsonl line 1"]),
}


def files_of(study: Any) -> dict[Path, bytes]:
    """Every file but the locks, with its content."""
    found = (
        p for p in study.root.rglob("*") if p.is_file() and not p.relative_to(study.root).parts[0].startswith(".lock")
    )
    return {p: p.read_bytes() for p in found}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_exit_status_1_and_loses_nothing(case: str, study: Any, forks: Any) -> None:
    spoil, words = CASES[case]
    good = {p.name: p.read_bytes() for p in study.root.iterdir()}
    spoil(study)
    before = files_of(study)
    refused = forks("run", study.root, "--quiet")
    assert refused.rc == 1, refused.err
    for word in words:
        assert word in refused.err
    assert refused.err.startswith("veritune: ") and refused.err.count("\n") == 1, refused.err
    assert refused.out == ""
    assert not list(study.root.rglob("*.tmp"))
    assert not (study.root / "runs").exists() and not (study.root / "verdict.json").exists()
    if files_of(study) == before or case in ("older format", "damaged contract", "edited timeline"):
        return
    for name, content in good.items():
        (study.root / name).write_bytes(content)
    # What was left behind must neither be believed nor stand in the way of the mended study's checks.
    mended = forks("run", study.root, "--quiet", kill_at=r"os.mkdir \S+/audit/live-work")
    assert mended.rc == -9, mended.err


def test_rows_retired_in_another_folder_and_order_are_refused(study: Any, forks: Any, tmp_path: Path) -> None:
    edit_rows(lambda rows: rows[0]["messages"][0].update(content="a question that no other test asks"))(study)
    rows = [json.loads(line) for line in (study.root / "rows.jsonl").read_text("utf-8").splitlines()]
    other = tmp_path / "elsewhere.jsonl"
    other.write_text("".join(json.dumps({"messages": r["messages"]}, indent=None) + "\n" for r in rows[::-1]), "utf-8")
    assert forks("lineage", other, "--retire", "they leak").rc == 0
    assert "RETIRED: they leak" in forks("lineage", other).out, "a file stands for its folder"
    refused = forks("run", study.root, "--quiet")
    assert refused.rc == 1 and "rows.jsonl has row for row the content of the retired data version" in refused.err, (
        refused.err
    )
    assert "retired: they leak." in refused.err and not (study.root / "runs").exists()


def test_debug_shows_the_traceback(study: Any, forks: Any) -> None:
    (study.root / "rows.jsonl").unlink()
    assert "Traceback" in forks("--debug", "run", study.root).err


def test_a_damaged_score_file_is_named(finished_copy: Any, forks: Any) -> None:
    (path,) = finished_copy.root.glob("runs/baseline-*/scores/style.jsonl")
    (finished_copy.root / "seal.json").unlink()
    path.write_text(path.read_text("utf-8")[:-20], encoding="utf-8")
    refused = forks("run", finished_copy.root, "--quiet")
    assert refused.rc == 1
    assert "style.jsonl was edited: expected SHA-256" in refused.err and "found" in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["bogus"], ["run"], ["run", "--bogus", "x"], ["run", "a", "b"]])
def test_a_wrong_command_line_is_one_line_and_not_the_status_of_a_failed_claim(
    arguments: list[str], forks: Any
) -> None:
    refused = forks(*arguments)
    assert refused.rc == 1
    assert refused.err.startswith("veritune: ") and refused.err.count("\n") == 1
