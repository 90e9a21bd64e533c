"""The command on a bundle: pack one run for release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import BaseOption, JsonOption, LicenseOption, SignOption, StudyArg
from veritune.commands.output import json_text
from veritune.commands.screen import put

if TYPE_CHECKING:
    from veritune.release.bundle import build as bundles
else:
    bundles = lazy("veritune.release.bundle.build")


def bundle(
    study: StudyArg,
    out: Annotated[Path, typer.Option(help="The bundle's folder; it must not exist yet.")],
    run_id: Annotated[
        str | None, typer.Option("--run", help="Run id of the run to ship; default: the one that the policy names.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A copy of one of the study's adapters, instead of --run.")
    ] = None,
    base: BaseOption = None,
    merged: Annotated[
        Path | None, typer.Option(help="Also pack these merged weights; they become the weights to serve.")
    ] = None,
    licence: LicenseOption = None,
    sign: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack one run for release: weights, tokenizer, contract, evidence, card, bill of materials, golden outputs."""
    source = bundles.BundleSource(study, run_id, adapter, base, merged, licence)
    packed = bundles.make_bundle(source, out, key=sign)
    put(json_text(packed) if as_json else bundles.packed_text(packed), raw=as_json)
