"""The commands on a study: write it, freeze and amend it, plan it, say how it stands, verify and sign it, draw it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    ColumnsOption,
    FamilyOption,
    IdFieldOption,
    JsonOption,
    KeyOption,
    MaybeModelOption,
    QuietOption,
    SetOption,
    SignOption,
    StudyArg,
)
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.errors import InputError
from veritune.progress import Progress
from veritune.records import Assumed, Prices, to_json

if TYPE_CHECKING:
    from veritune import config as studies
    from veritune import seal as seals
    from veritune import store, verbs
    from veritune.data import load
    from veritune.pipeline import freeze as contracts
    from veritune.pipeline import plan as plans
    from veritune.pipeline import probes as study_probes
    from veritune.pipeline import watch as watching
    from veritune.release.bundle import verify as bundles
    from veritune.report import probes as probe_page
    from veritune.report import trackers
else:
    store, study_probes = lazy("veritune.store"), lazy("veritune.pipeline.probes")
    watching, probe_page = lazy("veritune.pipeline.watch"), lazy("veritune.report.probes")
    load, trackers = lazy("veritune.data.load"), lazy("veritune.report.trackers")
    seals, studies, verbs = lazy("veritune.seal"), lazy("veritune.config"), lazy("veritune.verbs")
    bundles = lazy("veritune.release.bundle.verify")
    contracts, plans = lazy("veritune.pipeline.freeze"), lazy("veritune.pipeline.plan")


def init(
    data: Annotated[Path, typer.Argument(help="A data file: JSONL, CSV, Parquet or a `datasets` folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for study.yaml; default: beside the data.")] = None,
    model: MaybeModelOption = None,
    columns: ColumnsOption = None,
    family_field: FamilyOption = None,
    id_field: IdFieldOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented study file for a data file."""
    reading = verbs.InitReading(load.parse_columns(columns), family_field, id_field)
    file = verbs.init(data, folder=out, model=model, reading=reading)
    if as_json:
        print(json_text({"study": file}))
        return
    print(f"wrote {file}\nRead it through, set the evals and claims, then: veritune run {file}")


def schema() -> None:
    """Print the JSON Schema of study.yaml, for editors."""
    print(json.dumps(studies.json_schema(), indent=2))


def freeze(
    study: StudyArg,
    settings: SetOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a study, hash everything it is made from and write its contract. Later changes need an amendment."""
    flags = studies.parse_flags(settings or [])
    frozen = contracts.freeze(study, flags, Progress(silent=quiet or as_json))
    put(json_text(frozen) if as_json else contracts.frozen_text(frozen), raw=as_json)


def amend(
    study: StudyArg,
    reason: Annotated[str, typer.Option("--reason", help="Why the study is changed.")],
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record a change to the contract, with its reason. Existing results are marked as made before the change."""
    frozen = contracts.amend(study, reason, studies.parse_flags(settings or []), Progress(silent=True))
    put(json_text(frozen) if as_json else contracts.frozen_text(frozen), raw=as_json)


def plan(
    study: StudyArg,
    per_tokens: Annotated[
        float | None, typer.Option("--price-per-million-tokens", help="USD per million training tokens.", min=0)
    ] = None,
    per_hour: Annotated[float | None, typer.Option("--price-per-hour", help="USD per hour.", min=0)] = None,
    discordance: Annotated[float, typer.Option(help="Assumed share of items on which two runs differ.")] = 0.1,
    seed_sd: Annotated[float, typer.Option(help="Assumed spread of a run's mean score between seeds.")] = 0.015,
    modules: Annotated[
        bool,
        typer.Option("--modules", help="List instead the modules and parameters that each condition trains."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a study costs and what it can detect, before you pay for it. Exit code 2: over the budget."""
    if modules:
        listed = plans.modules_command(study)
        put(json_text(listed) if as_json else plans.modules_text(listed), raw=as_json)
        return
    if per_tokens is not None and per_hour is not None:
        raise InputError("expected one price, found two.", fix="Give one of them.")
    prices = Prices(per_hour, per_tokens) if per_tokens is not None or per_hour is not None else None
    assumed = Assumed(discordance, seed_sd)
    ready, planned = plans.plan_command(study, prices, assumed, Progress(silent=as_json))
    differences = ready.study.differences()
    record = {**to_json(planned), "differences": differences}
    put(json_text(record) if as_json else plans.plan_text(planned, differences), raw=as_json)
    plans.refuse_plan(ready, planned)


def status(
    study: StudyArg,
    cells: Annotated[bool, typer.Option("--cells", help="Only list the cells: run id, state, step, loss.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Watch the cells until none is running: step, loss, time left.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Report what is done, running and left in a study. It distinguishes a stalled cell from a slow one."""
    if cells or follow:
        listed = watching.watch(study, Progress(silent=as_json)) if follow else watching.list_cells(study)
        put(json_text(listed) if as_json else watching.cells_text(listed), raw=as_json)
        return
    state = verbs.status(study)
    put(json_text(state) if as_json else verbs.status_text(state), raw=as_json)


def verify(
    study: Annotated[Path, typer.Argument(help="A study's file or folder, or a bundle's folder.", show_default=False)],
    public_key: KeyOption = None,
    seal: Annotated[
        str | None, typer.Option(help="For a study: the seal's hash, as `veritune run` printed it.")
    ] = None,
    sign: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every hash in a study folder or a bundle and name each file that was edited, added or lost.

    With --sign the study's seal is signed afterwards, so that nobody without the key can rewrite and seal it again.
    """
    if sign is not None:
        _sign(study, sign, as_json)
        return
    if bundles.is_bundle(study):
        checked = bundles.verify_bundle(study, public_key)
        put(json_text(checked) if as_json else bundles.verify_text(checked), raw=as_json)
        exit_unless(not checked.findings)
        return
    findings, signed = verbs.verify_study(study, seal, public_key)
    put(json_text(findings) if as_json else seals.verify_text(findings, study, signed), raw=as_json)
    exit_unless(not findings)


def _sign(study: Path, key: Path, as_json: bool) -> None:
    """Sign the seal of a study that is as it was sealed."""
    if bundles.is_bundle(study):
        raise InputError(
            "--sign signs a study's seal; a bundle is signed when it is packed.",
            fix="veritune bundle STUDY --out FOLDER --sign KEY",
        )
    path, digest = verbs.sign_seal(study, key)
    if as_json:
        print(json_text({"seal": digest, "signature": path}))
        return
    print(f"signed {digest[:16]}: {path}\nCheck it with: veritune verify {study} --public-key PUBLIC.pem")


def report(
    study: StudyArg,
    probes: Annotated[
        bool, typer.Option("--probes", help="Print instead the reading of every probe of the study, one block each.")
    ] = False,
    make: Annotated[
        list[str] | None,
        typer.Option(
            help="Like --probes, but first run gradients, geometry, checkpoints, recall, tokens or calibration; "
            "repeat for more."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --probes: write the blocks to this file, as Markdown.")] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Send verdicts and intervals to tensorboard, wandb, mlflow or trackio instead; repeat for more."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw report.html again from the records. Only --make computes anything."""
    if report_to:
        if probes or make or out is not None:
            raise InputError(
                "--report-to sends verdicts; it excludes --probes, --make and --out.",
                fix="Leave out --probes, --make and --out.",
            )
        sent = trackers.send_verdicts(study, report_to)
        put(json_text(sent) if as_json else trackers.sent_text(sent, report_to), raw=as_json)
        return
    if not probes and not make:
        if out is not None:
            raise InputError("--out needs --probes: it writes their blocks to a file.", fix="Add --probes.")
        drawn = verbs.draw_report(study)
        put(json_text({"report": drawn}) if as_json else str(drawn), raw=as_json)
        return
    blocks = study_probes.probe_report(study, Progress(silent=True), make or ())
    text = probe_page.markdown(store.Store.of(study).root.resolve().name, blocks)
    if out is not None:
        store.write_text(out, text)
    put(json_text(blocks) if as_json else text, raw=as_json)
