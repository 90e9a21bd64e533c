"""A grid of cells from tables made elsewhere: the same numbers, one family, a rule against a reference."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.commands.app import app
from veritune.config.thresholds import DEFAULTS
from veritune.errors import DataError, InputError, ScoreError
from veritune.probe.geometry_cells import judge_cells, moved, read_cells
from veritune.probe.geometry_dose import GridCell
from veritune.report.geometry_cells import cells_csv, cells_table
from veritune.stats.centroids import m1, permutation_p

P, H = 8, 6
RNG = np.random.default_rng(0)
BASE = {layer: RNG.normal(size=(P, H)) for layer in (4, 8)}
TUNED = {layer: BASE[layer] + np.array([3.0, *[0.0] * (H - 1)]) for layer in BASE}


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def centroids(path: Path) -> Path:
    return table(
        path,
        [
            {"condition": name, "layer": layer, "persona": f"p{i}", "centroid": side[layer][i].tolist()}
            for name, side in (("base", BASE), ("full", TUNED))
            for layer in side
            for i in range(P)
        ],
    )


def cosines(path: Path) -> Path:
    rows = []
    for name, side in (("base", BASE), ("full", TUNED)):
        for layer, x in side.items():
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            rows += [
                {"condition": name, "layer": layer, "persona_a": f"p{i}", "persona_b": f"p{j}", "cosine": float(c)}
                for i in range(P)
                for j, c in enumerate(unit @ unit[i])
                if i < j
            ]
    return table(path, rows)


def test_centroids_cosines_and_changes_give_the_same_m1(tmp_path: Path) -> None:
    by_centroid, by_cosine = read_cells(centroids(tmp_path / "a.jsonl")), read_cells(cosines(tmp_path / "b.jsonl"))
    for one, other in zip(by_centroid, by_cosine, strict=True):
        before, after = m1(BASE[one.layer]), m1(TUNED[one.layer])
        assert before is not None and after is not None
        assert one.change == pytest.approx(after - before) == pytest.approx(other.change)
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
        assert one.p == permutation_p(BASE[one.layer], TUNED[one.layer])[1] and one.floor == 2 / 2**P
        assert other.p is None, "within one arm's cosines there is no swap"
    rows = [
        {"condition": "full", "layer": c.layer, "base": c.base, "trained": c.trained, "p": c.p} for c in by_centroid
    ]
    given = judge_cells(read_cells(table(tmp_path / "c.jsonl", rows)))
    ours = judge_cells(by_centroid)
    assert [c.p_adjusted for c in given.cells] == [c.p_adjusted for c in ours.cells]
    assert given.counts[0].rose == ours.counts[0].rose == 2
    assert ours.reading == (
        "M1 rose in 2 of 2 cells of full and fell in 0. 2 p are one family; the smallest possible p is 0.0078, and 1 "
        "must reach it for any to count."
    )


def changes(tmp_path: Path) -> Path:
    """Five layers by two methods and four seeds: 40 cells of `full`, 38 of them up, and the same of `lora`."""
    rows = []
    for k in range(40):
        where = {"seed": k // 10, "layer": k % 5, "method": ("a", "b")[k // 5 % 2], "step": 100}
        up = k >= 2
        full = {"change": 0.2 if up else 0.02, "p": 0.004 if up else 0.5, "low": 0.1 if up else -0.1, "high": 0.3}
        rows.append({"condition": "full", **where, **full})
        rows.append({"condition": "lora", **where, "change": 0.1, "p": 0.004, "low": 0.05, "high": 0.15})
    return table(tmp_path / "changes.jsonl", rows)


def test_counts_of_cells_and_the_rule_against_a_reference(tmp_path: Path) -> None:
    grid = judge_cells(read_cells(changes(tmp_path)), "lora")
    assert "M1 rose in 38 of 40 cells of full and fell in 0" in grid.reading
    assert "against lora: worse in 38, reference is the culprit in 2" in grid.reading
    assert "80 p are one family; the smallest possible p is not known." in grid.reading
    assert {round(c.ratio or 0, 9) for c in grid.cells if c.condition == "full"} == {2.0, 0.2}
    assert all(c.verdict is None for c in grid.cells if c.condition == "lora")


def cell(condition: str, change: float, **more: Any) -> GridCell:
    return GridCell(condition, 0, 10, "m", 3, "m1", change, **more)


@pytest.mark.parametrize(
    ("own", "reference", "by_rule", "verdict", "reason"),
    [
        (0.049, {"change": 0.1, "low": 0.05, "high": 0.2}, "reference is the culprit", "reference is the culprit", ""),
        (0.05, {"change": 0.1, "low": 0.05, "high": 0.2}, "generic", "generic", ""),
        (0.15, {"change": 0.1, "low": 0.05, "high": 0.2}, "generic", "generic", ""),
        (0.151, {"change": 0.1, "low": 0.05, "high": 0.2}, "worse", "worse", ""),
        (0.3, {"change": 0.1, "low": -0.01, "high": 0.2}, "worse", "withheld", "not clear of 0"),
        (0.3, {"change": 0.1}, "worse", "withheld", "no interval and no p of the reference is given"),
        (0.3, {"change": 0.004, "low": 0.001, "high": 0.01}, "worse", "withheld", "is below 0.005"),
        (-0.3, {"change": 0.1, "p": 0.01}, "reference is the culprit", "reference is the culprit", "opposite"),
        (0.3, {"change": 0.0, "p": 0.01}, None, "withheld", "did not change"),
    ],
)
def test_the_ratio_s_word_and_when_it_is_withheld(
    own: float, reference: dict[str, Any], by_rule: str | None, verdict: str, reason: str
) -> None:
    grid = judge_cells([cell("full", own), cell("lora", **reference)], "lora")
    found = grid.cells[0]
    assert (found.by_rule, found.verdict) == (by_rule, verdict) and reason in found.reason


def test_a_cell_moves_by_its_corrected_p_and_by_its_size() -> None:
    limits = DEFAULTS.geometry
    assert [
        moved(cell("a", x, p_adjusted=p), limits) for x, p in ((0.1, 0.01), (-0.1, 0.01), (0.1, 0.05), (0.001, 0.01))
    ] == [
        1,
        -1,
        0,
        0,
    ]
    many = [GridCell("a", 0, 1, "m", k, "m1", 0.1, p=0.04 if k else 0.9) for k in range(10)]
    assert judge_cells(many).counts[0].rose == 9
    assert judge_cells([*many, *(GridCell("b", 0, 1, "m", k, "m1", 0.1, p=0.9) for k in range(30))]).counts[0].rose == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"condition": "a", "layer": 1, "change": 0.1, "p": 0}], "row 1: expected p above 0"),
        ([{"condition": "a", "layer": 1.5, "change": 0.1}], "layer: expected a whole number, found 1.5"),
        ([{"condition": "a", "layer": 1, "change": "high"}], "change: expected a finite number, found 'high'"),
        ([{"condition": "a", "layer": 1, "change": 0.5, "base": 0.1, "trained": 0.2}], "trained - base is 0.1"),
        ([{"condition": "a", "layer": 1, "change": 0.5, "low": 0.6, "high": 0.7}], "expected low <= change <= high"),
        ([{"condition": "a", "layer": 1, "change": 0.1}] * 2, "row 2: this condition, seed, step, method, layer"),
        ([{"condition": "a", "layer": 1, "value": 0.1}], "found condition, layer, value"),
        ([{"condition": "a", "layer": 1, "persona_a": "x", "persona_b": "y", "cosine": 2}], "a cosine from -1 to 1"),
        ([{"condition": "a", "layer": 1, "persona_a": "x", "persona_b": "y", "cosine": 0.5}], "'base' does not"),
        ([{"condition": "a", "layer": 1, "persona": "x", "centroid": []}], "expected a persona and its centroid"),
        ([{"condition": "a", "layer": 1, "persona": "x", "centroid": [1, None]}], "entry 2: expected a number"),
        ([{"condition": "a", "layer": 1, "persona": "x", "centroid": ["", 1]}], "entry 1: expected a number"),
        ([{"layer": 1, "change": 0.1}], ": expected a `condition`, found none."),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_row(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_cells(table(tmp_path / "t.jsonl", rows))
    assert words in str(caught.value)


def test_the_command_reads_a_table_and_writes_record_csv_and_figure(tmp_path: Path, capsys: Any) -> None:
    path, out = changes(tmp_path), tmp_path / "out"
    app(["probe", "geometry", "--from", str(path), "--reference", "lora", "--out", str(out)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "38 of 40 cells of full" in said and "2.00 worse" in said
    assert json.loads((out / "geometry.json").read_text())["kind"] == "geometry_cells"
    rows = list(csv.DictReader((out / "geometry.csv").read_text().splitlines()))
    assert len(rows) == 80 and {r["verdict"] for r in rows} == {"worse", "reference is the culprit", ""}
    assert (out / "geometry.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(ScoreError, match="unknown condition 'lira'"):
        app(["probe", "geometry", "--from", str(path), "--reference", "lira"], standalone_mode=False)
    with pytest.raises(ScoreError, match="--layers: unknown layer 9"):
        app(["probe", "geometry", "--from", str(path), "--layers", "1,9"], standalone_mode=False)


def test_tables_show_what_is_not_known_as_a_dash() -> None:
    grid = judge_cells([cell("full", 0.1)])
    assert "-" in cells_table(grid).splitlines()[1] and cells_csv(grid).splitlines()[1].endswith(",,,,,,,,")


# ---------------------------------------------------------------- dose-response, seeds pooled


def dose_cells() -> list[GridCell]:
    """Two layers, two steps, three seeds; `full` moves .1, .2, .3 at step 4 and twice that at 8, `lora` half of it."""
    made = []
    for condition, factor in (("full", 1.0), ("lora", 0.5)):
        for seed in range(3):
            for step in (4, 8):
                whole = factor * (seed + 1) / 10 * step / 4
                made += [
                    GridCell(condition, seed, step, "m", layer, "m1", whole + offset)
                    for layer, offset in ((3, -0.01), (9, 0.01))
                ]
    return made


def test_seeds_are_pooled_by_condition_and_step_with_a_t_interval_over_them() -> None:
    grid = judge_cells(dose_cells(), "lora")
    first, second, other, _ = grid.dose
    assert [(p.condition, p.step) for p in grid.dose] == [("full", 4), ("full", 8), ("lora", 4), ("lora", 8)]
    assert first.seeds == (0, 1, 2) and first.layers == (3, 9)
    assert (first.change, first.least, first.most) == pytest.approx((0.2, 0.1, 0.3))
    half = 4.302653 * 0.1 / 3**0.5  # t at .975 with two degrees of freedom, times sd over the root of three
    assert (first.low, first.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert second.change == pytest.approx(0.4)
    # beside the reference each seed is put beside its own: .05, .1, .15
    assert first.reference == "lora" and first.beyond == pytest.approx(0.1)
    assert first.beyond_low == pytest.approx(0.1 - half / 2, abs=1e-6)
    assert other.reference is None and other.beyond is None


def test_a_single_seed_has_no_interval_and_a_layer_that_one_run_lacks_is_left_out() -> None:
    alone = judge_cells([c for c in dose_cells() if c.seed == 0]).dose
    assert all(p.low is None and p.high is None and p.least == p.most == p.change for p in alone)
    lacking = [c for c in dose_cells() if (c.condition, c.seed, c.step, c.layer) != ("full", 2, 8, 9)]
    point = judge_cells(lacking).dose[0]
    assert point.layers == (3,) and point.change == pytest.approx(0.19)


def test_every_condition_may_have_a_reference_of_its_own() -> None:
    cells = [
        *(cell(name, change, p=0.01, low=change / 2, high=2 * change) for name, change in (("a", 0.1), ("b", 0.4))),
        *(cell(name, 0.2, p=0.01, low=0.1, high=0.3) for name in ("lora_a", "lora_b")),
    ]
    grid = judge_cells(cells, {"a": "lora_a", "b": "lora_b"})
    assert [(c.ratio, c.verdict) for c in grid.cells] == [
        (0.5, "generic"), (2.0, "worse"), (None, None), (None, None),
    ]  # fmt: skip
    assert "of a and fell in 0 (against lora_a: generic in 1)" in grid.reading
    with pytest.raises(ScoreError, match="unknown condition 'lira'"):
        judge_cells(cells, {"a": "lira"})
    with pytest.raises(ScoreError, match="a is put beside itself"):
        judge_cells(cells, {"a": "a"})


def test_the_command_prints_the_dose_table_and_writes_it_as_csv(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"condition": c.condition, "seed": c.seed, "step": c.step, "layer": c.layer, "change": c.change}
        for c in dose_cells()
    ]
    path, out = table(tmp_path / "t.jsonl", rows), tmp_path / "out"
    command = ["probe", "geometry", "--from", str(path), "--reference"]
    app([*command, "full=lora", "--out", str(out)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "by step, seeds pooled, mean over layers:" in said
    assert "+0.2000" in said and "+0.1000 to +0.3000" in said and "+0.1000 (lora)" in said
    dose = list(csv.DictReader((out / "geometry.dose.csv").read_text().splitlines()))
    assert [(r["condition"], r["step"], r["seeds"], r["layers"]) for r in dose[:2]] == [
        ("full", "4", "3", "2"),
        ("full", "8", "3", "2"),
    ]
    assert float(dose[0]["beyond"]) == pytest.approx(0.1) and dose[2]["beyond"] == ""
    with pytest.raises(InputError, match="expected a condition, or pairs"):
        app([*command, "full="], standalone_mode=False)
