"""The style-or-samples study at reduced size, on the real model by the product's own functions, against recorded
numbers.

    python -m pytest -m studies tests/studies/test_style_or_samples.py

Reduced: 8 originals (4 trained, 2 strangers, 2 for validation), the arms x1 and x4, one seed, 6 steps of 4 rows, the
first 12 tokens of answers; n_eff of x16 is measured on 4 originals. The study of the page has 20 originals, three arms
and three seeds.
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
    settings["model"]["dtype"] = "float32"  # the same numbers on processors without bfloat16
    settings["train"] |= {"max_steps": 6, "eval_steps": 6, "per_device_train_batch_size": 4}
    settings["conditions"].pop("x16")
    settings["seeds"] = [0]
    settings["evals"]["style"] |= {"max_new_tokens": 12}
    settings["probes"] = {}
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
    """Mean loss by zone of an arm, nats per target token."""
    (path,) = (root / "runs").glob(f"{arm}-*/probes/nll.json")
    zones = json.loads(path.read_text("utf-8"))["zones"]
    return {zone: zones[zone]["nll"] for zone in ("seen", "sibling", "stranger")}


def test_the_zone_means_are_the_recorded_ones(ran: Path) -> None:
    """Two hundredths of a nat: more than float32 kernels of other processors differ by, less than the arms do."""
    recorded = {
        "baseline": {"seen": 4.029, "sibling": 4.219, "stranger": 3.909},
        "x1": {"seen": 2.462, "sibling": 2.886, "stranger": 2.519},
        "x4": {"seen": 2.747, "sibling": 2.959, "stranger": 2.620},
    }
    for arm, zones in recorded.items():
        assert losses(ran, arm) == pytest.approx(zones, abs=0.02), arm


def test_the_verdicts_have_the_recorded_words(ran: Path) -> None:
    """Two strangers and one seed settle nothing, and the verdicts say so."""
    verdicts = json.loads((ran / "verdict.json").read_text("utf-8"))["verdicts"]
    recorded = {"x1_learns_the_style": "inconclusive", "x1_carries_to_strangers": "inconclusive"}
    assert {v["claim"]: v["status"] for v in verdicts} == recorded


def test_sixteen_wordings_act_like_the_recorded_number_of_rows(smollm2: Path) -> None:
    """Four originals in 16 wordings each, on the untouched model."""
    from veritune.data.load import rows_from
    from veritune.data.render import Renderer, render_rows
    from veritune.probe.gradients import probe_gradients
    from veritune.train.models import ModelRef, load_base, load_tokenizer

    ref = ModelRef("smollm2", smollm2, "float32")
    wanted = [row for row in recipe()["make_rows"](originals=4) if int(row["id"].rsplit("-", 1)[1]) < 16]
    rows = rows_from(wanted, family_field="original", id_field="id").rows
    rendered, problems = render_rows(rows, Renderer(load_tokenizer(ref), 128))
    found = probe_gradients(load_base(ref), rendered, [row.family for row in rows], base_loss="self")
    assert not problems and found.n_rows == 64
    assert found.estimate("n_eff").value == pytest.approx(12.23, rel=0.05)
