"""Faults that fuzzing found, each with the smallest file that showed it. They stay."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from veritune import contract
from veritune.config.load import load_study
from veritune.data.load import load_rows
from veritune.data.quality import load_patterns
from veritune.errors import DataError, FormatError, InputError, ScoreError, StaleError, StudyError, VerituneError
from veritune.evaluate.logs import read
from veritune.release.gate.policy import read_policy
from veritune.seal import verify
from veritune.store import Store, sha256_file
from veritune.writeup.lint import load_rules
from veritune.writeup.pages import prose_of


@pytest.mark.parametrize("text", ["name: 2026-99-99", "name: !!timestamp x"])
def test_an_impossible_date_in_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    for reader, error in ((load_study, StudyError), (read_policy, StudyError), (load_rules, InputError)):
        with pytest.raises(error):
            reader(path)
    with pytest.raises(DataError):
        load_patterns(path)


@pytest.mark.parametrize("text", ['{"format": 1}', '{"format": 1, "entries": [3]}', '{"format": 1, "entries": [{}]}'])
def test_a_contract_without_entries(tmp_path: Path, text: str) -> None:
    (tmp_path / "contract.lock.json").write_text(text)
    with pytest.raises(VerituneError):
        contract.read(Store(tmp_path))


def test_a_contract_with_a_number_that_no_record_holds(tmp_path: Path) -> None:
    (tmp_path / "contract.lock.json").write_text(
        '{"format": 1, "entries": [{"hash": "x", "previous": null, "n": NaN}]}'
    )
    with pytest.raises(VerituneError, match="damaged: NaN is not JSON"):
        contract.read(Store(tmp_path))


@pytest.mark.parametrize("line", ["3", "[]", "not json", "null"])
def test_a_timeline_with_a_line_that_is_no_event(tmp_path: Path, line: str) -> None:
    (tmp_path / "events.jsonl").write_text(line + "\n")
    with pytest.raises(FormatError, match="line 1"):
        Store(tmp_path).events()


@pytest.mark.parametrize("files", [3, [1], {"a": 1}])
def test_a_seal_that_lists_no_hashes(tmp_path: Path, files: Any) -> None:
    (tmp_path / "seal.json").write_text(json.dumps({"files": files}))
    with pytest.raises(FormatError):
        verify(tmp_path)


@pytest.mark.parametrize("content", [b"\x80", b"\x80{}", b'"', b"id,score\n\xff,1"])
def test_scores_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    for name in ("s.csv", "s.jsonl", "s.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScoreError):
            read(tmp_path / name)


@pytest.mark.parametrize("header", [3, [], {"eval": 3}, {"eval": [1]}])
def test_an_inspect_archive_with_another_header(tmp_path: Path, header: Any) -> None:
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("samples/1.json", "[3]")
    with pytest.raises(ScoreError):
        read(tmp_path / "log.eval")


def test_a_csv_that_ends_inside_its_header(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b'"')
    (found,) = load_rows(tmp_path / "f.csv").rejects
    assert found.check == "load.unreadable"


def test_golden_outputs_with_an_infinite_limit(tmp_path: Path) -> None:
    from veritune.release.parity.golden import golden_problem

    item = {"id": "i", "messages": [], "prompt_ids": [1], "token_ids": [2]}
    text = json.dumps({"decoding": {"max_new_tokens": 4}, "items": [item]})
    (tmp_path / "golden.json").write_text(text.replace("4", "1e999"))
    assert "is damaged" in (golden_problem(tmp_path / "golden.json") or "")


@pytest.mark.parametrize(
    "rules", [{"aliases": {"zone": " "}}, {"forbid": None}, {"forbid": 3}, {"ignore": ["a{99999999999}"]}]
)
def test_lint_rules_of_another_shape(tmp_path: Path, rules: dict[str, Any]) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(rules))
    with pytest.raises(InputError, match=r"aliases\.zone is a mapping|forbid is a list|not a regular expression"):
        load_rules(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "entry", [{"where": 0}, {"where": [[]]}, {"patterns": ["(?P<a>x)", "(?P<a>y)"]}, {"patterns": ["a{99999999999}"]}]
)
def test_patterns_of_another_shape(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "p.yaml").write_text(json.dumps({"mine": {"says": "s", "patterns": ["a"], **entry}}))
    with pytest.raises(DataError, match=r"expected a list of system|cannot be joined|is no regular expression"):
        load_patterns(tmp_path / "p.yaml")


@pytest.mark.parametrize("entry", [{"data_offsets": [0, "X"], "shape": [1]}, {"data_offsets": [0, 4], "shape": ["X"]}])
def test_a_safetensors_header_with_an_infinite_number(tmp_path: Path, entry: dict[str, Any]) -> None:
    from veritune.release.bundle.parts import tensors

    header = json.dumps({"a": {"dtype": "F32", **entry}}).replace('"X"', "1e999").encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(FormatError, match="header is damaged"):
        tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("more", [{}, {"hash": None}])
def test_a_contract_entry_that_has_no_hash_because_none_can_be_made(tmp_path: Path, more: dict[str, Any]) -> None:
    """NaN has no digest; that None is not the None of a hash that is missing. Such an entry was believed."""
    entry = {"time": "t", "previous": None, "reason": "frozen", "changes": [], "results": [], **more}
    entry |= {"terms": {"study": {"lr": float("nan")}, "facts": {}}}
    (tmp_path / "contract.lock.json").write_text(json.dumps({"format": 1, "entries": [entry]}))
    with pytest.raises((FormatError, StaleError), match="damaged: NaN is not JSON"):
        contract.read(Store(tmp_path))


@pytest.mark.parametrize(
    "text", ["3", "[]", '{"entries": 3}', '{"entries": [3]}', '{"entries": [{"a": NaN}]}', '{"a": NaN}']
)
def test_release_records_of_another_shape(tmp_path: Path, text: str) -> None:
    from veritune.release.gate.evidence import read_evidence
    from veritune.release.gate.gates import all_waivers, gate_record

    (tmp_path / "release").mkdir()
    for name in ("gates.jsonl", "safety.json"):
        (tmp_path / "release" / name).write_text(text + "\n")
    known = {"release/safety.json": sha256_file(tmp_path / "release" / "safety.json")}
    Store(tmp_path).log("evidence", kind="safety", files=known)  # a forger who writes the event too
    with pytest.raises(FormatError):
        read_evidence(Store(tmp_path), "safety")
    for reader in (gate_record, all_waivers):
        with pytest.raises((FormatError, StaleError)):
            reader(Store(tmp_path))


@pytest.mark.parametrize("part", ["1e308", "null", "[]"])
def test_a_notebook_whose_source_is_not_text(tmp_path: Path, part: str) -> None:
    path = tmp_path / "n.ipynb"
    path.write_text(f'{{"cells": [{{"cell_type": "markdown", "source": [{part}]}}]}}')
    with pytest.raises(InputError, match="the source of a cell is not text"):
        prose_of(path)


def test_a_folder_whose_named_templates_have_odd_names(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from veritune.data.template import twin_templates

    (tmp_path / "chat_template.jinja").write_text("a")
    named = [{"name": ["default"], "template": "x"}, {"name": {}}, 3, {"name": "default", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tokenizer = SimpleNamespace(name_or_path=str(tmp_path), chat_template="b")
    assert twin_templates(tokenizer) == ("tokenizer_config.json", "chat_template.jinja")  # type: ignore[arg-type]


@pytest.mark.parametrize("epochs", [10_001, 2**63])
def test_an_inspect_log_that_promises_more_epochs_than_memory_holds(tmp_path: Path, epochs: int) -> None:
    from veritune.evaluate.logs import read

    sample = {"id": 1, "epoch": 1, "input": "q", "scores": {"match": {"value": "C"}}}
    log = {"version": 2, "status": "success", "eval": {"task": "t", "config": {"epochs": epochs}}, "samples": [sample]}
    (tmp_path / "log.json").write_text(json.dumps(log))
    with pytest.raises(ScoreError, match="expected at most 10,000, found more"):
        read(tmp_path / "log.json")
