"""The numbers of a text as they were printed, and the ones that are no claims.

No claim, by rule: dates and times; versions and whatever is glued to letters (`SmolLM2-135M-Instruct`, `bf16`, `b00-0`,
`v0.1.0`); years; numbers of figures, tables, sections, footnotes, lines and issues; ordinals (`1st`); hashes. What a
heading numbers, what stands in code, in links and in comments never gets here: the parser has blanked it.
"""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from veritune.writeup.facts import CJK
from veritune.writeup.lint.foreign_words import foreign, written_abroad
from veritune.writeup.lint.number_words import WrittenNumber, written

SCALE = {
    "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "thousand": 1e3, "million": 1e6, "billion": 1e9, "Tausend": 1e3,
    "Millionen": 1e6, "Mio.": 1e6, "Milliarden": 1e9, "Mrd.": 1e9, "mille": 1e3, "millions": 1e6, "milliards": 1e9,
    "mil": 1e3, "millones": 1e6, "万": 1e4, "亿": 1e8,
}  # fmt: skip
_WIDE = str.maketrans("０１２３４５６７８９．％＋－", "0123456789.%+-")
"""Digits and signs of East Asian width; each is one character, so that offsets stay."""


@dataclass(frozen=True, slots=True)
class PrintedNumber:
    """A number as printed: it stands for `value ± half`. `start`/`end` are offsets in the scanned text.

    `percent` is `%` or `points` where one was printed (`value` is still the printed one); `signed` that a sign was.
    `relation` is `=`, `<`, `>`, `≤`, `≥`, `≈` right before it, `word` a number written out; `form` is `share` or `ratio`
    where words state one (`nine in ten`, `doubles`). `scale` is what a magnitude multiplied by: 1e6 for `66M`.
    `whole` is the count that `1.319` is where a full stop parts thousands, as on a German, French or Spanish page.
    """

    text: str
    start: int
    end: int
    value: float
    half: float
    decimals: int
    percent: str = ""
    signed: bool = False
    relation: str = ""
    word: bool = False
    form: str = ""
    scale: float = 1.0
    whole: int | None = None

    @property
    def integer(self) -> bool:
        if self.form or (self.percent and self.word):
            return False
        return self.word or (
            self.decimals == 0 and not self.percent and self.half <= 0.5 and "e" not in self.text.lower()
        )

    def holds(self, value: float, factor: float = 1.0) -> bool:
        """Whether `value · factor`, rounded to the printed precision, equals the printed number."""
        if self.whole is not None and factor == 1.0 and value == self.whole:
            return True
        if not self.decimals and self.integer and self.scale == 1.0 and float(value).is_integer() and factor == 1.0:
            return value == self.value
        shown = value * factor
        slack = 1e-9 * max(1.0, abs(shown))
        return abs(shown - self.value) <= self.half + slack


NUMBER = re.compile(
    r"(?<![\d,])(?:0|[1-9]\d{0,2}),\d{1,2}(?!\d|\s?,\s?\d)|(?<![\d,])0,\d{3,20}(?!\d|,\d)|"  # a decimal comma
    r"(?<![\d,])[1-9]\d{0,2},\d{4,20}(?!\d|,\d)|"
    r"\d{1,3}(?:,\d{3}){1,6}(?!\d)(?:\.\d{1,20})?|\d{1,3}(?:[\u202f\u00a0'’]\d{3}){1,6}(?!\d)|(?<![\d.,])[1-9]\d{0,2}(?: \d{3}){1,4}(?![\d.,%])|"
    r"\d{1,25}(?:\.\d{1,20})?|\.\d{1,20}"
)
DECIMAL_COMMA = re.compile(r"0,\d{1,20}|[1-9]\d{0,2},(?:\d{1,2}|\d{4,20})")
EXPONENT = re.compile(
    r"[eE][+\-−]?\d{1,3}(?![\w])|"
    r"\s?(?:[×x·]|\\times|\\cdot)\s?10(?:\^\{?|\*\*)?([+\-−⁻]?[\d⁰¹²³⁴-⁹]{1,3})\}?"
)
THOUSANDS = re.compile(r"[1-9]\d{0,2}\.\d{3}")
SIGNS = "+-−–‑"
PERCENT = re.compile(
    r"\s?(\\?%|\\,\\%|percent\b|per cent\b|Prozent\b|pour cent\b|por ciento\b)|[\s-]?((?:percentage[\s-])?points?\b|pp\b|p\.p\.|"
    r"(?:Prozentp|P)unkten?\b|puntos?(?: porcentuales)?\b|个?百分点)"
)
MAGNITUDE = re.compile(
    r"([kKMB])\b|\s(thousand|million|billion|Tausend|Millionen|Milliarden|Mio\.|Mrd\.|mille|millions|milliards|mil|millones)"
    r"(?!\w)|(万|亿)"
)
MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|"
    r"Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
NO_CLAIM = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("date", r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?Z?)?"),
        ("date", rf"\b\d{{1,2}}(?:st|nd|rd|th)?\s{MONTH}\b(?:\s\d{{4}})?|\b{MONTH}\s\d{{1,2}}(?:,?\s\d{{4}})?\b"),
        ("date", rf"\b{MONTH}\s\d{{4}}\b"),
        ("time", r"\b\d{1,2}:\d{2}(?::\d{2})?\b"),
        ("version", r"\bv?\d+\.\d+\.\d+[\w.+\-]*|\bv\d+(?:\.\d+)*\b|\b\d+\.\d+\+\w+"),
        ("version", r"\b(?:[Pp]ython|CUDA|[Vv]ersions?|PyTorch|torch|[Tt]ransformers|PEFT|peft|numpy|scipy|format)"
                    r"\s\d[\w.]*"),
        ("reference", r"\b(?:[Ff]ig(?:ure|\.)?|[Tt]ab(?:le|\.)?|[Ss]ec(?:tion|t?\.)|[Ee]q(?:uation|\.)?|[Aa]ppendix|"
                      r"[Cc]hapter|[Pp]art|[Ll]ines?|[Ff]ootnote|[Pp]age|pp?\.|[Ii]ssue|[Ss]tage|[Nn]ote|[Rr]ule)\s#?\d+"
                      r"(?:\.\d+)*(?:[–-]\d+)?|#\d+|\bL\d+|§\s?\d+(?:\.\d+)*"),
        ("year", r"\(\s?(?:19|20)\d\d[a-z]?\s?\)|\b(?:et al\.?|and [A-Z]\w+|[A-Z]\w+,)\s\(?(?:19|20)\d\d\b|"
                 r"\b(?:in|since|of|from)\s(?:19|20)\d\d\b(?!\s(?:items|rows|tokens|steps|families))"),
        ("year", r"\b[A-Z][a-z]+\s(?:19|20)\d\d\b"),
        ("identifier", r"\barXiv:\s?\d+\.\d+|\bdoi:\s?\S+"),
        ("ordinal", r"\b\d+(?:st|nd|rd|th)\b"),
        ("range of the scale", r"\b0\s?(?:to|–|-|\.\.|and)\s?1\b(?!\.\d)"),
        ("number of a post", r"^\s*\d{1,2}/(?=\s|$)"),
        ("zero of an interval", r"\b(?:holds?|includes?|including|contains?|containing|excludes?|excluding|covers?|cross(?:es)?|spans?|misses)\s0\b(?![.,]\d)"),
        ("zones", r"\b(?:all|both|the|these)\s(?:two|three|four|[2-5])\szones\b"),
        ("levels", r"\b\d{1,2}-bit\b|\b\d-D\b|\b2\s?×\s?2\b|\b2x2\b"),
    )
)  # fmt: skip


def scan(text: str) -> list[PrintedNumber]:
    """The numbers of a prose text that may be claims, in order."""
    text = text.translate(_WIDE)
    silent = _silent(text)
    found: list[PrintedNumber] = []
    for match in NUMBER.finditer(text):
        taken = found and match.start() < found[-1].end  # the power in `3 × 10^-4`
        if not silent[match.start()] and not taken:
            number = _number(text, match)
            if number:
                found.append(number)
    words = _words(text, silent)
    found = [n for n in found if not any(w.start <= n.start < w.end for w in words)]  # the 9 of `9 in ten`
    return sorted([*found, *words], key=lambda n: n.start)


def _silent(text: str) -> bytearray:
    mask = bytearray(len(text) + 1)
    for _, pattern in NO_CLAIM:
        for match in pattern.finditer(text):
            mask[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    return mask


def _number(text: str, match: re.Match[str]) -> PrintedNumber | None:
    """The number at a match with its sign, exponent, percent and magnitude; None where letters are glued to it."""
    start, end = match.span()
    if _glued(text, start, end):
        return None
    digits = match.group()
    three = re.fullmatch(r"[1-9]\d{0,2},\d{3}", digits) is not None and foreign(text)
    comma = three or DECIMAL_COMMA.fullmatch(digits) is not None
    digits = digits.replace(",", ".") if comma else re.sub(r"[,'’ \u202f\u00a0]", "", digits)
    try:
        value = Decimal(digits)
    except InvalidOperation:
        return None
    decimals = len(digits.partition(".")[2])
    unit = Decimal(1).scaleb(-decimals)
    exponent = EXPONENT.match(text, end)
    if exponent:
        power = _power(exponent)
        value, unit, end = value.scaleb(power), unit.scaleb(power), exponent.end()
    size = MAGNITUDE.match(text, end)
    scale = 1.0
    if size:
        scale = SCALE[size.group(size.lastindex or 1)]
        factor = Decimal(str(scale))
        value, unit, end = value * factor, unit * factor, size.end()
    percent = PERCENT.match(text, end)
    shown = ""
    if percent:
        shown, end = ("%" if percent.group(1) else "points"), percent.end()
    start, negative, signed = _sign(text, start)
    value = -value if negative else value
    whole = int(digits.replace(".", "")) if THOUSANDS.fullmatch(digits) and foreign(text) else None
    number = PrintedNumber(
        text[start:end], start, end, float(value), float(unit) / 2, decimals, shown, signed, scale=scale, whole=whole
    )
    return replace(number, relation=_relation(text, start))


def _glued(text: str, start: int, end: int) -> bool:
    """Part of a name, a hash or a range of names: a letter, underscore or joining sign touches it."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if before.isdigit() or after.isdigit():
        return True
    if _letter(before) or before == "_" or (before in ("/", "@", "\\", ":") and text[start - 2 : start - 1].isalpha()):
        return True
    if before in ("-", "‑", ".") and re.search(r"[A-Za-z][\w.\-‑]{0,40}[-‑.]$", text[max(0, start - 42) : start]):
        return True
    if _letter(after) or after == "_":
        return not (MAGNITUDE.match(text, end) or EXPONENT.match(text, end) or _unit(text, end))
    return after in ("-", "‑") and text[end + 1 : end + 2].isupper()


def _letter(char: str) -> bool:
    """A letter that makes a word with its neighbours: not a Chinese, Japanese or Korean one."""
    return char.isalpha() and CJK.match(char) is None


def _unit(text: str, end: int) -> bool:
    return bool(re.match(r"(?:s|ms|h|min|pp|x|GB|MB|GiB)\b", text[end : end + 4]))


def _power(match: re.Match[str]) -> int:
    digits = match.group(1) or match.group()[1:]
    plain = digits.translate(str.maketrans("⁻−⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")).strip("+")
    try:
        return max(-300, min(300, int(plain)))
    except ValueError:
        return 0


def _sign(text: str, start: int) -> tuple[int, bool, bool]:
    """Where the number begins with its sign, whether it is negative, whether a sign was printed."""
    before = text[start - 1 : start]
    if before and before in SIGNS:
        further = text[start - 2 : start - 1]
        if not further or further.isspace() or further in "([|~=<>,;:":
            return start - 1, before != "+", True
    return start, False, False


RELATION = re.compile(r"(<=|>=|[=<>≤≥≈~]|&lt;|&gt;)\s?$")


def _relation(text: str, start: int) -> str:
    found = RELATION.search(text[max(0, start - 6) : start])
    plain = {"<=": "≤", ">=": "≥", "~": "≈", "&lt;": "<", "&gt;": ">"}
    return plain.get(found.group(1), found.group(1)) if found else ""


def _out_of_words(text: str) -> Iterator[WrittenNumber]:
    """Numbers written out in any language; of those that overlap the longer."""
    found = sorted((*written(text), *written_abroad(text)), key=lambda w: w.start - w.end)
    for i, w in enumerate(found):
        if not any(w.start < o.end and o.start < w.end for o in found[:i]):
            yield w


def _words(text: str, silent: bytearray) -> list[PrintedNumber]:
    """`two seeds`, `nineteen points`, `nine in ten`, `half of`, `doubles`: numbers written out."""
    found = []
    for w in _out_of_words(text):
        if not silent[w.start]:
            percent = {"percent": "%", "points": "points"}.get(w.form, "")
            form = w.form if w.form in ("share", "ratio") else ""
            shown = text[w.start : w.end]
            found.append(PrintedNumber(shown, w.start, w.end, w.value, w.half, 0, percent, word=True, form=form))
    return found
