"""`veritune calibration ...`: whether a model is right as often as it is sure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import (
    AdapterOption,
    BinsOption,
    ExpectedOption,
    ExtractOption,
    FamilyOption,
    JsonOption,
    ModelOption,
    OutOption,
    PlotOption,
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


def read(
    file: Annotated[Path, typer.Argument(help="lm-eval samples, or a table with a confidence and an outcome column.")],
    confidence: Annotated[str, typer.Option(help="Column with the confidence, 0 to 1.")] = "confidence",
    correct: Annotated[str, typer.Option(help="Column with the outcome, 0 or 1.")] = "correct",
    family_field: FamilyOption = None,
    metric: Annotated[str, typer.Option(help="For lm-eval samples: acc or acc_norm.")] = "acc",
    bins: BinsOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Calibration of answers that are there: lm-eval multiple-choice samples, or any table."""
    judged = confidences.read_judged(
        file, confidence=confidence, correct=correct, family_field=family_field, metric=metric
    )
    _show(before_after.calibration_record(judged, None, bins), plot, as_json, out)


def choices(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="JSONL: question, choices, answer (place, letter or text).")],
    adapter: AdapterOption = None,
    family_field: FamilyOption = None,
    normalise: Annotated[str, typer.Option(help="none, or length: divide by an option's tokens.")] = "none",
    bins: BinsOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Calibration on multiple choice: options scored as answers, the base model beside the adapter."""
    if normalise not in ("none", "length"):
        raise InputError(f"--normalise: expected none or length, found {normalise!r}.")
    subject = probes.subject(model, adapter)
    questions = confidences.read_questions(data, family_field)
    record = before_after.calibration_of(
        subject,
        lambda loaded: confidences.judge_choices(loaded, subject.renderer, questions, normalise),  # type: ignore[arg-type]
        bins,
    )
    _show(record, plot, as_json, out)


def answers(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="Rows with short reference answers.")],
    extract: ExtractOption,
    expected: ExpectedOption,
    adapter: AdapterOption = None,
    family_field: FamilyOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Generation stops here.")] = 64,
    bins: BinsOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Calibration on short answers: the confidence is the probability of the whole greedy answer."""
    subject = probes.subject(model, adapter)
    key = before_after.AnswerKey.of(extract, expected, max_new_tokens)
    assert key is not None
    zoned = probes.read_zones({"items": data}, subject.renderer, family_field=family_field)
    record = before_after.calibration_of(
        subject, lambda loaded: before_after.judge_answers(loaded, subject.renderer, zoned, key), bins
    )
    _show(record, plot, as_json, out)


def _show(record: dict[str, Any], plot: Path | None, as_json: bool, out: Path | None) -> None:
    if plot is not None:
        reliability.draw_reliability(records.to_json(record), plot)
    show_readings(record, as_json, out)
