r"""Final answers of worked solutions: where an answer ends on one, and when two are the same.

The audit (`expected_answer`, `several_answers`) and the scorer of `kind: answer` share this module, so that a row that
the audit accepts is scored as right. An answer is compared as an exact number where it is one, else as text once its
markup is set aside. Nothing is simplified: `2\sqrt{2}` is not `\sqrt{8}`. `bench/answers/labelled.py` measures it on
labelled pairs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from veritune.data.text import canonical

MAX_ANSWER = 200  # characters; a longer final answer is compared as text, never as a number

_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{|\\.|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, with braces counted; None if there is none."""
    if "boxed" not in text and "fbox" not in text:
        return None
    opened: list[int] = []  # where the content of each open brace begins, negative for one that is no box
    last, found = -1, None
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            begin = opened.pop() if opened else -1
            if begin > last:
                last, found = begin, text[begin : match.start()]
        elif token.endswith("{") and token != "\\{":
            opened.append(-1 if token == "{" else match.end())
    return found


def final_answer(text: str) -> str | None:
    r"""The final answer of a worked solution: the last `\boxed{}`, else the last `####` line; None for neither."""
    marked = _marked(text)
    return marked.text if marked else None


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer as written in a text, and the mark by which it was found."""

    text: str
    by: Literal["boxed", "hashes", "last_number", "last_line"]


def _marked(text: str) -> Extracted | None:
    inside = boxed(text)
    if inside is not None:
        return Extracted(inside.strip(), "boxed")
    if "####" not in text:
        return None
    lines = (line.strip() for line in reversed(text.splitlines()))
    found = next((line[4:].strip() for line in lines if line.startswith("####") and line[4:].strip()), None)
    return Extracted(found, "hashes") if found is not None else None


def extract(text: str, expected: str, *, whole: bool = True) -> Extracted | None:
    r"""The answer in an output: the last `\boxed{}`, else the last `####` line, else the text it ends with.

    What it ends on is its last number where `expected` is a number, else its last line without `The answer is`. An
    output that was cut (`whole=False`) ends on nothing: the last number of half a calculation is no answer. None where
    nothing is found.
    """
    marked = _marked(text)
    if marked is not None:
        return marked if marked.text else None
    if not whole:
        return None
    if quantity_of(expected) is not None:
        number = last_number(text)
        return Extracted(number, "last_number") if number is not None else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = _LEAD.sub("", lines[-1]).strip() if lines else ""
    return Extracted(line, "last_line") if line else None


_LEAD = re.compile(
    r"^\W{0,3}(?:(?:so|thus|hence|therefore)\b,?\s{1,3})?(?:the\s{1,3})?(?:final\s{1,3})?answer\W{0,3}(?:\bis\b)?\W{0,2}(?=\s)",
    re.IGNORECASE,
)
_FIGURE = re.compile(
    r"(?<![\w.^])(?<!\^\{)(?P<neg>[-−](?=\\?[$€£]?[\d.\\]))?\\?[$€£]?"
    r"(?P<n>(?:\d{1,9}\s?)?\\[dt]?frac\s?\{\d{1,30}\}\s?\{\d{1,30}\}"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)"
)


def last_number(text: str) -> str | None:
    """The last number of a text, with its sign; None without one. A hyphen between two digits is not a sign."""
    figures = list(_FIGURE.finditer(text.replace("{,}", ",")))
    if not figures:
        return None
    last = figures[-1]
    return ("-" if last["neg"] else "") + last["n"].rstrip(",")


# ---------------------------------------------------------------- numbers


_WORDS_IN_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[!,;: ]|\\(?:left|right|displaystyle)(?![a-zA-Z])|\\\(|\\\)|\\\[|\\\]|~")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degree")
_NUMBER = re.compile(r"([+-]?)\s*(?:(\d+)\s+)?(\d+(?:\.\d+)?|\.\d+)(?:\s*/\s*(\d+(?:\.\d+)?))?")
# What follows a number and changes it: `12 \text{ million}` is no 12.
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# Words behind a number that make it another quantity, or no number at all.
_NO_UNIT = frozenset(
    (
        *("pi", "sqrt", "sin", "cos", "tan", "cot", "log", "ln", "exp", "mod", "modulo", "factorial", "choose"),
        *("squared", "cubed", "less", "more", "fewer", "times", "plus", "minus", "or", "and", "to", "by", "over"),
        *("half", "halves", "third", "thirds", "quarter", "quarters", "tenth", "tenths", "hundredths"),
        *("th", "st", "nd", "rd", "divided", "remainder", "unknown", "undefined", "not", "least", "most", "above"),
        *("below", "hundredth", "thousandth", "thousandths", "millionth", "millionths", "base"),
    )
)
_UNIT = r"[A-Za-z][A-Za-z]*(?:[ -][A-Za-z]+){0,3}\.?(?:\s?(?:\^\s?\{?[23]\}?|/\s?[A-Za-z]+))?"
_GLUED = re.compile(r"(?<=\d)(?=(?:cm|mm|km|kg|mg|ml|mph|min|hrs?|sec|ft|lbs?|oz)\b)", re.IGNORECASE)
_QUANTITY = re.compile(rf"(.*?[\d.])(?:\s+({_UNIT}))?")
_PLURALS = re.compile(r"(?<=[a-z]{2})(?:(?<=[sxz])es|(?<=[cs]h)es|s)$")
_LETTER_UNITS = frozenset(("m", "g", "s", "h", "l"))  # others are read as variables, and K as thousand
_UNIT_NAMES = {"centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km"} | {
    "kilometre": "km",
    "kilogram": "kg",
    "gram": "g",
    "hour": "hr",
    "minute": "min",
    "second": "sec",
    "pound": "lb",
    "ounce": "oz",
    "foot": "ft",
    "feet": "ft",
    "inch": "in",
    "percent": "%",
    "degree": "°",
}


@dataclass(frozen=True, slots=True)
class MeasuredAmount:
    """A number and its unit in a normalised form; the unit is empty if there is none."""

    value: Fraction
    unit: str = ""


def number_of(answer: str) -> Fraction | None:
    r"""An answer as an exact number: `\$1,250.00`, `-3`, `\frac12`, `2\frac{1}{2}`, `12\%`, `3 cm`; None if it is not a
    number.

    Its unit is left out; `same_answer` compares units too.
    """
    found = quantity_of(answer)
    return found.value if found else None


def quantity_of(answer: str) -> MeasuredAmount | None:
    """A number with its unit; None for a text that is not a single number."""
    if len(answer) > MAX_ANSWER:
        return None
    text, unit = _plain(answer), ""
    text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text)
    for sign, name in (("%", "%"), ("°", "°")):
        if text.endswith(sign):
            text, unit = text[:-1].rstrip(), name
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    split = _QUANTITY.fullmatch(_GLUED.sub(" ", text))
    if split is None:
        return None
    value = _value(split[1].strip().rstrip("."))
    if value is None or split[2] is None:
        return MeasuredAmount(value, unit) if value is not None else None
    return _with_unit(value, split[2]) if not unit else None


def _value(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None or (match[2] and not match[4]):
        return None
    below = Fraction(match[4] or 1)
    if below == 0:
        return None
    value = Fraction(match[2] or 0) + Fraction(match[3]) / below
    return -value if match[1] == "-" else value


def _with_unit(value: Fraction, unit: str) -> MeasuredAmount | None:
    words = unit.lower().rstrip(".").split()
    if words[0] in _SCALES:
        value, words = value * _SCALES[words[0]], words[1:]
    if any(word in _NO_UNIT for word in words):
        return None
    if len(words) == 1 and len(words[0]) == 1 and words[0] not in _LETTER_UNITS:
        return None
    return MeasuredAmount(value, " ".join(_one_unit(word) for word in words))


def _one_unit(word: str) -> str:
    bare = _PLURALS.sub("", word)
    return _UNIT_NAMES.get(bare, bare)


def _plain(answer: str) -> str:
    """Markup that does not change a number set aside; fractions as `a/b`, a currency sign removed."""
    text = re.sub(r"\\(?:boxed|fbox)\s*\{(.*)\}", r"\1", answer.strip(), flags=re.DOTALL)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))", ",", text.replace("−", "-"))
    text = _WORDS_IN_MARKUP.sub(r" \1 ", text)
    text = _fractions(_SPACES.sub(" ", text.replace("\\!", "")))
    text = re.sub(r"\\d?frac|\\tfrac", r"\\frac", text)
    text = re.sub(r"\\frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}", r" \1/\2", text)
    text = _DEGREE.sub("°", text).replace("\\%", "%")
    text = re.sub(r"\\?\$|[€£]", "", text).strip()
    while text.startswith("{") and text.endswith("}") and text.count("{") == 1:
        text = text[1:-1].strip()
    return re.sub(r"\s+", " ", text.replace("**", "")).strip().rstrip(".").replace("- ", "-")


def _fractions(text: str) -> str:
    r"""`\frac12` and `\sqrt3` with the braces that TeX supplies."""
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    return re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)


# ---------------------------------------------------------------- the same?


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same number, or the same text apart from white space, case and markup.

    A unit that only one of them has is set aside; two different units make two answers.
    """
    names = {m[1] for m in map(_NAMED.match, (a, b)) if m}
    if len(names) > 1:
        return False
    left, right = quantity_of(a), quantity_of(b)
    if left is not None and right is not None:
        return left.value == right.value and (not left.unit or not right.unit or left.unit == right.unit)
    return (left is None) == (right is None) and _bare(a) == _bare(b)


_NAMED = re.compile(r"\W{0,3}([a-zA-Z])\s{0,3}=")
_POWERS = {"²": "^2", "³": "^3", "⁴": "^4", "½": "1/2", "π": "\\pi"}


def _bare(answer: str) -> str:
    text = "".join(_POWERS.get(c, c) for c in answer.replace("**", ""))
    text = _WORDS_IN_MARKUP.sub(r"\1", text.replace("\\$", "").replace("$", ""))
    text = _fractions(_SPACES.sub(" ", text))
    text = _DEGREE.sub("", text).replace("\\cdot", "*").replace("\\times", "*").replace("\\%", "%")
    text = re.sub(r"\^\{(\w)\}", r"^\1", text)
    text = re.sub(r"\s+", "", canonical(text)).rstrip(".")
    return re.sub(r"^[a-z]=(?=[^=]+$)", "", text)
