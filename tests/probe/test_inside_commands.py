"""Families by gradient, weight series and geometry as commands, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.data.load import load_rows
from veritune.data.split import SplitConfig, split_zones

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]

WORDS = ("harbor", "gate", "lamp", "ferry", "crane")


def run(*words: str) -> Any:
    done = CliRunner().invoke(app, ["probe", *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def adapters(tiny_model: Path, tmp_path: Path, *sizes: float) -> list[Path]:
    from transformers import AutoModelForCausalLM

    made = []
    for step, size in enumerate(sizes, start=1):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 1).mul_(size)
        made.append(tmp_path / f"step-{10 * step}")
        model.save_pretrained(made[-1])
    return made


def test_families_found_by_gradient_are_kept_together_by_the_split(tiny_model: Path, tmp_path: Path) -> None:
    """Rows of a family say the same words in another order: word pairs do not show it, gradients do."""
    import random

    draw, rows = random.Random(0), []
    letters = "bcdfghjklmnprstvz"
    for f in range(12):
        words = ["".join(draw.sample(letters, 4)) for _ in range(8)]
        for k in range(3):
            asked, said = (" ".join(draw.sample(words, 8)) for _ in range(2))
            rows.append({"id": f"r{f}-{k}", "prompt": asked, "completion": said, "topic": f"t{f}"})
    path, to = tmp_path / "rows.jsonl", tmp_path / "grouped.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    record = json.loads(
        run("gradients", "--model", str(tiny_model), "--data", str(path), "--families", str(to), "--json").output
    )
    loaded = load_rows(to, family_field="family")
    assert not loaded.rejects and [r.id for r in loaded.rows] == [r["id"] for r in rows]
    assert loaded.rows[0].meta["topic"] == "t0" and loaded.rows[0].target == rows[0]["completion"]
    assert [r.family for r in loaded.rows] == record["family_of"]
    by_topic: dict[str, set[str | None]] = {}
    for row in loaded.rows:
        by_topic.setdefault(row.meta["topic"], set()).add(row.family)
    assert record["n_families_without_gradients"] > 30  # words alone see nearly every row on its own
    assert all(len(families) == 1 for families in by_topic.values())
    assert 10 <= record["n_families"] <= 12  # a random model may join two topics, which costs rows and leaks nothing
    zones = split_zones(loaded.rows, {r.id: str(r.family) for r in loaded.rows}, SplitConfig(seed=1)).zone_of
    for f in range(12):
        held = {zones[f"r{f}-{k}"] in ("stranger", "validation") for k in range(3)}
        assert len(held) == 1


def test_a_series_of_folders_is_one_table_and_one_plot(tiny_model: Path, tmp_path: Path) -> None:
    folders = adapters(tiny_model, tmp_path, 0.1, 0.2)
    plot = tmp_path / "moved.svg"
    given = [*map(str, folders), "--base", str(tiny_model)]
    found = json.loads(run("weights", *given, "--plot", str(plot), "--json").output)
    first, second = found["lines"]
    assert (first["step"], second["step"]) == (10, 20)
    assert second["delta_norm"] == pytest.approx(2 * first["delta_norm"], rel=1e-4)
    assert plot.read_bytes().startswith(b"<?xml")
    assert "step-20" in run("weights", *given).output


def test_geometry_reads_no_change_as_none_and_a_collapse_as_one(tiny_model: Path, tmp_path: Path) -> None:
    same, moved = adapters(tiny_model, tmp_path, 0.0, 0.5)
    personas, questions = tmp_path / "p.yaml", tmp_path / "q.txt"
    personas.write_text("\n".join(f"p{i}: You are {w}." for i, w in enumerate(WORDS)))
    questions.write_text("What is rain?\nWho are you?\nWhy?\n")
    given = ["--model", str(tiny_model), "--personas", str(personas), "--questions", str(questions)]
    given += ["--method", "both", "--max-new-tokens", "4", "--json"]
    found = json.loads(
        run("geometry", *given, "--adapter", str(same), "--adapter", str(moved), "--reference", str(moved)).output
    )
    nothing, much = found["runs"]
    assert set(nothing["files"]) == {"personas", "questions"} and set(nothing["methods"]) == {
        "last_input_token",
        "response_mean",
    }
    for method in nothing["methods"].values():
        assert all(abs(line["m1"]["change"]) < 1e-6 for line in method["layers"])
    assert "In none" in nothing["reading"]
    decided = [c for cells in much["against"].values() for c in cells if c["verdict"] != "withheld"]
    assert decided and all(c["verdict"] == "generic" and c["ratio"] == pytest.approx(1) for c in decided)
