"""What goes to a Tinker server and what comes back, without a server; `bench/tinker/run.sh` has a real one."""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from veritune.errors import GateError, MachineError, ModelError
from veritune.records import Rendered
from veritune.train.backends import tinker
from veritune.train.backends.tinker import datum, export_due, inspect, missed, switches, untar

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
UP = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"


def test_a_row_is_shifted_by_one_and_weighted_by_the_contract_mask() -> None:
    row = Rendered("r", (7, 8, 9, 10, 2), (-100, -100, 9, 10, 2))
    assert datum(row) == {"input": [7, 8, 9, 10], "target_tokens": [8, 9, 10, 2], "weights": [0.0, 1.0, 1.0, 1.0]}


def test_a_mask_with_holes_keeps_them() -> None:
    row = Rendered("r", (1, 2, 3, 4, 5), (-100, 2, -100, -100, 5))
    assert datum(row)["weights"] == [1.0, 0.0, 0.0, 1.0]
    assert sum(datum(row)["weights"]) == row.n_target


def test_module_groups_become_the_switches_of_the_api() -> None:
    assert switches(["attention"]) == {"train_attn": True, "train_mlp": False, "train_unembed": False}
    assert switches(["attention", "mlp", "head"]) == dict.fromkeys(("train_attn", "train_mlp", "train_unembed"), True)
    with pytest.raises(ModelError, match="q_proj"):
        switches(["q_proj"])
    with pytest.raises(ModelError):
        switches([])


def test_what_was_trained_without_being_asked_is_said() -> None:
    assert missed(["attention"], [Q]) == []
    assert missed(["attention"], [Q, UP]) == ["mlp: trained, not asked"]
    assert missed(["attention", "mlp"], [Q]) == ["mlp: asked, not trained"]


def test_an_export_is_due_in_the_last_hour_and_too_late_after_it() -> None:
    now = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    assert not export_due(None, now)
    assert not export_due("2026-01-01T13:00:01+00:00", now)
    assert export_due("2026-01-01T13:59:00+01:00", now)
    with pytest.raises(GateError, match="expired"):
        export_due("2026-01-01T12:00:00+00:00", now)


def archive(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.type, member.linkname = len(content), kind, link
        tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_an_export_is_opened_and_compared_with_what_was_asked(tmp_path: Path) -> None:
    gate = UP.replace("up_proj", "gate_proj")  # there, and never moved: not trained
    content = save(
        {Q: np.ones((2, 4), np.float32), UP: np.ones((2, 4), np.float32), gate: np.zeros((2, 4), np.float32)}
    )
    untar(archive("adapter_model.safetensors", content), tmp_path)
    found = inspect(tmp_path, ["attention"])
    assert found["differs"] == ["mlp: trained, not asked"]
    assert found["modules"] == ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == content


def test_an_archive_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no safetensors"):
        untar(archive("adapter_model.bin", b"x"), tmp_path)
        inspect(tmp_path, ["attention"])


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="outside the export"):
        untar(archive("../evil.safetensors", b"x"), tmp_path / "in")
    assert not (tmp_path / "evil.safetensors").exists()


def test_an_archive_brings_no_links(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=", which is not a plain file"):
        untar(archive("adapter_model.safetensors", b"", tarfile.SYMTYPE, "/etc/passwd"), tmp_path / "in")


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinker.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match=r"pip install 'veritune\[tinker\]'"):
        tinker.Session(tinker.TinkerConfig("m", "http://127.0.0.1:1", 4, 0))
