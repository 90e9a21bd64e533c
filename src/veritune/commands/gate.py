"""The commands that ask whether it may ship: gate, waive, safety, regression, attest, controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    ConditionOption,
    JsonOption,
    MaybeModelOption,
    PolicyOption,
    SeedOption,
    StudyArg,
)
from veritune.commands.output import json_text
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import config as studies
    from veritune import store as stores
    from veritune.release import bind, candidate, gates
    from veritune.release import controls as failure_modes
    from veritune.release import safety as red_team
else:
    stores, studies, bind = lazy("veritune.store"), lazy("veritune.config"), lazy("veritune.release.bind")
    candidate, gates = lazy("veritune.release.candidate"), lazy("veritune.release.gates")
    failure_modes, red_team = lazy("veritune.release.controls"), lazy("veritune.release.safety")


def gate(
    study: StudyArg,
    policy: PolicyOption = None,
    condition: ConditionOption = None,
    seed: SeedOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="One table for a pull request.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate the release policy for one run's weights. Exit code 2 on anything but a pass."""
    record = gates.evaluate(study, candidate.Choice(policy, condition, seed))
    draw = gates.render_markdown if markdown else gates.render_text
    print(json_text(record) if as_json else draw(record).rstrip())
    exit_unless(record.status == "passed")


def waive(
    study: StudyArg,
    gate: Annotated[str, typer.Argument(help="An undecided gate. One that failed cannot be waived.")],
    by: Annotated[str, typer.Option(help="Who takes responsibility.")],
    reason: Annotated[str, typer.Option(help="Why.")],
    until: Annotated[str, typer.Option(help="Last day it holds, YYYY-MM-DD.")],
    policy: PolicyOption = None,
    condition: ConditionOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an undecided gate pass until a day, by name. The waiver stays on record and covers these weights only."""
    waiver = gates.waive(study, gate, (by, reason, until), candidate.Choice(policy, condition, seed))
    print(json_text(waiver) if as_json else f"{gate} waived by {waiver.by} until {waiver.until}: {waiver.seen}")


def safety(
    study: Annotated[
        Path | None, typer.Argument(help="A study: its candidate is asked, the record goes there.", show_default=False)
    ] = None,
    model: MaybeModelOption = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of the adapter, or of a full fine-tune.")] = None,
    sets: Annotated[
        list[Path] | None, typer.Option("--set", help="A prompt set; default: the starter; repeat.")
    ] = None,
    grader: Annotated[str | None, typer.Option(help="module:function in place of the pattern graders.")] = None,
    margin: Annotated[float, typer.Option(help="Unsafe answers: tolerated rise of the rate.")] = 0.05,
    refusal_margin: Annotated[float, typer.Option(help="Refused harmless prompts: tolerated rise.")] = 0.05,
    dtype: Annotated[str | None, typer.Option(help="Precision of the base; default: the study's, bfloat16.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts generated together.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Without a study: write the record below this folder.")] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the recorded answers that got worse; ask nothing.")
    ] = False,
    policy: PolicyOption = None,
    condition: ConditionOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask base and candidate red-team prompts and harmless look-alikes, and compare. Exit code 2 unless it passes."""
    case = candidate.open_case(study, candidate.Choice(policy, condition, seed)) if study is not None else None
    limits = case.policy.release.safety if case else studies.SafetyGate(margin=margin, refusal_margin=refusal_margin)
    if show:
        if case is None:
            raise InputError(
                "--show reads a study's record, and no study was named.", fix="veritune safety STUDY --show"
            )
        answers = red_team.recorded_answers(case)
        print(red_team.render_text(answers, red_team.judge(answers, limits), shown=len(answers)))
        return
    asking = red_team.asking_of(case, (model, adapter, dtype), sets, batch_size, grader)
    asked = red_team.ask(asking, on_arm=None if as_json else lambda arm: print(f"asking the {arm} ...", flush=True))
    verdict = red_team.judge(asked.answers, limits)
    place = case.store if case else stores.Store(out) if out else None
    if place is not None:
        red_team.write_record(place, asking, asked, limits)
    record = {
        "status": verdict.status,
        "message": verdict.message,
        "numbers": verdict.numbers,
        "answers": asked.answers,
    }
    print(json_text(record) if as_json else red_team.render_text(asked.answers, verdict))
    exit_unless(verdict.status == "passed")


def regression(
    study: StudyArg,
    suite: Annotated[str, typer.Argument(help="A suite that the policy declares without `eval`.")],
    candidate_files: Annotated[
        list[Path], typer.Option("--candidate", help="Score file of the candidate; repeat for several.")
    ],
    base: Annotated[list[Path], typer.Option(help="Score file of the base; repeat for several.")],
    by: Annotated[str, typer.Option(help="Who says that these very weights were scored.")],
    policy: PolicyOption = None,
    condition: ConditionOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bind imported score files of a golden set or benchmark to the candidate's weights, and judge them."""
    case = candidate.open_case(study, candidate.Choice(policy, condition, seed))
    record = bind.bind_scores(case, suite, (candidate_files, base), by)
    print(json_text(record) if as_json else f"{record.status}: {record.message}")
    exit_unless(record.status == "passed")


def attest(
    study: StudyArg,
    calibration: Annotated[Path, typer.Argument(help="A record that `veritune calibration ... --out FILE` wrote.")],
    by: Annotated[str, typer.Option(help="Who says that these very weights were measured.")],
    policy: PolicyOption = None,
    condition: ConditionOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bind a calibration record to the candidate's weights, for the calibration gate."""
    case = candidate.open_case(study, candidate.Choice(policy, condition, seed))
    record = bind.bind_calibration(case, calibration, by)
    print(json_text(record) if as_json else f"calibration {record.message}")


def controls(study: StudyArg, as_json: JsonOption = False) -> None:
    """Print twelve known failure modes of fine-tuning, each with its check and this study's evidence."""
    listed = failure_modes.controls(study)
    print(json_text(listed) if as_json else failure_modes.render_text(listed))
