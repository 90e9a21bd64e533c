"""A pattern that backtracks without end stops, with `re` otherwise as it is."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path

import pytest

from veritune import patterns
from veritune.config.evals import Eval
from veritune.data.quality import QualityConfig, check_rows
from veritune.errors import DataError, InputError
from veritune.evaluate.generate import Output
from veritune.evaluate.tasks import score
from veritune.patterns import PatternTooSlow, limited, search
from veritune.records import Message, Row
from veritune.writeup.lint.check import _covers

ENDLESS, TEXT = r"(a+)+$", "a" * 60 + "b"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "__wrapped__", limited.__wrapped__)
    monkeypatch.setattr(limited.__wrapped__, "__defaults__", (0.2,))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(ENDLESS, TEXT), (r"\s+$", " " * 300_000 + "x"), (r"(?:a|aa)+b", "a" * 60), (r"(x+x+)+y", "x" * 50)],
)
def test_it_stops_and_leaves_no_timer_behind(pattern: str, text: str) -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(PatternTooSlow), limited():
        re.search(pattern, text)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == before


def test_an_ordinary_pattern_is_left_alone_also_in_a_thread() -> None:
    assert search(re.compile("b"), TEXT)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(bool(search(re.compile("b"), TEXT))))
    thread.start()
    thread.join()
    assert found == [True]
    with pytest.raises(InputError, match="nested repeats"):
        search(re.compile(ENDLESS), TEXT)
    assert patterns.LIMIT_S >= 1


def test_an_output_that_a_rule_cannot_judge_has_no_value_and_a_reason() -> None:
    row = Row("r", (Message("user", "q"), Message("assistant", "a")), meta={"c": "1"})
    rules = Eval(rules=({"name": "slow", "pattern": ENDLESS}, {"name": "quick", "pattern": "a"}))
    scored = score("e", rules, row, Output(TEXT, (1,), "stop_token"))
    assert (scored.value, scored.reason) == (None, "pattern_too_slow") and "slow" in scored.parts["why"]
    match = Eval(kind="match", extract=ENDLESS, expected="c")
    assert score("e", match, row, Output(TEXT, (1,), "stop_token")).reason == "pattern_too_slow"
    assert score("e", rules, row, Output("aab", (1,), "stop_token")).value == 0.5


def test_a_users_pattern_file_names_the_check_and_the_row(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"mine: {{says: s, patterns: ['{ENDLESS}']}}")
    rows = [Row("row-7", (Message("user", "q"), Message("assistant", TEXT)))]
    with pytest.raises(DataError, match=r"mine.*row-7.*PatternTooSlow"):
        check_rows(rows, QualityConfig(patterns=(tmp_path / "p.yaml",)))


def test_a_lint_pattern_covers_what_it_matches() -> None:
    text = "see v1.2 and 3.4 there"
    assert [_covers(re.compile(r"v[\d.]+"), text, text.index(x)) for x in ("1.2", "3.4")] == [True, False]
    assert not _covers(re.compile("x*"), text, 3)
    with pytest.raises(InputError):
        _covers(re.compile(ENDLESS), TEXT, 70)
