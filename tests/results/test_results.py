"""The results index says what became of every result, and nothing in it changes without a trace."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sealed_studies import EVIL, sealed_study
from typer.testing import CliRunner

from veritune import contract
from veritune.commands.app import app
from veritune.config.load import load_study
from veritune.errors import FormatError, InputError, StaleError
from veritune.ledger import Ledger
from veritune.report.page import render
from veritune.report.read import read_records
from veritune.results.index import Said, add_results, read_index, say
from veritune.results.ledger import FILE
from veritune.results.screen import index_text, one_text
from veritune.results.site import write_site
from veritune.seal import seal, seal_hash
from veritune.store import Store, sha256_file


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "results"


def decide_again(study: Path, how: Callable[[dict[str, Any]], None]) -> None:
    """Other verdicts in the study, sealed as a run seals them."""
    path = study / "verdict.json"
    record = json.loads(path.read_text())
    how(record)
    path.write_text(json.dumps(record))
    seal(Store(study))


# ---------------------------------------------------------------- adding


def test_a_result_holds_question_verdicts_grade_and_hashes_of_its_study(study: Path, index: Path) -> None:
    change = add_results(index, [study], by="Ana")
    assert change.ids == ("R1",) and change.sentences == ("R1 added: small, 4 verdicts",)
    (result,) = read_index(index).results
    assert result.added.question == "Did it learn?" and result.added.by == "Ana"
    words = [(v.claim, v.status, v.grade, v.exploratory) for v in result.added.verdicts]
    assert words[0] == ("learns", "supported", "low", False) and words[2] == ("same", "refuted", "low", True)
    assert result.added.verdicts[3].grade is None
    source = result.source
    assert source.contract == contract.read(Store(study)).last.hash and source.seal == seal_hash(study)
    assert source.report_sha256 == sha256_file(study / "report.html") and source.folder == "../study"
    assert source.missing == ("rows.jsonl",), "the data file was not there, and that is named"
    assert result.added.events[0].event == "frozen"
    assert result.now.sentence == "as added" and result.stands


def test_a_result_added_twice_is_one_result_also_from_another_folder(study: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    again = add_results(index, [study], by="Bo")
    assert again.sentences == ("R1 is already in the index: small",)
    moved = study.with_name("elsewhere")
    study.rename(moved)
    assert read_index(index).results[0].now.sentence == "its study is no longer in ../study"
    assert (
        "is already in the index; its present folder and seal were recorded"
        in add_results(index, [moved], by="Bo").sentences[0]
    )
    (result,) = read_index(index).results
    assert result.source.folder == "../elsewhere" and result.now.standing == "as added"


@pytest.mark.parametrize("name", ["runs/*/scores/style.jsonl", "verdict.json", "contract.lock.json", "events.jsonl"])
def test_a_study_that_was_edited_is_refused_by_name(study: Path, index: Path, name: str) -> None:
    path = sorted(study.glob(name))[0]
    path.write_text(path.read_text().replace("e", "3", 1))
    with pytest.raises((StaleError, FormatError)) as failed:
        add_results(index, [study], by="Ana")
    assert path.name in str(failed.value) or "contract" in str(failed.value)
    assert not (index / FILE).exists()


def test_no_seal_and_no_verdict_are_refused(study: Path, index: Path, tmp_path: Path) -> None:
    (study / "seal.json").unlink()
    with pytest.raises(StaleError, match=r"seal\.json is gone, though the study was sealed"):
        add_results(index, [study], by="Ana")
    (study / "verdict.json").unlink()
    with pytest.raises(InputError, match=r"has no verdict\.json: it is not a finished study"):
        add_results(index, [study], by="Ana")
    with pytest.raises(InputError, match=r"nowhere"):
        add_results(index, [tmp_path / "nowhere"], by="Ana")


def test_of_several_studies_none_is_added_where_one_is_refused(study: Path, other: Path, index: Path) -> None:
    (study / "seal.json").unlink()
    with pytest.raises(StaleError):
        add_results(index, [other, study], by="Ana")
    assert not index.exists()


# ---------------------------------------------------------------- how it stands


def test_a_study_decided_again_is_stale_and_what_changed_is_named(study: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    decide_again(study, lambda record: record["verdicts"][0].update(status="refuted"))
    (result,) = read_index(index).results
    assert result.now.sentence == "its study was decided again since: learns supported to refuted"
    assert not result.stands and "STALE: its study was decided again since" in index_text(read_index(index))
    assert result.added.verdicts[0].status == "supported", "the index keeps what was added"
    change = add_results(index, [study], by="Ana")
    assert change.ids == ("R2",) and "R1 came from the same folder: --supersedes R1 --reason" in change.sentences[0]


def test_an_edit_after_adding_is_named_and_quick_says_that_it_did_not_look(study: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    path = sorted(study.glob("runs/wide-*/scores/style.jsonl"))[0]
    path.write_text(path.read_text().replace("0.5", "1.0"))
    (result,) = read_index(index).results
    assert result.now.standing == "broken" and "scores/style.jsonl was edited" in result.now.sentence
    (quick,) = read_index(index, rehash=False).results
    assert quick.now.sentence == "as added; files not hashed again" and quick.now.standing == "not looked at"


def test_supersession_needs_a_reason_and_runs_one_way(study: Path, other: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    with pytest.raises(InputError, match="--supersedes and --reason must be given together"):
        add_results(index, [other], supersedes="R1", by="Ana")
    change = add_results(index, [other], supersedes="R1", reason="same machine for all", by="Ana")
    assert change.sentences[-1] == "R1 is superseded by R2"
    first, second = read_index(index).results
    assert (first.superseded_by, first.why_superseded, second.supersedes) == ("R2", "same machine for all", ("R1",))
    again = add_results(index, [other], supersedes="R1", reason="same machine for all", by="Ana")
    assert again.sentences == ("R2 is already in the index: small", "R1 is already superseded by R2")
    with pytest.raises(InputError, match="R1 cannot supersede R2"):
        add_results(index, [study], supersedes="R2", reason="no", by="Ana")
    with pytest.raises(InputError, match="R2 cannot supersede R2"):
        add_results(index, [other], supersedes="R2", reason="no", by="Ana")


# ---------------------------------------------------------------- caveats


def test_undeclared_differences_become_standing_caveats_by_themselves(other: Path, index: Path) -> None:
    add_results(index, [other], by="Ana")
    (result,) = read_index(index).results
    said = {caveat.aspect: caveat for caveat in result.added.caveats}
    assert set(said) == {"host", "processor flags", "version of torch", "rows answered at a time on style"}
    assert said["host"].with_condition, "each condition has a host of its own or shares one whole"
    assert not said["rows answered at a time on style"].with_condition, "one seed of narrow has another than the other"
    assert "host differs with the condition, so a gap between conditions may be its effect:" in said["host"].sentence
    flags = said["processor flags"].sentence
    assert "AVX2 (" in flags and "AVX512 (wide" in flags and "wide · seed 3, wide · seed 11" in flags
    assert "rows answered at a time on style differs: " in said["rows answered at a time on style"].sentence
    html = render(read_records(Store(other), load_study(other / "study.yaml")), [])
    assert "No verdict above accounts for it." in html and "AVX512" in html


def test_without_a_difference_the_report_says_what_was_compared(study: Path) -> None:
    html = (study / "report.html").read_text()
    assert "The 5 compared runs recorded no difference in: host, accelerators, CUDA" in html


# ---------------------------------------------------------------- what people say


def test_comment_mistake_and_task_are_recorded_once_and_shown(study: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    for _ in range(2):
        say(index, Said("two seeds are few", on="R1"), by="Bo")
        say(index, Said("quoted the wrong zone", "mistake", "R1", on_failure="lint first"), by="Bo")
        say(index, Said("train five seeds", "task", "R1", "few", "all decided", "say open"), by="Bo")
    text = index_text(read_index(index))
    assert read_index(index).entries == 4
    assert "mistake M1: quoted the wrong zone" in text and "C1 Bo" in text and "1 of 1 tasks open" in text
    assert "done when: all decided" in text and "if it fails: say open" in text
    say(index, Said("done in R2", "done", "T1"), by="Bo")
    text = index_text(read_index(index))
    assert "0 of 1 tasks open" in text and "by Bo: done in R2" in text
    with pytest.raises(InputError, match="T1 is closed already"):
        say(index, Said("again", "done", "T1"), by="Bo")
    assert max(len(line) for line in text.splitlines() if str(index) not in line) <= 80


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said("x", on="R7"), "expected the id of an entry of this index, found 'R7'"),
        (Said("x"), "a comment needs the id of what it is about."),
        (Said("  ", on="R1"), "the text is empty"),
        (Said("x", "task"), "--reason is empty"),
        (Said("x", on="R1", why="y"), "--reason cannot be used with --as comment"),
        (Said("x", "done", "R1"), "expected the id of an entry of this index, found 'R1'"),
        (Said("x" * 5000, on="R1"), "has 5,000 characters, at most 4,000"),
    ],
)
def test_what_cannot_be_recorded_is_refused(study: Path, index: Path, said: Said, message: str) -> None:
    add_results(index, [study], by="Ana")
    with pytest.raises(InputError, match=re.escape(message)):
        say(index, said, by="Bo")
    assert read_index(index).entries == 1


# ---------------------------------------------------------------- nothing changes without a trace


def test_every_edit_of_the_ledger_is_found_and_stops_every_command(study: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    say(index, Said("two seeds are few", on="R1"), by="Bo")
    path, honest = index / FILE, (index / FILE).read_text()
    lines = honest.splitlines(keepends=True)
    head = read_index(index).head
    edits = {
        "was edited": honest.replace("few", "many"),
        "lost its newest entries": lines[0],
        "does not continue": lines[1],
        "is damaged": honest.replace("{", "[", 1),
    }
    for message, text in edits.items():
        path.write_text(text)
        for act in (lambda: read_index(index), lambda: say(index, Said("hello", on="R1"), by="Bo")):
            with pytest.raises((StaleError, FormatError), match=message):
                act()
    path.unlink()
    with pytest.raises(StaleError, match="is gone"):
        add_results(index, [study], by="Ana")
    path.write_text(honest)
    assert read_index(index, head=head[:12] if head else None).entries == 2


def test_a_ledger_rewritten_whole_is_found_by_the_head_that_was_kept(study: Path, index: Path) -> None:
    head = add_results(index, [study], by="Ana").head
    assert head is not None
    body = {k: v for k, v in Ledger(index / FILE).read()[0].items() if k not in ("previous", "hash")}
    shutil.rmtree(index)
    body["verdicts"][2]["exploratory"] = False
    Ledger(index / FILE, head=True).append(body)
    assert read_index(index).entries == 1, "nothing in the folder shows it"
    with pytest.raises(StaleError, match="does not hold the entry"):
        read_index(index, head=head[:16])


def test_an_unknown_entry_is_an_error_and_not_skipped(study: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    Ledger(index / FILE, head=True).append({"kind": "retracted", "on": "R1"})
    with pytest.raises(FormatError, match="line 2: expected an entry of kind result"):
        read_index(index)


# ---------------------------------------------------------------- the site


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_site_opens_from_disk_runs_nothing_and_links_to_what_is_there(tmp_path: Path) -> None:
    index, out = tmp_path / "results", tmp_path / "site"
    add_results(index, [sealed_study(tmp_path / "study", evil=EVIL)], by=EVIL)
    say(index, Said(EVIL, on="R1"), by="Bo")
    say(index, Said(EVIL, "mistake", "R1"), by="Bo")
    say(index, Said(EVIL, "task", "R1", EVIL, EVIL, EVIL), by="Bo")
    write_site(read_index(index), index, out)
    write_site(read_index(index), index, out)
    assert sorted(p.name for p in out.iterdir()) == ["R1.html", "index.html", "mistakes.html", "runbook.html"]
    for path in out.iterdir():
        page = _Page(path.read_text())
        assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "form", "link", "base"}
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert "default-src &#39;none&#39;; style-src &#39;sha256-" in path.read_text()
        for _, attributes in page.tags:
            target = (attributes.get("href") or "").partition("#")[0]
            assert not target or (out / target).exists(), target
    assert "&lt;script&gt;" in (out / "R1.html").read_text() and "exploratory" in (out / "R1.html").read_text()
    assert 'href="../study/report.html"' in (out / "R1.html").read_text()


def test_a_superseded_or_stale_result_says_so_above_its_verdicts(study: Path, other: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    add_results(index, [other], supersedes="R1", reason="same machine", by="Ana")
    out = index.with_name("site")
    write_site(read_index(index), index, out)
    text = (out / "R1.html").read_text()
    assert text.index("Do not quote this result as it is.") < text.index("<h2>Verdicts")
    assert "superseded by R2: same machine" in text and 'href="./R2.html"' in text
    assert "Do not quote" not in (out / "R2.html").read_text()


def test_a_foreign_page_is_not_written_over(study: Path, index: Path) -> None:
    add_results(index, [study], by="Ana")
    out = index.with_name("site")
    out.mkdir()
    (out / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(InputError, match="was not written by this command"):
        write_site(read_index(index), index, out)
    assert (out / "index.html").read_text() == "<h1>mine</h1>"


# ---------------------------------------------------------------- the command line


def test_the_commands_speak_json_and_exit_2_for_a_result_that_does_not_stand(study: Path, index: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["results", "add", str(study), "--in", str(index), "--by", "Ana"]).exit_code == 0
    listed = run(app, ["results", "show", str(index), "--json"])
    assert listed.exit_code == 0 and json.loads(listed.stdout)["results"][0]["now"]["standing"] == "as added"
    one = run(app, ["results", "show", str(index), "--of", "R1"])
    assert "The sentence about learns may be written." in one.stdout and "timeline of small" in one.stdout
    assert one_text(read_index(index).results[0]).strip() == one.stdout.strip()
    decide_again(study, lambda record: record["verdicts"][0].update(status="refuted"))
    assert run(app, ["results", "show", str(index)]).exit_code == 2
