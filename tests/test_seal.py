"""The seal finds every kind of edit in a study folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from veritune.errors import InputError, StaleError
from veritune.seal import refuse_edited, seal, verify
from veritune.store import Store, write_json, write_text

EDITED = [
    "study.yaml",
    "verdict.json",
    "report.html",
    "audit/split.json",
    "data/abc/rows.parquet",
    "runs/a/manifest.json",
    "runs/a/metrics.jsonl",
    "runs/a/scores/style.jsonl",
    "runs/a/checkpoints/step-3/adapter_model.safetensors",
    "figures/zones.svg",
]


@pytest.fixture
def sealed(tmp_path: Path) -> Store:
    for name in EDITED:
        write_text(tmp_path / name, f"{name}\n")
    write_text(tmp_path / "notes.txt", "mine\n")
    store = Store(tmp_path)
    store.log("frozen")
    store.log("ran")
    seal(store)
    return store


def checks(store: Store) -> dict[str, str]:
    return {f.source or "": f.check for f in verify(store.root) if not f.check.startswith("contract")}


def test_an_untouched_folder_has_no_findings(sealed: Store) -> None:
    assert checks(sealed) == {}


@pytest.mark.parametrize("name", EDITED)
def test_an_edited_file_is_named(sealed: Store, name: str) -> None:
    path = sealed.root / name
    path.write_text(path.read_text() + " ")
    assert checks(sealed) == {name: "file.edited"}


def test_missing_added_and_linked_files_are_named(sealed: Store) -> None:
    (sealed.root / "verdict.json").unlink()
    write_text(sealed.root / "runs" / "a" / "extra.json", "{}")
    path = sealed.root / "runs" / "a" / "manifest.json"
    path.rename(sealed.root / "elsewhere.json")
    os.symlink(sealed.root / "elsewhere.json", path)
    assert checks(sealed) == {
        "verdict.json": "file.missing",
        "runs/a/extra.json": "file.added",
        "runs/a/manifest.json": "file.symlinked",
    }


def test_files_that_are_not_the_studys_are_left_alone(sealed: Store) -> None:
    (sealed.root / "notes.txt").write_text("changed")
    assert checks(sealed) == {}


def test_an_edited_timeline_breaks_its_chain(sealed: Store) -> None:
    text = sealed.events_file.read_text().replace("frozen", "melted")
    sealed.events_file.write_text(text)
    found = [f.check for f in verify(sealed.root)]
    assert "events.chain" in found
    assert "file.edited" in found


def test_an_edited_seal_is_found(sealed: Store) -> None:
    path = sealed.root / "seal.json"
    path.write_text(path.read_text().replace('"sealed"', '"sealed "'))
    assert "seal.edited" in [f.check for f in verify(sealed.root)]


def test_a_further_run_refuses_an_edited_record_and_takes_a_deleted_one(sealed: Store) -> None:
    refuse_edited(sealed)
    (sealed.root / "runs" / "a" / "metrics.jsonl").unlink()
    refuse_edited(sealed)
    write_json(sealed.root / "runs" / "a" / "manifest.json", {"seed": 7})
    with pytest.raises(StaleError, match=r"manifest\.json"):
        refuse_edited(sealed)


def test_a_folder_without_a_seal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seal"):
        verify(tmp_path)
