"""The persona study at reduced size on the real model: two arms, two seeds, two steps, one method, and its numbers.

The numbers are those of one processor with bfloat16 instructions. Another processor rounds otherwise, so they hold
within the tolerance that stands beside them; the words of the verdicts hold as they are.
"""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune.pipeline import Outcome, run
from veritune.probe.geometry_dose import RECORD
from veritune.progress import Progress
from veritune.store import read_json

pytestmark = [pytest.mark.studies, pytest.mark.model, pytest.mark.slow]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "persona-collapse"
ARMS = ("full_narrow_high", "lora_narrow_high")
TOLERANCE = {"icc": 0.01, "m1": 0.002}
"""About half of the change of ICC and twice that of M1: rounding in bfloat16 differs between processors."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> tuple[Path, Outcome]:
    """The study's own file with fewer arms, seeds, steps and items, run to its verdicts."""
    root = tmp_path_factory.mktemp("personas")
    shutil.copy(EXAMPLE / "make_data.py", root)
    runpy.run_path(str(root / "make_data.py"))["main"]()
    settings: dict[str, Any] = yaml.safe_load((EXAMPLE / "study.yaml").read_text(encoding="utf-8"))
    settings["model"]["path"] = str(smollm2)
    settings["conditions"] = {name: settings["conditions"][name] for name in ARMS}
    settings["factor"].remove("data")
    settings["train"] |= {"max_steps": 2, "eval_steps": [2]}
    settings["seeds"] = [0, 1]
    settings["evals"]["letters"] |= {"items": 4, "max_new_tokens": 4}
    asked = settings["probes"]["geometry"]
    asked |= {"methods": ["last_input_token"], "layers": [12, 30], "reference": {ARMS[0]: ARMS[1]}}
    claims = [claim for claim in settings["claims"] if claim["name"] in ("m1_narrow", "icc_narrow")]
    settings["claims"] = [claim | {"probe": claim["probe"].replace(".4.", ".2.")} for claim in claims]
    (root / "study.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root, run(root, progress=Progress(silent=True))


def test_the_pooled_changes_are_those_that_were_measured(finished: tuple[Path, Outcome]) -> None:
    record = read_json(finished[0] / RECORD)["record"]
    change = {(p["condition"], p["measure"]): p["change"] for p in record["dose"]}
    measured = {
        ("full_narrow_high", "icc"): 0.0228,
        ("full_narrow_high", "m1"): 0.0007,
        ("lora_narrow_high", "icc"): 0.0204,
        ("lora_narrow_high", "m1"): 0.0010,
    }
    assert change.keys() == measured.keys()
    for key, value in measured.items():
        assert change[key] == pytest.approx(value, abs=TOLERANCE[key[1]]), key
    assert record["family"]["values"] == len(ARMS) * 2 * 2 * 2, "arms, seeds, layers and measures are one family"


def test_no_flattening_is_claimed_from_two_seeds_and_two_steps(finished: tuple[Path, Outcome]) -> None:
    words = {v.claim: v.status for v in finished[1].verdicts}
    assert set(words) == {"m1_narrow", "icc_narrow"}
    assert "supported" not in words.values() and words["m1_narrow"] == "inconclusive"
    assert all(v.estimates[0].n_seeds == 2 for v in finished[1].verdicts)
