"""The commands on a study: write it, freeze and amend it, plan it, say how it stands, verify and seal it, draw it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption, QuietOption, SetOption, StudyArg
from veritune.commands.output import json_text
from veritune.errors import InputError
from veritune.progress import Progress

if TYPE_CHECKING:
    from veritune import config as studies
    from veritune import seal as seals
    from veritune import verbs
    from veritune.decide import reach
    from veritune.release import verify as bundles
    from veritune.stages import freeze as contracts
    from veritune.stages import plan as plans
else:
    seals, studies, verbs = lazy("veritune.seal"), lazy("veritune.config"), lazy("veritune.verbs")
    reach, bundles = lazy("veritune.decide.reach"), lazy("veritune.release.verify")
    contracts, plans = lazy("veritune.stages.freeze"), lazy("veritune.stages.plan")


def init(
    data: Annotated[Path, typer.Argument(help="A data file: JSONL, CSV, Parquet or a `datasets` folder.")],
    folder: Annotated[Path | None, typer.Option(help="Where to write study.yaml; default: beside the data.")] = None,
    model: Annotated[str, typer.Option(help="Base model: folder, hub id or builtin.")] = "",
) -> None:
    """Write a commented study file for a data file."""
    print(f"wrote {verbs.init(data, folder=folder, model=model or None)}")
    print(
        "Read it through, set the evals and claims, then: veritune run " + str((folder or data.parent) / "study.yaml")
    )


def schema() -> None:
    """Print the JSON Schema of study.yaml, for editors."""
    print(json.dumps(studies.json_schema(), indent=2))


def freeze(
    study: StudyArg,
    settings: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a study, hash all it is made from and write its contract. From then on nothing may differ unsaid."""
    flags = studies.parse_flags(settings or [])
    frozen = contracts.freeze(study, flags, Progress(silent=quiet or as_json))
    print(json_text(frozen) if as_json else contracts.frozen_text(frozen))


def amend(
    study: StudyArg,
    reason: Annotated[str, typer.Option("--reason", help="Why the study is changed.")],
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record a change against the contract, with its reason. Results that are there are marked as made before it."""
    frozen = contracts.amend(study, reason, studies.parse_flags(settings or []), Progress(silent=True))
    print(json_text(frozen) if as_json else contracts.frozen_text(frozen))


def plan(
    study: StudyArg,
    per_tokens: Annotated[
        float | None, typer.Option("--price-per-million-tokens", help="USD a million training tokens.", min=0)
    ] = None,
    per_hour: Annotated[float | None, typer.Option("--price-per-hour", help="USD an hour.", min=0)] = None,
    discordance: Annotated[float, typer.Option(help="Assumed share of items on which two runs differ.")] = 0.1,
    seed_sd: Annotated[float, typer.Option(help="Assumed spread of a run's mean score between seeds.")] = 0.015,
    as_json: JsonOption = False,
) -> None:
    """Say what a study will take, and what it can detect, before anything is spent. Exit status 2: over the budget."""
    if per_tokens is not None and per_hour is not None:
        raise InputError("expected one price, found two.", fix="Give one of them.")
    prices = plans.Prices(per_hour, per_tokens) if per_tokens is not None or per_hour is not None else None
    assumed = reach.Assumed(discordance, seed_sd)
    ready, planned = plans.plan_command(study, prices, assumed, Progress(silent=as_json))
    differences = ready.study.differences()
    record = {**planned, "differences": differences}
    print(json_text(record) if as_json else plans.plan_text(planned, differences))
    plans.refuse_plan(ready, planned)


def modules(study: StudyArg, as_json: JsonOption = False) -> None:
    """List the exact modules that each condition trains, its parameters and share, without training a step."""
    listed = plans.modules_command(study)
    print(json_text(listed) if as_json else plans.modules_text(listed))


def status(study: StudyArg, as_json: JsonOption = False) -> None:
    """Say what is done, what is running and what is left of a study."""
    state = verbs.status(study)
    print(json_text(state) if as_json else verbs.status_text(state))


def verify(
    study: Annotated[Path, typer.Argument(help="A study's file or folder, or a bundle's folder.", show_default=False)],
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Check the signature with this EC key (PEM).")
    ] = None,
    seal: Annotated[str | None, typer.Option(help="Study: the seal's hash, as a run printed it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every hash in a study folder or a bundle and name each file that was edited, added or lost."""
    if bundles.is_bundle(study):
        checked = bundles.verify_bundle(study, public_key)
        print(json_text(checked) if as_json else bundles.verify_text(checked))
        exit_unless(not checked.findings)
        return
    findings, signed = verbs.verify_study(study, seal, public_key)
    print(json_text(findings) if as_json else seals.verify_text(findings, study, signed))
    exit_unless(not findings)


def seal(
    study: StudyArg,
    key: Annotated[Path, typer.Option("--key", help="Sign the seal with this EC private key (PEM).")],
) -> None:
    """Sign a finished study's seal, so that nobody without the key can rewrite the study and seal it again."""
    path, digest = verbs.sign_seal(study, key)
    print(f"signed {digest[:16]}: {path}\nCheck it with: veritune verify {study} --public-key PUBLIC.pem")


def report(study: StudyArg) -> None:
    """Draw report.html again from the records. It computes nothing."""
    print(verbs.draw_report(study))
