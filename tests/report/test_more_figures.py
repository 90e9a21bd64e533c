"""Figures of choices, plans, probes and serving: each from its record alone, with its n, and with nothing cut off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from veritune.drawing import Drawing, save, style, svg_text, table_text
from veritune.records import (
    ChosenRate,
    ClaimReach,
    ConditionShapes,
    Evidence,
    RateCandidate,
    Selection,
    ShapeOffer,
    ShapeTimings,
    Subject,
    TimedShape,
)
from veritune.report import plan_figures, probe_figures, score_figures
from veritune.report.read import Records, Run, read_records


@pytest.fixture(scope="module")
def records(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Records:
    return read_records(*builder.build(tmp_path_factory.mktemp("small") / "study"))


@pytest.fixture(autouse=True)
def look() -> Iterator[None]:
    with style():
        yield


def texts(drawing: Drawing) -> list[str]:
    """Every text of the figure."""
    from matplotlib.text import Text

    return [str(t.get_text()) for t in drawing.figure.findobj(Text) if t.get_text()]


def rows(drawing: Drawing) -> list[dict[str, Any]]:
    return [dict(zip(drawing.header, row)) for row in drawing.table]


def held(drawing: Drawing | None) -> Drawing:
    """The drawing, once everything that it says of itself was checked."""
    assert drawing is not None
    assert drawing.sources and drawing.table and any(t.startswith("n: ") for t in texts(drawing))
    svg_text(drawing)
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    outside = drawing.figure.bbox.padded(3)
    for axes in drawing.figure.axes:
        if axes.get_visible():
            box = axes.get_tightbbox(renderer)
            assert box is None or (outside.containsx(box.x0) and outside.containsx(box.x1)), "cut off at a side"
            assert box is None or (outside.containsy(box.y0) and outside.containsy(box.y1)), "cut off above or below"
    return drawing


def selection(*failed: float) -> Selection:
    rates = [0.001, 0.01, 0.1]
    tried = tuple(RateCandidate(lr, f"r{lr}", None if lr in failed else 2 + lr, 4, "diverged" if lr in failed else None)
                  for lr in rates)  # fmt: skip
    choice = ChosenRate(0.001, "low", tried)
    return Selection("x", "lowest validation NLL", 9, 0.5, {"narrow": choice, "wide": choice}, "now")


def shape(rows_each: int, batches: int, row_s: float | None, offer: ShapeOffer | None = None) -> TimedShape:
    failed = None if row_s else "out of memory"
    return TimedShape("r", rows_each, batches, rows_each * batches, row_s, row_s, None, 2.5, failed, offer)


# ---------------------------------------------------------------- scores


def test_a_condition_has_each_seed_the_mean_and_the_range(records: Records) -> None:
    drawing = held(score_figures.zone_scores(records, "style"))
    of_wide = [r for r in rows(drawing) if (r["zone"], r["condition"]) == ("seen", "wide")]
    runs = [r["mean_score"] for r in of_wide if r["what"] == "run"]
    summed = {r["what"]: r["mean_score"] for r in of_wide if r["what"] != "run"}
    assert len(runs) == 2 and {r["items"] for r in of_wide if r["what"] == "run"} == {31}
    assert summed == {"mean": sum(runs) / 2, "min": min(runs), "max": max(runs), "range": max(runs) - min(runs)}
    assert not [r for r in rows(drawing) if r["condition"] == "baseline" and r["what"] != "run"], "one run has no range"
    assert "seen, n = 31" in texts(drawing)


def test_disagreement_counts_each_item_once_and_one_without_a_score_as_0(records: Records) -> None:
    (claim,) = [c for c in records.study.claims if c.name == "same"]
    drawing = held(score_figures.disagreement(records, replace_zone(claim, None)))
    by_seed = {r["seed"]: 0 for r in rows(drawing)}
    for r in rows(drawing):
        by_seed[r["seed"]] += r["items"]
    assert by_seed == {"3": 6, "11": 6}
    assert {(r["outcome"], r["items"]) for r in rows(drawing) if r["seed"] == "3"} == {
        ("only A higher", 0), ("only B higher", 0), ("equal, above 0", 5), ("equal, 0", 1)
    }  # fmt: skip
    assert {"seed 3, n = 6", "seed 11, n = 6"} <= set(texts(drawing))


def replace_zone(claim: Any, zone: str | None) -> Any:
    return claim.model_copy(update={"zone": zone})


def test_many_seeds_are_small_multiples_up_to_a_number_and_the_table_has_all(records: Records) -> None:
    (claim,) = [c for c in records.study.claims if c.name == "same"]
    seeds = list(range(13))
    runs = [replace(run, seed=s) for s in seeds for run in records.runs if run.seed == 3]
    study = records.study.model_copy(update={"seeds": tuple(seeds)})
    drawing = held(score_figures.disagreement(replace(records, study=study, runs=tuple(runs)), claim))
    assert "The first 12 of 13 seeds are drawn." in drawing.caption and len({r["seed"] for r in rows(drawing)}) == 13


def test_a_sweep_is_drawn_against_its_dose_with_the_baseline(records: Records) -> None:
    sweep = {"data_fraction": [0.1, 0.5, 1.0]}
    base = dict(records.study.conditions)
    conditions = {f"wide-data{d:g}".replace(".", "p"): base["wide"].model_copy(update={"data_fraction": d})
                  for d in sweep["data_fraction"]}  # fmt: skip
    study = records.study.model_copy(update={"conditions": conditions, "sweep": sweep})
    trained = [run for run in records.runs if run.condition == "wide"]
    runs: list[Run] = [run for run in records.runs if run.is_baseline]
    runs += [replace(run, condition=name) for name in conditions for run in trained]
    swept = replace(records, study=study, runs=tuple(runs))
    (drawing,) = (held(d) for d in score_figures.dose_response(swept, "style"))
    assert {r["data_fraction"] for r in rows(drawing)} == {0.1, 0.5, 1.0} and "baseline" in texts(drawing)
    assert len(rows(drawing)) == 6 and drawing.name == "dose_data_fraction_style"
    assert list(score_figures.dose_response(records, "style")) == [], "without a sweep there is no dose"


# ---------------------------------------------------------------- choices and plans


def test_rates_are_drawn_with_the_chosen_one_ringed_and_the_failed_one_named(records: Records) -> None:
    drawing = held(plan_figures.lr_selection(replace(records, selection=selection(0.1))))
    assert {r["learning_rate"] for r in rows(drawing) if r["chosen"]} == {0.001}
    assert "failed" in texts(drawing) and "narrow: 0.001, NLL 2.001" in texts(drawing)
    assert "n: 6 runs, 1 a mark; 50 % of the seen rows" in texts(drawing)
    drawing = held(plan_figures.lr_selection(replace(records, selection=selection())))
    assert "failed" not in texts(drawing)
    held(plan_figures.lr_selection(replace(records, selection=selection(0.001, 0.01, 0.1))))


def test_batch_shapes_say_what_failed_and_what_is_offered(records: Records) -> None:
    offer = ShapeOffer(True, "as good")
    shapes = ConditionShapes(
        shape(4, 1, 0.02), (shape(8, 1, 0.01, offer), shape(64, 1, None, ShapeOffer(False, "oom")))
    )
    drawing = held(plan_figures.throughput(replace(records, shapes=ShapeTimings("x", {"wide": shapes}))))
    assert [r["rows_per_s"] for r in rows(drawing)] == [50.0, 100.0, None]
    assert {"100/s, NLL 2.500, offered", "50/s, NLL 2.500", "failed, not offered"} <= set(texts(drawing))


def test_gaps_are_drawn_at_their_n_and_what_is_open_ended_is_said(records: Records) -> None:
    reach = ClaimReach("learns", "improves", 0.05, "s", None, "stranger", 300, 100, (3, 0), 0.05,
                       detectable=(0.08, 0.12), items_for_margin=(900, 2500))  # fmt: skip
    plan = Plan((reach, replace(reach, claim="other", detectable=(0.2, None), items_for_margin=(4000, None))))
    drawing = held(plan_figures.detectable(replace(records, plan=plan)))  # type: ignore[arg-type]
    assert [(r["items"], r["detectable_least"], r["detectable_most"]) for r in rows(drawing)] == [
        (300, 0.08, 0.12), (300, 0.2, None)
    ]  # fmt: skip
    assert "at worst no gap is detected" in texts(drawing) and "n: 300 items, 3 seeds" in texts(drawing)
    nothing = Plan((replace(reach, detectable=(None, None)), replace(reach, items=None, detectable=None)))
    assert plan_figures.detectable(replace(records, plan=nothing)) is None  # type: ignore[arg-type]


class Plan:
    """The part of a plan that the figure reads."""

    def __init__(self, resolution: tuple[ClaimReach, ...]) -> None:
        self.resolution = resolution


def test_without_their_records_there_are_no_figures(records: Records) -> None:
    for draw in (plan_figures.lr_selection, plan_figures.throughput, plan_figures.detectable, probe_figures.latency):
        assert draw(records) is None
    assert list(probe_figures.all_of(records)) == []


# ---------------------------------------------------------------- probes and serving


def test_alignment_is_a_matrix_by_family_and_a_single_row_has_no_siblings(records: Records) -> None:
    matrix = {"families": ["a", "b"], "rows": [3, 1], "cosine": [[0.8, -0.1], [-0.1, None]], "of": 9}
    found = replace(records, probes=[("probes/x/gradients.json", {"record": {"kind": "gradients", "matrix": matrix}})])
    (drawing,) = (held(d) for d in probe_figures.all_of(found))
    assert "none" in texts(drawing) and "n: 4 rows in 2 families" in texts(drawing)
    assert "The 2 largest of 9 measured families" in drawing.caption and len(drawing.table) == 4
    old = replace(records, probes=[("probes/x/gradients.json", {"kind": "gradients"})])
    assert list(probe_figures.all_of(old)) == [], "a record without the matrix has no figure"


def test_reliability_of_base_and_trained_stand_in_one_figure(records: Records) -> None:
    bins = [{"confidence": 0.3, "accuracy": 0.4, "accuracy_low": 0.2, "accuracy_high": 0.6, "n": 20},
            {"confidence": 0.9, "accuracy": 0.7, "accuracy_low": None, "accuracy_high": None, "n": 2}]  # fmt: skip
    ece = {"value": 0.12, "low": None, "high": None}
    record = {"kind": "calibration", "bins": bins, "ece_debiased": ece, "n": 22}
    found = replace(records, probes=[("probes/x/calibration.json", {"base": record, "trained": record})])
    (drawing,) = (held(d) for d in probe_figures.all_of(found))
    assert "base: debiased ECE 0.120 (no interval), n = 22" in texts(drawing)
    assert "n: 22 answers of base; 22 answers of trained" in texts(drawing)


def test_latency_has_both_sides_and_says_how_many_requests_failed(records: Records) -> None:
    def row(side: str, rate: float, errors: int) -> dict[str, Any]:
        q = {"value": 0.2 * rate, "low": 0.1, "high": None if errors else 0.4}
        return {
            "side": side,
            "rate": rate,
            "requests": 32,
            "errors": errors,
            "first_token_p50": q,
            "first_token_p99": q,
        }

    table = [row(side, rate, side == "candidate") for side in ("base", "candidate") for rate in (0.5, 1.0)]
    serving = Evidence("serving", "passed", "same", Subject("a" * 64, "b" * 64), {"table": table})
    drawing = held(probe_figures.latency(replace(records, serving=serving)))
    assert {"base, median", "candidate, p99"} <= set(texts(drawing)) and "n: 32 requests a mark" in texts(drawing)
    assert "2 of 128 did" in drawing.caption and len(drawing.table) == 8


# ---------------------------------------------------------------- what all figures hold to


def test_a_figure_without_an_n_cannot_be_made(records: Records) -> None:
    drawing = held(score_figures.zone_scores(records, "style"))
    with pytest.raises(
        ValueError, match=r": expected a text for `n` \(how many of what the figure shows\), found none"
    ):
        replace(drawing, n=" ")


def test_strange_names_stay_inside_and_every_file_is_written(records: Records, tmp_path: Path) -> None:
    """Long names, and names that mean something to matplotlib, are drawn and written as they are."""
    name = "$x^2$_" + "very-long-" * 9
    names = {"narrow": name, "wide": "_wide"}
    study = records.study.model_copy(update={"conditions": {names[k]: v for k, v in records.study.conditions.items()}})
    runs = tuple(replace(run, condition=names.get(run.condition, run.condition)) for run in records.runs)
    drawing = held(score_figures.zone_scores(replace(records, study=study, runs=runs), "style"))
    assert name in table_text(drawing) and "$x^2$_very-long-v…" in texts(drawing)
    held(plan_figures.size_and_tokens(replace(records, study=study, runs=runs)))
    paths = save(drawing, tmp_path, tmp_path, svg_text(drawing))
    assert sorted(paths) == ["csv", "pdf", "png", "provenance", "svg"] and all(p.stat().st_size for p in paths.values())
