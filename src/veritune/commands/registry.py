"""The commands that move a bundle or a data set: promote, history and rollback of a channel; push and pull."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    BaseOption,
    ChannelOption,
    ColumnsOption,
    EvalsOption,
    HeadOption,
    JsonOption,
    KeyOption,
    LicenseOption,
    ReasonOption,
    RegistryOption,
)
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune.data import load
    from veritune.release.bundle import verify as bundles
    from veritune.release.registry import channels, hub
    from veritune.release.registry import datasets as publishing
    from veritune.release.registry import drill as drills
    from veritune.release.registry import rules as channel_rules
else:
    load, drills = lazy("veritune.data.load"), lazy("veritune.release.registry.drill")
    channel_rules, publishing = lazy("veritune.release.registry.rules"), lazy("veritune.release.registry.datasets")
    hub, channels, bundles = (
        lazy("veritune.release.registry.hub"),
        lazy("veritune.release.registry.channels"),
        lazy("veritune.release.bundle.verify"),
    )


NO_KEY = "none"


def promote(
    registry: RegistryOption,
    to: Annotated[str, typer.Option(help="The channel: staging or production.")],
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's folder.", show_default=False)] = None,
    reason: ReasonOption = "",
    public_key: KeyOption = None,
    require_signature: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of a bundle: let the channel accept and deliver only bundles signed by this EC public key "
            "(PEM); repeat for more keys; `none` lifts the rule and needs --reason."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, store it, and point a channel to it. Production accepts only bundles that passed their gates."""
    if (bundle is None) == (not require_signature):
        raise InputError("expected either a bundle or --require-signature.", fix="veritune promote BUNDLE --to ...")
    if bundle is None:
        keys = [Path(key) for key in require_signature or () if key != NO_KEY]
        if keys and len(keys) < len(require_signature or ()):
            raise InputError(
                "--require-signature was given both keys and `none`.", fix="Give only keys, or only `none`."
            )
        rule = channels.demand(registry, to, keys, reason)
        put(json_text(rule) if as_json else channel_rules.rule_text(rule), raw=as_json)
        return
    entry = channels.promote(bundle, to, registry, reason=reason, public_key=public_key)
    points = f"{to} points to {entry.bundle[:12]} ({entry.name}), version {entry.number}"
    put(
        json_text(entry)
        if as_json
        else (f"{points}\nhead {entry.hash[:16]} (keep this hash elsewhere: --head checks the history against it)"),
        raw=as_json,
    )


def history(
    registry: RegistryOption,
    channel: ChannelOption = "production",
    head: HeadOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what a channel pointed to, and when; the last line is its current bundle."""
    entries = channels.history(registry, channel, head=head)
    put(json_text(entries) if as_json else channels.history_text(entries, channel), raw=as_json)


def rollback(
    drill: Annotated[
        list[Path] | None,
        typer.Argument(
            help="With --drill: a bundle and the one that replaced it; default: a copy of the first.",
            show_default=False,
        ),
    ] = None,
    registry: Annotated[str | None, typer.Option(help="A folder, or an fsspec URL such as s3://bucket/models.")] = None,
    channel: ChannelOption = "production",
    to: Annotated[str | None, typer.Option(help="Version or bundle id; default: the previous one.")] = None,
    base: BaseOption = None,
    reason: ReasonOption = "",
    public_key: KeyOption = None,
    practise: Annotated[
        bool, typer.Option("--drill", help="Practise in a scratch registry: promote, replace, roll back, reproduce.")
    ] = False,
    study: Annotated[
        Path | None, typer.Option(help="With --drill: write the evidence for the rollback gate into this study.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Point a channel back to an earlier bundle, after that bundle has reproduced its golden outputs token for
    token."""
    if practise:
        _drill(drill or [], base, study, as_json, registry or to or public_key)
        return
    if drill or study is not None:
        raise InputError(
            "a bundle and --study can only be given with --drill.", fix="veritune rollback BUNDLE --drill --study STUDY"
        )
    if registry is None:
        raise InputError("expected --registry or --drill, found neither.", fix="veritune rollback --registry REGISTRY")
    restored = channels.rollback(registry, channel, to=to, base=base, reason=reason, public_key=public_key)
    put(json_text(restored) if as_json else channels.restored_text(restored, channel), raw=as_json)


def _drill(bundles: Sequence[Path], base: Path | None, study: Path | None, as_json: bool, other: object) -> None:
    """Practise a rollback of the first bundle from the second. Exit code 2 where it fails."""
    if other:
        raise InputError(
            "--drill works in a scratch registry, which it makes itself.",
            fix="Leave out --registry, --to and --public-key.",
        )
    if not 1 <= len(bundles) <= 2:
        raise InputError(f"--drill: expected one or two bundles, found {len(bundles)}.", fix="rollback BUNDLE --drill")
    replaced_by = bundles[1] if len(bundles) == 2 else None
    drilled = drills.rollback_drill(bundles[0], other=replaced_by, base=base, study=study)
    put(json_text(drilled) if as_json else f"{drilled.status}: {drilled.message}", raw=as_json)
    exit_unless(drilled.status == "passed")


def push(
    what: Annotated[Path, typer.Argument(help="A bundle's folder, or a data file.", show_default=False)],
    to: Annotated[str, typer.Option(help="hf://OWNER/NAME[@BRANCH]; a bundle also to mlflow://NAME[@ALIAS].")],
    public: Annotated[bool, typer.Option("--public", help="hf: make a new repo public; default: private.")] = False,
    public_key: KeyOption = None,
    licence: LicenseOption = None,
    columns: ColumnsOption = None,
    evals: EvalsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a bundle or a data set to a hub, and read it back to check that it arrived.

    A bundle is verified first. A data set goes with its card and datasheet, Croissant metadata, manifest and hashes.
    """
    if what.is_file():
        if public_key is not None:
            raise InputError(
                "--public-key checks a bundle's signature, but this is a data file.", fix="Leave out --public-key."
            )
        sent = publishing.publish(
            what, to, licence=licence, columns=load.parse_columns(columns), evals=evals or (), public=public
        )
        place = f"{sent.place} is data version {sent.version[:12]}: {sent.files} files, {sent.rows:,} rows"
        put(json_text(sent) if as_json else place, raw=as_json)
        return
    if licence is not None or columns is not None or evals:
        raise InputError(
            "--license, --columns and --eval can only be used with a data file.",
            fix="Name the data file, or leave out these options.",
        )
    pushed = hub.push(what, to, public=public, public_key=public_key)
    put(json_text(pushed) if as_json else hub.pushed_text(pushed), raw=as_json)


def pull(
    out: Annotated[Path, typer.Option(help="Where to put the bundle; it must not exist yet.")],
    registry: Annotated[
        str, typer.Option(help="A folder, an fsspec URL, hf://OWNER/NAME[@REVISION] or mlflow://NAME.")
    ],
    channel: ChannelOption = "production",
    version: Annotated[int | None, typer.Option(help="Version of the channel; default: the current one.")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="hf, mlflow: the expected bundle id (at least 12 characters).")
    ] = None,
    head: HeadOption = None,
    public_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a bundle and verify it: from a channel, a Hugging Face repo or an MLflow registry."""
    if hub.is_place(registry):
        checked = hub.pull(registry, out, bundle=bundle, public_key=public_key)
    else:
        checked = channels.pull_version(registry, channel, out, channels.Wanted(version, public_key, head))
    put(json_text(checked) if as_json else bundles.verify_text(checked), raw=as_json)
