"""Channels that point to bundles: promote, history, and the way back.

    bundles/<id>/                      whole bundles under the hash of their manifest
    channels/<channel>/<number>.json   one entry a change; the highest number is where the channel points
    heads/, rules/                     what shows that a newest entry was deleted; what a channel demands: rules.py

A channel's history and its pointer are one thing: an append-only row of numbered entries, each with the hash of the
one before it. A change creates the next number, which exactly one writer can. So a process that is killed anywhere
leaves the old entry or the new one and never half of one, an entry never names a bundle that is not whole, and of two
promotions at once one wins and the other is told who did. Nothing is deleted here; `prune.py` does, where it is asked.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from veritune.counting import grouped
from veritune.errors import FormatError, GateError, InputError, MovedError, StaleError
from veritune.ledger import CHAIN, FIX, follow, link
from veritune.records import (
    BundleManifest,
    dumps,
    to_json,
)
from veritune.release.bundle.build import gate_state
from veritune.release.bundle.parts import MANIFEST, MAX_JSON, SIGNATURE, name_problem
from veritune.release.bundle.verify import Checked, is_bundle, read_manifest, verify_bundle
from veritune.release.parity import golden
from veritune.release.registry import rules as rules_of
from veritune.release.registry.rules import (
    ChannelRule,
    keep_head,
    newest_head,
    numbered,
    refuse_lost_entries,
    refuse_lost_rules,
    refuse_other_head,
    refuse_unsigned,
    rules,
)
from veritune.release.registry.shelf import Shelf, TooLargeError, open_shelf
from veritune.store import now, remove_staged, sha256_file, staged_folder
from veritune.untrusted import parse_json

CHANNELS = ("staging", "production")
GATED = ("production",)
BUNDLE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of a channel. `restores` is the number of the entry that a rollback restored.

    `rule` is the hash of what the channel demanded then; None before the first rule. `by` is who made the change, as
    `who` finds it, and `key` the public key that the bundle's signature was checked with, as `rules.key_name` calls it.
    """

    number: int
    action: str
    bundle: str
    name: str
    run_id: str
    gate: str | None
    reason: str
    restores: int | None
    previous: str | None
    rule: str | None = None
    by: str | None = None
    key: str | None = None
    time: str = field(default_factory=now)
    hash: str = ""


def who() -> str:
    """The name of whoever changes a channel: `$VERITUNE_BY`, else the account of the CI system, else the login name,
    with the host.
    """
    for name in ("VERITUNE_BY", "GITHUB_ACTOR", "GITLAB_USER_LOGIN"):
        given = " ".join(os.environ.get(name, "").split())
        if given:
            return given[:200]
    try:
        return f"{getpass.getuser()}@{platform.node()}"
    except (KeyError, OSError):  # a container whose user id has no name
        return f"user {os.getuid()}@{platform.node()}"


@dataclass(frozen=True, slots=True)
class Restored:
    """A finished rollback: its entry, the bundle it replaced, and what was reproduced before it."""

    entry: Entry
    was: str
    prompts: int
    tokens: int


def history_text(entries: Sequence[Entry], channel: str) -> str:
    """A channel's history, one line per entry."""
    lines = []
    for e in entries:
        back = f" to version {e.restores}" if e.restores else ""
        signed = f", signed by {e.key}" if e.key else ""
        lines.append(
            f"{e.number:>4}  {e.time}  {e.bundle[:12]}  {e.action}{back} by {e.by or 'somebody'}{signed}  "
            f"{e.name}, gate {e.gate or 'none'}  {e.reason}"
        )
    return "\n".join(lines) or f"{channel} never pointed to a bundle"


def restored_text(restored: Restored, channel: str) -> str:
    """The result of a rollback in one line."""
    reproduced = f"{restored.prompts} golden prompts, {grouped(restored.tokens, 'tokens')} reproduced exactly"
    return f"{channel} points to {restored.entry.bundle[:12]} again (was {restored.was[:12]}); {reproduced}"


# ---------------------------------------------------------------- reading


def history(url: str, channel: str, *, head: str | None = None) -> list[Entry]:
    """Every entry of a channel, oldest first, with its chain checked. `head` is the hash of an entry that was kept
    elsewhere.

    Raises StaleError where entries were edited, moved or deleted, the newest ones too; InputError where there is no
    registry.
    """
    return _read(existing_shelf(url), channel, head)[0]


def history_on(shelf: Shelf, channel: str) -> list[Entry]:
    """`history` of a registry that is already open."""
    return _read(shelf, channel)[0]


def existing_shelf(url: str) -> Shelf:
    """The registry at a path or URL. Raises InputError if nothing was ever promoted to it."""
    shelf = open_shelf(url)
    if not shelf.exists():
        raise InputError(
            f"there is no registry at {url}.", fix="Check the address; the first `veritune promote` creates a registry."
        )
    return shelf


def _read(shelf: Shelf, channel: str, head: str | None = None) -> tuple[list[Entry], ChannelRule | None]:
    """A channel's entries, and what it demands now. Heads and rules are read first: an entry may come meanwhile."""
    _check_channel(channel)
    newest, demands = newest_head(shelf, channel), rules(shelf, channel)
    entries: list[Entry] = []
    for number, name in numbered(shelf, f"channels/{channel}"):
        entry = _entry(shelf.read(name), name, entries[-1].hash if entries else None)
        if entry.number != number:
            raise StaleError(f"{name} is entry {entry.number}: it was moved.", fix=FIX)
        entries.append(entry)
    hashes = [entry.hash for entry in entries]
    refuse_lost_entries(newest, hashes, channel)
    refuse_other_head(head, hashes, channel)
    refuse_lost_rules(demands, [entry.rule for entry in entries], channel)
    return entries, demands[-1] if demands else None


def demand(url: str, channel: str, public_keys: Sequence[Path], reason: str = "") -> ChannelRule:
    """Make a channel require signatures by one of these public keys, or none. Raises as `rules.demand` does."""
    shelf = open_shelf(url)
    _read(shelf, channel)
    return rules_of.demand(shelf, channel, public_keys, reason)


def _entry(content: bytes, name: str, previous: str | None) -> Entry:
    """The entry in a file, which must follow `previous`. Raises FormatError or StaleError."""
    try:
        entry = Entry(**follow(parse_json(content), previous, name))
        whole = type(entry.number) is int and bool(BUNDLE_ID.fullmatch(entry.bundle))
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise FormatError(f"{name} is not a valid entry of a channel ({type(exc).__name__}).", fix=FIX) from exc
    if not whole:
        raise FormatError(f"{name} is not a valid entry of a channel: its number or bundle id is wrong.", fix=FIX)
    return entry


def _check_channel(channel: str) -> None:
    if channel not in CHANNELS:
        raise InputError(f"unknown channel {channel!r}.", fix=f"Channels: {' and '.join(CHANNELS)}.")


def pull(url: str, bundle: str, out: Path, public_key: Path | None = None, rule: ChannelRule | None = None) -> Checked:
    """Fetch a bundle by id into `out` and verify it; if this same bundle already exists there, only verify it.

    `rule` is what the channel demands. Raises GateError when what came is not what its id says, or not signed as
    demanded, InputError where something else is there.
    """
    if out.exists():
        checked = verify_bundle(out, public_key) if is_bundle(out) else None
        if checked is None or checked.findings or checked.id != bundle:
            raise InputError(f"{out} already exists and is not this bundle.", fix="Name a new folder.")
        refuse_unsigned(rule, out)
        remove_staged(out)
        return checked
    return _fetch(open_shelf(url), bundle, out, public_key, rule)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which version of a channel to pull (None: the current one), and what the caller already knows about it."""

    version: int | None = None
    public_key: Path | None = None
    head: str | None = None


def pull_version(url: str, channel: str, out: Path, wanted: Wanted | None = None) -> Checked:
    """Fetch and verify the bundle that a channel points to, or pointed to at a version.

    Raises as `pull` does, InputError where the channel has no such version, StaleError where the channel lost the head
    that the caller kept, GateError where the bundle lacks a signature that the channel demands.
    """
    wanted = wanted or Wanted()
    entries, rule = _read(existing_shelf(url), channel, wanted.head)
    chosen = [e for e in entries if wanted.version in (None, e.number)]
    if not chosen:
        raise InputError(f"{channel} has no version {wanted.version or 1}.", fix="List the versions: veritune history")
    return pull(url, chosen[-1].bundle, out, wanted.public_key, rule)


def _fetch(shelf: Shelf, bundle: str, out: Path, public_key: Path | None, rule: ChannelRule | None) -> Checked:
    """Fetch into `out`, which appears whole and verified or not at all. Raises GateError where it is neither."""
    place = f"bundles/{bundle}"
    signed = SIGNATURE in shelf.names(place)
    with staged_folder(out) as folder:
        fetch_parts(lambda name, to, most: shelf.get(f"{place}/{name}", to, most), folder, place, signed=signed)
        checked = verify_bundle(folder, public_key)
        if checked.findings or checked.id != bundle:
            what = checked.findings[0].message if checked.findings else f"its manifest is {checked.id[:12]}"
            raise GateError(
                f"the registry's bundle {bundle[:12]} differs from what was promoted: {what}.",
                fix="Do not use it; promote the bundle again.",
            )
        refuse_unsigned(rule, folder)
    return replace(checked, bundle=str(out))


def fetch_parts(get: Callable[[str, Path, int], None], out: Path, place: str, *, signed: bool) -> BundleManifest:
    """Copy a bundle's parts into `out` with `get(name, target, most)`; returns its manifest. Verify `out` afterwards.

    Only names that the manifest lists, and that may stand in a bundle, are asked for, and no more bytes of each than it
    says. `get` raises FileNotFoundError, and TooLargeError once a file has more than `most` bytes.
    """
    try:
        get(MANIFEST, out / MANIFEST, MAX_JSON)
        manifest = read_manifest(out)
        for name in manifest.files:
            problem = name_problem(name)
            if problem:
                raise FormatError(f"{place}: {name!r} {problem}.", fix="Do not use this bundle.")
            get(name, out / name, _size(manifest, name))
        if signed:
            get(SIGNATURE, out / SIGNATURE, MAX_JSON)
    except FileNotFoundError as exc:
        raise FormatError(f"{place} is incomplete: {exc}.", fix="Promote or push the bundle again.") from exc
    except TooLargeError as exc:
        raise FormatError(f"{place}: {exc}.", fix="Do not use this bundle.") from exc
    return manifest


def _size(manifest: BundleManifest, name: str) -> int:
    size = manifest.files[name].bytes
    if size < 0:
        found = f"{MANIFEST}: {name}: expected a size in bytes, found {size!r}"
        raise FormatError(f"{found}.", fix="Do not use this bundle.")
    return size


@contextmanager
def _fetched(shelf: Shelf, bundle: str, public_key: Path | None, rule: ChannelRule | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
        _fetch(shelf, bundle, Path(folder) / "bundle", public_key, rule)
        yield Path(folder) / "bundle"


# ---------------------------------------------------------------- changing


def promote(bundle: Path, channel: str, url: str, *, reason: str = "", public_key: Path | None = None) -> Entry:
    """Point a channel to a bundle, after verifying it; `production` also needs a gate record that passes for it.

    Raises GateError for a bundle that does not verify, or lacks the gate record or a signature that the channel
    demands; MovedError where another promotion was quicker.
    """
    shelf = open_shelf(url)
    before, rule = _read(shelf, channel)
    checked, manifest, gate = shippable(bundle, channel, public_key)
    key = refuse_unsigned(rule, bundle) or (rules_of.key_name(public_key) if public_key else None)
    if before and before[-1].bundle == checked.id:
        keep_head(shelf, channel, before[-1].number, before[-1].hash)  # a killed promotion may not have come to it
        return before[-1]
    _upload(shelf, bundle, checked.id)
    entry = Entry(
        len(before) + 1, "promoted", checked.id, manifest.name, manifest.run_id, gate, reason, None,
        before[-1].hash if before else None, rule.hash if rule else None, who(), key,
    )  # fmt: skip
    return _append(shelf, channel, entry)


def shippable(bundle: Path, channel: str | None, public_key: Path | None) -> tuple[Checked, BundleManifest, str | None]:
    """A bundle's check, manifest and gate state. Raises GateError if it fails verification or may not go to `channel`.

    A gated channel (`production`, also as a branch or an alias elsewhere) takes only what passed its gates.
    """
    checked = verify_bundle(bundle, public_key)
    if checked.findings:
        raise GateError(
            f"{bundle} fails verification: {checked.findings[0].message} ({len(checked.findings)} findings).",
            fix=f"List all findings: veritune verify {bundle}",
        )
    manifest = read_manifest(bundle)
    gate = gate_state(bundle, manifest)
    if channel in GATED and gate != "passed":
        found = {None: "it holds no gate record", "expired": "its record is for other weights, or a waiver has ended"}
        raise GateError(
            f"{channel} accepts only bundles that passed their gates: "
            f"{found.get(gate, f'its gate record says {gate}')}.",
            fix="Run `veritune gate STUDY`, then pack the bundle again.",
        )
    return checked, manifest, gate


def files_of(bundle: Path) -> dict[str, str]:
    """SHA-256 of every file of a verified bundle by name, including its manifest and signature."""
    listed = {name: f.sha256 for name, f in read_manifest(bundle).files.items()}
    return listed | {name: sha256_file(bundle / name) for name in (SIGNATURE, MANIFEST) if (bundle / name).is_file()}


def _upload(shelf: Shelf, bundle: Path, digest: str) -> None:
    """Store what was verified. What lies there already is read back and compared."""
    listed = files_of(bundle)
    if shelf.put(f"bundles/{digest}", bundle, listed):
        return
    with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
        for name in [n for n in listed if n != SIGNATURE]:
            shelf.get(f"bundles/{digest}/{name}", Path(folder) / "file", (bundle / name).stat().st_size + 1)
            if sha256_file(Path(folder) / "file") != listed[name]:
                raise GateError(
                    f"bundles/{digest[:12]} in the registry is damaged: {name} does not match the id.",
                    fix=f"Remove bundles/{digest} from the registry and promote again.",
                )


def _append(shelf: Shelf, channel: str, entry: Entry) -> Entry:
    whole = link({k: v for k, v in to_json(entry).items() if k not in CHAIN}, entry.previous)
    if entry.previous is not None:
        keep_head(shelf, channel, entry.number - 1, entry.previous)
    try:
        shelf.create(f"channels/{channel}/{entry.number:08d}.json", (dumps(whole, indent=2) + "\n").encode())
    except FileExistsError:
        winner = _read(shelf, channel)[0][entry.number - 1]
        raise MovedError(
            f"{channel} was changed meanwhile: {winner.bundle[:12]} ({winner.name}) was {winner.action} at "
            f"{winner.time}.",
            fix=f"Read the history (veritune history --channel {channel}), then decide again.",
        ) from None
    keep_head(shelf, channel, entry.number, whole["hash"])
    return Entry(**whole)


def rollback(
    url: str, channel: str, *, to: str | None = None, base: Path | None = None, reason: str = "",
    public_key: Path | None = None,
) -> Restored:  # fmt: skip
    """Point a channel back to an earlier bundle of its own, in one step, after its golden outputs were reproduced.

    `to` is an entry's number or the first digits of a bundle's id; without it, the bundle that stood before the
    current one came. Raises InputError where there is none, GateError where the restored bundle does not verify or
    does not reproduce: the channel then stays as it was.
    """
    shelf = existing_shelf(url)
    before, rule = _read(shelf, channel)
    target = _target(before, channel, to)
    with _fetched(shelf, target.bundle, public_key, rule) as folder:
        key = refuse_unsigned(rule, folder) or (rules_of.key_name(public_key) if public_key else None)
        found = golden.reproduce(folder, read_manifest(folder), base)
        gate = gate_state(folder, read_manifest(folder))
    if found.findings:
        raise GateError(
            f"bundle {target.bundle[:12]} does not reproduce its golden outputs: {found.findings[0].message} "
            f"({len(found.findings)} of {found.prompts} prompts; recorded with {dict(found.recorded_with)}).",
            fix=f"{channel} still points to {before[-1].bundle[:12]}. Roll back to another version: --to NUMBER.",
        )
    entry = Entry(
        len(before) + 1, "rolled back", target.bundle, target.name, target.run_id, gate, reason, target.number,
        before[-1].hash, rule.hash if rule else None, who(), key,
    )  # fmt: skip
    return Restored(_append(shelf, channel, entry), before[-1].bundle, found.prompts, found.tokens)


def _target(entries: list[Entry], channel: str, to: str | None) -> Entry:
    if not entries:
        raise InputError(f"{channel} never pointed to a bundle.", fix="Promote one first: veritune promote BUNDLE")
    current = entries[-1]
    if to is None:
        stood = current.restores or current.number
        earlier = [e for e in entries[: stood - 1] if e.bundle != current.bundle]
        if not earlier:
            raise InputError(
                f"{channel} had no bundle before {current.bundle[:12]}.", fix="Name a version: --to NUMBER."
            )
        return earlier[-1]
    by_number = [e for e in entries if to.isdigit() and e.number == int(to)]
    by_id = [e for e in entries if len(to) >= 6 and e.bundle.startswith(to.lower())]
    found = by_number or by_id
    if len({e.bundle for e in found}) != 1:
        listed = ", ".join(f"{e.number} ({e.bundle[:12]})" for e in entries)
        raise InputError(
            f"--to {to!r} does not name exactly one bundle of {channel}.", fix=f"Bundles it had: {listed}."
        )
    if found[-1].bundle == current.bundle:
        raise InputError(
            f"{channel} already points to {current.bundle[:12]}.",
            fix="Name another version with --to; nothing was changed.",
        )
    return found[-1]
