"""Figures place recorded numbers, stay small, and say what they were made from."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

from veritune.config.claim import Claim
from veritune.config.study import Study
from veritune.records import Estimate, Verdict
from veritune.report import interval
from veritune.report.figures import draw_all
from veritune.report.read import read_records
from veritune.store import Store, read_json, write_json

Small = tuple[Store, Study]
NAMES = {"zones_style", "zones_nll", "train_loss", "validation_nll", "gradient_shares_narrow", "gradient_shares_wide"}
NAMES |= {"disagreement_learns", "disagreement_same", "disagreement_harmless", "size_and_tokens"}


def _table(store: Store, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((store.figures / f"{name}.csv").read_text(encoding="utf-8"))))


def test_every_figure_is_small_and_has_its_five_files(small: Small) -> None:
    store, _ = small
    drawn = draw_all(store, read_records(*small))
    assert {d.name for d in drawn} == NAMES
    for figure in drawn:
        assert len(figure.svg.encode()) < 40_000
        assert {kind for kind, _ in figure.files} == {"PNG", "PDF", "SVG", "CSV", "provenance"}
        assert all((store.root / path).stat().st_size > 0 for _, path in figure.files)


def test_a_long_run_still_gives_a_small_figure_and_a_full_table(small: Small) -> None:
    store, _ = small
    for folder in sorted(store.runs.glob("wide-*")):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        long = [lines[0].replace('"step":1,', f'"step":{s},') for s in range(1, 5001)]
        (folder / "metrics.jsonl").write_text("\n".join(long) + "\n")
    drawn = {d.name: d for d in draw_all(store, read_records(*small))}
    assert len(drawn["train_loss"].svg.encode()) < 40_000
    assert "Every 63th step is drawn" in drawn["train_loss"].caption
    assert len([r for r in _table(store, "train_loss") if r["condition"] == "wide"]) == 10_000


def test_tables_hold_the_records_own_numbers(small: Small) -> None:
    store, _ = small
    draw_all(store, read_records(*small))
    for row in [r for r in _table(store, "zones_style") if r["what"] == "run"]:
        runs = [r for r in store.runs.iterdir() if r.name.startswith(row["condition"])]
        summaries = [read_json(r / "summary.json") for r in runs]
        match = [s for s in summaries if str(s["seed"] if s["seed"] is not None else "") == row["seed"]]
        zone = match[0]["scores"]["style"][row["zone"]]
        assert (int(row["scored"]), int(row["items"])) == (zone["scored"], zone["items"]) == (29, 31)
        assert float(row["mean_score"]) == pytest.approx(zone["mean"] * 29 / 31), "failures count as 0"
    chosen = [r for r in _table(store, "validation_nll") if r["chosen"] == "True"]
    assert [r["step"] for r in chosen] == ["8"] * 4


def test_a_step_whose_gradients_were_not_seen_is_left_out(small: Small) -> None:
    store, _ = small
    told = {d.name: d.svg for d in draw_all(store, read_records(*small))}
    steps = {int(r["step"]) for r in _table(store, "gradient_shares_wide")}
    assert steps == set(range(1, 13)) - {5}
    for path in store.runs.glob("*/telemetry.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "unavailable" not in line))
    assert {d.name: d.svg for d in draw_all(store, read_records(*small))} == told


def test_provenance_names_the_function_and_the_sources_with_their_hashes(small: Small) -> None:
    store, _ = small
    draw_all(store, read_records(*small))
    for name in NAMES:
        record = read_json(store.figures / f"{name}.provenance.json")
        package, function = record["made_by"].rsplit(".", 1)
        assert package.startswith("veritune.report.") and callable(getattr(import_module(package), function))
        assert record["sources"]
        for path, digest in record["sources"].items():
            assert hashlib.sha256((store.root / path).read_bytes()).hexdigest() == digest


def test_files_are_left_alone_until_their_sources_change(small: Small) -> None:
    store, _ = small
    records = read_records(*small)
    draw_all(store, records)
    stamps = {p.name: p.stat().st_mtime_ns for p in store.figures.iterdir()}
    draw_all(store, records)
    assert {p.name: p.stat().st_mtime_ns for p in store.figures.iterdir()} == stamps
    (summary, *_) = sorted(store.runs.glob("wide-*/summary.json"))
    record = read_json(summary)
    record["scores"]["style"]["seen"]["mean"] = 0.0123
    write_json(summary, record)
    draw_all(store, read_records(*small))
    changed = {p.name for p in store.figures.iterdir() if p.stat().st_mtime_ns != stamps[p.name]}
    assert "zones_style.png" in changed and "train_loss.png" not in changed
    assert str(0.0123 * 29 / 31)[:8] in (store.figures / "zones_style.csv").read_text()


def test_figures_that_are_no_more_go_and_foreign_files_stay(small: Small) -> None:
    store, _ = small
    draw_all(store, read_records(*small))
    (store.figures / "mine.png").write_bytes(b"mine")
    write_json(store.figures / "mine.provenance.json", {"made_by": "me"})
    for path in store.runs.glob("narrow-*/telemetry.jsonl"):
        path.unlink()
    draw_all(store, read_records(*small))
    left = {p.name for p in store.figures.iterdir()}
    assert not [name for name in left if name.startswith("gradient_shares_narrow")]
    assert {"mine.png", "mine.provenance.json", "gradient_shares_wide.png"} <= left


def test_inline_svg_brings_no_style_script_or_clashing_id(small: Small) -> None:
    store, _ = small
    drawn = draw_all(store, read_records(*small))
    ids = [i for d in drawn for i in re.findall(r' id="([^"]+)"', d.svg)]
    assert len(ids) == len(set(ids))
    for figure in drawn:
        assert "<style" not in figure.svg and " style=" not in figure.svg and "xmlns" not in figure.svg
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure.svg))
        assert used <= set(ids) and used


def test_every_colour_follows_the_readers_scheme(small: Small) -> None:
    store, _ = small
    for figure in draw_all(store, read_records(*small)):
        assert not re.findall(r'(?:fill|stroke)="#\w+"', figure.svg)


# ---------------------------------------------------------------- intervals to scale


def _verdict(kind: str, value: float | None, low: float | None, high: float | None, **more: Any) -> Verdict:
    details = {"a": {"condition": "new"}, "b": {"condition": "old"}}
    estimate = Estimate("gap", value, low, high, 0.95, 29, "made up", details=details)
    return Verdict("c", kind, "supported", "It did.", (estimate,), **more)


@pytest.mark.parametrize("kind", ["better_by", "not_worse", "no_regression", "equivalent", "differ"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 37.0])
@pytest.mark.parametrize("value", [-0.4, 0.0, 0.02, 0.31])
def test_interval_margin_and_zero_are_drawn_to_one_scale(kind: str, scale: float, value: float) -> None:
    low, high, margin = (scale * x for x in (value - 0.1, value + 0.07, 0.05))
    plot = interval.plot(_verdict(kind, scale * value, low, high, margin=margin), None)
    assert plot is not None and plot.bar is not None and plot.zero is not None
    per_unit = (plot.bar[1] - plot.bar[0]) / (high - low)
    at = {sign * margin: plot.zero.x + per_unit * sign * margin for sign in (1, -1)}
    wanted = {"better_by": [margin], "not_worse": [-margin], "no_regression": [-margin]}.get(kind, [-margin, margin])
    assert [line.x for line in plot.lines] == pytest.approx([at[m] for m in wanted], abs=0.05)
    assert plot.point == pytest.approx(plot.zero.x + per_unit * scale * value, abs=0.05)
    inside = [plot.point, *plot.bar, plot.zero.x, *(line.x for line in plot.lines)]
    assert all(interval.LEFT <= x <= interval.RIGHT for x in inside)
    assert (plot.band is not None) == (kind in ("equivalent", "differ"))


def test_ticks_stand_where_their_labels_say() -> None:
    plot = interval.plot(_verdict("differ", -0.16, -0.2, -0.12, margin=0.05), None)
    assert plot is not None and plot.bar is not None and plot.zero is not None
    per_unit = (plot.bar[1] - plot.bar[0]) / 0.08
    assert 3 <= len(plot.ticks) <= 9
    for tick in plot.ticks:
        assert tick.x == pytest.approx(plot.zero.x + per_unit * float(tick.label.replace("−", "-")), abs=0.1)


def test_without_bounds_there_is_a_point_and_no_bar() -> None:
    plot = interval.plot(_verdict("improves", 0.2, None, None), None)
    assert plot is not None and plot.bar is None and plot.whisker is None
    assert "no interval" in plot.label


def test_without_a_value_there_is_no_drawing() -> None:
    assert interval.plot(replace(_verdict("improves", 0.2, 0.1, 0.3), estimates=()), None) is None
    assert interval.plot(_verdict("improves", None, None, None), None) is None


def test_directions_name_the_arm_that_scores_higher() -> None:
    plot = interval.plot(_verdict("improves", 0.2, 0.1, 0.3), None)
    assert plot is not None and plot.ends == ("← old higher", "new higher →")


def test_a_probe_is_drawn_against_its_threshold_and_without_a_zero() -> None:
    claim = Claim(name="c", kind="probe", probe="n_eff.wide", op=">", threshold=1250.0)
    plot = interval.plot(_verdict("probe", 1207.0, 1100.0, 1300.0), claim)
    assert plot is not None and plot.zero is None
    assert [line.label for line in plot.lines] == ["threshold > 1250"]
