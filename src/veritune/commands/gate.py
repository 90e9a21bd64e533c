"""The commands that ask whether it may ship: gate and safety."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    ByOption,
    ConditionOption,
    GithubOption,
    JsonOption,
    JunitOption,
    MarkdownOption,
    MaybeModelOption,
    PolicyOption,
    SeedOption,
    StudyArg,
)
from veritune.commands.output import Shown, json_text
from veritune.commands.screen import put
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import config as studies
    from veritune import store as stores
    from veritune.release.gate import bind, candidate, gates
    from veritune.release.gate import ci as gate_cases
    from veritune.release.gate import controls as failure_modes
    from veritune.release.gate import safety as red_team
else:
    stores, studies, bind = lazy("veritune.store"), lazy("veritune.config"), lazy("veritune.release.gate.bind")
    candidate, gates = lazy("veritune.release.gate.candidate"), lazy("veritune.release.gate.gates")
    gate_cases = lazy("veritune.release.gate.ci")
    failure_modes, red_team = lazy("veritune.release.gate.controls"), lazy("veritune.release.gate.safety")


def gate(
    study: StudyArg,
    policy: PolicyOption = None,
    condition: ConditionOption = None,
    seed: SeedOption = None,
    attest: Annotated[
        str | None,
        typer.Option(
            help="Record a measurement that was made elsewhere as evidence for these weights: the file of a "
            "calibration record, or a regression suite that the policy declares without `eval`."
        ),
    ] = None,
    candidate_files: Annotated[
        list[Path] | None, typer.Option("--candidate", help="Suite: score file of the candidate; repeat.")
    ] = None,
    base: Annotated[list[Path] | None, typer.Option(help="Suite: score file of the base; repeat.")] = None,
    waive: Annotated[
        str | None, typer.Option(help="Let this undecided gate pass until --until; a failed gate cannot be waived.")
    ] = None,
    by: ByOption = "",
    reason: Annotated[str, typer.Option(help="With --waive: the reason.")] = "",
    until: Annotated[str, typer.Option(help="With --waive: the last day of the waiver, YYYY-MM-DD.")] = "",
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Print instead a checklist of twelve known failure modes, with this study's evidence for each.",
        ),
    ] = False,
    markdown: MarkdownOption = None,
    junit: JunitOption = None,
    github: GithubOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check one run's weights against the release policy. Exit code 2 unless every gate passes.

    --attest and --waive add to the record instead of evaluating it; both need --by.
    """
    _refuse_mixture(
        {"--attest": attest, "--waive": waive, "--controls": controls or None},
        {"--attest": (candidate_files, base), "--waive": (reason, until)},
        by,
    )
    shown = Shown(as_json, markdown, junit, github)
    if shown.anything and (controls or attest is not None or waive is not None):
        raise InputError(
            "--markdown, --junit and --github show the gates, but another mode was asked for.",
            fix="Leave out these three, or the other mode's option.",
        )
    choice = candidate.CandidateChoice(policy, condition, seed)
    if controls:
        listed = failure_modes.controls(study)
        put(json_text(listed) if as_json else failure_modes.render_text(listed), raw=as_json)
    elif attest is not None:
        _attest(candidate.open_case(study, choice), attest, (candidate_files or [], base or []), by, as_json)
    elif waive is not None:
        waiver = gates.waive(study, waive, (by, reason, until), choice)
        put(
            json_text(waiver) if as_json else f"{waive} waived by {waiver.by} until {waiver.until}: {waiver.seen}",
            raw=as_json,
        )
    else:
        record = gates.evaluate(study, choice)
        shown.show(gate_cases.check_report(record), record, lambda: gates.render_text(record).rstrip())
        exit_unless(record.status == "passed")


def _refuse_mixture(
    modes: Mapping[str, str | bool | None], belonging: Mapping[str, tuple[str | list[Path] | None, ...]], by: str
) -> None:
    """Raise InputError for two modes at once, or for an option of a mode that was not chosen."""
    chosen = [name for name, value in modes.items() if value is not None]
    if len(chosen) > 1:
        raise InputError(f"{chosen[0]} and {chosen[1]} exclude each other.", fix="Run one command for each.")
    for mode, values in belonging.items():
        if mode not in chosen and any(values):
            options = "--candidate and --base" if mode == "--attest" else "--reason and --until"
            raise InputError(f"{options} can only be used with {mode}.", fix=f"Add {mode}, or leave them out.")
    if by and not {"--attest", "--waive"} & set(chosen):
        raise InputError(
            "--by is only used with --attest or --waive.", fix="Add --attest or --waive, or leave out --by."
        )


def _attest(case: candidate.Case, what: str, files: tuple[list[Path], list[Path]], by: str, as_json: bool) -> None:
    """Bind a suite's score files, (candidate's, base's), or a calibration record to the case's weights."""
    regression = case.policy.release.regression
    if any(files) or what in regression.suites:
        record = bind.bind_scores(case, what, files, by)
        put(json_text(record) if as_json else f"{record.status}: {record.message}", raw=as_json)
        exit_unless(record.status == "passed")
        return
    if not Path(what).is_file():
        raise InputError(
            f"--attest {what}: expected the file of a calibration record or the name of a suite in the policy, "
            "found neither.",
            fix=f"Suites of the policy: {', '.join(sorted(regression.suites)) or 'none'}.",
        )
    record = bind.bind_calibration(case, Path(what), by)
    put(json_text(record) if as_json else f"calibration {record.message}", raw=as_json)


def safety(
    study: Annotated[
        Path | None,
        typer.Argument(help="A study: asks its candidate and records the result there.", show_default=False),
    ] = None,
    model: MaybeModelOption = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of the adapter or of a fully fine-tuned model.")] = None,
    sets: Annotated[
        list[Path] | None, typer.Option("--set", help="A prompt set; repeat for more; default: the starter set.")
    ] = None,
    grader: Annotated[
        str | None, typer.Option(help="module:function that grades answers, instead of the pattern graders.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the base; default: the study's, else bfloat16.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Without a study: folder for the record.")] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the recorded answers that got worse, without generating anything.")
    ] = False,
    policy: PolicyOption = None,
    condition: ConditionOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask base and candidate red-team prompts and harmless look-alikes, and compare the answers. Exit code 2 unless the
    candidate passes.
    """
    case = candidate.open_case(study, candidate.CandidateChoice(policy, condition, seed)) if study is not None else None
    limits = case.policy.release.safety if case else studies.SafetyGate()
    if show:
        if case is None:
            raise InputError(
                "--show reads a study's record, but no study was given.", fix="veritune safety STUDY --show"
            )
        answers = red_team.recorded_answers(case)
        put(red_team.render_text(answers, red_team.judge(answers, limits), shown=len(answers)))
        return
    asking = red_team.asking_of(case, (model, adapter, dtype), sets, grader)
    replies = red_team.ask(asking, on_arm=None if as_json else lambda arm: print(f"asking the {arm} ...", flush=True))
    verdict = red_team.judge(replies.answers, limits)
    place = case.store if case else stores.Store(out) if out else None
    if place is not None:
        red_team.write_record(place, asking, replies, limits)
    record = {
        "status": verdict.status,
        "message": verdict.message,
        "numbers": verdict.numbers,
        "answers": replies.answers,
    }
    put(json_text(record) if as_json else red_team.render_text(replies.answers, verdict), raw=as_json)
    exit_unless(verdict.status == "passed")
