"""The figures of a geometry grid and of a lineage: everything recorded is drawn, with its n, CSV and provenance."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from veritune.data.review import Version
from veritune.drawing import Drawing, provenance_of, style
from veritune.errors import InputError
from veritune.files import sha256_file
from veritune.probe.geometry_cells import CellGrid, GridCell, judge_cells
from veritune.report.grid_figures import cell_grid, write_cells
from veritune.report.lineage_figures import lineage, write_lineage


def texts(drawing: Drawing) -> list[str]:
    from matplotlib.text import Text

    return [str(t.get_text()) for t in drawing.figure.findobj(Text) if t.get_text()]


def cells(changes: Sequence[float], condition: str, layers: Sequence[int] = (0, 4, 8)) -> list[GridCell]:
    return [
        GridCell(condition, 0, None, method, layer, "m1", change, 0.5, 0.5 + change, change - 0.02, change + 0.02,
                 0.001 if abs(change) > 0.05 else 0.4, 0.0005)
        for method in ("last_input_token", "response_mean")
        for layer, change in zip(layers, changes)
    ]  # fmt: skip


def grid() -> CellGrid:
    return judge_cells([*cells((0.1, 0.1, 0.001), "lora"), *cells((0.3, -0.2, 0.002), "full")], "lora")


def test_every_cell_has_its_direction_and_its_verdict() -> None:
    with style():
        drawing = cell_grid(grid())
    said = texts(drawing)
    assert said.count("▲") == 4 and said.count("▲W") == 2 and said.count("▼C") == 2
    assert {"M1, last input token", "M1, response mean", "full, seed 0"} <= set(said)
    assert "n: 12 cells, 2 runs × 3 layers; 12 p corrected" in said
    assert len(drawing.table) == 12 and "C reference is the culprit" in " ".join(said)


def test_more_layers_than_have_room_are_shaded_and_the_table_has_all() -> None:
    many = tuple(range(60))
    with style():
        drawing = cell_grid(judge_cells(cells([0.1] * 60, "full", many)))
    assert "▲" not in texts(drawing) and len(drawing.table) == 120
    assert drawing.figure.get_figwidth() <= 16


def test_a_folder_takes_every_format_with_its_provenance(tmp_path: Path) -> None:
    (tmp_path / "geometry.json").write_text("{}")
    write_cells(grid(), tmp_path)
    assert {p.suffix for p in tmp_path.glob("geometry.*")} == {".json", ".png", ".pdf", ".svg", ".csv"}
    record = provenance_of(tmp_path / "geometry.provenance.json")
    assert record is not None and record.sources == {"geometry.json": sha256_file(tmp_path / "geometry.json")}
    assert len(list(csv.DictReader((tmp_path / "geometry.csv").open()))) == 12


def version(letter: str, parents: str = "", **more: object) -> Version:
    return Version(letter * 64, f"{letter}.jsonl", 10, tuple(p * 64 for p in parents), **more)  # type: ignore[arg-type]


def test_a_version_stands_below_its_parents_and_a_retired_one_says_why(tmp_path: Path) -> None:
    made = [version("a"), version("b", "a", rejects={"duplicate": 2}), version("c", "ab", retired="leak"), version("d")]
    (tmp_path / "_lineage.jsonl").write_text("")
    with style():
        drawing = lineage(made)
    said = texts(drawing)
    assert {"a.jsonl", "without 2 duplicate", "RETIRED: leak", "n: 4 versions, 1 of them retired"} <= set(said)
    height = {
        t.get_text(): t.get_position()[1] for t in drawing.figure.axes[0].texts if t.get_text().endswith(".jsonl")
    }
    assert height["a.jsonl"] == height["d.jsonl"] < height["b.jsonl"] < height["c.jsonl"]
    write_lineage(made, tmp_path / "out.png", tmp_path)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [r["retired"] for r in rows] == ["", "", "leak", ""] and rows[2]["parents"] == f"{'a' * 64} {'b' * 64}"
    record = provenance_of(tmp_path / "out.provenance.json")
    assert record is not None and set(record.sources) == {"_lineage.jsonl"}
    with pytest.raises(InputError, match=r"expected a \.svg, \.png or \.pdf file"):
        write_lineage(made, tmp_path / "out.gif", tmp_path)


def test_a_ledger_that_runs_in_a_circle_is_drawn() -> None:
    with style():
        drawing = lineage([version("a", "b"), version("b", "a"), version("c", "c")])
    assert len(drawing.table) == 3


def test_many_versions_of_one_generation_stand_in_several_lines() -> None:
    with style():
        drawing = lineage([version(letter) for letter in "abcdefghijkl"])
    places = {t.get_position() for t in drawing.figure.axes[0].texts if t.get_text().endswith(".jsonl")}
    assert len(places) == 12 and len({y for _, y in places}) == 3


def test_nothing_that_a_name_smuggles_in_reaches_the_picture(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>&\x1b[31m\u202e\n```$x$.jsonl'
    made = [
        version("a"),
        Version("b" * 64, evil, 9, ("a" * 64, "b" * 64), {evil: 1}, retired=evil),
        version("c", "ab"),
        version("d", "e"),
        version("e", "d"),
    ]
    write_lineage(made, tmp_path / "out.svg", tmp_path)
    picture = ElementTree.fromstring((tmp_path / "out.svg").read_text("utf-8"))
    text = "".join(picture.itertext())
    assert "script" not in {e.tag.rpartition("}")[2] for e in picture.iter()}
    assert "<script>alert(1)</script>" in text and "\x1b" not in text and "\u202e" not in text
    assert all(f"{letter}.jsonl" in text for letter in "acde")
