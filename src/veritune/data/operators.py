"""Operators of mathematics: words and numbers alone cannot distinguish `x^2 + 5x - 6` from `x^2 - 5x + 6`.

The search for near-copies compares words and pairs of words. Where it finds one, the operators between the same
operands are compared here: an item and a row that put another sign there are two exercises.
"""

from __future__ import annotations

import re
from collections import defaultdict

from veritune.data.text import canonical

_TEX = {
    "\\times": "*", "\\cdot": "*", "\\div": "/", "\\le": "≤", "\\leq": "≤", "\\ge": "≥", "\\geq": "≥",
    "\\ne": "≠", "\\neq": "≠", "\\pm": "±", "\\lt": "<", "\\gt": ">",
}  # fmt: skip
_SIGNS = {"×": "*", "÷": "/", "∗": "*", "⋅": "*", "<=": "≤", ">=": "≥", "!=": "≠", "==": "="}
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations repeat what the sentence says
_COMMAND = re.compile(r"\\[a-z]+")
_OPERAND = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
_OPERATOR = re.compile(r"\*\*|[-+*/^=<>≤≥≠±√%]")


def different_operators(item: str, row: str) -> tuple[str, str] | None:
    """The first place where both texts have the same two operands but different operators between them; None if there
    is none.

    Returns that place as the item and as the row has it: `("2 + 5", "2 - 5")`. Operands are numbers and words of which
    at least one is a number or a single letter; a hyphen before or after a word of several letters is no operator.
    """
    wanted, held = _gaps(item), _gaps(row)
    for pair, signs in wanted.items():
        there = held.get(pair)
        if there and not signs & there and (signs | there) != {""}:
            return _show(pair, min(signs)), _show(pair, min(there))
    return None


def _show(pair: tuple[str, str], sign: str) -> str:
    return " ".join(part for part in (pair[0], sign, pair[1]) if part)


def _gaps(text: str) -> dict[tuple[str, str], set[str]]:
    """For every two neighbouring operands the operators that stand between them anywhere in the text."""
    plain = _CALCULATOR.sub(" ", canonical(text))
    plain = _COMMAND.sub(lambda command: _TEX.get(command[0], " "), plain)
    for written, sign in _SIGNS.items():
        plain = plain.replace(written, sign)
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    before = None
    for operand in _OPERAND.finditer(plain):
        if before is not None and (_mathematical(before[0]) or _mathematical(operand[0])):
            gap = plain[before.end() : operand.start()]
            found[before[0], operand[0]].add(_operators(gap, before[0], operand[0]))
        before = operand
    return found


def _mathematical(operand: str) -> bool:
    return operand[0].isdigit() or len(operand) == 1


def _operators(gap: str, left: str, right: str) -> str:
    """The operators of a gap as one text; a hyphen or slash beside a word, and markup, are none."""
    signs = _OPERATOR.findall(gap)
    beside_word = not (_mathematical(left) and _mathematical(right))
    if beside_word and gap.strip() in ("-", "/", "--"):
        return ""
    if "**" in signs and gap != "**":
        signs = [sign for sign in signs if sign != "**"]  # bold type
    return "".join(signs)
