"""The notebook runs, and what it shows is what it says it shows; tables become frames, and hostile text stays text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from veritune.decide.commands import CompareReport
from veritune.display import estimate_text, table_html
from veritune.records import Estimate, Finding, StudyVerdicts, Verdict
from veritune.report.figures import PAGE_COLOURS, Drawn
from veritune.stats.table import ScoreTable
from veritune.writeup.tables import ResultTable

REPO = Path(__file__).resolve().parents[2]
EVIL = "</td><script>alert(1)</script>"
ESTIMATE = Estimate("gap", 0.25, -0.05, 0.55, 0.975, 12, "paired", n_clusters=6)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebook", REPO / "docs" / "make_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_shows_what_its_cells_give(maker: ModuleType) -> None:
    text = maker.NOTEBOOK.read_text(encoding="utf-8")
    assert maker.text_of(maker.executed(json.loads(text), maker.NOTEBOOK.parent)) == text, (
        "python docs/make_notebook.py"
    )


def table() -> ScoreTable:
    missing = {"missing": ({"crashed": 1},), "missing_at": ((0, 1, "crashed"),)}
    return ScoreTable("tuned", "style", ("s0",), ("q1", EVIL), np.array([[1.0, np.nan]]), **missing)  # type: ignore[arg-type]


def test_a_missing_score_is_none_with_its_reason_in_every_form() -> None:
    found = table()
    assert found.to_dict()["score"] == [1.0, None]
    assert found.to_dict()["reason"] == [None, "crashed"]
    assert found.to_polars()["score"].null_count() == 1
    assert found.to_pandas()["score"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    "thing",
    [
        table(),
        Verdict(EVIL, "improves", "supported", EVIL, (ESTIMATE,), (EVIL,)),
        StudyVerdicts("x", None, (), {}, (Verdict(EVIL, "improves", "refuted", EVIL, (), (EVIL,)),)),
        Finding(EVIL, "note", EVIL, evidence={EVIL: [EVIL, {EVIL: EVIL}]}),
        ResultTable("t", (EVIL, "b"), ((EVIL, None),), EVIL),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_hostile_text_stays_text(thing: ScoreTable) -> None:
    assert "<script" not in thing._repr_html_()
    assert "&lt;script" in thing._repr_html_()


def test_a_verdict_never_stands_without_its_status_interval_and_marks() -> None:
    verdict = Verdict("c", "improves", "inconclusive", "It stays open.", (ESTIMATE,), ("no",), exploratory=True)
    html = verdict._repr_html_()
    for part in (
        "inconclusive",
        "exploratory",
        "[-0.05, +0.55] at 97.5 %",
        "n = 12",
        "6 families",
        "may not be written",
    ):
        assert part in html
    assert repr(verdict) == "<Verdict c: inconclusive, exploratory: It stays open.>"


def test_no_interval_says_so_with_its_reason() -> None:
    bare = Estimate("gap", 0.25, None, None, 0.95, 3, "paired", warnings=("3 families: too few",))
    assert estimate_text(bare) == "gap +0.25 no interval (3 families: too few), n = 3"
    assert "no value" in estimate_text(Estimate("gap", None, None, None, 0.95, 0, "paired"))


def test_a_long_table_says_of_how_many_rows_it_shows_some() -> None:
    assert "20 of 1,000 rows" in table_html({"n": list(range(1000))})
    assert "rows" not in table_html({"n": list(range(20))})


def test_an_empty_table_is_an_empty_frame() -> None:
    assert CompareReport((), ()).to_polars().height == 0
    assert "a" in CompareReport((), ()).to_pandas().columns


def test_a_figure_brings_its_own_colours() -> None:
    from markupsafe import Markup

    svg = Markup("<svg>{}</svg>").format(" ".join(PAGE_COLOURS.values()))
    assert "var(" not in Drawn("f", "Title", "Caption", svg, ())._repr_html_()
