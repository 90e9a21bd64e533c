"""`veritune probe calibration`: whether a model is right as often as it is sure."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import (
    AdapterOption,
    ExpectedOption,
    ExtractOption,
    FamilyOption,
    JsonOption,
    MaybeModelOption,
    NewTokensOption,
    OutOption,
    PlotOption,
    TemplateKwargsOption,
    parse_template_kwargs,
)
from veritune.commands.output import show_readings
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import records
    from veritune.evaluate import confidence as confidences
    from veritune.evaluate import regression as before_after
    from veritune.probe import study as probes
    from veritune.report import reliability
else:
    records, confidences = lazy("veritune.records"), lazy("veritune.evaluate.confidence")
    before_after, probes = lazy("veritune.evaluate.regression"), lazy("veritune.probe.study")
    reliability = lazy("veritune.report.reliability")

NEW_TOKENS = 64
"""Tokens of a short answer, where --max-new-tokens is left out."""


class ChoiceMetric(Enum):
    """How an option of a multiple-choice question is scored."""

    acc = "acc"
    acc_norm = "acc_norm"


def calibration(
    data: Annotated[
        Path,
        typer.Option(
            help="Without --model: lm-eval samples, or a table with a confidence and an outcome. With --model: "
            "rows with question, choices and answer; with --model and --extract: rows with short answers.",
        ),
    ],
    model: MaybeModelOption = None,
    adapter: AdapterOption = None,
    extract: ExtractOption = None,
    expected: ExpectedOption = None,
    max_new_tokens: NewTokensOption = None,
    confidence: Annotated[str | None, typer.Option(help="A table's column with the confidence, 0 to 1.")] = None,
    correct: Annotated[str | None, typer.Option(help="A table's column with the outcome, 0 or 1.")] = None,
    metric: Annotated[
        ChoiceMetric, typer.Option(help="Multiple choice: acc, or acc_norm, which divides by the option's length.")
    ] = ChoiceMetric.acc,
    family_field: FamilyOption = None,
    template_kwargs: TemplateKwargsOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Compare a model's confidence with its accuracy (ECE, Brier score), from its logs or by asking it questions.

    With --adapter the base is asked as well. On short answers the confidence is the probability of the whole answer.
    """
    model_only = (adapter, extract, expected, max_new_tokens, template_kwargs)
    if model is None:
        if any(value is not None for value in model_only):
            raise InputError(
                "--adapter, --extract, --max-new-tokens and --template-kwargs need a model to ask, but --model "
                "is missing.",
                fix="--model BASE",
            )
        judged = confidences.read_judged(
            data,
            confidence=confidence or "confidence",
            correct=correct or "correct",
            family_field=family_field,
            metric=metric.value,
        )
        record = before_after.calibration_record(judged)
    elif confidence is not None or correct is not None:
        raise InputError(
            "--confidence and --correct read a table, but --model asks a model: they exclude each other.",
            fix="Leave out --model, or leave out --confidence and --correct.",
        )
    else:
        subject = probes.subject(model, adapter, template_kwargs=parse_template_kwargs(template_kwargs))
        key = before_after.AnswerKey.of(extract, expected, max_new_tokens or NEW_TOKENS)
        record = before_after.asked_calibration(subject, data, key, family_field, metric.value)
    if plot is not None:
        reliability.draw_reliability(records.to_json(record), plot)
    show_readings(record, as_json, out)
