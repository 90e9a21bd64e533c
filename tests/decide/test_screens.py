"""Whole screens, as a reader sees them: each file in `screens/` is what one comparison or one plan prints.

The numbers of the first are those of the documentation's worked example; the others are small enough to recount.
VERITUNE_SCREENS=write makes the files anew: read what changed before it is committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veritune.ci import github_lines, junit
from veritune.decide import ci, planning
from veritune.decide.commands import CompareOptions, CompareReport, compare_before_after, compare_score_tables
from veritune.decide.screen import render_text
from veritune.records import Score
from veritune.stats.power import Design
from veritune.stats.table import Columns, ScoreTable, tables_from_counts

SCREENS = Path(__file__).with_name("screens")
N = 60


def arm(name: str, right: int, *, runs: int = 1, lost: int = 0, failed: int = 0, **more: Any) -> ScoreTable:
    """`right` of 60 items are right, run r errs on r of them; the last ones were lost by the machine or failed."""
    score = np.tile((np.arange(N) < right) * 1.0, (runs, 1))
    for r in range(runs):
        score[r, r * 3 : r * 3 + r] = 0
    score[:, N - lost - failed :] = np.nan
    gone = np.zeros((runs, N), dtype=bool)
    gone[:, N - lost :] = True
    reasons = {k: v for k, v in (("crashed", lost), ("truncated", failed)) if v}
    items = tuple(f"q{i}" for i in range(N))
    labels = tuple(f"s{i}" for i in range(runs))
    return ScoreTable(name, "sums", labels, items, score, missing=(reasons,) * runs, machine_missing_S_N=gone, **more)


def worked_example() -> CompareReport:
    a, b = tables_from_counts([(54, 47, 1139, 79)], names=("tuned", "base"))
    return compare_score_tables([a], b, CompareOptions(margin=0.01, rule={"min_gap": 0.01}))


def seeds() -> CompareReport:
    a, b = arm("tuned", 50, runs=3), arm("base", 40, runs=3)
    return compare_score_tables([a], b, CompareOptions(margin=0.1, rule={"min_gap": 0.1, "every_seed": True}))


def many_seeds() -> CompareReport:
    return compare_score_tables([arm("tuned", 50, runs=9)], arm("base", 40), CompareOptions(adapters=("tuned",)))


def pairs() -> CompareReport:
    arms = [arm("x", 50), arm("y", 45), arm("long name", 30)]
    return compare_score_tables(arms[:2], arms[2], CompareOptions(margin=0.05, all_pairs=True))


def lost() -> CompareReport:
    zone = ("seen", "stranger") * (N // 2)
    a, b = arm("tuned", 50, lost=3, failed=2, zone_N=zone), arm("base", 30, failed=4, zone_N=zone)
    return compare_score_tables([a], b, CompareOptions(margin=0.05, demand="not_worse"))


def errors() -> CompareReport:
    rng = np.random.default_rng(0)
    rate = np.round(rng.uniform(0.1, 0.3, N), 2)
    items = tuple(f"q{i}" for i in range(N))
    a, b = (
        ScoreTable(name, "asr", ("s0",), items, np.array([r]), missing=({},), metric="wer", higher_is_better=False)
        for name, r in (("tuned", rate - 0.05), ("base", rate))
    )
    return compare_score_tables([a], b, CompareOptions(margin=0.3, demand="better", scale=(0.0, 1.0)))


def unknown() -> CompareReport:
    score = np.round(np.linspace(0.1, 0.9, N), 2)[None]
    items = tuple(f"q{i}" for i in range(N))
    a, b = (
        ScoreTable(name, "style", ("s0",), items, s, missing=({},), metric="style", higher_is_better=None)
        for name, s in (("x", score), ("y", score - 0.1))
    )
    return compare_score_tables([a], b, CompareOptions(margin=0.05))


def families() -> CompareReport:
    stratum = tuple(f"task_{i % 13:02d}" for i in range(N))
    family = tuple(str(i // 3) for i in range(N))
    a, b = (replace(t, stratum_N=stratum, family_N=family) for t in (arm("tuned", 50), arm("base", 30)))
    return compare_score_tables([a], b, CompareOptions(margin=0.05))


def raters() -> CompareReport:
    def judged(name: str, shift: float) -> ScoreTable:
        item = [f"q{i}" for i in range(20) for _ in range(3)]
        value = [min(1.0, max(0.0, (i * 7 % 11) / 10 + shift + 0.1 * (r == 2))) for i in range(20) for r in range(3)]
        columns = Columns(
            eval="style", run=["s0"] * 60, item=item, value=value, reason=[None] * 60, rater=["x", "y", "z"] * 20
        )
        return ScoreTable.from_columns(replace(columns, higher_is_better=True), condition=name)

    return compare_score_tables([judged("tuned", 0.05)], judged("base", 0.0), CompareOptions(scale=(0.0, 1.0)))


COMPARED: dict[str, Callable[[], CompareReport]] = {
    f.__name__: f for f in (worked_example, seeds, many_seeds, pairs, lost, errors, unknown, families, raters)
}
PLANNED: dict[str, Design] = {
    "plan": Design(1319, 0.0708, 3, 3, margin=0.01),
    "plan_declared": Design(200, 0.1, 4, 4, margin=0.05, seed_sd=0.01, equal_seed_spread=True, shared_seeds=True),
    "plan_fixed": Design(120, 0.2, 2, 0, margin=0.1, seed_sd=0.02, family_sizes=(6,) * 20, design_effect=2.0),
}


def check(name: str, text: str) -> None:
    path = SCREENS / name
    if os.environ.get("VERITUNE_SCREENS") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMPARED)
def test_a_comparison_on_the_screen(name: str) -> None:
    check(f"{name}.txt", render_text(COMPARED[name]()) + "\n")


@pytest.mark.parametrize("name", ["worked_example", "lost", "families", "unknown"])
def test_a_comparison_in_a_pipeline(name: str) -> None:
    report = COMPARED[name]()
    check(f"{name}.md", ci.markdown(report) + "\n".join(["", *github_lines(ci.check_report(report)), ""]))


@pytest.mark.parametrize("name", ["lost", "pairs"])
def test_a_comparison_as_junit(name: str) -> None:
    check(f"{name}.xml", junit(ci.check_report(COMPARED[name]())))


def test_the_legend_of_a_plan() -> None:
    report = planning.plan_power(PLANNED["plan"], items=(100, 1000), seeds=(1, 3))
    drawn: list[tuple[list[int], str]] = []
    axes = SimpleNamespace(plot=lambda x, y, linestyle, **look: drawn.append((x, linestyle)))
    entries = planning._power_lines(axes, report)
    assert [label for label, _ in entries] == ["1 seed", "3 seeds", "0 % repeat", "100 % repeat"]
    assert len(drawn) == 4 and {style for _, style in drawn} == set(planning.DASHES[:2])
    assert all(x == [100, 1000] for x, _ in drawn)


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_on_the_screen(name: str) -> None:
    report = planning.plan_power(PLANNED[name], items=(100, 1000, 10_000), seeds=(1, 3), pilot="")
    check(f"{name}.txt", planning.render_power(report) + "\n")


def test_before_and_after_are_compared_on_a_scale_from_0_to_1() -> None:
    before, after = ([Score(run, "e", str(i), i / 40 + up) for i in range(40)] for run, up in (("b", 0.0), ("t", 0.01)))
    found = compare_before_after(before, after, 0.2, ("trained",)).comparisons[0]
    assert (found.a, found.b, found.decision, found.details["scale"]) == ("trained", "base", "equivalent", [0.0, 1.0])
    assert found.may_write.startswith(
        "This adapter trained is equivalent to base within ± 0.2 on 40 items of e: gap +0.0100"
    )
