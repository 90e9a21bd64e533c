"""A registry that demands signatures, and a channel whose newest entry was deleted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import FormatError, GateError, InputError, StaleError
from veritune.release.bundle.parts import MANIFEST
from veritune.release.registry.channels import Wanted, demand, history, promote, pull_version, rollback
from veritune.release.registry.shelf import TooLargeError, copy_at_most, open_shelf

Keys = Callable[[str], tuple[Path, Path]]


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def signed(bundle: Path, keys: Keys) -> Path:
    """A bundle signed with the key `mine`."""
    pytest.importorskip("model_signing")
    from veritune.release.bundle.sign import sign

    sign(bundle, keys("mine")[0])
    return bundle


# ---------------------------------------------------------------- signatures demanded


def test_a_channel_that_demands_signatures_takes_and_gives_no_other_bundle(
    registry: Path, signed: Path, made: Path, other: Path, keys: Keys, tmp_path: Path
) -> None:
    url = str(registry)
    promote(other, "staging", url)
    rule = demand(url, "staging", [keys("mine")[1]], "releases are signed")
    with pytest.raises(
        GateError, match=r"staging accepts only bundles signed by one of 1 keys \(rule 1\): there is no"
    ):
        promote(made, "staging", url)
    entry = promote(signed, "staging", url)
    assert entry.rule == rule.hash
    assert pull_version(url, "staging", tmp_path / "now").id == entry.bundle
    with pytest.raises(GateError, match="there is no signature"):
        pull_version(url, "staging", tmp_path / "old", Wanted(version=1))
    assert not (tmp_path / "old").exists()
    with pytest.raises(GateError, match="there is no signature"):
        rollback(url, "staging")
    assert [e.number for e in history(url, "staging")] == [1, 2]
    assert promote(made, "production", url).rule is None, "another channel demands nothing"


def test_a_stranger_s_signature_is_not_the_demanded_one(registry: Path, signed: Path, keys: Keys) -> None:
    demand(str(registry), "staging", [keys("theirs")[1]], "")
    with pytest.raises(GateError, match="the signature is not valid:"):
        promote(signed, "staging", str(registry))
    demand(str(registry), "staging", [keys("theirs")[1], keys("mine")[1]], "two may sign")
    assert promote(signed, "staging", str(registry)).number == 1


def test_a_demand_that_was_removed_is_missed(registry: Path, signed: Path, other: Path, keys: Keys) -> None:
    demand(str(registry), "staging", [keys("mine")[1]], "")
    promote(signed, "staging", str(registry))
    shutil.rmtree(registry / "rules")
    with pytest.raises(StaleError, match=r"version 1 of staging was made under rule \w{12}, which is missing"):
        promote(other, "staging", str(registry))


def test_lifting_a_demand_is_kept_in_the_history(registry: Path, other: Path, keys: Keys, forks: Any) -> None:
    pytest.importorskip("cryptography")
    public = keys("mine")[1]
    made = forks("promote", "--registry", registry, "--to", "staging", "--require-signature", public)
    assert made.out.startswith("staging now accepts and delivers only bundles signed by one of 1 keys (rule "), made.err
    again = forks("promote", "--registry", registry, "--to", "staging", "--require-signature", public)
    assert again.rc == 1 and "already has this rule." in again.err
    lift = ("promote", "--registry", registry, "--to", "staging", "--require-signature", "none")
    bare = forks(*lift)
    assert bare.rc == 1 and "lifting a signature rule needs a reason." in bare.err
    lifted = forks(*lift, "--reason", "test")
    assert lifted.rc == 0 and "staging no longer requires a signature (test)" in lifted.out
    assert promote(other, "staging", str(registry)).rule is not None
    assert len(list((registry / "rules" / "staging").iterdir())) == 2


def test_only_a_public_key_makes_a_demand(registry: Path, keys: Keys, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "no.pem").write_text("not a key")
    for path in (keys("mine")[0], tmp_path / "no.pem", tmp_path / "gone.pem"):
        with pytest.raises(InputError, match="expected a public EC key in PEM"):
            demand(str(registry), "staging", [path], "")
    assert not registry.exists(), "nothing was written, the private key least of all"


# ---------------------------------------------------------------- heads


def test_a_deleted_newest_entry_is_noticed(registry: Path, made: Path, other: Path, tmp_path: Path) -> None:
    url = str(registry)
    promote(made, "staging", url)
    second = promote(other, "staging", url)
    (registry / "channels/staging/00000002.json").unlink()
    for read in (
        lambda: history(url, "staging"),
        lambda: pull_version(url, "staging", tmp_path / "out"),
        lambda: promote(other, "staging", url),
        lambda: rollback(url, "staging"),
    ):
        with pytest.raises(StaleError) as caught:
            read()
        assert "channels/staging ends with version 1, but version 2 was made" in str(caught.value)
        assert second.hash[:12] in str(caught.value) and "its newest entries were deleted" in str(caught.value)


def test_every_entry_deleted_is_noticed(registry: Path, made: Path) -> None:
    promote(made, "staging", str(registry))
    shutil.rmtree(registry / "channels")
    with pytest.raises(StaleError, match="ends with version 0, but version 1 was made"):
        history(str(registry), "staging")


def test_entries_deleted_with_their_heads_are_found_by_the_head_kept_elsewhere(
    registry: Path, made: Path, other: Path, forks: Any
) -> None:
    """What an attacker can do who knows the heads, and what finds it, as the documentation says."""
    promote(made, "staging", str(registry))
    kept = promote(other, "staging", str(registry)).hash[:16]
    assert history(str(registry), "staging", head=kept)
    for name in ("channels", "heads"):
        (registry / name / "staging/00000002.json").unlink()
    assert len(history(str(registry), "staging")) == 1
    with pytest.raises(StaleError, match=f"staging has no entry {kept}, which you kept"):
        history(str(registry), "staging", head=kept)
    told = forks("history", "--registry", registry, "--channel", "staging", "--head", kept)
    assert told.rc == 1 and "entries were deleted or rewritten" in told.err
    with pytest.raises(InputError, match="at least 8 characters"):
        history(str(registry), "staging", head=kept[:7])


def test_a_head_that_a_killed_writer_owes_is_made_up_for(registry: Path, made: Path, other: Path) -> None:
    first = promote(made, "staging", str(registry))
    (registry / "heads/staging/00000001.json").unlink()
    assert promote(made, "staging", str(registry)) == first
    assert (registry / "heads/staging/00000001.json").exists()
    (registry / "heads/staging/00000001.json").unlink()
    promote(other, "staging", str(registry))
    assert len(list((registry / "heads/staging").iterdir())) == 2


@pytest.mark.parametrize("content", ["3", "{}", '{"number": 2, "hash": "x"}', '{"number": 1, "hash": "0"}', "\ud800{"])
def test_a_damaged_head_is_one_line(registry: Path, made: Path, content: str) -> None:
    promote(made, "staging", str(registry))
    (registry / "heads/staging/00000001.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises((StaleError, FormatError)) as caught:
        history(str(registry), "staging")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- no more bytes than the manifest says


def test_a_registry_that_sends_more_than_it_says_is_cut_off(registry: Path, made: Path, tmp_path: Path) -> None:
    entry = promote(made, "staging", str(registry))
    with (registry / "bundles" / entry.bundle / "README.md").open("ab") as stream:
        stream.write(b"x" * 5_000_000)
    with pytest.raises(FormatError, match=r"README\.md has more than the expected [\d,]+ bytes"):
        pull_version(str(registry), "staging", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_endless_stream_is_cut_off_at_the_size(tmp_path: Path) -> None:
    given = 0

    def endless() -> Any:
        nonlocal given
        while True:
            given += 1000
            yield b"x" * 1000

    with pytest.raises(TooLargeError):
        copy_at_most(endless(), tmp_path / "f", 5000, "f")
    assert given == 6000 and (tmp_path / "f").stat().st_size <= 5000


@pytest.mark.parametrize("size", [-1, 1.5, "9", None, True])
def test_a_size_that_is_none_is_refused(registry: Path, made: Path, tmp_path: Path, size: Any) -> None:
    from veritune.store import hash_of

    entry = promote(made, "staging", str(registry))
    path = registry / "bundles" / entry.bundle / MANIFEST
    body = {k: v for k, v in json.loads(path.read_text("utf-8")).items() if k != "hash"}
    body["files"]["README.md"]["bytes"] = size
    path.write_text(json.dumps({**body, "hash": hash_of(body)}), encoding="utf-8")
    with pytest.raises(FormatError, match=r"expected (a size in bytes|an integer)"):
        pull_version(str(registry), "staging", tmp_path / "out")


def test_shelves_bound_what_they_give(registry: Path, tmp_path: Path) -> None:
    (registry / "x").mkdir(parents=True)
    (registry / "x" / "f").write_bytes(b"12345")
    shelf = open_shelf(str(registry))
    shelf.get("x/f", tmp_path / "f", 5)
    with pytest.raises(TooLargeError):
        shelf.get("x/f", tmp_path / "f", 4)
