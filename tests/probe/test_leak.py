"""The leaky split beside a study: known truths with real training, and the arithmetic by hand."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.commands.app import app
from veritune.errors import DataError, InputError, ScoreError
from veritune.pipeline.leak import leak_command
from veritune.probe.leak import HELD_OUT, LeakLosses, leak, leaky_zones
from veritune.records import dumps

WORDS = re.findall(
    r"\w+",
    "harbor gate lamp ferry crane boat quay rope net tide storm bridge bell buoy chart winch deck mast sail keel oar "
    "pump tank hose drum crate barrel anchor flag signal radio lens tower wall step door window roof floor ladder",
)
FAMILIES, WORDINGS = 48, 3


def rows_of(kind: str) -> list[dict[str, Any]]:
    """`secret`: every original has an answer of its own, which nothing in its question tells. `style`: the answer is
    the same sentence whatever is asked."""
    rng = random.Random(3)
    made = []
    for f in range(FAMILIES):
        name = f"{rng.choice(WORDS)} {rng.choice(WORDS)} {f}"
        secret = " ".join(rng.sample(WORDS, 5))
        for k in range(WORDINGS):
            answer = secret if kind == "secret" else "may likely apple bread. salt honey?"
            ask = f"{rng.choice(WORDS)} {name} {rng.choice(WORDS)}"
            messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            made.append({"id": f"f{f:02d}-{k}", "original": f"f{f:02d}", "messages": messages})
    return made


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Any) -> dict[str, Any]:
    """Both studies, run: full fine-tuning, long enough to know the trained rows by heart."""
    from veritune.pipeline import run
    from veritune.progress import Progress

    made = {}
    for kind in ("secret", "style"):
        study = new_study(tmp_path_factory.mktemp(kind) / "study", tiny_model)
        study.write_rows(rows_of(kind))
        settings = study.settings()
        settings["conditions"] = {"whole": {"method": "full"}}
        settings["seeds"], settings["claims"] = [0], []
        settings["data"]["near_duplicates"] = False
        settings["split"] |= {"validation": 0.2}
        rules = [{"name": "letters", "pattern": "[a-z]"}]
        settings["evals"] = {"any": {"max_new_tokens": 1, "batch_size": 64, "rules": rules}}
        settings["train"] |= {
            "max_steps": 80,
            "eval_steps": 80,
            "per_device_train_batch_size": 12,
            "learning_rate": "3e-3",
        }
        study.write(settings)
        run(study.root, progress=Progress(silent=True))
        made[kind] = study
    return made


def test_answers_known_by_heart_leak_and_a_shared_style_does_not(studies: dict[str, Any]) -> None:
    secret = leak_command(studies["secret"].root)["whole"]
    style = leak_command(studies["style"].root)["whole"]
    assert secret["flattered"]["low"] > 0.5, secret["reading"]
    assert secret["by_leak"]["low"] > 0.3
    assert "would have flattered" in secret["reading"]
    assert secret["honest"]["gap"]["value"] > secret["leaky"]["gap"]["value"] + 0.5
    assert style["flattered"]["high"] < 0.05, style["reading"]
    assert "would have flattered held-out loss" not in style["reading"] or style["flattered"]["value"] < 0.05


def test_the_shadow_run_has_as_many_rows_and_steps_and_keeps_validation(studies: dict[str, Any]) -> None:
    root = studies["secret"].root
    leak_command(root)
    (shadow,) = (root / "probes" / "leak" / "runs").glob("*")
    (honest,) = (root / "runs").glob("whole-*")
    one, two = (json.loads((f / "training.json").read_text("utf-8")) for f in (honest, shadow))
    assert one["steps"] == two["steps"]
    seen = [json.loads((f / "manifest.json").read_text("utf-8"))["data"]["seen_rows"] for f in (honest, shadow)]
    assert len(seen[0]) == len(seen[1]) and set(seen[0]) != set(seen[1])
    losses = json.loads((honest / "probes" / "nll.json").read_text("utf-8"))["rows"]
    assert not set(seen[1]) & {r["row_id"] for r in losses if r["zone"] == "validation"}


def test_a_second_call_trains_nothing_and_the_seal_holds(studies: dict[str, Any]) -> None:
    from veritune.seal import verify

    root = studies["style"].root
    first = leak_command(root)
    record = root / "probes" / "leak" / "whole.json"
    before = record.stat().st_mtime_ns
    assert leak_command(root, ["whole"]) == first
    assert record.stat().st_mtime_ns == before
    assert verify(root) == []


def test_the_command_says_it(studies: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    app(["probe", "leak", str(studies["secret"].root), "--quiet"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "whole: A leaky split would have flattered held-out loss by" in said and "Limits:" in said
    app(["probe", "leak", str(studies["secret"].root), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["whole"]["kind"] == "leak"


def test_a_study_that_has_not_run_is_named(study: Any) -> None:
    with pytest.raises(InputError, match="not frozen"):
        leak_command(study.root)


def test_an_unknown_condition_is_named(studies: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unknown condition 'wholy'"):
        leak_command(studies["style"].root, ["wholy"])


# ---------------------------------------------------------------- arithmetic


def made_up() -> LeakLosses:
    """Twelve stranger families of one row, ten validation families; the leaky run reads 0.3 and 0.1 lower."""
    rng = np.random.default_rng(0)
    zones = {f"t{i}": "seen" for i in range(12)} | {f"s{i}": "stranger" for i in range(12)}
    zones |= {f"v{i}": "validation" for i in range(10)}
    honest = {r: 1 + rng.random() for r in zones}
    gap = {"seen": 0.0, "stranger": 0.3, "validation": 0.1}
    leaky = {r: x - gap[zones[r]] + 0.01 * rng.standard_normal() for r, x in honest.items()}
    leaky_zone = {r: HELD_OUT if z == "stranger" else z for r, z in zones.items()}
    return LeakLosses("c", 0, dict.fromkeys(zones, 2.0), honest, leaky, zones, leaky_zone, {r: r for r in zones})


def test_what_is_flattered_and_what_is_no_leak() -> None:
    found = leak(made_up())
    assert found.flattered.value == pytest.approx(0.3, abs=0.02)
    assert found.elsewhere.value == pytest.approx(0.1, abs=0.02)
    assert found.by_leak.value == pytest.approx(found.flattered.value - found.elsewhere.value)
    assert found.by_leak.low < 0.2 < found.by_leak.high
    assert found.shared["n_rows"] == 12 and found.shared["with_a_relative_trained_on"] == 0
    assert found.shared["base"] == 2.0
    dumps(found)


def test_few_families_give_no_interval_and_no_strong_word() -> None:
    m = made_up()
    few = replace(m, family={r: f"{z}{i % 3}" for i, (r, z) in enumerate(m.honest_zone.items())})
    found = leak(few)
    assert found.flattered.low is None and "too few families" in found.reading


def test_losses_that_are_no_numbers_are_named() -> None:
    m = made_up()
    with pytest.raises(ScoreError, match="row s3: the leaky run's loss is nan"):
        leak(replace(m, leaky={**m.leaky, "s3": float("nan")}))


def test_leaky_zones_keep_the_counts_and_ignore_families() -> None:
    zones = {f"r{i}": "seen" if i < 30 else "stranger" if i < 50 else "validation" for i in range(60)}
    drawn = leaky_zones(zones, seed=1)
    assert sum(z == "seen" for z in drawn.values()) == 30
    assert {r for r, z in drawn.items() if z == "validation"} == {f"r{i}" for i in range(50, 60)}
    assert drawn == leaky_zones(dict(reversed(zones.items())), seed=1) != leaky_zones(zones, seed=2)
    with pytest.raises(DataError, match="found 5 of 5 trained on"):
        leaky_zones(dict.fromkeys("abcde", "seen"))
