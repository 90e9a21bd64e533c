"""One guard for strangers' JSON, YAML and Arrow: what comes out can be hashed, written and walked."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune.config.load import load_study
from veritune.data.load import load_rows
from veritune.data.quality import load_patterns
from veritune.errors import DataError, FormatError, StudyError, VerituneError
from veritune.evaluate.logs import read_scores
from veritune.files import read_json, read_parquet
from veritune.records import dumps
from veritune.untrusted import MAX_DEPTH, UnusableError, parse_json, parse_yaml, read_bytes, refuse_depth


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested too deeply: expected at most 100 levels"),
        ('{"a":' * 5000, "nested too deeply"),
        ('{"a": ["b", {"c": "\\ud83d"}]}', "a[1].c contains a lone surrogate"),
        ('{"a": "\ud83d"}', "a contains a lone surrogate"),
        ('{"\\udc00": 1}', "has a key with a lone surrogate"),
        ('{"a": NaN}', "NaN is not JSON; write null where a value is missing"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ('{"a": {"b": -1e999}}', "a.b is -inf: expected a finite number"),
        ('{"a": [1' + "0" * 400 + "]}", "a[0] is an integer above 1.8e308"),
        (b"\xff\xfe{}", "not UTF-8: byte 0xff at offset 0"),
        ("1" * 5000, "4300 digits"),
        ("{", "line 1 column 2"),
    ],
)
def test_json_that_breaks_a_reader_later_is_refused_with_its_place(text: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


DEEPEST = "[" * MAX_DEPTH + "]" * MAX_DEPTH


@pytest.mark.parametrize("text", [DEEPEST, '"\\ud83d\\ude00"', '{"é": [1.5, null, true]}', b"\xef\xbb\xbf{}"])
def test_json_that_can_be_used_comes_out_and_goes_into_a_record(text: Any) -> None:
    value = parse_json(text)
    dumps(value).encode("utf-8")
    assert value == json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))


def test_other_tools_files_may_hold_what_no_record_of_ours_holds(tmp_path: Path) -> None:
    """Mamba's config.json says `Infinity`, lm-eval logs a log-likelihood of -Infinity beside a usable score."""
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "x": 1e999}')
    assert read_json(tmp_path / "config.json", finite=False)["x"] == float("inf")
    with pytest.raises(FormatError, match="Infinity is not JSON"):
        read_json(tmp_path / "config.json")
    line = {
        "doc_id": 0,
        "doc": {"q": "x"},
        "target": 0,
        "resps": [[[float("-inf"), False]]],
        "acc": 1.0,
        "filter": "none",
    }
    path = tmp_path / "samples_x_2026-01-01T00-00-00.000000.jsonl"
    path.write_text("".join(json.dumps({**line, "doc_id": n}) + "\n" for n in range(2)))
    assert [score.value for score in read_scores(path)] == [1.0, 1.0]
    with pytest.raises(UnusableError, match="nested too deeply"):
        parse_json("[" * 101 + "NaN" + "]" * 101, finite=False)


def test_depth_is_counted_alike_by_both_guards() -> None:
    refuse_depth(json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH))
    with pytest.raises(UnusableError):
        refuse_depth(json.loads("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "expected at most 500,000 values, found more"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 20_000, "nested too deeply"),
        ("1: x", "has the key 1, which is not text: put it in quotes"),
        ("a: {no: 1}", "a has the key False, which is not text"),
        ("a:\n- .nan", "a[0] is nan: expected a finite number"),
        ("a: 2026-01-31", "a is a date (2026-01-31): put it in quotes"),
        ("a: !!set {x}", "a is a set"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ('a: "\\ud83d"', "a contains a lone surrogate"),
        ("a: 1\na: 2", "the key 'a' is given twice"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    ],
)
def test_yaml_that_no_record_can_hold_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises((UnusableError, yaml.YAMLError)) as caught:
        parse_yaml(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("escape", ["\\ud83d\\ude00", "\\U0000d83d\\U0000de00", "\\U0001F600"])
def test_yaml_joins_the_two_halves_that_a_json_writer_wrote(escape: str) -> None:
    assert parse_yaml(f'a: &x ["{escape}", {{"{escape}": 1}}]\nb: *x') == {
        "a": ["😀", {"😀": 1}],
        "b": ["😀", {"😀": 1}],
    }


def test_a_study_that_a_json_writer_wrote_with_an_emoji_is_a_study(study: Any) -> None:
    settings = study.settings() | {"question": "Does it 😀?"}
    (study.root / "study.yaml").write_text(json.dumps(settings), encoding="utf-8")
    assert load_study(study.root).question == "Does it 😀?"
    assert "\\ud83d" in (study.root / "study.yaml").read_text("utf-8")


def test_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read_bytes(tmp_path / "f", 5) == b"12345"
    with pytest.raises(UnusableError, match="expected at most 4 bytes, found more"):
        read_bytes(tmp_path / "f", 4)
    with pytest.raises(StudyError, match="expected at most 16,777,216 bytes"):
        load_study(Path("/dev/zero"))


def test_records_and_patterns_pass_the_guard(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text('{"a":' * 300 + "1" + "}" * 300)
    with pytest.raises(FormatError, match="nested too deeply"):
        read_json(path)
    path = tmp_path / "p.yaml"
    path.write_text("[" * 200_000)  # PyYAML's loader in C ends the process here
    with pytest.raises(DataError, match="nested too deeply"):
        load_patterns(path)


# ---------------------------------------------------------------- tables

CHILD = """
import sys
from pathlib import Path
from veritune.data.load import load_rows
for path in sys.argv[1:]:
    found = load_rows(Path(path))
    assert all(len(str(m.content)) >= 0 for row in found.rows for m in row.messages)
print("alive")
"""


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_no_changed_arrow_file_ends_the_process(tmp_path: Path, kind: str) -> None:
    """Offsets that lead out of the file: of 100 changed files arro3 alone ended the process on eight."""
    import pyarrow as pa

    table = pa.table(
        {
            "prompt": pa.array([f"q{i}" * 3 for i in range(40)]).dictionary_encode(),
            "completion": [f"a{i}" for i in range(40)],
            "tags": [["x", "y"]] * 40,
        }
    )
    good = tmp_path / "good.arrow"
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(str(good), table.schema) as writer:
        writer.write_table(table)
    assert len(load_rows(good).rows) == 40
    content, draw = good.read_bytes(), random.Random(kind)
    for number in range(60):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        (tmp_path / f"{number}.arrow").write_bytes(changed)
    files = [str(tmp_path / f"{n}.arrow") for n in range(60)]
    done = subprocess.run([sys.executable, "-c", CHILD, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), f"{done.returncode}: {done.stderr[-500:]}"


def test_a_damaged_parquet_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(FormatError, match=r"f\.parquet is damaged"):
        read_parquet(tmp_path / "f.parquet")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "sub/x.arrow", "", "a\0b", ".."])
def test_a_datasets_folder_names_files_of_its_own_only(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (tmp_path / "secret.arrow").write_bytes(b"x")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="expected names of files in this folder"):
        load_rows(folder)


def test_a_state_file_that_names_a_lost_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "lost.arrow"}]}))
    with pytest.raises(DataError, match=r"lost\.arrow cannot be read: No such file or directory"):
        load_rows(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"_data_files": [{}]}', '{"_data_files": [{"filename": 3}]}', "{" * 9999])
def test_a_damaged_state_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(VerituneError) as caught:
        load_rows(tmp_path)
    assert "state.json" in str(caught.value) and "\n" not in str(caught.value)
