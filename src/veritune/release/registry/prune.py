"""What lies in a registry, and taking out of it what no channel needs.

A bundle is `current` where a channel points to it, `earlier` where one did (a rollback may want it), and `unused` where
none ever did: what a promotion that was refused or killed had stored. Only what is older than a day is taken out: a
promotion stores its bundle first and names it after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from veritune.counting import many
from veritune.errors import FormatError, InputError
from veritune.records import BundleManifest
from veritune.records.base import parse
from veritune.release.bundle.parts import MANIFEST, SIGNATURE
from veritune.release.registry.channels import BUNDLE_ID, CHANNELS, existing_shelf, history_on
from veritune.release.registry.shelf import Shelf

YOUNG_S = 86_400.0
"""Seconds that a bundle is left alone: a promotion uploads gigabytes before its entry names them."""


@dataclass(frozen=True, slots=True)
class ShelvedBundle:
    """One bundle of a registry. `channels` are those that point to it, or did; `state` is the strongest of its uses.

    `name`, `run_id` and `bytes` are its manifest's; None where it has none that can be read. `age_s` is in seconds.
    """

    id: str
    state: str
    channels: tuple[str, ...]
    versions: tuple[str, ...]
    name: str | None
    run_id: str | None
    bytes: int | None
    signed: bool
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Pruned:
    """The bundles that were removed, or would be: `deleted` tells which. `young` were left because they are not a day
    old.
    """

    bundles: tuple[ShelvedBundle, ...]
    young: tuple[ShelvedBundle, ...]
    deleted: bool

    @property
    def bytes(self) -> int:
        """The total size, from their manifests."""
        return sum(bundle.bytes or 0 for bundle in self.bundles)


def list_bundles(url: str) -> list[ShelvedBundle]:
    """Every bundle of a registry, current ones first. Raises InputError if there is no registry, StaleError as
    `channels.history` does.
    """
    shelf = existing_shelf(url)
    uses = _uses(shelf)
    order = {"current": 0, "earlier": 1, "unused": 2}
    found = [_shelved(shelf, name, age, uses.get(name, [])) for name, age in shelf.folders("bundles").items()]
    return sorted(found, key=lambda b: (order[b.state], b.age_s or 0.0, b.id))


def prune(url: str, *, keep: int | None = None, delete: bool = False) -> Pruned:
    """Remove bundles that no channel needs: unused ones, and with `keep` all but the newest `keep` of each channel.

    Nothing is deleted without `delete`. What a channel points to is never taken out. Raises as `list_bundles` does,
    InputError for a `keep` below 1.
    """
    if keep is not None and keep < 1:
        raise InputError(
            f"--keep {keep}: a channel's current bundle is never removed.", fix="Give a number of at least 1."
        )
    shelf, listed = existing_shelf(url), list_bundles(url)
    needed = _needed(shelf, keep)
    free = [bundle for bundle in listed if bundle.id not in needed]
    young = [bundle for bundle in free if bundle.age_s is not None and bundle.age_s < YOUNG_S]
    gone = [bundle for bundle in free if bundle not in young]
    if delete:
        taken = []
        for bundle in gone:
            if bundle.id in _needed(shelf, keep):  # promoted meanwhile
                continue
            shelf.remove(f"bundles/{bundle.id}")
            taken.append(bundle)
        gone = taken
    return Pruned(tuple(gone), tuple(young), delete)


def _uses(shelf: Shelf) -> dict[str, list[tuple[str, int, bool]]]:
    """By bundle (channel, version, whether the channel points to it now)."""
    uses: dict[str, list[tuple[str, int, bool]]] = {}
    for channel in CHANNELS:
        entries = history_on(shelf, channel)
        for entry in entries:
            uses.setdefault(entry.bundle, []).append((channel, entry.number, entry is entries[-1]))
    return uses


def _needed(shelf: Shelf, keep: int | None) -> set[str]:
    needed: set[str] = set()
    for channel in CHANNELS:
        newest_first = [entry.bundle for entry in reversed(history_on(shelf, channel))]
        different = list(dict.fromkeys(newest_first))
        needed |= set(different if keep is None else different[:keep])
    return needed


def _shelved(shelf: Shelf, name: str, age: float | None, uses: Iterable[tuple[str, int, bool]]) -> ShelvedBundle:
    uses = list(uses)
    state = "current" if any(now for _, _, now in uses) else "earlier" if uses else "unused"
    bundle = ShelvedBundle(
        id=name,
        state=state,
        channels=tuple(dict.fromkeys(channel for channel, _, _ in uses)),
        versions=tuple(f"{channel} {number}" for channel, number, _ in uses),
        name=None, run_id=None, bytes=None,
        signed=SIGNATURE in shelf.names(f"bundles/{name}"),
        age_s=age,
    )  # fmt: skip
    try:
        place = f"bundles/{name}/{MANIFEST}"
        manifest = parse(BundleManifest, shelf.read(place), place)
    except (FileNotFoundError, FormatError):
        return bundle  # `verify` names what is wrong with it; the list shows what the registry itself knows
    size = sum(part.bytes for part in manifest.files.values())
    return replace(bundle, name=manifest.name, run_id=manifest.run_id, bytes=size)


def bundles_text(listed: Iterable[ShelvedBundle]) -> str:
    """The result of `list_bundles` as text for the screen, one line per bundle."""
    lines = [_line(bundle) for bundle in listed]
    return "\n".join([*lines, f"{many(len(lines), 'bundles')}"])


def pruned_text(pruned: Pruned) -> str:
    """The result of `prune` as text for the screen."""
    lines = [_line(bundle) for bundle in pruned.bundles]
    what = "taken out" if pruned.deleted else "would be removed; add `--delete` to remove them"
    lines.append(f"{many(len(lines), 'bundles')}, {pruned.bytes / 1e9:.2f} GB, {what}")
    if pruned.young:
        lines.append(
            f"{len(pruned.young)} more are less than a day old and stay, because a promotion may be about to use them"
        )
    return "\n".join(lines)


def _line(bundle: ShelvedBundle) -> str:
    size = "no readable manifest" if bundle.bytes is None else f"{bundle.bytes / 1e9:.2f} GB"
    shown = bundle.id[:12] if BUNDLE_ID.fullmatch(bundle.id) else bundle.id
    uses = ", ".join(bundle.versions) or "no channel"
    return (
        f"{shown}  {bundle.state:<8} {bundle.name or '?'}  {size}  {'signed' if bundle.signed else 'unsigned'}  {uses}"
    )
