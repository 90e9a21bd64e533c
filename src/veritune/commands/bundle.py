"""The commands on a bundle: pack one run for release, and practise its way back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import BaseOption, BundleArg, JsonOption, StudyArg
from veritune.commands.output import json_text

if TYPE_CHECKING:
    from veritune.release import bundle as bundles
    from veritune.release import drill as drills
else:
    bundles, drills = lazy("veritune.release.bundle"), lazy("veritune.release.drill")


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
    source = bundles.BundleSource(study, run_id, adapter, model, merged, licence, prompts)
    packed = bundles.make_bundle(source, out, key=sign)
    print(json_text(packed) if as_json else bundles.packed_text(packed))


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
    drilled = drills.rollback_drill(bundle, other=replaced_by, base=base, study=study)
    print(json_text(drilled) if as_json else f"{drilled.status}: {drilled.message}")
    exit_unless(drilled.status == "passed")
