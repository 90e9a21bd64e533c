"""The commands that move a bundle: promote, history and rollback of a channel; push and pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import (
    BaseOption,
    BundleArg,
    ChannelOption,
    JsonOption,
    KeyOption,
    ReasonOption,
    RegistryOption,
)
from veritune.commands.output import json_text

if TYPE_CHECKING:
    from veritune.release import hub
    from veritune.release import registry as channels
    from veritune.release import verify as bundles
else:
    hub, channels, bundles = (
        lazy("veritune.release.hub"),
        lazy("veritune.release.registry"),
        lazy("veritune.release.verify"),
    )


def promote(
    bundle: BundleArg,
    registry: RegistryOption,
    to: Annotated[str, typer.Option(help="The channel: staging or production.")],
    reason: ReasonOption = "",
    public_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, store it, and point a channel to it. Production takes only what passed its gates."""
    entry = channels.promote(bundle, to, registry, reason=reason, public_key=public_key)
    print(json_text(entry) if as_json else f"{to} points to {entry.bundle[:12]} ({entry.name}), version {entry.number}")


def history(registry: RegistryOption, channel: ChannelOption = "production", as_json: JsonOption = False) -> None:
    """List what a channel pointed to, and when; the last line is what it points to now."""
    entries = channels.history(registry, channel)
    print(json_text(entries) if as_json else channels.history_text(entries, channel))


def rollback(
    registry: RegistryOption,
    channel: ChannelOption = "production",
    to: Annotated[str | None, typer.Option(help="Version or bundle id; default: what stood before.")] = None,
    base: BaseOption = None,
    reason: ReasonOption = "",
    public_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point a channel back to an earlier bundle, once that reproduces its golden outputs token for token."""
    restored = channels.rollback(registry, channel, to=to, base=base, reason=reason, public_key=public_key)
    print(json_text(restored) if as_json else channels.restored_text(restored, channel))


def push(
    bundle: BundleArg,
    to: Annotated[str, typer.Option(help="hf://OWNER/NAME[@BRANCH], or mlflow://NAME[@ALIAS].")],
    public: Annotated[bool, typer.Option("--public", help="hf: make a new repo public; default: private.")] = False,
    public_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, store it in a Hugging Face repo or an MLflow registry, and read back that it arrived."""
    pushed = hub.push(bundle, to, public=public, public_key=public_key)
    print(json_text(pushed) if as_json else hub.pushed_text(pushed))


def pull(
    out: Annotated[Path, typer.Option(help="Where to put the bundle; must not be there yet.")],
    registry: Annotated[
        str, typer.Option(help="A folder, an fsspec URL, hf://OWNER/NAME[@REVISION] or mlflow://NAME.")
    ],
    channel: ChannelOption = "production",
    version: Annotated[int | None, typer.Option(help="A version of the channel; default: where it points now.")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="hf, mlflow: the bundle id (12 or more characters) that it must be.")
    ] = None,
    public_key: KeyOption = None,
) -> None:
    """Fetch a bundle and verify it: a channel's, or one from a Hugging Face repo or an MLflow registry."""
    if hub.is_place(registry):
        checked = hub.pull(registry, out, bundle=bundle, public_key=public_key)
    else:
        checked = channels.pull_version(registry, channel, version, out, public_key)
    print(bundles.verify_text(checked))
