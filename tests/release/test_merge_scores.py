"""Task scores of a merge: paired with the adapter's, decided by the interval and the declared margin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from veritune.config.evals import Eval
from veritune.errors import InputError
from veritune.evaluate.generate import Output
from veritune.records import Message, Row
from veritune.release.parity.merge import MergeParity, MergePart, joined
from veritune.release.parity.merge_scores import ScoredTask, paired_scores

N = 400


def task(margin: float = 0.03, n: int = N) -> ScoredTask:
    rows = tuple(Row(f"i{i}", (Message("user", "?"),), meta={"answer": str(i)}) for i in range(n))
    spec = Eval(kind="match", extract=r"(\d+)", expected="answer")
    return ScoredTask("sums", spec, rows, tuple((i,) for i in range(n)), (None,) * n, margin)


def answerer(wrong: set[int]) -> Any:
    """Answers with the number of the item, and with another where it is said to be wrong."""

    def ask(prompts: Sequence[Sequence[int]], most: int, batch: int) -> list[Output]:
        return [Output(str(p[0] + 1000 * (p[0] in wrong)), (p[0],), "stop_token") for p in prompts]

    return ask


RIGHT_80 = set(range(0, N, 5))  # the adapter errs on every fifth


def status(other: set[int], margin: float = 0.03, n: int = N) -> MergePart:
    (part,) = paired_scores(task(margin, n), answerer(RIGHT_80), {"merged": answerer(other)})
    return part


def test_equal_answers_pass_where_the_items_suffice() -> None:
    found = status(RIGHT_80)
    assert found.status == "passed" and f"{N} of {N} answers are equal" in found.message
    assert found.numbers["low"] > -0.03 and found.numbers["margin"] == 0.03


def test_few_items_leave_it_open_even_where_all_are_equal() -> None:
    """z^2/(n + z^2) is .07 with 50 items: no point estimate of 0 passes that."""
    assert status(RIGHT_80, n=50).status == "undecided"


def test_a_gap_inside_the_margin_with_an_interval_across_it_is_open() -> None:
    worse = RIGHT_80 | {1, 2, 3, 4, 6, 7, 8}
    found = status(worse)
    assert found.status == "undecided"
    assert -0.03 < found.numbers["gap"] < 0 and found.numbers["low"] < -0.03


def test_a_worse_merge_fails() -> None:
    assert status(RIGHT_80 | set(range(100))).status == "failed"


def test_an_adapter_that_scores_nothing_shows_nothing() -> None:
    every = set(range(N))
    (part,) = paired_scores(task(), answerer(every), {"merged": answerer(every)})
    assert part.status == "undecided" and "could hardly show" in part.message


def test_a_margin_is_a_share_and_items_are_needed() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        task(0.0)
    with pytest.raises(InputError, match="no items"):
        task(n=0)


def test_a_comparison_is_as_good_as_its_worst_part() -> None:
    good = MergeParity("passed", "weights", (), (), None, "fine", "", "")
    for word in ("failed", "undecided", "passed"):
        found = joined(good, [MergePart("shards", None, "shown"), MergePart("scores of merged", word, "said")])  # type: ignore[arg-type]
        assert found.status == word and found.numbers()["scores of merged"]["status"] == word
    assert "But scores of merged: said" in joined(good, [MergePart("scores of merged", "undecided", "said")]).reading
