"""Loading: every record becomes a row or a finding, whatever the source holds."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veritune.data.load import Loaded, load_rows, require_clean, rows_from
from veritune.errors import DataError
from veritune.records import Message

GOOD = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]}


def write(path: Path, *lines: Any) -> Path:
    """One record a line; bytes and texts as they are, anything else as JSON."""
    encoded = [
        x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode("utf-8") for x in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def load_one(tmp_path: Path, record: Any) -> Loaded:
    return load_rows(write(tmp_path / "one.jsonl", record))


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


# ---------------------------------------------------------------- what a record may look like


@pytest.mark.parametrize(
    "record",
    [
        GOOD,
        {"prompt": "ask", "completion": "answer"},
        {"prompt": GOOD["messages"][:1], "completion": GOOD["messages"][1:]},
        {"question": "ask", "answer": "answer"},
        {"instruction": "ask", "input": "", "output": "answer"},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]},
        turns(("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "sk"}]), ("assistant", "answer")),
    ],
)
def test_every_known_shape_gives_the_same_turns(tmp_path: Path, record: dict[str, Any]) -> None:
    row = require_clean(load_one(tmp_path, record)).rows[0]
    assert row.messages == (Message("user", "ask"), Message("assistant", "answer"))


def test_an_input_beside_an_instruction_joins_the_user_turn(tmp_path: Path) -> None:
    row = load_one(tmp_path, {"instruction": "add", "input": "1 2", "output": "3", "system_prompt": "calc"}).rows[0]
    assert [(m.role, m.content) for m in row.messages] == [
        ("system", "calc"),
        ("user", "add\n\n1 2"),
        ("assistant", "3"),
    ]


def test_other_columns_go_to_meta_and_named_ones_to_id_and_family(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"key": 7, "origin": "a", "q": "ask", "a": "answer", "source": "web"})
    row = load_rows(path, columns={"user": "q", "assistant": "a"}, id_field="key", family_field="origin").rows[0]
    assert (row.id, row.family, row.meta["source"]) == ("7", "a", "web")
    assert "q" not in row.meta
    assert row.meta["a"] == "answer", "rules name the answer's column"


def test_rows_without_an_id_are_named_by_file_and_line(tmp_path: Path) -> None:
    loaded = load_rows(write(tmp_path / "train.jsonl", GOOD, "", GOOD))
    assert [(r.id, r.line) for r in loaded.rows] == [("train:1", 1), ("train:3", 3)]


def test_the_columns_taken_are_said(tmp_path: Path) -> None:
    loaded = load_rows(write(tmp_path / "m.jsonl", GOOD, {"prompt": "p q", "completion": "c"}))
    assert [f.check for f in loaded.notes] == ["load.columns", "load.columns", "load.mixed_schemas"]


def test_an_eval_item_needs_no_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "eval.jsonl", {"question": "ask"}, turns(("user", "ask")))
    assert len(load_rows(path, require_target=False).rows) == 2
    assert len(load_rows(path).rejects) == 2


# ---------------------------------------------------------------- what is refused, and how it is named

BAD: list[tuple[Any, str, str | None]] = [
    ('{"messages": [', "load.broken_json", None),
    ("[1, 2]", "load.not_an_object", None),
    ("null", "load.not_an_object", None),
    ("[" * 100_000, "load.broken_json", None),
    ('{"prompt": ' + "9" * 5000 + "}", "load.broken_json", None),
    ('{"prompt": "q", "completion": "a", "x": NaN}', "load.broken_json", None),
    ({}, "load.missing_messages", "messages"),
    ({"text": "only text"}, "load.missing_messages", "messages"),
    ({"messages": None}, "load.missing_messages", "messages"),
    ({"messages": []}, "load.missing_messages", "messages"),
    ({"messages": "no list"}, "load.missing_messages", "messages"),
    ({"messages": ["text"]}, "load.bad_message", "messages[0]"),
    (turns(("user", "ask")), "load.no_assistant", "messages"),
    (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "load.no_assistant", "messages"),
    (turns(("user", "ask"), ("assistant", " \n")), "load.empty_assistant", "messages"),
    (turns(("user", "ask"), ("assistant", None)), "load.empty_assistant", "messages[1].content"),
    (turns(("user", None), ("assistant", "b")), "load.null_content", "messages[0].content"),
    (turns(("user", ""), ("assistant", "b")), "load.empty_user", "messages"),
    (turns(("assistant", "b"), ("user", "a"), ("assistant", "b")), "load.role_order", "messages"),
    (turns(("user", "a"), ("user", "a"), ("assistant", "b")), "load.role_order", "messages"),
    (turns(("user", "a"), ("system", "s"), ("assistant", "b")), "load.role_order", "messages"),
    (turns(("user", "a"), ("tool", "t"), ("assistant", "b")), "load.role_order", "messages"),
    (turns(("user", "a"), ("critic", "t"), ("assistant", "b")), "load.unknown_role", "messages[1].role"),
    (turns(("user", [{"type": "image_url"}]), ("assistant", "b")), "load.unsupported_part", "messages[0].content[0]"),
    (turns(("user", 3), ("assistant", "b")), "load.bad_content", "messages[0].content"),
    ('{"prompt": "q", "completion": "\\ud800"}', "load.surrogate", "completion"),
    ('{"prompt": "q", "completion": "a", "tag": {"x": ["\\udfff"]}}', "load.surrogate", "tag.x[0]"),
    ({"id": [1], "prompt": "q", "completion": "a"}, "load.bad_id", "id"),
]


@pytest.mark.parametrize(("record", "check", "field"), BAD)
def test_a_bad_record_is_named_with_line_field_expected_and_found(
    tmp_path: Path, record: Any, check: str, field: str | None
) -> None:
    loaded = load_rows(write(tmp_path / "d.jsonl", GOOD, record, GOOD))
    assert (len(loaded.rows), loaded.n_read) == (2, 3)
    (finding,) = loaded.rejects
    assert (finding.check, finding.severity, finding.line, finding.field) == (check, "error", 2, field)
    assert finding.evidence["expected"] and finding.evidence["found"]
    finding.message.encode("utf-8")


def test_broken_json_deep_in_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    lines: list[Any] = [GOOD] * 600
    lines[411] = '{"messages": [{"role": "user", '
    loaded = load_rows(write(tmp_path / "d.jsonl", *lines))
    assert [f.line for f in loaded.rejects] == [412]
    assert len(loaded.rows) == 599


def test_bytes_that_are_not_utf8_are_named_by_line_and_offset(tmp_path: Path) -> None:
    first = json.dumps(GOOD).encode()
    loaded = load_rows(write(tmp_path / "d.jsonl", first, b'{"prompt": "\xe9", "completion": "a"}'))
    (finding,) = loaded.rejects
    assert (finding.check, finding.line) == ("load.not_utf8", 2)
    assert f"offset {len(first) + 1 + 12} of the file" in finding.message


def test_a_paired_surrogate_escape_is_a_character(tmp_path: Path) -> None:
    loaded = load_rows(write(tmp_path / "d.jsonl", '{"prompt": "q", "completion": "\\ud83d\\ude00"}'))
    assert loaded.rows[0].target == "\U0001f600"


def test_a_row_id_used_twice_is_refused_the_second_time(tmp_path: Path) -> None:
    row = {"id": "a", **GOOD}
    loaded = load_rows(write(tmp_path / "d.jsonl", row, GOOD, row))
    assert [r.id for r in loaded.rows] == ["a", "d:2"]
    assert (loaded.rejects[0].check, loaded.rejects[0].line) == ("load.duplicate_id", 3)
    assert "d.jsonl:1" in loaded.rejects[0].message


def test_a_missing_family_name_is_refused_where_the_column_was_named(tmp_path: Path) -> None:
    loaded = load_rows(write(tmp_path / "d.jsonl", {**GOOD, "o": "x"}, GOOD, {**GOOD, "o": None}), family_field="o")
    assert [f.check for f in loaded.rejects] == ["load.missing_family"] * 2


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \n"])
def test_an_empty_file_is_one_finding_and_no_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    loaded = load_rows(path)
    assert ([f.check for f in loaded.rejects], loaded.rows, loaded.n_read) == (["load.empty_file"], (), 0)


def test_utf16_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(GOOD).encode("utf-16"))
    assert "UTF-16" in load_rows(path).rejects[0].message


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert len(require_clean(load_rows(path)).rows) == 1


def test_a_row_of_ten_megabytes_is_read_whole(tmp_path: Path) -> None:
    text = "word " * 2_000_000
    loaded = load_rows(write(tmp_path / "d.jsonl", {"prompt": "q", "completion": text}, GOOD))
    assert len(loaded.rows) == 2 and loaded.rows[0].target == text


def test_require_clean_shows_five_and_counts_all(tmp_path: Path) -> None:
    loaded = load_rows(write(tmp_path / "d.jsonl", GOOD, *[{}] * 7))
    with pytest.raises(DataError) as caught:
        require_clean(loaded)
    assert str(caught.value).count("d.jsonl:") == 5
    assert "7 of 8 records" in str(caught.value) and "2 more" in str(caught.value) and caught.value.fix


def test_what_does_not_exist_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="no such file"):
        load_rows("data/nothing.jsonl")
    with pytest.raises(DataError, match="columns maps"):
        load_rows(write(tmp_path / "d.jsonl", GOOD), columns={"human": "q"})


def test_a_hub_name_without_a_network_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="is not a file here, and the hub has no such dataset:"):
        load_rows("nobody-at-all/no-such-dataset")


# ---------------------------------------------------------------- formats


def records(n: int = 40) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "prompt": f"ask {i} é", "completion": f"answer {i}\nnext", "level": i % 3} for i in range(n)
    ]


def said(loaded: Loaded) -> list[tuple[str, str, str]]:
    require_clean(loaded)
    return [(r.id, r.messages[0].content, r.messages[1].content) for r in loaded.rows]


def test_all_file_formats_give_the_same_rows(tmp_path: Path) -> None:
    import polars as pl
    import pyarrow as pa

    rows = records()
    plain = write(tmp_path / "a.jsonl", *rows)
    wanted = said(load_rows(plain))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(plain.read_bytes())
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), "utf-8")
    frame = pl.DataFrame(rows)
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet", "a.csv", "a.tsv"):
        assert said(load_rows(tmp_path / name)) == wanted, name


def test_table_objects_are_taken_as_they_are() -> None:
    import polars as pl

    rows = records()
    wanted = said(rows_from(rows))
    assert said(rows_from(pl.DataFrame(rows))) == wanted
    assert said(rows_from(pl.DataFrame(rows).lazy())) == wanted
    assert said(rows_from(pl.DataFrame(rows).to_arrow())) == wanted
    assert said(rows_from(rows_from(rows).rows)) == wanted


def test_pandas_objects_and_their_missing_values(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([*records(), {"id": "last", "prompt": "q", "completion": float("nan"), "level": None}])
    loaded = rows_from(frame)
    assert len(loaded.rows) == 40
    assert loaded.rejects[0].check == "load.empty_assistant"
    assert rows_from(frame.head(40)).rows[1].meta["level"] == 1


def test_a_folder_that_datasets_saved_is_read_without_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(records())
    made.save_to_disk(tmp_path / "saved")
    assert said(load_rows(tmp_path / "saved")) == said(rows_from(records()))
    assert said(rows_from(made)) == said(rows_from(records()))
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match="train, test"):
        load_rows(tmp_path / "both")
    assert len(load_rows(tmp_path / "both" / "train").rows) == 40


def test_a_broken_shard_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    import polars as pl

    folder = tmp_path / "shards"
    (folder / "b").mkdir(parents=True)
    write(folder / "b" / "part.jsonl", *records(3))
    pl.DataFrame([{"prompt": "q", "completion": "a"}] * 2).write_parquet(folder / "part.parquet")
    (folder / "broken.parquet").write_bytes((folder / "part.parquet").read_bytes()[:-20])
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "q", "completion": "a"}\n' * 9999)[:-50])
    (folder / "_notes.jsonl").write_text("not data\n")
    loaded = load_rows(folder)
    assert sorted({f.source for f in loaded.rejects}) == ["broken.parquet", "cut.jsonl.gz"]
    assert {r.id for r in loaded.rows if r.source != "cut.jsonl.gz"} == {"r0", "r1", "r2", "part:1", "part:2"}


def test_ids_from_two_shards_of_one_name_do_not_collide(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "part.jsonl", GOOD)
    assert [r.id for r in require_clean(load_rows(tmp_path)).rows] == ["a/part:1", "b/part:1"]


def test_a_csv_field_over_python_s_limit_is_read_where_the_process_allows_it(tmp_path: Path) -> None:
    """The loader leaves the limit as it is: `main()` lifts it, and so may a program that uses the library."""
    path = write(tmp_path / "d.csv", "prompt,completion", f"q,{'a' * 200_000}")
    before = csv.field_size_limit(131_072)  # Python's own; another test may have lifted it
    (reject,) = load_rows(path).rejects
    assert csv.field_size_limit() == 131_072
    assert "larger than field limit (131072); in Python, first call csv.field_size_limit(sys.maxsize)" in reject.message
    try:
        csv.field_size_limit(sys.maxsize)
        (row,) = require_clean(load_rows(path)).rows
    finally:
        csv.field_size_limit(before)
    assert len(row.messages[-1].content) == 200_000


def test_csv_rows_with_a_field_too_few_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "prompt,completion", '"two', 'lines",a', "only", "q,a")
    loaded = load_rows(path)
    assert [(r.messages[0].content, r.line) for r in loaded.rows] == [("two\nlines", 2), ("q", 5)]
    assert [(f.check, f.line) for f in loaded.rejects] == [("load.csv_fields", 4)]


def test_the_hash_is_of_the_file_and_changes_with_it(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "d.jsonl", GOOD)
    assert load_rows(path).source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_rows(write(tmp_path / "e.jsonl", GOOD, GOOD)).source_sha256 != load_rows(path).source_sha256


# ---------------------------------------------------------------- fuzz

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
chat = st.fixed_dictionaries(
    {},
    optional={
        "messages": json_values
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "role": st.sampled_from(["user", "assistant", "system", "tool"]) | json_values,
                    "content": json_values | st.text(max_size=5),
                },
            ),
            max_size=4,
        ),
        "prompt": json_values,
        "completion": json_values,
        "id": json_values,
    },
)
bounded = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@bounded
@given(lines=st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")), max_size=6))
def test_any_bytes_give_rows_or_findings_and_never_a_traceback(tmp_path: Path, lines: list[bytes]) -> None:
    for name in ("f.jsonl", "f.json", "f.csv", "f.parquet", "f.jsonl.gz", "f.jsonl.zst"):
        loaded = load_rows(write(tmp_path / name, *lines))
        assert len(loaded.rows) + len(loaded.rejects) >= loaded.n_read
        assert loaded.rows or loaded.rejects


@bounded
@given(items=st.lists(chat | json_values, min_size=1, max_size=5))
def test_any_json_is_accounted_for_record_by_record(tmp_path: Path, items: list[Any]) -> None:
    loaded = load_rows(write(tmp_path / "f.jsonl", *map(json.dumps, items)))
    assert loaded.n_read == len(items) == len(loaded.rows) + len(loaded.rejects)
    for row in loaded.rows:
        assert row.messages[-1].role == "assistant" and row.messages[-1].content.strip()
        row.text().encode("utf-8")
    for finding in loaded.rejects:
        assert finding.line is not None and 1 <= finding.line <= len(items)


# ---------------------------------------------------------------- an eval's items


@pytest.mark.parametrize(
    "answer", [1, 5.5, True, ["a", "b"], {"value": "a", "aliases": ["b"]}, None], ids=lambda x: type(x).__name__
)
def test_an_items_key_need_not_be_a_text(tmp_path: Path, answer: Any) -> None:
    """MMLU, BoolQ, nq_open, TriviaQA: the question is compared; nothing is trained on the key."""
    path = write(tmp_path / "eval.jsonl", {"question": "which?", "answer": answer})
    (row,) = require_clean(load_rows(path, require_target=False)).rows
    assert row.messages == (Message("user", "which?"),)
    assert load_rows(path).rejects, "no row to train on"


def test_an_items_turns_may_be_a_list_of_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "eval.jsonl", {"prompt": ["write a poem", "now shorter"]})
    (row,) = require_clean(load_rows(path, require_target=False)).rows
    assert row.messages == (Message("user", "write a poem\n\nnow shorter"),)


# ---------------------------------------------------------------- JSON in other shapes than its name says

RECORDS = [{"prompt": f"ask {i}", "completion": "answer"} for i in range(3)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.zst"])
def test_an_array_is_read_under_any_name(tmp_path: Path, name: str, indent: int | None) -> None:
    (tmp_path / name).write_bytes(_packed(name, json.dumps(RECORDS, indent=indent).encode()))
    assert len(require_clean(load_rows(tmp_path / name)).rows) == 3


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.json.zst"])
def test_a_list_inside_one_object_is_read_in_one_line_and_in_many(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    document = {"version": "1", "data": RECORDS}
    (tmp_path / name).write_bytes(_packed(name, json.dumps(document, indent=indent).encode()))
    assert len(require_clean(load_rows(tmp_path / name)).rows) == 3


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("record", [GOOD, RECORDS[0], {**RECORDS[0], "tools": [{"name": "f"}]}])
def test_one_record_alone_in_a_json_file_is_a_record(tmp_path: Path, record: Any, indent: int | None) -> None:
    (tmp_path / "one.json").write_text(json.dumps(record, indent=indent))
    assert len(require_clean(load_rows(tmp_path / "one.json")).rows) == 1


def test_a_compressed_file_under_a_plain_name_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(b"{}"))
    assert "it is compressed with gzip; end its name in .gz" in load_rows(tmp_path / "rows.jsonl").rejects[0].message


def _packed(name: str, data: bytes) -> bytes:
    import pyarrow as pa

    if name.endswith(".zst"):
        packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
        return packed
    return gzip.compress(data) if name.endswith(".gz") else data
