"""Recipes: quotas, shares, filters, the system prompt and its cost, and the lineage that is left behind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tests.conftest import run_cli

from veritune.data.audit import audit_data, write_clean, write_report
from veritune.data.load import load_rows, require_clean
from veritune.data.recipe import load_recipe, make_recipe, mix, render_cost, render_mixed, system_cost
from veritune.data.review import lineage
from veritune.errors import DataError
from veritune.store import sha256_file


def write_source(folder: Path, name: str, n: int) -> None:
    """Every tenth row refuses; sources alternate."""
    rows = [
        {
            "question": f"What is {name} number {i} of the long {name} list?",
            "answer": "As an AI, I cannot say that." if i % 10 == 0 else f"It is item {i} of {name}.",
            "source": ("web", "forum")[i % 2],
        }
        for i in range(n)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_source(tmp_path, "a", 40)
    write_source(tmp_path, "b", 30)
    return tmp_path


def write_recipe(folder: Path, **recipe: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


def test_shares_filters_and_a_system_prompt_with_lineage(folder: Path) -> None:
    recipe = write_recipe(
        folder,
        drop_reason=["refusal"],
        sources={
            "first": {"path": "a.jsonl", "share": 0.75},
            "second": {"path": "b.jsonl", "share": 0.25, "keep_source": ["forum"]},
        },
        system="Answer in short sentences.",
    )
    mixed, version = make_recipe(recipe, folder / "mixed.jsonl")
    assert Counter(row.meta["source"] for row in mixed.rows) == {"first": 36, "second": 12}
    assert {row.messages[0].content for row in mixed.rows} == {"Answer in short sentences."}
    assert not any("As an AI" in (row.target or "") for row in mixed.rows)
    assert {row.meta["original_source"] for row in mixed.rows if row.meta["source"] == "second"} == {"forum"}
    assert version.parents == (sha256_file(folder / "a.jsonl"), sha256_file(folder / "b.jsonl"))
    assert version.rejects == {"first: refusal": 4, "second: other source": 15, "second: not drawn": 3}
    assert version.how.startswith("recipe recipe.yaml ")
    assert lineage(folder)[-1].sha256 == sha256_file(folder / "mixed.jsonl")
    assert render_mixed(mixed).splitlines()[0] == "  first: 36 of 40 rows (75.0%); without 4 refusal"


def test_a_source_can_be_trained_on_its_last_turns_alone(folder: Path) -> None:
    turns = [{"role": "developer", "content": "Be brief."}]
    turns += [{"role": role, "content": f"{role} {i}"} for i in (1, 2) for role in ("user", "assistant")]
    (folder / "talk.jsonl").write_text(json.dumps({"messages": turns}) + "\n", "utf-8")
    sources = {"talk": {"path": "talk.jsonl", "train_on": "last"}, "all": {"path": "talk.jsonl"}}
    mixed, _ = make_recipe(write_recipe(folder, sources=sources, system="Answer."), folder / "mixed.jsonl")
    written = require_clean(load_rows(folder / "mixed.jsonl")).rows
    weights = {row.meta["source"]: [m.weight for m in row.messages if m.role == "assistant"] for row in written}
    assert weights == {"talk": [0, None], "all": [None, None]}
    assert mixed.system_added == 0, "a developer's turn is a system prompt"


def test_a_smaller_quota_lies_within_a_larger_one_and_the_seed_decides(folder: Path) -> None:
    def drawn(n: int, seed: int) -> set[str]:
        path = write_recipe(folder, seed=seed, sources={"s": {"path": "a.jsonl", "rows": n}})
        return {row.id for row in mix(load_recipe(path), folder).rows}

    assert drawn(10, 0) < drawn(25, 0)
    assert drawn(10, 0) != drawn(10, 1)
    assert len(drawn(25, 0)) == 25


def test_shares_of_a_total_are_exact_to_a_row(folder: Path) -> None:
    sources = {"x": {"path": "a.jsonl", "share": 0.7}, "y": {"path": "b.jsonl", "share": 0.3}}
    path = write_recipe(folder, rows=33, sources=sources)
    assert [s.taken for s in mix(load_recipe(path), folder).sources] == [23, 10]


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (
            {"sources": {"s": {"path": "a.jsonl", "rows": 99}}},
            "source 's' must give 99 rows but has 40 after its filters",
        ),
        ({"sources": {"s": {"path": "a.jsonl", "share": 0.4}}}, "the shares add up to 0.4; make them add up to 1"),
        ({"sources": {"s": {"path": "a.jsonl", "rows": 3, "share": 1.0}}}, "rows and share exclude each other"),
        ({"sources": {"s": {"path": "a.jsonl", "keep_source": ["book"]}}}, "unknown source 'book'"),
        ({"sources": {"s": {"path": "a.jsonl"}}, "drop_reason": ["rude"]}, "unknown row check reason 'rude'"),
        ({"sources": {"s": {"path": "gone.jsonl"}}}, "gone.jsonl: no such file or folder"),
        ({"sources": {}, "sed": 1}, "recipe"),
        ({"rows": 5, "sources": {"s": {"path": "a.jsonl"}}}, "no source has a share"),
    ],
)
def test_a_recipe_that_cannot_be_made_is_one_line_and_writes_nothing(
    folder: Path, recipe: dict[str, object], says: str
) -> None:
    path = write_recipe(folder, **recipe)
    before = sorted(folder.iterdir())
    with pytest.raises(DataError) as caught:
        make_recipe(path, folder / "out.jsonl")
    assert says in str(caught.value)
    assert sorted(folder.iterdir()) == before


def test_the_cost_of_a_system_prompt_is_what_rendering_measures(folder: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    system = "Answer in short sentences."
    recipe = load_recipe(write_recipe(folder, sources={"s": {"path": "a.jsonl"}}, system=system))
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    cost = system_cost(recipe, folder, tokenizer)
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "x"}]
    own = [len(tokenizer.apply_chat_template(t, tokenize=True, return_dict=False)) for t in (turns, turns[1:])]
    assert (cost.tokens - cost.without) == 40 * (own[0] - own[1])
    assert f"({own[0] - own[1]:.1f} a row" in render_cost(cost)


def test_the_clean_version_leaves_out_by_reason_and_keeps_by_source(folder: Path) -> None:
    report = audit_data(folder / "a.jsonl")
    version = write_clean(report, folder / "c.jsonl", reasons=["refusal"], keep_sources=["web"])
    assert version.rows == 16
    assert version.rejects == {"other source": 20, "quality.refusal": 4}
    with pytest.raises(DataError, match="unknown source 'book'"):
        write_clean(report, folder / "d.jsonl", keep_sources=["book"])
    done = run_cli("audit", folder / "a.jsonl", "--drop-reason", "refusal")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--drop-reason and --keep-source select rows for --drop, which is missing." in done.stderr


def test_the_pack_of_unflagged_rows_is_a_seeded_sample_of_them(folder: Path) -> None:
    report = audit_data(folder / "a.jsonl")
    packs = []
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        write_report(report, folder / name, seed=seed, pack_size=2, sample=9)
        text = (folder / name / "review" / "unflagged.jsonl").read_text("utf-8")
        packs.append([json.loads(line)["row_id"] for line in text.splitlines()])
        flagged = (folder / name / "review" / "pack.jsonl").read_text("utf-8").splitlines()
        assert sum(bool(json.loads(line)["reasons"]) for line in flagged) == 2
    assert packs[0] == packs[1] != packs[2]
    assert len(packs[0]) == 9
    assert set(packs[0]).isdisjoint(report.quality.flagged)
