"""Progress: the time left is measured work over measured speed, and is not told before it is known."""

from __future__ import annotations

import io

import pytest

from veritune.progress import Progress, clock


def test_the_time_left_is_unknown_until_every_kind_that_remains_was_measured() -> None:
    progress = Progress(io.StringIO())
    progress.plan("train", 100)
    progress.plan("generate", 10)
    assert progress.left_s() is None
    progress.advance("train", 20, 4.0)
    assert progress.left_s() is None
    progress.advance("generate", 5, 5.0)
    assert progress.left_s() == pytest.approx(80 * 0.2 + 5 * 1.0)


def test_finished_kinds_count_no_time() -> None:
    progress = Progress(io.StringIO())
    progress.plan("train", 10)
    progress.advance("train", 12, 1.0)
    assert progress.left_s() == 0.0


def test_a_speed_seen_elsewhere_is_used_until_the_kind_itself_is_measured_and_is_no_work_done() -> None:
    progress = Progress(io.StringIO())
    progress.plan("train", 10)
    progress.measure("train", 5, 10.0)
    assert progress.left_s() == 20.0
    assert progress.done["train"] == 0


def test_a_second_speed_seen_elsewhere_does_not_replace_the_first() -> None:
    progress = Progress(io.StringIO())
    progress.plan("train", 10)
    progress.measure("train", 5, 10.0)
    progress.measure("train", 5, 1.0)
    assert progress.left_s() == 20.0


def test_what_was_spent_is_work_done_here_and_no_speed_seen_elsewhere() -> None:
    progress = Progress(io.StringIO())
    progress.measure("train", 5, 10.0)
    progress.measure("nll", 5, 10.0)
    progress.advance("train", 2, 3.0)
    assert progress.spent() == {"train": 3.0}


def test_skipped_work_is_no_longer_left() -> None:
    progress = Progress(io.StringIO())
    progress.plan("train", 10)
    progress.advance("train", 2, 2.0)
    progress.skip("train", 6)
    assert progress.left_s() == pytest.approx(2.0)


def test_before_it_is_known_the_line_says_so() -> None:
    stream = io.StringIO()
    progress = Progress(stream, every_s=0)
    progress.plan("a", 2)
    progress.plan("b", 1)
    progress.advance("a", 1, 1.0, "doing a")
    assert "doing a  time left: measuring" in stream.getvalue()
    progress.advance("b", 1, 1.0, "doing b")
    assert "doing b  about 1 s left" in stream.getvalue()


def test_off_a_terminal_lines_are_rare_and_plain() -> None:
    stream = io.StringIO()
    progress = Progress(stream, every_s=1e9)
    progress.last_print = 0.0
    progress.plan("a", 100)
    for _ in range(50):
        progress.advance("a", 1, 0.1, "note")
    assert stream.getvalue().count("\n") <= 1
    assert "\x1b" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_open_line_is_cleared_before_a_line_for_good() -> None:
    stream = Terminal()
    progress = Progress(stream)
    progress.plan("a", 2)
    progress.advance("a", 1, 1.0, "half")
    progress.say("done")
    assert stream.getvalue().endswith("\r\x1b[2Kdone\n")


def test_silent_is_silent() -> None:
    stream = io.StringIO()
    progress = Progress(stream, silent=True, every_s=0)
    progress.plan("a", 1)
    progress.advance("a", 1, 1.0, "x")
    progress.say("y")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (190, "3 min 10 s"),
        (3599.7, "1 h 00 min"),
        (3900, "1 h 05 min"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
