"""Whose doing a missing score is: one table for every reason that we write or that an imported format brings.

A failure of the model counts as the eval's failure value. A score that the machine lost may hide any value, so it
never decides (`lost`). A reason that is not in the table is the machine's, and is named wherever it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

NO_REASON = "no reason given"
"""How a missing score without a reason is counted."""


class Reason(NamedTuple):
    """Who caused a missing score, the model or the machine, and why it is counted so."""

    owner: Literal["model", "machine"]
    why: str


REASONS: Mapping[str, Reason] = {
    # Written by our own evals (evaluate/tasks.py).
    "empty_output": Reason("model", "generation ended without a visible character"),
    "extraction_failed": Reason("model", "no answer in the form that the prompt asks for; lm-eval's [invalid]"),
    "pattern_too_slow": Reason("machine", "our own pattern gave up on the output, whatever the output says"),
    # Written by scorers of choices, functions and judges (evaluate/choice.py, function.py, judge.py).
    "function_failed": Reason("machine", "the user's function raised an error or returned no number from 0 to 1"),
    "function_too_slow": Reason("machine", "the user's function gave no answer in its time"),
    "judge_failed": Reason("machine", "the judge's server gave no answer"),
    "judge_unclear": Reason("machine", "what the judge said holds none of its verdicts"),
    "not_finite": Reason("machine", "an option's log-likelihood is no finite number"),
    # Written by the safety gate (release/gate/safety.py): neither end of the scale would be right.
    "grader_cannot_say": Reason("machine", "the grader gave no grade"),
    "empty_not_graded": Reason("machine", "an empty answer to an unsafe prompt is neither safe nor unsafe"),
    # Written when other tools' logs are read (evaluate/logs/).
    "no_answer": Reason("model", "Inspect's N: the output holds no answer"),
    "crashed": Reason("machine", "a sample with an error: an exception ended it"),
    "invalidated": Reason("machine", "an Inspect sample that somebody marked as invalid"),
    "no_majority": Reason("machine", "no value holds more than half of an item's samples (--reducer majority)"),
    "not_scored": Reason("machine", "no value in the log: the scorer did not run, or gave NaN or null"),
    # Usual words in the `reason` column of a table.
    "empty": Reason("model", "as empty_output"),
    "invalid": Reason("model", "as extraction_failed"),
    "truncated": Reason("model", "the output reached its token limit before an answer"),
    "refused": Reason("model", "the model declined to answer"),
    "timeout": Reason("machine", "a clock ended the run; another machine would have gone on"),
    NO_REASON: Reason("machine", "nothing is known about it"),
}


def is_models(reason: str | None) -> bool:
    """True if a missing score with this reason is the model's own failure; for `a or b`, if both are."""
    known = [REASONS.get(part) for part in (reason or NO_REASON).split(" or ")]
    return all(found is not None and found.owner == "model" for found in known)


def lost_text(counts: Iterable[Mapping[str, int]]) -> str:
    """The reasons that are not the model's, as text: `9 crashed, 3 disk_full (a reason that is not known, so the
    machine's)`.
    """
    total: Counter[str] = Counter()
    for count in counts:
        total.update({reason: n for reason, n in count.items() if not is_models(reason)})
    note = " (a reason that is not known, so the machine's)"
    return ", ".join(
        f"{n} {reason}{note if unknown_reasons([{reason: n}]) else ''}" for reason, n in sorted(total.items())
    )


def unknown_reasons(counts: Iterable[Mapping[str, int]]) -> list[str]:
    """The reasons that are not in the table, sorted."""
    parts = {part for count in counts for reason in count for part in reason.split(" or ")}
    return sorted(parts - set(REASONS))
