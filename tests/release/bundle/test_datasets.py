"""A data set on the Hub, through the real client and a loopback endpoint: what is sent, what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune.data.review import retire
from veritune.errors import DataError, GateError, InputError, MachineError
from veritune.release.registry.datasets import CROISSANT, publish

_spec = importlib.util.spec_from_file_location("hub_fixtures", Path(__file__).with_name("test_hub.py"))
assert _spec and _spec.loader
_fixtures = importlib.util.module_from_spec(_spec)
sys.modules["hub_fixtures"] = _fixtures
_spec.loader.exec_module(_fixtures)
hub = _fixtures.hub

REPO = "me/survey"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERITUNE_RETIRED", str(tmp_path / "retired.jsonl"))
    rows = [
        {"question": f"How is rope {i} kept dry in a boat house?", "answer": f"Rope {i} hangs.", "license": "cc-by-4.0"}
        for i in range(30)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_what_is_published_says_what_it_is_and_checks_itself(hub: Any, data: Path) -> None:
    pushed = publish(data, f"hf://{REPO}")
    assert pushed.place == f"hf://{REPO}@{_fixtures.hub_server.oid(1)}"
    assert hub.repos[REPO].private
    tree = hub.repos[REPO].commits[-1]
    assert tree["data.jsonl"] == data.read_bytes()
    sums = dict(reversed(line.split("  ")) for line in tree["SHA256SUMS"].decode().splitlines())
    assert set(sums) == set(tree) - {".gitattributes", "SHA256SUMS"}
    assert all(hashlib.sha256(tree[name]).hexdigest() == sha for name, sha in sums.items())
    manifest = json.loads(tree["manifest.json"])
    assert manifest["version"] == pushed.version == sums["data.jsonl"]
    assert (manifest["rows"], manifest["gate"]) == (30, "not checked")
    front = yaml.safe_load(tree["README.md"].decode().split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data.jsonl"}]
    described = json.loads(tree["croissant.json"])
    assert described["conformsTo"] == CROISSANT
    assert described["distribution"][0]["sha256"] == sums["data.jsonl"]
    fields = {f["name"]: f["source"]["extract"]["jsonPath"] for f in described["recordSet"][0]["field"]}
    assert fields == {"rows/question": "$.question", "rows/answer": "$.answer", "rows/license": "$.license"}


def test_a_second_version_leaves_exactly_the_second(hub: Any, data: Path) -> None:
    publish(data, f"hf://{REPO}")
    hub.repos[REPO].commits[-1]["stray.bin"] = b"x"
    publish(data, f"hf://{REPO}", licence="mit")
    tree = hub.repos[REPO].commits[-1]
    assert "stray.bin" not in tree
    assert yaml.safe_load(tree["README.md"].decode().split("---\n")[1])["license"] == "mit"


def test_what_may_not_be_published_is_refused_before_anything_is_sent(hub: Any, data: Path, tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text(data.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    with pytest.raises(GateError, match="contamination failed: 1 of 30 rows hold"):
        publish(data, f"hf://{REPO}", evals=[str(exam)])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(data.read_text("utf-8") + "{\n", "utf-8")
    with pytest.raises(DataError, match="1 of 31 records cannot be used: broken"):
        publish(broken, f"hf://{REPO}")
    with pytest.raises(InputError, match="is not the address of a data set"):
        publish(data, "s3://bucket")
    retire(data, "wrong licence")
    with pytest.raises(DataError, match="retired: wrong licence"):
        publish(data, f"hf://{REPO}")
    assert hub.asked == []


def test_files_that_did_not_arrive_are_no_publication(hub: Any, data: Path) -> None:
    hub.loses = "manifest.json"
    with pytest.raises(GateError, match="differs from what was sent"):
        publish(data, f"hf://{REPO}")


def test_a_dead_server_is_one_line(hub: Any, data: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MachineError, match="hf://me/survey"):
        publish(data, f"hf://{REPO}")
