"""The style-or-samples study at reduced size, on the real model by the product's own functions, against recorded numbers.

    python -m pytest -m studies tests/studies/test_style_or_samples.py

Reduced: 8 originals (4 trained, 2 strangers, 2 for validation), the arms x1 and x4, one seed, 8 steps of 4 rows. n_eff is
measured for x16 too, on the 4 trained originals. The full study of the page has 20 originals, three arms and three seeds.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.studies

REPO = Path(__file__).resolve().parents[2]
EXAMPLE = REPO / "examples" / "style-or-samples"
REDUCED = {"once": range(1), "again": range(1, 4), "held": range(16, 17)}
"""The wordings that the reduced run takes; `more` is left out with the arm x16."""


def recipe() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE / "make_data.py"))


def reduced(root: Path) -> Path:
    """The example's own study file, cut to what a minute allows."""
    rows = recipe()["make_rows"](originals=8)
    root.mkdir()
    for name, wordings in REDUCED.items():
        own = [row for row in rows if int(row["id"].rsplit("-", 1)[1]) in wordings]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), "utf-8")
    settings = yaml.safe_load((EXAMPLE / "study.yaml").read_text("utf-8"))
    settings["data"]["sets"].pop("more")
    settings["split"] |= {"stranger": 0.25, "validation": 0.25}
    settings["train"] |= {"max_steps": 8, "eval_steps": 8, "per_device_train_batch_size": 4}
    settings["conditions"].pop("x16")
    settings["seeds"] = [0]
    settings["evals"]["style"] |= {"max_new_tokens": 24}
    settings["probes"] = {"make": ["tokens"]}
    claims = {claim["name"]: claim for claim in settings["claims"]}
    settings["claims"] = [claims["x1_learns_the_style"], claims["x1_carries_to_strangers"]]
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return root


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    from veritune.pipeline import run
    from veritune.progress import Progress

    root = reduced(tmp_path_factory.mktemp("style") / "study")
    run(root / "study.yaml", progress=Progress(silent=True))
    return root


def losses(root: Path, arm: str) -> dict[str, float]:
    (path,) = (root / "runs").glob(f"{arm}-*/probes/nll.json")
    zones = json.loads(path.read_text("utf-8"))["zones"]
    return {zone: zones[zone]["nll"] for zone in ("seen", "sibling", "stranger")}


def test_the_zone_means_are_the_recorded_ones(ran: Path) -> None:
    print({arm: losses(ran, arm) for arm in ("baseline", "x1", "x4")})
