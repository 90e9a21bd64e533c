"""Files that were written by each format version are read back; a folder of the first format is refused in one line.

`v2/` holds one file of each format as a run, or a command, wrote it: names are paths with `__` for `/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import FormatError
from veritune.ledger import follow_all
from veritune.records import Contract, GateRecord, Line, Record, RecordPart, StudyVerdicts, Waiver, dumps
from veritune.records.base import of_plain, parse
from veritune.records.formats import FILES, GEOMETRY, LINES, PROBES
from veritune.store import Store

KEPT = Path(__file__).with_name("v2")


def kept(pattern: str) -> Path:
    return KEPT / pattern.replace("/", "__").replace("<", "").replace(">", "")


@pytest.mark.parametrize(("pattern", "kind"), FILES.items(), ids=FILES)
def test_a_file_of_format_2_is_read_and_written_back_byte_for_byte(pattern: str, kind: type[Record]) -> None:
    path = kept(pattern)
    assert kind.load(path).text() == path.read_text("utf-8")


@pytest.mark.parametrize(("pattern", "kind"), LINES.items(), ids=LINES)
def test_lines_of_format_2_are_read_and_written_back(pattern: str, kind: type[Line], tmp_path: Path) -> None:
    path = kept(pattern)
    rows = kind.load_all(path)
    kind.save_all(tmp_path / "again.jsonl", rows)
    assert rows and (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


PARTS = {**GEOMETRY, **{f"probes/{kind}.json": record for kind, record in PROBES.items()}}


@pytest.mark.parametrize(("pattern", "kind"), PARTS.items(), ids=PARTS)
def test_a_probe_s_record_of_format_2_is_read_and_written_back_byte_for_byte(
    pattern: str, kind: type[RecordPart]
) -> None:
    path = kept(pattern)
    record = parse(kind, path.read_bytes(), str(path))
    assert dumps(record, indent=2) + "\n" == path.read_text("utf-8")


@pytest.mark.parametrize(("name", "kind"), PROBES.items(), ids=PROBES)
def test_a_probe_s_record_that_lacks_a_key_is_refused_with_its_place(name: str, kind: type[RecordPart]) -> None:
    document: dict[str, Any] = json.loads(kept(f"probes/{name}.json").read_text("utf-8"))
    assert document["kind"] == name
    for key in document:
        rest = {k: v for k, v in document.items() if k != key}
        with pytest.raises(FormatError) as caught:
            of_plain(kind, rest, "probes/it.json")
        assert caught.value.message == f"probes/it.json: {key}: expected this key, but it is missing."


def test_a_ledger_of_gates_of_format_2_is_read() -> None:
    lines = kept("release/gates.jsonl").read_text("utf-8").splitlines()
    record, waiver = (json.loads(line) for line in lines)
    assert of_plain(GateRecord, record, "gates").waived["safety"].by == of_plain(Waiver, waiver, "gates").by == "Ada"


def test_the_chain_of_a_kept_contract_holds() -> None:
    document = json.loads(kept("contract.lock.json").read_text("utf-8"))
    entries = follow_all(document["entries"], lambda i: f"entry {i}")
    assert Contract.load(kept("contract.lock.json")).last.hash == entries[-1]["hash"]


def test_every_kept_file_belongs_to_a_format() -> None:
    known = {kept(pattern).name for pattern in (*FILES, *LINES, *PARTS, "release/gates.jsonl")}
    assert {path.name for path in KEPT.iterdir()} == known


@pytest.mark.parametrize(("pattern", "kind"), FILES.items(), ids=FILES)
def test_a_file_of_another_format_or_of_none_is_refused(pattern: str, kind: type[Record], tmp_path: Path) -> None:
    document: dict[str, Any] = json.loads(kept(pattern).read_text("utf-8"))
    path = tmp_path / "file.json"
    for stated, words in ((1, "format 1"), (3, "format 3"), ("2", 'format "2"'), (None, "no format")):
        path.write_text(json.dumps({**document, "format": stated}), encoding="utf-8")
        with pytest.raises(FormatError) as caught:
            kind.load(path)
        assert caught.value.message == f"{path}: expected format 2, found {words}."
        assert "start a new folder with the same study.yaml" in caught.value.fix


def test_a_missing_key_of_an_estimate_is_no_silent_default(tmp_path: Path) -> None:
    """Python gives `details`, `warnings` and the like a default; a file that lacks one was cut or edited."""
    document = json.loads(kept("verdict.json").read_text("utf-8"))
    for key in ("warnings", "details", "p_floor", "scope"):
        edited = json.loads(json.dumps(document))
        del edited["verdicts"][0]["estimates"][0][key]
        path = tmp_path / "verdict.json"
        path.write_text(json.dumps(edited), encoding="utf-8")
        with pytest.raises(FormatError) as caught:
            StudyVerdicts.load(path)
        assert caught.value.message == (
            f"{path}: verdicts[0].estimates[0].{key}: expected this key, but it is missing."
        )


def test_no_number_that_is_none_hides_in_a_free_part_of_a_file(tmp_path: Path) -> None:
    text = kept("verdict.json").read_text("utf-8")
    path = tmp_path / "verdict.json"
    document = json.loads(text)
    document["verdicts"][0]["details"]["stray"] = float("nan")
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FormatError, match="is damaged"):
        StudyVerdicts.load(path)


def test_a_score_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "style.jsonl"
    shutil.copyfile(kept("runs/<run_id>/scores/<eval>.jsonl"), path)
    lines = path.read_text("utf-8").splitlines()
    row = json.loads(lines[2])
    path.write_text("\n".join([*lines[:2], json.dumps({**row, "value": "1"}), *lines[3:]]) + "\n", encoding="utf-8")
    with pytest.raises(FormatError) as caught:
        LINES["runs/<run_id>/scores/<eval>.jsonl"].load_all(path)
    assert caught.value.message == f'{path} line 3: value: expected a number, found "1".'


def test_a_folder_of_the_first_format_is_refused_in_one_line(tmp_path: Path) -> None:
    document = json.loads(kept("contract.lock.json").read_text("utf-8"))
    (tmp_path / "contract.lock.json").write_text(json.dumps({**document, "format": 1}), encoding="utf-8")
    with pytest.raises(FormatError) as caught:
        Store(tmp_path).check_format()
    assert caught.value.message == f"{tmp_path}: expected format 2, found format 1."
    assert caught.value.fix.startswith("Read it with the version of Veritune that wrote it")
