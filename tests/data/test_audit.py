"""The audit as a whole: planted faults are found, clean data passes, nothing heavy is imported, files agree."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from veritune.commands.main import main
from veritune.counting import grouped
from veritune.data.audit import AuditConfig, audit_data, render_text, write_clean, write_report
from veritune.data.contamination import ContaminationConfig
from veritune.data.load import load_rows
from veritune.data.review import LEDGER, lineage
from veritune.errors import DataError, ModelError
from veritune.store import read_jsonl

SYLLABLES = [a + b for a in "bklmnrstvz" for b in "aeiou"]


def problem(i: int) -> str:
    """A question of its own: eighteen made-up words and three numbers, nothing shared but the closing phrase."""
    draw = random.Random(i)
    words = ["".join(draw.choices(SYLLABLES, k=draw.choice((2, 3)))) for _ in range(18)]
    words[4::5] = [str(draw.randrange(10, 999)) for _ in words[4::5]]
    return f"{' '.join(words).capitalize()}. How many are left?"


def records(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"question": problem(i), "answer": f"It comes to {i * 7}.\n#### {i * 7}"} for i in range(start, stop)]


def write(path: Path, items: list[Any]) -> Path:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in items)
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def clean(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "data.jsonl", records(0, 36)), write(tmp_path / "exam.jsonl", records(100, 130))


def test_clean_data_passes_with_nothing_to_say(clean: tuple[Path, Path]) -> None:
    report = audit_data(clean[0], evals=[clean[1]])
    assert report.gate is not None and report.gate.status == "passed" and report.exit_code == 0
    assert (report.n_read, len(report.rows), report.rejects) == (36, 36, ())
    assert not [f for f in report.findings if f.severity == "error"]


def test_an_exact_copy_of_an_eval_item_fails_the_gate(tmp_path: Path, clean: tuple[Path, Path]) -> None:
    copied = {"question": "  " + problem(107).upper(), "answer": "I do not know that."}
    report = audit_data(write(tmp_path / "leaky.jsonl", [*records(0, 36), copied]), evals=[clean[1]])
    assert report.exit_code == 2 and report.gate is not None and report.gate.status == "failed"
    (error,) = [f for f in report.findings if f.severity == "error"]
    assert (error.row_id, error.evidence["item_id"], error.evidence["kind"]) == ("leaky:37", "exam:8", "identical")
    assert report.findings[0] is error and "gate FAILED" in render_text(report)


def test_bad_records_are_named_and_the_rest_is_audited(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [*records(0, 5), "{broken", {"question": "only"}, *records(5, 9)])
    report = audit_data(path)
    assert (report.n_read, len(report.rows), len(report.rejects), report.exit_code) == (11, 9, 2, 1)
    text = render_text(report)
    assert "1 x broken_json: first d.jsonl:6" in text and "1 x missing_messages: first d.jsonl:7" in text
    assert "not checked: no eval was given" in text


@pytest.mark.parametrize("content", ["", "\n", "{}\n", "[]\n", "\x00\x00\n"])
def test_a_file_without_a_usable_row_is_reported_and_not_passed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(content, "utf-8")
    report = audit_data(path, evals=[write(tmp_path / "e.jsonl", records(0, 3))])
    assert report.exit_code != 0 and report.rejects and render_text(report)
    json.dumps(report.record(), allow_nan=False)
    write_report(report, tmp_path / "out")


def test_an_eval_that_cannot_be_read_in_full_leaves_the_gate_undecided(
    tmp_path: Path, clean: tuple[Path, Path]
) -> None:
    partly = write(tmp_path / "partly.jsonl", [*records(100, 110), "{broken"])
    empty = write(tmp_path / "empty.jsonl", [])
    for eval_file, says in ((partly, "1 unread, 10 read"), (empty, "0 read). Nothing was compared")):
        report = audit_data(clean[0], evals=[eval_file])
        assert report.gate is not None and report.gate.status == "undecided" and report.exit_code == 2
        assert says in report.gate.message
        assert "audit.eval_unread" in {f.check for f in report.findings}
        assert f"ERROR  eval {eval_file.stem}: " in render_text(report)


def test_an_eval_that_is_read_in_part_is_said_so_with_the_option_of_evals(
    tmp_path: Path, clean: tuple[Path, Path]
) -> None:
    partly = write(tmp_path / "partly.jsonl", [*records(100, 110), {"sentence": "what is left?"}])
    odd = write(tmp_path / "odd.jsonl", [{"sentence": "what is left?"}])
    shown = {e.stem: render_text(audit_data(clean[0], evals=[e])) for e in (partly, odd)}
    assert "1 of 11 items cannot be read, so no row was compared with these;" in shown["partly"]
    assert "nothing could be read, so no row was compared with it;" in shown["odd"]
    assert all("--eval-columns user=" in text and " --columns" not in text for text in shown.values())


def test_an_eval_of_questions_alone_is_compared(tmp_path: Path, clean: tuple[Path, Path]) -> None:
    questions = write(tmp_path / "q.jsonl", [{"question": problem(i)} for i in range(30, 40)])
    report = audit_data(clean[0], evals=[questions])
    assert report.gate is not None and report.gate.status == "failed" and report.evals[0].items == 10
    assert audit_data(clean[0], evals={"mine": [problem(3)]}).exit_code == 2


def test_two_evals_of_one_name_are_told_apart(tmp_path: Path, clean: tuple[Path, Path]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "test.jsonl", records(200, 205))
    report = audit_data(clean[0], evals=[tmp_path / "a" / "test.jsonl", tmp_path / "b" / "test.jsonl"])
    assert [f.name for f in report.evals] == ["test", "b/test"]


def test_a_users_own_split_is_judged(tmp_path: Path) -> None:
    train, test = records(0, 20), [dict(r) for r in records(40, 49)]
    for i in range(7):
        test[i]["answer"] = train[i]["answer"]
    rows = [{**r, "part": "train"} for r in train] + [{**r, "part": "test"} for r in test]
    for r in rows:
        r["answer"] = "This is worked out step by step. " + r["answer"]
    report = audit_data(write(tmp_path / "d.jsonl", rows), config=AuditConfig(split_field="part"))
    assert "7 of the 9 answers in test are in train" in render_text(report)
    with pytest.raises(DataError, match="no row has a column 'fold'"):
        audit_data(tmp_path / "d.jsonl", config=AuditConfig(split_field="fold"))


def test_drop_writes_a_clean_version_with_its_lineage(tmp_path: Path, clean: tuple[Path, Path]) -> None:
    near = {"question": problem(110).replace("How many", "Say how many"), "answer": "x y z."}
    path = write(tmp_path / "leaky.jsonl", [*records(0, 36), *records(105, 107), near, "{broken"])
    report = audit_data(path, evals=[clean[1]])
    version = write_clean(report, tmp_path / "clean.jsonl")
    assert version.rows == 36 and sum(version.rejects.values()) == 4
    assert version.rejects["load.broken_json"] == 1
    again = audit_data(tmp_path / "clean.jsonl", evals=[clean[1]])
    assert again.exit_code == 0
    assert [v.file for v in lineage(tmp_path)] == ["leaky.jsonl", "clean.jsonl"] and (tmp_path / LEDGER).exists()
    assert [r.messages for r in load_rows(tmp_path / "clean.jsonl").rows] == [r.messages for r in report.rows[:36]]


def test_the_fail_level_is_the_users(tmp_path: Path, clean: tuple[Path, Path]) -> None:
    near = {"question": problem(110).replace("How many", "Say how many"), "answer": "x y z."}
    path = write(tmp_path / "near.jsonl", [*records(0, 36), near])
    assert audit_data(path, evals=[clean[1]]).exit_code == 0
    strict = AuditConfig(contamination=ContaminationConfig(fail_on="confirmed"))
    assert audit_data(path, evals=[clean[1]], config=strict).exit_code == 2


def test_tables_and_rows_give_the_findings_of_the_file(tmp_path: Path, clean: tuple[Path, Path]) -> None:
    import polars as pl

    whole = [*records(0, 20), records(0, 1)[0]]
    by_file = audit_data(write(tmp_path / "rows.jsonl", whole), evals=[clean[1]])
    by_frame = audit_data(pl.DataFrame(whole), evals={"exam": pl.DataFrame(records(100, 130))})
    by_rows = audit_data(list(by_file.rows), evals=[clean[1]])
    assert by_file.families.summary == by_frame.families.summary == by_rows.families.summary
    assert [f.check for f in by_file.findings if f.row_id] == [f.check for f in by_frame.findings if f.row_id]


def test_files_hold_what_the_report_counts(tmp_path: Path, clean: tuple[Path, Path]) -> None:
    path = write(
        tmp_path / "d.jsonl", [*records(0, 36), *records(105, 107), "{broken", {"id": "x", **records(3, 4)[0]}]
    )
    report = audit_data(path, evals=[clean[1]])
    paths = write_report(report, tmp_path / "out")
    assert all(p.is_file() for p in paths)
    assert len(read_jsonl(tmp_path / "out" / "findings.jsonl")) == len(report.findings)
    assert len(read_jsonl(tmp_path / "out" / "families.jsonl")) == len(report.rows)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["exit_code"] == 2
    pack = read_jsonl(tmp_path / "out" / "review" / "pack.jsonl")
    assert {p["row_id"] for p in pack if p["reasons"]} >= {"d:37", "d:38"}


def test_without_a_tokenizer_nothing_heavy_is_imported(clean: tuple[Path, Path]) -> None:
    code = (
        "import sys; from veritune.data.audit import audit_data, render_text; "
        f"print(render_text(audit_data({str(clean[0])!r}, evals=[{str(clean[1])!r}]))); "
        "heavy = {'torch', 'transformers', 'pandas', 'polars', 'pyarrow', 'datasets', 'matplotlib'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_with_a_tokenizer_rendering_is_measured(tmp_path: Path, tiny_model: Path) -> None:
    rows = [*records(0, 6), {"question": "a <|im_end|> b c d", "answer": "no."}]
    report = audit_data(write(tmp_path / "d.jsonl", rows), tokenizer=tiny_model, config=AuditConfig(max_length=90))
    assert report.rendering is not None and report.rendering.n_rows == 6
    assert {"render.too_long", "render.control_token"} <= {f.check for f in report.findings}
    assert "Rendering  6 rows" in render_text(report) and "would lose answer tokens" in render_text(report)
    json.dumps(report.record(), allow_nan=False)
    with pytest.raises(ModelError, match="holds no tokenizer"):
        audit_data(tmp_path / "d.jsonl", tokenizer=tmp_path)


def test_odd_but_good_rows_are_audited_to_the_end(tmp_path: Path) -> None:
    odd = [
        "שלום עולם, מה שלומך היום?",
        "日本語の質問です。答えてください。",
        "x",
        "😀",
        "word",
        "same same",
        "a" * 200_000,
    ]
    rows = [{"question": q, "answer": q} for q in odd] + [{"question": "same", "answer": "same"}] * 500
    report = audit_data(write(tmp_path / "d.jsonl", rows), evals={"e": odd})
    assert len(report.rows) == len(rows) and report.families.summary["size_max"] >= 500
    write_report(report, tmp_path / "out")


def said(prompt: Any, answer: Any = "a fine answer") -> str:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}, ensure_ascii=False)


PART = {"type": "text", "text": "how many"}
BAD_LINES: dict[str, tuple[list[str], int, dict[str, int]]] = {  # lines, usable, problems by reason
    "mixed schemas": (
        [said("q one"), '{"prompt": "p", "completion": "c"}', '{"text": "x"}', "{}", "[1]", "null", "str"],
        2,
        {"missing_messages": 2, "not_an_object": 2, "broken_json": 1},
    ),
    "nulls": (
        [said("q one"), said(None), said("q", None), '{"messages": null}', '{"prompt": null, "completion": "c"}'],
        1,
        {"null_content": 2, "empty_assistant": 1, "missing_messages": 1},
    ),
    "nested content parts": (
        [said([PART, PART]), said([{"type": "image", "image": "x"}]), said([[PART]]), said({"text": "x"}), said([])],
        1,
        {"unsupported_part": 2, "bad_content": 1, "empty_user": 1},
    ),
    "right to left, CJK and surrogates": (
        [said(f"كم عدد القوارب {i}") for i in range(9)]
        + [said(f"今天港口里有多少艘船{i}") for i in range(9)]
        + [said("\u202eabc\u202c שלום"), said("a \ud800"), said("\ud83d\ude00 b")],
        20,
        {"surrogate": 1},
    ),
    "one-word rows": ([said("yes", "no")] * 400, 400, {}),
}  # fmt: skip


def _escaped(half: re.Match[str]) -> str:
    return f"\\u{ord(half[0]):04x}"


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named_and_counted_on_the_screen(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, usable, problems = BAD_LINES[case]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"".join(re.sub("[\ud800-\udfff]", _escaped, line).encode() + b"\n" for line in lines))
    rc, out = by_command(capsys, path, "--eval", path, "--out", tmp_path / "out")
    assert rc == (2 if case != "one-word rows" else 0)  # the rows are the eval; equal single words are no evidence
    total = sum(problems.values())
    assert f"{len(lines):,} records read, {usable:,} usable, {grouped(total, 'problems')}" in out
    assert len(lines) == usable + total
    for reason, n in problems.items():
        assert f"{n:,} x {reason}: first d.jsonl:" in out


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_a_broken_shard_is_named_on_the_screen_beside_whole_ones(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [said(f"How many lamps burn on quay {i} of the harbor tonight?") for i in range(60)]
    raw, table = ("\n".join(lines) + "\n").encode(), io.BytesIO()
    pl.DataFrame([json.loads(line) for line in lines]).write_parquet(table)
    whole = {
        "jsonl": raw,
        "jsonl.gz": gzip.compress(raw),
        "jsonl.zst": zstandard.compress(raw),
        "parquet": table.getvalue(),
    }
    for i, (name, data) in enumerate(whole.items()):
        (tmp_path / f"good{i}.{name}").write_bytes(data)
    (tmp_path / f"broken.{kind}").write_bytes(whole[kind][: len(whole[kind]) // 2])
    for name in ("none", "void"):
        (tmp_path / f"{name}.{kind}").write_bytes(b"")
    rc, out = by_command(capsys, tmp_path)
    assert rc == 1 and all(f"{name}.{kind}" in out for name in ("broken", "none", "void"))
    read, usable, problems = map(int, re.findall(r"(\d+) records read, (\d+) usable, (\d+) problems", out)[0])
    assert usable >= 240 and problems == 3 and read - usable == (kind == "jsonl")


def by_command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """`veritune audit ARGS` in this process: exit status and what stood on the screen."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["veritune", "audit", *map(str, args)])
        main()
    return int(left.value.code or 0), capsys.readouterr().out


def test_gsm8k_train_holds_near_copies_of_its_test_questions(gsm8k: Path) -> None:
    report = audit_data(gsm8k / "train.jsonl", evals=[gsm8k / "test.jsonl"])
    assert report.contamination is not None
    confirmed = {(h.row_id, h.item_id) for h in report.contamination.hits if h.status == "confirmed"}
    assert {("train:21", "test:633"), ("train:1315", "test:603"), ("train:5163", "test:603")} <= confirmed
    assert ("train:1782", "test:449") in confirmed
    assert len(confirmed) <= 10
