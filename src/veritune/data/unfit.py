"""Rows that cannot be rendered as the contract asks: what is wrong with them, as a finding with the way out."""

from __future__ import annotations

from veritune.data.written import Fault
from veritune.records import Finding, Row

NEVER_KEEPS = "Use a template that keeps reasoning (set --template-kwargs if this one has a switch for it)."
SAME_EVERYWHERE = "Use a template whose generation prompt is the beginning of its answers"
_LAST_ALONE = (
    "Train on the last turn alone (data.train_on: last in a study; --train-on last of audit, tokens, probe and "
    "merge-parity), or split it into one row a turn"
)
FIX = {
    "too_long": "Raise max_length, shorten the row, or drop it.",
    "template": "Change the row's roles, or the template.",
    "prefix": f"{_LAST_ALONE}, or use a template that renders a turn the same way everywhere.",
    "turn_changed": "Use a template that writes contents unchanged.",
    "turn_missing": "Use a template that writes this role, or remove these turns from the rows.",
    "think_stripped": f"{_LAST_ALONE}: the template keeps reasoning only after the last question.",
    "reasoning": "Use a template that renders reasoning, or leave the field out of the rows.",
    "tools": "Use the template of a model that calls tools, or leave tools out of the rows (--columns ignore=tools).",
    "gap": "Set model.template_kwargs, or use a template whose generation prompt holds that text.",
    "straddle": (
        "Strip white space from the ends of the answer, or use a template with special tokens around the turns."
    ),
    "no_end_token": "Use a template that ends each assistant turn with the model's end token.",
    "empty_answer": "Drop the row, or fill in the answer.",
    "no_target": "End the row with an assistant turn that carries loss.",
    "control_token": "Change that text or drop the row: the model would read it as the end of a turn.",
}


class Unfit(Exception):
    """A row that cannot be rendered as the contract requires; it becomes a finding. `fix` is the check's own unless
    given.
    """

    def __init__(self, check: str, message: str, expected: str, found: str, fix: str = "") -> None:
        super().__init__(message)
        self.check, self.message, self.expected, self.found = check, message, expected, found
        self.fix = fix or FIX[check]


def unfit_of(fault: Fault, *, last: bool, field: str | None) -> Unfit:
    """A template's fault as the refusal of a row. `field` is the key in which the template reads reasoning."""
    who = "assistant turn" if fault.role == "assistant" else "turn"
    name = f"{who} {fault.turn + 1}" if fault.role == "assistant" else f"turn {fault.turn + 1} ({fault.role})"
    inline = as_field(field) if fault.part == "content" and "<think>" in fault.expected else ""
    if fault.kind == "think_stripped":
        where = "" if last else ", which is not the last"
        what = f"the template removes the reasoning (<think>...</think>) from {name}{where}"
        fix = (inline or NEVER_KEEPS) if last else ""
        return Unfit("think_stripped", what, repr(fault.expected), repr(fault.found), fix)
    if fault.kind == "turn_missing":
        part = "" if fault.part == "content" else f" ({fault.part})"
        what = f"the template does not write {name}{part}"
        return Unfit("turn_missing", what, repr(fault.expected), fault.found)
    part = "text" if fault.part == "content" else fault.part
    what = f"the template changes the {part} of {name}: expected {fault.expected!r}, found {fault.found!r}"
    return Unfit("turn_changed", what, repr(fault.expected), repr(fault.found), inline)


def as_field(field: str | None) -> str:
    """The fix for reasoning inside a content, if the template reads it from the key `field`; empty if it reads none."""
    return f"Write the reasoning as {field} beside the content: this template renders it itself." if field else ""


def otherwise(turn: int, at: int, whole: str, text: str) -> Unfit:
    """The refusal of an assistant turn that is rendered differently at the end of a conversation and within it."""
    what = f"the template writes assistant turn {turn + 1} differently if more turns follow"
    return Unfit("prefix", what, repr(whole[at : at + 40]), repr(text[at : at + 40]))


def finding_of(row: Row, unfit: Unfit) -> Finding:
    """The finding of severity `error` that names the row and says why it cannot be rendered."""
    evidence = {"what": unfit.message, "expected": unfit.expected, "found": unfit.found, "fix": unfit.fix}
    message = f"row {row.id!r}" + (f" ({row.source}:{row.line})" if row.line else "") + f": {unfit.message}"
    return Finding(
        f"render.{unfit.check}",
        "error",
        message,
        row.id,
        row.source or None,
        row.line or None,
        "messages",
        evidence,
    )
