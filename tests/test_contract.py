"""The contract: what is frozen stays, a change is named or amended, and what came after a result says so."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from frozen_facts import FACTS

from veritune import contract
from veritune.config.load import parse_study
from veritune.config.study import Study
from veritune.errors import StaleError, StoreError
from veritune.store import Store, write_jsonl

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "study.yaml"


@pytest.fixture
def settings() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(QUICKSTART.read_text(encoding="utf-8")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def changed(settings: dict[str, Any], path: str, value: Any) -> Study:
    """The study with one setting, given by its path, replaced."""
    *way, last = path.split(".")
    node: Any = settings
    for key in way:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(last) if isinstance(node, list) else last] = value
    return parse_study(settings)


def add_result(store: Store) -> None:
    write_jsonl(store.run("baseline-1") / "scores" / "house_style.jsonl", [{"value": 1}])


def test_frozen_once_and_confirmed_afterwards(store: Store, settings: dict[str, Any]) -> None:
    first = contract.freeze(store, parse_study(settings), FACTS)
    before = store.contract_file.read_bytes()
    assert contract.freeze(store, parse_study(settings), FACTS) == first
    assert store.contract_file.read_bytes() == before
    assert [e["event"] for e in store.events()] == ["frozen"]


def test_the_order_of_keys_in_the_file_is_no_change(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    contract.freeze(store, parse_study(dict(reversed(settings.items()))), FACTS)


@pytest.mark.parametrize(
    ("path", "value", "frozen", "found"),
    [
        ("train.learning_rate", 0.005, "0.001", "0.005"),
        ("claims.2.margin", 0.01, "0.05", "0.01"),
        ("evals.house_style.rules.0.pattern", "x", r"'\\\\ASubject", "'x'"),
        ("conditions.all_layer.lora_alpha", 16.5, "16.0", "16.5"),
        ("split.seed", 4, "3", "4"),
    ],
)
def test_a_change_is_refused_with_field_frozen_and_found(
    store: Store, settings: dict[str, Any], path: str, value: Any, frozen: str, found: str
) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    settings["factor"] = ["target_modules"]
    if path.startswith("conditions"):
        settings["conditions"]["attention_only"]["lora_alpha"] = value
    with pytest.raises(StaleError) as caught:
        contract.freeze(store, changed(settings, path, value), FACTS)
    assert f"study.{path}: frozen " in str(caught.value)
    assert frozen.replace("\\\\\\\\", "\\\\") in str(caught.value)
    assert f"found {found}" in str(caught.value)
    assert "--amend" in caught.value.fix


def test_changed_facts_are_refused_too(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    with pytest.raises(StaleError, match=r"facts\.data_version: frozen 'abc', found 'xyz'"):
        contract.freeze(store, parse_study(settings), replace(FACTS, data_version="xyz"))


def test_an_amendment_is_linked_to_what_it_amends(store: Store, settings: dict[str, Any]) -> None:
    first = contract.freeze(store, parse_study(settings), FACTS)
    study = changed(settings, "train.learning_rate", 5e-4)
    second = contract.amend(store, study, FACTS, "slower")
    assert [e.reason for e in second.entries] == ["frozen", "slower"]
    assert second.last.previous == first.first.hash
    assert second.last.changes == ("study.train.learning_rate: frozen 0.001, found 0.0005",)
    assert second.first == first.first
    assert contract.read(store) == second
    assert contract.freeze(store, study, FACTS) == second
    assert [e["event"] for e in store.events()] == ["frozen", "amended"]


def test_an_amendment_without_a_change_adds_nothing(store: Store, settings: dict[str, Any]) -> None:
    first = contract.freeze(store, parse_study(settings), FACTS)
    assert contract.amend(store, parse_study(settings), FACTS, "why not") == first


@pytest.mark.parametrize("reason", ["", "  "])
def test_an_amendment_needs_a_reason(store: Store, settings: dict[str, Any], reason: str) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    with pytest.raises(StoreError, match="needs a reason"):
        contract.amend(store, changed(settings, "train.learning_rate", 5e-4), FACTS, reason)


@pytest.mark.parametrize("entry", [0, 1])
def test_an_edited_entry_is_named(store: Store, settings: dict[str, Any], entry: int) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    contract.amend(store, changed(settings, "train.learning_rate", 5e-4), FACTS, "slower")
    kept = json.loads(store.contract_file.read_text())
    kept["entries"][entry]["terms"]["study"]["claims"][2]["margin"] = 0.01
    store.contract_file.write_text(json.dumps(kept))
    with pytest.raises(StaleError, match=f"entry {entry} was edited"):
        contract.read(store)


def test_an_entry_taken_out_is_noticed(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    contract.amend(store, changed(settings, "train.learning_rate", 5e-4), FACTS, "slower")
    kept = json.loads(store.contract_file.read_text())
    del kept["entries"][0]
    store.contract_file.write_text(json.dumps(kept))
    with pytest.raises(StaleError, match="entry 0 does not continue"):
        contract.read(store)


def test_a_contract_that_was_deleted_is_not_frozen_anew(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    store.contract_file.unlink()
    with pytest.raises(StaleError, match="is gone, though the study was frozen at"):
        contract.freeze(store, changed(settings, "claims.2.margin", 0.5), FACTS)


# ---------------------------------------------------------------- exploratory claims


def exploratory_after(store: Store, settings: dict[str, Any], path: str, value: Any) -> set[str]:
    contract.freeze(store, parse_study(settings), FACTS)
    add_result(store)
    return contract.exploratory_claims(contract.amend(store, changed(settings, path, value), FACTS, "seen the scores"))


ALL = {"learns_the_style", "carries_to_strangers", "targets_matter"}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("claims.2.margin", 0.01, {"targets_matter"}),
        ("claims.1.share", 0.2, {"carries_to_strangers"}),
        ("evals.house_style.score", "all", ALL),
        ("seeds", [0, 1, 2], ALL),
        ("train.num_train_epochs", 5, ALL),
        ("split.seed", 9, ALL),
        ("thresholds", {"grade": {"units_weak": 5}}, ALL),
        ("thresholds", {"merge": {"close": 0.1}}, set()),
        ("question", "Another?", set()),
        ("name", "other", set()),
    ],
)
def test_a_claim_is_exploratory_when_what_decides_it_changed_after_a_result(
    store: Store, settings: dict[str, Any], path: str, value: Any, expected: set[str]
) -> None:
    assert exploratory_after(store, settings, path, value) == expected


def test_a_new_claim_after_a_result_is_exploratory(store: Store, settings: dict[str, Any]) -> None:
    new = {"name": "late", "kind": "improves", "condition": "attention_only", "zone": "sibling"}
    assert exploratory_after(store, settings, "claims", [*settings["claims"], new]) == {"late"}


def test_an_arm_that_changed_makes_its_own_claims_exploratory_only(store: Store, settings: dict[str, Any]) -> None:
    settings["factor"] = ["target_modules", "r"]
    assert exploratory_after(store, settings, "conditions.attention_only.r", 2) == {"targets_matter"}


def test_other_data_after_a_result_make_every_claim_exploratory(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    add_result(store)
    found = contract.amend(store, parse_study(settings), replace(FACTS, data_version="xyz"), "more rows")
    assert contract.exploratory_claims(found) == ALL


def test_other_packages_change_no_claim(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    add_result(store)
    found = contract.amend(store, parse_study(settings), replace(FACTS, packages={"torch": "3"}), "upgraded")
    assert contract.exploratory_claims(found) == set()


def test_an_amendment_before_any_result_leaves_claims_confirmatory(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    found = contract.amend(store, changed(settings, "claims.2.margin", 0.01), FACTS, "a typo")
    assert contract.exploratory_claims(found) == set()


def test_exploratory_for_ever(store: Store, settings: dict[str, Any]) -> None:
    contract.freeze(store, parse_study(settings), FACTS)
    add_result(store)
    study = changed(settings, "claims.2.margin", 0.01)
    contract.amend(store, study, FACTS, "seen the scores")
    found = contract.amend(store, study, replace(FACTS, packages={}), "upgraded")
    assert contract.exploratory_claims(found) == {"targets_matter"}
