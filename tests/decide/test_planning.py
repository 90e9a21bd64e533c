"""`power` from a design or from pilot files to one screen of text, JSON and a plot."""

from __future__ import annotations

import json

import numpy as np
import pytest

from veritune import records
from veritune.config.claim import Claim
from veritune.decide import planning
from veritune.decide.claims import judge
from veritune.decide.commands import CompareOptions, compare_score_tables
from veritune.decide.screen import render_text
from veritune.decide.sides import parse_side
from veritune.errors import ScoreError
from veritune.stats.power import Design
from veritune.stats.table import ScoreTable
from veritune.verbs import verdict_lines


def write(path, scores, **columns):
    """A score file: one line per run and item."""
    lines = []
    for s, row in enumerate(np.atleast_2d(scores)):
        for i, value in enumerate(row):
            extra = {name: values[i] for name, values in columns.items()}
            lines.append(json.dumps({"id": f"q{i}", "score": float(value), "seed": str(s), **extra}))
    path.write_text("\n".join(lines) + "\n")
    return parse_side(str(path))


def test_both_ends_are_shown_when_nothing_is_known_about_seeds():
    report = planning.plan_power(Design(1319, 0.0708, 3, 3, margin=0.01))
    text = planning.render_power(report)
    for part in (
        "if seeds flip other items:",
        "if seeds flip the same items:",
        "Assumed: a seed SD of 0. `compare` will not know it",
        "share of flips that repeat over seeds: 0\n",
        "share of flips that repeat over seeds: 1\n",
    ):
        assert part in text
    assert "add seeds" not in text and "cannot" not in text
    found = json.loads(records.dumps(report))
    assert set(found["plans"][0]["items_for_margin"]) == {"low", "high"}


def test_pilot_scores_give_ranges_over_what_few_runs_leave_open(tmp_path):
    rng = np.random.default_rng(5)
    item = rng.normal(size=160)
    own = 0.4 * rng.normal(size=160)
    a, b = (
        (item + gain * own + 0.3 * rng.normal(size=(3, 160)) + 0.02 * rng.normal(size=(3, 1)) > -0.5) * 1.0
        for gain in (1.0, 0.0)
    )
    sides = write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)
    report = planning.plan_from_scores(*sides, CompareOptions(margin=0.1))
    (plan,) = report.plans
    assert plan.items_for_margin.low < (plan.items_for_margin.high or 10**9)
    low, high = plan.detectable_range
    assert low <= plan.detectable <= high
    text = planning.render_power(report)
    assert "pilot: a (3 seeds) against b (3 seeds), 160 items" in text
    assert "80 % range" in text and "Assumed" not in text
    shared = planning.plan_from_scores(*sides, CompareOptions(margin=0.05), planning.Declared(shared_seeds=True))
    assert "seeds shared by the arms" in planning.render_power(shared)


def test_families_too_few_for_a_verdict_are_named_with_what_more_of_them_would_do(tmp_path):
    rng = np.random.default_rng(1)
    names = [f"f{i // 20}" for i in range(60)]
    sides = [write(tmp_path / f"{n}.jsonl", rng.integers(0, 2, 60), family=names) for n in "ab"]
    text = planning.render_power(planning.plan_from_scores(*sides, CompareOptions(margin=0.1)))
    assert "No verdict is possible with these families: 3 families" in text
    assert "families growing with them" in text


def test_graded_pilot_scores_without_a_scale_are_refused(tmp_path):
    rng = np.random.default_rng(2)
    sides = [write(tmp_path / f"{n}.jsonl", 5 + rng.normal(size=50)) for n in "ab"]
    with pytest.raises(ScoreError, match="declared scale"):
        planning.plan_from_scores(*sides, CompareOptions(margin=0.5))
    (plan,) = planning.plan_from_scores(*sides, CompareOptions(margin=0.5, scale=(0.0, 10.0))).plans
    assert plan.design.width == 10


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written(tmp_path, suffix):
    path = tmp_path / f"power.{suffix}"
    planning.plot_power(planning.plan_power(Design(500, 0.1, 2, 2, margin=0.02)), path)
    assert path.stat().st_size > 5000


def test_a_decision_that_the_design_seldom_reaches_says_so():
    """Two seeds whose means agree to the last item: settled by luck, beside a detectable gap of about .5."""
    rng = np.random.default_rng(3)
    base_N, tables = rng.random(200) < 0.5, []
    for name, gained in (("a", 60), ("b", 0)):
        rows = []
        for _ in range(2):
            row = base_N ^ (rng.permutation(200) < 60)
            for wanted in (90, 90 + gained):  # the same number right in every run
                wrong, right = np.flatnonzero(~row), np.flatnonzero(row)
                row[rng.permutation(wrong)[: max(0, wanted - len(right))]] = True
                row[rng.permutation(right)[: max(0, len(right) - wanted)]] = False
            rows.append(row)
        items = tuple(map(str, range(200)))
        tables.append(ScoreTable(name, "e", ("0", "1"), items, np.array(rows) * 1.0, missing=({}, {})))
    (report,) = compare_score_tables(tables[:1], tables[1], CompareOptions(margin=0.05)).comparisons
    assert report.decision == "better by the margin" and report.detectable > report.estimates[0].value
    assert report.chance_again < 0.5
    assert "another study of this design would settle a gap of this size in" in render_text(
        compare_score_tables(tables[:1], tables[1], CompareOptions(margin=0.05))
    )
    claim = Claim(name="c", kind="better_by", condition="a", against="b", zone=None, margin=0.05)
    (verdict,) = judge([claim], {("a", "e"): tables[0], ("b", "e"): tables[1]})
    assert verdict.status == "supported" and verdict.details["chance_again"] == report.chance_again
    assert "Another study of this design" in " ".join(verdict_lines(verdict))
