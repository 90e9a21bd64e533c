"""`veritune probe attribution`: the training families behind a run's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption, QuietOption, StudyArg
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.progress import Progress

if TYPE_CHECKING:
    from veritune.pipeline import attribution as attributions
    from veritune.report import attribution as attribution_report
else:
    attributions, attribution_report = lazy("veritune.pipeline.attribution"), lazy("veritune.report.attribution")

TOP = 4
"""Families of a list, where --top is left out."""


def attribution(
    study: StudyArg,
    condition: Annotated[str, typer.Option(help="Explain outputs of this condition.")],
    seed: Annotated[int | None, typer.Option(help="Seed of the run; default: the study's first.")] = None,
    eval_name: Annotated[
        str | None, typer.Option("--eval", help="The eval; needed only if the study has several.")
    ] = None,
    item: Annotated[
        list[str] | None, typer.Option(help="Only this item; repeat. Default: the lowest scored outputs, at most 16.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of families in each list.")] = TOP,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Train again without the top, the similar and random families, three seeds each."
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Experimental: rank the training families behind wrong outputs by predicted effect, and test the ranking by
    retraining without them.
    """
    asked = attributions.AttributionAsked(
        condition=condition, seed=seed, eval=eval_name, items=tuple(item or ()), top=top, verify=verify
    )
    made = attributions.attribution_command(study, asked, Progress(silent=quiet or as_json))
    put(json_text(made) if as_json else attribution_report.attribution_text(made), raw=as_json)
