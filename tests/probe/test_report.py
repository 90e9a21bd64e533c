"""The page of what every probe says, from a finished study and from records by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.commands.app import app
from veritune.errors import InputError, ScoreError
from veritune.pipeline.probes import probe_report
from veritune.probe.telemetry import summarize
from veritune.records import (
    Geometry,
    GeometryGrid,
    GeometryLimits,
    GridFamily,
    LayerGeometry,
    MeasureChange,
    ReferenceRatio,
    dumps,
    to_json,
)


def line(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "status": "ok",
        "share": {"type": {"q": 0.25, "v": 0.75}, "group": {"attention": 1.0}},
        "grad_norm": {"total": 2.0 / step},
        "clip": {"factor": 0.5 if step == 1 else 1.0},
        "update": {"ratio": {"total": 0.01 * step}},
        **changes,
    }


def test_telemetry_in_three_sentences() -> None:
    gone = {"step": 3, "status": "unavailable", "reason": "DeepSpeed", "share": None}
    found = summarize([line(1), line(2, share={"type": {"q": 0.75, "v": 0.25}, "group": {"attention": 1.0}}), gone])
    assert found.share["type"] == {"q": 0.5, "v": 0.5}
    assert (found.n_steps, found.n_seen, found.n_clipped) == (3, 2, 1)
    assert (found.norm_first, found.norm_last) == (2.0, 1.0)
    assert found.update_ratio == pytest.approx(0.015)
    assert "q 50%" in found.reading and "1 step unseen" in found.reading
    assert summarize([gone]).reading == "The gradients could not be seen at any step: DeepSpeed."
    assert summarize([gone]).norm_first is None
    with pytest.raises(ScoreError, match="no step"):
        summarize([])
    dumps(found)


def test_every_probe_of_a_study_ends_in_three_sentences(finished_copy: Any) -> None:
    from veritune.seal import verify

    root = finished_copy.root
    (root / "probes").mkdir(exist_ok=True)
    evil = "<script>alert(1)</script>"
    own = {"kind": "geometry", "reading": f"Voices stayed apart. {evil}", "limits": "L.", "would_change": "W."}
    (root / "probes" / "voices.json").write_text(json.dumps(own), "utf-8")
    found = probe_report(root)
    kinds = [b.kind for b in found]
    assert kinds.count("three_zone_gap") == kinds.count("telemetry") == kinds.count("weights") == 4
    assert kinds.count("geometry") == 1
    assert all(b.reading and b.limits and b.would_change for b in found)
    assert all((root / b.source).is_file() for b in found)
    page = (root / "report.html").read_text("utf-8")
    assert "Inside the training" in page and evil not in page and "Voices stayed apart. &lt;script&gt;" in page
    assert verify(root) == [], "the seal covers the new records"
    weights = next((root / "probes").glob("*/weights.json"))
    assert str(root) not in weights.read_text("utf-8")
    before = weights.stat().st_mtime_ns
    assert probe_report(root) == found and weights.stat().st_mtime_ns == before


def test_the_command_prints_and_writes(finished_copy: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "probes.md"
    app(["report", str(finished_copy.root), "--probes", "--out", str(out)], standalone_mode=False)
    text = capsys.readouterr().out
    assert text.strip() == out.read_text("utf-8").strip() and text.count("## ") == 16
    app(["report", str(finished_copy.root), "--probes", "--json"], standalone_mode=False)
    assert len(json.loads(capsys.readouterr().out)) == 16


def test_every_kind_of_record_has_a_name_and_a_list_of_records_is_read() -> None:
    """A page that knows no name for a probe, or skips the records of several adapters, looks complete and is not."""
    import re

    import veritune
    from veritune.report.probes import NAMES, _readings

    source = Path(veritune.__file__).parent
    found: set[str] = set()
    for path in [*source.glob("probe/*.py"), *source.glob("records/*.py")]:
        found |= set(re.findall(r'^    kind: str = "(\w+)"$', path.read_text("utf-8"), re.MULTILINE))
    assert len(found) > 12 and found <= set(NAMES), found - set(NAMES)
    runs = [{"label": f"step-{i}", "kind": "geometry_grid", "reading": f"R{i}."} for i in range(2)]
    made = list(_readings({"runs": runs}, "", "probes/voices.json"))
    assert [(b.subject, b.reading) for b in made] == [("voices, step-0", "R0."), ("voices, step-1", "R1.")]


def test_a_geometry_record_shows_every_cell_and_one_of_another_shape_its_sentence() -> None:
    from veritune.report.probes import _readings, markdown

    cell, gone = (
        MeasureChange(0.19, 0.44, 0.25, p_adjusted=0.016),
        MeasureChange(None, None, reason="a centroid is zero"),
    )
    names = ("m1", "m1_around_reference", "m1_without_top_channel", "separation", "common_drift")
    line = LayerGeometry(3, None, None, None, icc=gone, reading="common drift", **dict.fromkeys(names, cell))
    ratio = ReferenceRatio(3, "m1", 9.0, "withheld", change=0.25, reference_change=0.001, reason="below 0.005")
    grid = GeometryGrid(
        label="a", condition=None, seed=None, step=None,
        methods={"m": Geometry(4, 2, "ab", "m", (line,), "In one layer.", "", "")},
        against={"m": (ratio,)}, files={}, family=GridFamily(5, 0.016, 1, "BH"),
        thresholds=GeometryLimits(4, 0.05, 0.005, 0.5, 1.5), reading="R.", limits="", would_change="",
    )  # fmt: skip
    record = to_json(grid)
    block = next(_readings(record, "run", "p.json"))
    for words in ("0.190 0.440 (0.016)", "a centroid is zero: icc in layer 3", "withheld: below 0.005", "common drift"):
        assert block.table is not None and words in block.table and words in markdown("s", [block]), words
    assert next(_readings({**record, "methods": 3}, "run", "p.json")).table is None


def test_a_probe_that_cannot_be_made_does_not_hide_the_others(finished_copy: Any, finish_again: Any) -> None:
    for config in finished_copy.root.glob("runs/attention_only-*/checkpoints/*/adapter_config.json"):
        config.write_text(config.read_text("utf-8").replace('"LORA"', '"PROMPT_TUNING"'), "utf-8")
        finish_again(finished_copy.root, config.parents[2].name)
    found = probe_report(finished_copy.root)
    none = [b for b in found if b.kind == "none"]
    assert len(none) == 2 and all(b.reading.startswith("Not measured:") for b in none)
    assert sum(b.kind == "weights" for b in found) == 2


def test_a_damaged_probe_record_is_named_on_the_page(finished_copy: Any) -> None:
    (finished_copy.root / "probes").mkdir(exist_ok=True)
    (finished_copy.root / "probes" / "torn.json").write_text('{"reading": ', "utf-8")
    probe_report(finished_copy.root)
    page = (finished_copy.root / "report.html").read_text("utf-8")
    assert "probes/torn.json" in page and "damaged" in page


def test_a_study_without_a_run_is_named(study: Any) -> None:
    with pytest.raises(InputError, match="not frozen"):
        probe_report(study.root)
