"""Channels: one winner, whole bundles whatever is killed, gates for production, and a way back that is proven."""

from __future__ import annotations

import importlib.util
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import GateError, InputError, LockedError, StaleError
from veritune.release.bundle.verify import read_manifest, verify_bundle
from veritune.release.gate.evidence import read_evidence
from veritune.release.registry import channels as registry
from veritune.release.registry.channels import history, promote, pull, rollback
from veritune.release.registry.drill import rollback_drill
from veritune.release.registry.shelf import open_shelf
from veritune.store import Store, hash_of

_spec = importlib.util.spec_from_file_location("bundles", Path(__file__).with_name("bundles.py"))
assert _spec and _spec.loader
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server on loopback (moto's), with one bucket; skips where it or s3fs is not installed."""
    pytest.importorskip("s3fs", reason="no s3fs: pip install 'veritune[s3]' 'moto[server,s3]'")
    pytest.importorskip("moto", reason="no S3 server here: pip install 'moto[server,s3]'")
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "of-this-test")
        server = ThreadedMotoServer("127.0.0.1", 0)
        server.start()
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        import fsspec

        with pytest.raises(InputError, match="there is no bucket 'registry'"):
            open_shelf("s3://registry/x")
        fs = fsspec.filesystem("s3")
        fs.mkdir("registry")
        yield "s3://registry"
        server.stop()


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return f"memory://registry-{uuid.uuid4().hex}"
    return str(tmp_path / "registry")


def ids(url: str, channel: str = "staging") -> list[str]:
    return [e.bundle for e in history(url, channel)]


def bundle_id(folder: Path) -> str:
    return str(read_manifest(folder).hash)


# ---------------------------------------------------------------- forth and back


def test_promote_roll_back_and_pull(url: str, made: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"there is no registry at {url}"):
        history(url, "staging")
    first = promote(made, "staging", url, reason="first")
    assert first.by and history(url, "production") == []
    assert promote(made, "staging", url) == first, "pointing where it points already changes nothing"
    promote(other, "staging", url)
    back = rollback(url, "staging", reason="it was worse")
    assert (back.entry.bundle, back.was, back.entry.restores) == (bundle_id(made), bundle_id(other), 1)
    assert back.prompts == 3 and back.tokens > 0
    assert ids(url) == [bundle_id(made), bundle_id(other), bundle_id(made)]
    pull(url, ids(url)[-1], tmp_path / "pulled")
    assert verify_bundle(tmp_path / "pulled").findings == ()
    with pytest.raises(InputError, match="no bundle before"):
        rollback(url, "staging")
    assert rollback(url, "staging", to="2").entry.bundle == bundle_id(other)
    assert rollback(url, "staging", to=bundle_id(made)[:8]).entry.bundle == bundle_id(made)


@pytest.mark.parametrize("to", ["9", "0", "abc", "ffffffff", "-1", "../1", "3"])
def test_a_version_that_is_none_is_refused(tmp_path: Path, made: Path, other: Path, to: str) -> None:
    url = str(tmp_path / "r")
    for folder in (made, other, made):
        promote(folder, "staging", url)
    with pytest.raises(InputError, match=r"--to|already"):
        rollback(url, "staging", to=to)


def test_a_channel_that_is_none_is_refused(tmp_path: Path, made: Path) -> None:
    with pytest.raises(InputError, match="staging and production"):
        promote(made, "../../etc", str(tmp_path))
    with pytest.raises(InputError, match="exclusive"):
        open_shelf("ftp://host/x")


# ---------------------------------------------------------------- what production asks for


def test_production_takes_only_what_passed_its_gates(tmp_path: Path, made: Path, other: Path) -> None:
    url = str(tmp_path / "r")
    with pytest.raises(GateError, match="holds no gate record"):
        promote(other, "production", url)
    assert promote(made, "production", url).gate == "passed"
    assert ids(url, "production") == [bundle_id(made)]


@pytest.mark.parametrize(
    "changes",
    [{"status": "failed"}, {"status": "undecided"}, {"covers": ["0" * 64]}, {"gates": []}],
    ids=["failed", "undecided", "other bytes", "no gate"],
)
def test_a_gate_record_that_does_not_pass_for_these_bytes_blocks(
    bundle: Path, finished: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = read_manifest(bundle).run_id
    study = tmp_path / "study"
    shutil.copytree(finished.root, study)
    bundles.write_passing_gates(study, run, **changes)
    shutil.copyfile(study / "release/gates.jsonl", bundle / "evidence/release/gates.jsonl")
    bundles.repack(bundle)
    assert verify_bundle(bundle).findings == ()
    with pytest.raises(GateError, match="passed their gates"):
        promote(bundle, "production", str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_a_bundle_that_does_not_verify_is_not_promoted(bundle: Path, tmp_path: Path) -> None:
    (bundle / "README.md").write_text("x")
    with pytest.raises(GateError, match=r"README\.md was changed"):
        promote(bundle, "staging", str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


# ---------------------------------------------------------------- a way back that is proven


def test_a_bundle_that_does_not_reproduce_is_not_gone_back_to(bundle: Path, other: Path, tmp_path: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    golden["items"][1]["token_ids"][2] += 1
    (bundle / "golden.json").write_text(json.dumps(golden))
    bundles.repack(bundle)
    url = str(tmp_path / "r")
    promote(bundle, "staging", url)
    promote(other, "staging", url)
    with pytest.raises(GateError, match=r"does not reproduce.*differs from token 2 on"):
        rollback(url, "staging")
    assert ids(url) == [bundle_id(bundle), bundle_id(other)], "the channel stays where it was"


def test_another_base_is_not_taken_for_the_bundles(made: Path, other: Path, tiny_model: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "r")
    promote(made, "staging", url)
    promote(other, "staging", url)
    shutil.copytree(tiny_model, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"not the bundle's base.*model\.safetensors"):
        rollback(url, "staging", base=tmp_path / "base")


def test_a_bundle_that_was_damaged_in_the_registry_is_not_gone_back_to(made: Path, other: Path, tmp_path: Path) -> None:
    url = tmp_path / "r"
    promote(made, "staging", str(url))
    promote(other, "staging", str(url))
    (stored,) = url.glob(f"bundles/{bundle_id(made)}/README.md")
    stored.write_text("better")
    with pytest.raises(GateError, match=r"differs from what was promoted.*README\.md"):
        rollback(str(url), "staging")
    with pytest.raises(GateError, match="damaged"):
        promote(made, "staging", str(url))


def test_the_drill_goes_the_whole_way_and_leaves_evidence_for_the_gate(made: Path, tmp_path: Path) -> None:
    found = rollback_drill(made, study=tmp_path)
    assert found.status == "passed" and found.numbers["prompts"] == 3
    record = read_evidence(Store(tmp_path), "rollback")
    assert record is not None and record.status == "passed"
    assert record.subject.candidate == read_manifest(made).subject.candidate


def test_a_drill_with_a_bundle_that_does_not_reproduce_fails(bundle: Path, tmp_path: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    golden["items"][0]["token_ids"][-1] += 1
    (bundle / "golden.json").write_text(json.dumps(golden))
    bundles.repack(bundle)
    found = rollback_drill(bundle, study=tmp_path)
    assert found.status == "failed" and "does not reproduce" in found.message
    record = read_evidence(Store(tmp_path), "rollback")
    assert record is not None and record.status == "failed"


# ---------------------------------------------------------------- the history


@pytest.mark.parametrize("how", ["edit", "hole", "swap"])
def test_an_edited_history_is_found(tmp_path: Path, made: Path, other: Path, how: str) -> None:
    url = tmp_path / "r"
    for folder in (made, other, made):
        promote(folder, "staging", str(url))
    first, second = url / "channels/staging/00000001.json", url / "channels/staging/00000002.json"
    if how == "edit":
        second.write_text(second.read_text().replace('"reason": ""', '"reason": "x"'))
    elif how == "hole":
        second.unlink()
    else:
        body = {k: v for k, v in json.loads(first.read_text()).items() if k != "hash"} | {"reason": "rewritten"}
        first.write_text(json.dumps({**body, "hash": hash_of(body)}))
    with pytest.raises(StaleError):
        history(str(url), "staging")


# ---------------------------------------------------------------- two at once, and killed


def test_of_two_promotions_one_wins_and_the_other_is_told(
    url: str, made: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other promotion happens while this one uploads."""
    real = registry._upload

    def meanwhile(*args: Any) -> None:
        monkeypatch.setattr(registry, "_upload", real)
        promote(other, "staging", url)
        real(*args)

    monkeypatch.setattr(registry, "_upload", meanwhile)
    with pytest.raises(LockedError, match="was changed meanwhile:"):
        promote(made, "staging", url)
    assert ids(url) == [bundle_id(other)]


def test_two_processes_at_once_leave_one_winner(made: Path, other: Path, tmp_path: Path, forks: Any) -> None:
    for round_ in range(3):
        url = tmp_path / f"r{round_}"
        started = [forks.start("promote", b, "--to", "staging", "--registry", url) for b in (made, other)]
        done = [forks.wait(s) for s in started]
        entries = ids(str(url))
        if sorted(d.rc for d in done) == [0, 1]:
            loser = next(d for d in done if d.rc == 1)
            assert len(entries) == 1 and "was changed meanwhile:" in loser.err and loser.err.count("\n") == 1
        else:
            assert [d.rc for d in done] == [0, 0] and len(entries) == 2, "one came wholly after the other"
        for number in (0, -1):
            pull(str(url), entries[number], tmp_path / f"p{round_}{number}")


@pytest.mark.parametrize(
    "point",
    [
        r"os.mkdir \S+/channels/staging",
        r"os.mkdir \S+/bundles/",
        r"open \S+/adapter_model.safetensors w ",
        r"open \S+/manifest.json w ",
        r"os.rename \S+ \S+/bundles/",
        r"open \S+/channels/staging/\.new",
        r"open \S+/heads/staging/\.new",
        r"os.link \S+",
        r"os.remove \S+/channels/staging/\.new",
    ],
)
def test_killed_anywhere_a_channel_points_to_a_whole_bundle(
    made: Path, other: Path, tmp_path: Path, forks: Any, point: str
) -> None:
    url = tmp_path / "r"
    promote(made, "staging", str(url))
    if "mkdir" in point and "channels" in point:
        shutil.rmtree(url)
    killed = forks("promote", other, "--to", "staging", "--registry", url, kill_at=point)
    assert killed.rc == -9, (killed.rc, killed.err)
    entries = ids(str(url))
    linked = point.startswith("os.remove")
    assert entries == (
        [] if not url.exists() or not entries else [bundle_id(made), *([bundle_id(other)] if linked else [])]
    )
    for number, digest in enumerate(entries):
        pull(str(url), digest, tmp_path / f"p{number}")
    assert forks("promote", other, "--to", "staging", "--registry", url).rc == 0
    assert ids(str(url))[-1] == bundle_id(other)


def test_a_killed_rollback_leaves_the_channel_where_it_was(made: Path, other: Path, tmp_path: Path, forks: Any) -> None:
    url = tmp_path / "r"
    promote(made, "staging", str(url))
    promote(other, "staging", str(url))
    killed = forks("rollback", "--channel", "staging", "--registry", url, kill_at=r"os.link \S+")
    assert killed.rc == -9 and ids(str(url))[-1] == bundle_id(other)
    done = forks("rollback", "--channel", "staging", "--registry", url)
    assert done.rc == 0 and "3 golden prompts" in done.out
    listed = forks("history", "--channel", "staging", "--registry", url)
    assert "rolled back to version 1" in listed.out


# ---------------------------------------------------------------- a registry is a stranger's too


def test_a_registrys_manifest_cannot_write_outside(made: Path, tmp_path: Path) -> None:
    url = tmp_path / "r"
    entry = promote(made, "staging", str(url))
    stored = url / "bundles" / entry.bundle / "manifest.json"
    body = {k: v for k, v in json.loads(stored.read_text()).items() if k != "hash"}
    body["files"]["../escaped.json"] = {"sha256": "0" * 64, "bytes": 1}
    stored.write_text(json.dumps({**body, "hash": hash_of(body)}))
    (url / "bundles" / "escaped.json").write_text("x")
    with pytest.raises(Exception, match="leads out of the bundle"):
        pull(str(url), entry.bundle, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "escaped.json").exists()
