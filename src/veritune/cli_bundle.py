"""The commands around a release: bundle, promote, history, rollback, rollback-drill, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder it lies in.", show_default=False)]
BundleArg = Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BaseOption = Annotated[
    Path | None, typer.Option("--base", help="Where the base model lies, if not where the bundle says.")
]
RegistryOption = Annotated[str, typer.Option(help="A folder, or an fsspec URL such as s3://bucket/models.")]
ChannelOption = Annotated[str, typer.Option(help="staging or production.")]
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept in the history.")]
KeyOption = Annotated[Path | None, typer.Option("--public-key", help="Check the signature with this EC key (PEM).")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (bundle, promote, history, rollback, push, pull):
        app.command()(command)
    app.command("rollback-drill")(rollback_drill)


def bundle(
    study: StudyArg,
    out: Annotated[Path, typer.Option(help="The bundle's folder; must not be there yet.")],
    run_id: Annotated[str | None, typer.Option("--run", help="The run that ships; default: the policy's.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A copy of one of the study's adapters, instead of --run.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Where the base lies now, if the study's path is not it.")] = None,
    merged: Annotated[
        Path | None, typer.Option(help="Also pack these merged weights; they are what is served.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--license", help="Licence of this release, as an SPDX id.")] = None,
    prompts: Annotated[int, typer.Option(help="How many golden prompts to record.", min=1, max=64)] = 8,
    sign: Annotated[Path | None, typer.Option(help="Sign with this EC private key (PEM).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack one run for release: weights, tokenizer, contract, evidence, card, bill of materials, golden outputs."""
    from veritune.release.bundle import Source, make_bundle

    found = make_bundle(Source(study, run_id, adapter, model, merged, licence, prompts), out, key=sign)
    gate = found.gate or "no gate record: it cannot go to production yet (veritune gate)"
    signed = "signed" if found.signed else "not signed"
    size = f"{found.files} files, {found.bytes:,} bytes"
    line = f"wrote {found.folder}: bundle {found.id[:12]}, {size}, {signed}; gate: {gate}"
    print(_json(found) if as_json else line)


def promote(
    bundle: BundleArg,
    registry: RegistryOption,
    to: Annotated[str, typer.Option(help="The channel: staging or production.")],
    reason: ReasonOption = "",
    public_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, store it, and point a channel to it. Production takes only what passed its gates."""
    from veritune.release.registry import promote as verb

    entry = verb(bundle, to, registry, reason=reason, public_key=public_key)
    print(_json(entry) if as_json else f"{to} points to {entry.bundle[:12]} ({entry.name}), version {entry.number}")


def history(registry: RegistryOption, channel: ChannelOption = "production", as_json: JsonOption = False) -> None:
    """List what a channel pointed to, and when; the last line is what it points to now."""
    from veritune.records import dumps
    from veritune.release.registry import history as verb

    entries = verb(registry, channel)
    if as_json:
        print(dumps(entries, indent=2))
        return
    for e in entries:
        back = f" to version {e.restores}" if e.restores else ""
        print(
            f"{e.number:>4}  {e.time}  {e.bundle[:12]}  {e.action}{back}  {e.name}, gate {e.gate or 'none'}  {e.reason}"
        )
    if not entries:
        print(f"{channel} never pointed to a bundle")


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
    from veritune.release.registry import rollback as verb

    found = verb(registry, channel, to=to, base=base, reason=reason, public_key=public_key)
    if as_json:
        from veritune.records import dumps

        print(dumps(found, indent=2))
        return
    reproduced = f"{found.prompts} golden prompts, {found.tokens:,} tokens reproduced exactly"
    print(f"{channel} points to {found.entry.bundle[:12]} again (was {found.was[:12]}); {reproduced}")


def rollback_drill(
    bundle: BundleArg,
    study: Annotated[
        Path | None, typer.Option(help="Write the evidence for the rollback gate into this study.")
    ] = None,
    replaced_by: Annotated[Path | None, typer.Option(help="The other bundle; default: a copy of the first.")] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Practise the way back in a scratch registry: promote, promote another, roll back, reproduce."""
    from veritune.release.drill import rollback_drill as verb

    found = verb(bundle, other=replaced_by, base=base, study=study)
    print(_json(found) if as_json else f"{found.status}: {found.message}")
    if found.status != "passed":
        raise typer.Exit(2)


def push(
    bundle: BundleArg,
    to: Annotated[str, typer.Option(help="hf://OWNER/NAME[@BRANCH], or mlflow://NAME[@ALIAS].")],
    public: Annotated[bool, typer.Option("--public", help="hf: make a new repo public; default: private.")] = False,
    public_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, store it in a Hugging Face repo or an MLflow registry, and read back that it arrived."""
    from veritune.release.hub import push as verb

    found = verb(bundle, _place(to), public=public, public_key=public_key)
    gate = f"gate {found.gate}" if found.gate else "no gate record"
    line = f"{found.place} is bundle {found.bundle[:12]}: {found.files} files, {gate}"
    print(_json(found) if as_json else line)


def _place(url: str) -> str:
    from veritune.errors import InputError
    from veritune.release.hub import is_place

    if not is_place(url):
        raise InputError(f"{url!r} is neither hf:// nor mlflow://.", fix="For a folder or s3://: veritune promote.")
    return url


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
    from veritune.errors import InputError
    from veritune.release import hub
    from veritune.release.registry import history as entries_of
    from veritune.release.registry import pull as verb
    from veritune.release.verify import verify_text

    if hub.is_place(registry):
        print(verify_text(hub.pull(registry, out, bundle=bundle, public_key=public_key)))
        return
    entries = entries_of(registry, channel)
    chosen = [e for e in entries if version in (None, e.number)]
    if not chosen:
        raise InputError(f"{channel} has no version {version or 1}.", fix="See `veritune history`.")
    print(verify_text(verb(registry, chosen[-1].bundle, out, public_key)))


def _json(record: Any) -> str:
    from dataclasses import asdict

    from veritune.records import dumps

    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(record).items()}
    return dumps(plain, indent=2)
