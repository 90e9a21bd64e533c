"""A record of probes/ whose values cannot be computed with is named as damaged, and stops no other quantity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.decide.probe_records import recorded_quantities
from veritune.decide.recorded import from_estimate
from veritune.demo import unpack
from veritune.errors import ScoreError
from veritune.probe.geometry_dose import RECORD
from veritune.records import Estimate
from veritune.store import Store

CELL = {"condition": "all_layer", "seed": 0, "step": 40, "method": "m", "layer": 1, "measure": "m1", "change": 0.5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    unpack(folder)
    return Store(folder / "study")


def quantities(store: Store) -> dict[str, Any]:
    return recorded_quantities(store, sorted(path.name for path in store.runs.iterdir()))


def with_geometry(store: Store, record: Any) -> Path:
    path = store.root / RECORD
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"input_hash": "x", "record": record}))
    return path


@pytest.mark.parametrize(
    "record",
    [
        *({"cells": [{**CELL, "change": change} for change in pair]} for pair in ([[1], [1, 2]], ["x", 1], [{}, 1])),
        *({"cells": [{**CELL, "seed": []}]}, {"cells": [3]}, {"cells": 3}, [], None, "x"),
    ],
)
def test_cells_of_geometry_that_cannot_be_averaged_are_damage(store: Store, record: Any) -> None:
    path = with_geometry(store, record)
    try:
        with pytest.raises(ScoreError, match=r"probes/geometry/geometry\.json(\.|:| is damaged)"):
            quantities(store)
    finally:
        path.unlink()
        path.parent.rmdir()
    assert quantities(store)


@pytest.mark.parametrize("level", ["1.0", "2", "0", "-0.5"])
def test_a_record_with_an_interval_at_a_level_that_no_interval_has_is_refused(level: str) -> None:
    details = {"intervals": {level: [0.49, 0.51]}}
    with pytest.raises(ScoreError, match="expected intervals at levels between 0 and 1"):
        from_estimate(Estimate("x", 0.5, 0.4, 0.6, 0.95, 10, "bootstrap", details=details))
