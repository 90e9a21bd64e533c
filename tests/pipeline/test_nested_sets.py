"""Data sets that nest: originals in one wording and in four, a held wording that no condition trains on, and what the
probes say of arms that do not train on the same rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import parse_study
from veritune.data.prepare import prepare
from veritune.errors import StudyError
from veritune.probe.leak import APART, HELD_OUT, leaky_zones
from veritune.store import Store
from veritune.train.models import ModelRef, load_tokenizer

_spec = importlib.util.spec_from_file_location("conftest_rows", Path(__file__).parents[1] / "conftest.py")
assert _spec and _spec.loader
_rows = importlib.util.module_from_spec(_spec)
sys.modules["conftest_rows"] = _rows
_spec.loader.exec_module(_rows)

LORA = {"method": "lora", "target_modules": "attention", "r": 4}
FILES = {"rows": (0,), "again": (1, 2, 3), "held": (4,)}


def nest(study: Any) -> Any:
    """Make `study` one of nested sets: `one` wording of each original, `four`, and a held one."""
    rows = _rows.make_rows(families=24, wordings=5)
    for name, wordings in FILES.items():
        own = [row for row in rows if int(row["id"].rsplit("-", 1)[1]) in wordings]
        (study.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), "utf-8")
    settings = study.settings()
    settings["data"] |= {"sets": {"again": "again.jsonl", "held": "held.jsonl"}, "near_duplicates": False}
    settings["split"] = {"seed": 1, "stranger": 0.4, "validation": 0.12, "sibling": 0}
    settings["conditions"] = {"one": {**LORA, "data": "main"}, "four": {**LORA, "data": {"main": 0.25, "again": 0.75}}}
    settings |= {"factor": ["data"], "seeds": [0], "claims": []}
    settings["claims"] = [
        {"name": "counts", "kind": "probe", "probe": "n_eff.four", "op": ">", "threshold": 1},
        {"name": "leaks", "kind": "probe", "probe": "leak.by_leak.four", "op": ">", "threshold": 0},
    ]
    settings["probes"] = {"leak": True, "make": ["gradients", "recall", "tokens"]}
    study.write(settings)
    return study


@pytest.fixture
def nested(study: Any) -> Any:
    return nest(study)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Any) -> Any:
    from veritune.pipeline import run
    from veritune.progress import Progress

    study = nest(new_study(tmp_path_factory.mktemp("nested") / "study", tiny_model))
    run(study.root, progress=Progress(silent=True))
    return study


def record(study: Any, arm: str, name: str) -> dict[str, Any]:
    (path,) = (study.root / "probes").glob(f"{arm}-s0-*/{name}.json")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))["record"]
    return found


def manifest(folder: Path) -> set[str]:
    return set(json.loads((folder / "manifest.json").read_text("utf-8"))["data"]["seen_rows"])


# ---------------------------------------------------------------- a set that no condition trains on


def test_a_set_that_no_condition_names_is_the_siblings(nested: Any, tiny_model: Path) -> None:
    parsed = parse_study(nested.settings())
    data = prepare(Store(nested.root), parsed, load_tokenizer(ModelRef("tiny", tiny_model, "float32")))
    trained = {data.family_of[i] for i, zone in data.zone_of.items() if zone == "seen"}
    siblings = {i for i, zone in data.zone_of.items() if zone == "sibling"}
    assert siblings == {row.id for row in data.rows if row.id.startswith("held/") and data.family_of[row.id] in trained}
    assert len(siblings) == len(trained)
    assert not any(i.startswith("held/") for i, zone in data.zone_of.items() if zone == "seen")


def test_a_drawn_share_comes_from_the_other_rows(nested: Any, tiny_model: Path) -> None:
    nested.change(lambda settings: settings["split"].update(sibling=0.25))
    parsed = parse_study(nested.settings())
    data = prepare(Store(nested.root), parsed, load_tokenizer(ModelRef("tiny", tiny_model, "float32")))
    trained = {data.family_of[i] for i, zone in data.zone_of.items() if zone == "seen"}
    siblings = [i for i, zone in data.zone_of.items() if zone == "sibling"]
    assert len(siblings) == 2 * len(trained), "the held row, and one of the other four"


def test_a_share_of_one_is_refused(nested: Any) -> None:
    nested.change(lambda settings: settings["split"].update(sibling=1))
    with pytest.raises(StudyError, match=r"split\.sibling"):
        parse_study(nested.settings())


# ---------------------------------------------------------------- the leaky split of one arm's own sets


def test_leaky_zones_draw_from_each_set_what_the_arm_takes_of_it() -> None:
    zones = {f"m{i}": "seen" if i < 4 else "stranger" for i in range(8)}
    zones |= {f"a{i}": "seen" if i < 12 else "stranger" for i in range(24)}
    zones |= {"h0": "sibling", "v": "validation"}
    set_of = {row: {"m": "main", "a": "again", "h": "held", "v": "main"}[row[0]] for row in zones}
    trained = [row for row, zone in zones.items() if zone == "seen"]
    drawn = leaky_zones(zones, seed=1, trained=trained, set_of=set_of)
    assert sum(drawn[f"m{i}"] == "seen" for i in range(8)) == 4
    assert sum(drawn[f"a{i}"] == "seen" for i in range(24)) == 12
    assert drawn["h0"] == APART and drawn["v"] == "validation"
    assert {drawn[f"a{i}"] for i in range(24)} == {"seen", HELD_OUT}
    one = leaky_zones(zones, seed=1, trained=[f"m{i}" for i in range(4)], set_of=set_of)
    assert {one[f"a{i}"] for i in range(24)} == {APART}
    assert leaky_zones(zones, seed=1) == leaky_zones(zones, seed=1, trained=trained), "one set: as without sets"


def test_the_shadow_run_trains_on_as_many_rows_of_each_set(ran: Any) -> None:
    for arm in ("one", "four"):
        (honest,) = (ran.root / "runs").glob(f"{arm}-s0-*")
        (shadow,) = (ran.root / "probes" / "leak" / "runs").glob(f"{arm}-leaky-*")
        rows = [manifest(folder) for folder in (honest, shadow)]
        again = [{row for row in own if row.startswith("again/")} for own in rows]
        assert len(rows[0]) == len(rows[1]) and len(again[0]) == len(again[1])
        assert rows[0] != rows[1]
        assert bool(again[0]) == (arm == "four")


def test_the_leak_of_an_arm_is_read_on_all_strangers_of_its_own_sets(ran: Any) -> None:
    made = {
        arm: json.loads((ran.root / "probes/leak" / f"{arm}.json").read_text("utf-8"))["record"]
        for arm in ("one", "four")
    }
    assert made["four"]["shared"]["n_rows"] > 2 * made["one"]["shared"]["n_rows"]
    assert made["one"]["shared"]["with_a_relative_trained_on"] == 0, "one row a family: nothing can leak"
    assert made["four"]["shared"]["with_a_relative_trained_on"] > 0


# ---------------------------------------------------------------- probes of arms with data of their own


def test_each_arm_s_gradients_are_of_the_rows_that_it_trains_on(ran: Any) -> None:
    n = {arm: len(manifest(next((ran.root / "runs").glob(f"{arm}-s0-*")))) for arm in ("one", "four")}
    found = {arm: record(ran, arm, "gradients") for arm in n}
    assert {arm: r["n_rows"] for arm, r in found.items()} == n
    assert n["four"] == 4 * n["one"]
    assert all(r["loss"]["at"] == "base" for r in found.values()), "measured on the untouched model"


def test_recall_asks_rows_that_every_arm_trained_on(ran: Any) -> None:
    n = len(manifest(next((ran.root / "runs").glob("one-s0-*"))))
    for arm in ("one", "four"):
        seen = record(ran, arm, "recall")["verbatim"]["zones"]["seen"]
        assert seen["n_rows"] + seen["n_too_short"] == n, "the wording that both arms have, not the three of one arm"
    assert record(ran, "one", "tokens")["kind"] == "token_fall"


def test_claims_on_what_run_makes_are_decided_in_the_same_run(ran: Any) -> None:
    from veritune.seal import verify

    verdict = json.loads((ran.root / "verdict.json").read_text("utf-8"))
    status = {v["claim"]: v["status"] for v in verdict["verdicts"]}
    assert status.keys() == {"counts", "leaks"} and "untested" not in status.values()
    assert verify(ran.root) == []
