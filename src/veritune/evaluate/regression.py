"""Before and after on a set of rows: losses and scores for forgetting, confidences for calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from veritune.config.evals import Eval
from veritune.data.render import Renderer
from veritune.errors import InputError, ModelError
from veritune.evaluate import tasks
from veritune.evaluate.calibration import calibration
from veritune.evaluate.confidence import (
    Judged,
    Normalise,
    answer_confidences,
    judge_choices,
    multiclass_brier,
    read_questions,
)
from veritune.evaluate.generate import Decoding, Output, generate, stop_tokens
from veritune.probe.clusters import codes, ratio
from veritune.probe.forgetting import forgetting
from veritune.probe.memorization import row_losses
from veritune.probe.study import ProbeSubject, Zoned, read_zones
from veritune.records import Estimate, Forgetting, JsonLike, Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "regression"


@dataclass(frozen=True)
class AnswerKey:
    """How an answer is extracted from an output, and the column it must equal."""

    spec: Eval

    @classmethod
    def of(cls, extract: str | None, expected: str | None, max_new_tokens: int = 128) -> AnswerKey | None:
        """None if neither is given. Raises InputError for one without the other, or an invalid pattern."""
        if extract is None and expected is None:
            return None
        if extract is None or expected is None:
            raise InputError(
                "--extract and --expected must be given together.",
                fix="Give both, or neither to measure the loss only.",
            )
        try:
            return cls(Eval(kind="match", extract=extract, expected=expected, max_new_tokens=max_new_tokens))
        except ValueError as exc:
            raise InputError(f"--extract or --expected cannot be used: {exc}.") from None


def forgetting_of(
    found: ProbeSubject, zoned: Zoned, margin: float, key: AnswerKey | None = None
) -> tuple[Forgetting, tuple[list[Score], list[Score]] | None]:
    """Loss before and after training, and with a key the scores of both. Raises ModelError without an adapter."""
    if found.adapter is None:
        raise ModelError(
            "forgetting compares a trained model with its base, but no adapter was given.", fix="--adapter"
        )
    losses: list[list[float]] = []
    scores: list[list[Score]] = []
    for name, load in (("base", found.base), ("trained", found.trained)):
        model = load()
        losses.append(row_losses(model, zoned.rendered))
        if key is not None:
            scores.append([score for score, _, _ in _answered(name, model, found.renderer, zoned, key)])
        del model
    ids = [row.id for row in zoned.rows]
    record = forgetting(losses[0], losses[1], zoned.families, row_ids=ids, margin=margin)
    return record, (scores[0], scores[1]) if scores else None


def judge_answers(model: PreTrainedModel, renderer: Renderer, zoned: Zoned, key: AnswerKey) -> Judged:
    """Greedy answers, whether each is right, and its probability. An answer that cannot be extracted counts as
    missing."""
    answered = _answered("", model, renderer, zoned, key)
    ends = stop_tokens(model, renderer.tokenizer)
    confidences = answer_confidences(model, [prompt for _, prompt, _ in answered], [o for _, _, o in answered], ends)
    return Judged(
        ids=tuple(row.id for row in zoned.rows),
        confidence=tuple(confidences),
        correct=tuple(score.value for score, _, _ in answered),
        families=zoned.families,
        notes=("confidence: probability of the whole greedy answer",),
    )


def _answered(
    run: str, model: PreTrainedModel, renderer: Renderer, zoned: Zoned, key: AnswerKey
) -> list[tuple[Score, tuple[int, ...], Output]]:
    """(score, prompt ids, output) of every row."""
    tasks.check_items(NAME, key.spec, zoned.rows)
    prompts = [renderer.prompt_ids(row) for row in zoned.rows]
    outputs = generate(model, renderer.tokenizer, prompts, Decoding(key.spec.max_new_tokens, key.spec.batch_size))
    made = []
    for row, family, prompt, output in zip(zoned.rows, zoned.families, prompts, outputs):
        score = tasks.score(NAME, key.spec, row, output)
        made.append((replace(score, run_id=run, family=family), prompt, output))
    return made


def calibration_of(
    subject: ProbeSubject, judge: Callable[[Any], Judged], bins: int | None = None
) -> dict[str, JsonLike]:
    """Calibration of the trained model beside its base, or of the base alone if nothing was trained.

    `judge` is given each loaded model, one at a time.
    """
    base = judge(subject.base())
    if subject.adapter is None:
        return calibration_record(base, None, bins)
    return calibration_record(judge(subject.trained()), base, bins)


def asked_calibration(
    subject: ProbeSubject,
    data: str | Path,
    key: AnswerKey | None,
    family_field: str | None,
    metric: Literal["acc", "acc_norm"],
) -> dict[str, JsonLike]:
    """Calibration of a model that is asked here: on short answers if there is a key, else on multiple choice.

    `metric` is how options are scored: `acc_norm` divides an option's log-likelihood by its number of tokens.
    Raises DataError for rows that are not of that kind.
    """
    if key is not None:
        zoned = read_zones({"items": data}, subject.renderer, family_field=family_field)
        return calibration_of(subject, lambda loaded: judge_answers(loaded, subject.renderer, zoned, key))
    questions = read_questions(data, family_field)
    normalise: Normalise = "length" if metric == "acc_norm" else "none"
    return calibration_of(subject, lambda loaded: judge_choices(loaded, subject.renderer, questions, normalise))


def calibration_record(after: Judged, before: Judged | None = None, bins: int | None = None) -> dict[str, JsonLike]:
    """Calibration of `after`, and with `before` (the base, same items) also its calibration and the paired change in
    Brier score.
    """
    record: dict[str, Any] = {}
    if before is not None:
        record["base"] = calibration(before.confidence, before.correct, before.families, bins=bins)
        record["brier_change"] = _brier_change(before, after)
    record["trained" if before is not None else "model"] = calibration(
        after.confidence, after.correct, after.families, bins=bins
    )
    known = [i for i, right in enumerate(after.right) if right is not None]
    if known and len(known) == len(after.ids):
        record["multiclass_brier"] = _mean(
            "Brier score over all options",
            [multiclass_brier(after.shares[i], after.right[i] or 0) for i in known],
            after.families,
        )
    return record


def _brier_change(before: Judged, after: Judged) -> Estimate:
    """After minus before over the items that both judged; below 0 is better."""
    squares, families = [], []
    for c0, y0, c1, y1, family in zip(
        before.confidence, before.correct, after.confidence, after.correct, after.families
    ):
        if c0 is not None and y0 is not None and c1 is not None and y1 is not None:
            squares.append((c1 - y1) ** 2 - (c0 - y0) ** 2)
            families.append(family)
    return _mean("change in Brier score, after minus before", squares, families)


def _mean(name: str, values: Sequence[float], families: Sequence[str | None]) -> Estimate:
    value_N = np.array([x for x in values if math.isfinite(x)], float)
    return ratio(name, value_N, np.ones(len(value_N)), codes(families) if len(families) else np.zeros(0, int))
