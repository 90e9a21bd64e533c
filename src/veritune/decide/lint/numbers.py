"""The numbers of a text as they were printed, and the ones that are no claims.

No claim, by rule: dates and times; versions and whatever is glued to letters (`SmolLM2-135M-Instruct`, `bf16`, `b00-0`,
`v0.1.0`); years; numbers of figures, tables, sections, footnotes, lines and issues; ordinals (`1st`); hashes. What a
heading numbers, what stands in code, in links and in comments never gets here: the parser has blanked it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
WORD_NUMBERS = {word: i for i, word in enumerate(_WORDS.split())}
SCALE = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "thousand": 1e3, "million": 1e6, "billion": 1e9}


@dataclass(frozen=True, slots=True)
class Number:
    """A number as printed: `value ± half` is what the print stands for. `start`/`end` are offsets in the scanned text.

    `percent` is `%` or `points` where one was printed (`value` is still the printed one); `signed` that a sign was.
    `relation` is `=`, `<`, `>`, `≤`, `≥`, `≈` right before it, `word` a number written out.
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

    @property
    def integer(self) -> bool:
        return self.word or (
            self.decimals == 0 and not self.percent and self.half <= 0.5 and "e" not in self.text.lower()
        )

    def holds(self, value: float, factor: float = 1.0) -> bool:
        """Whether `value · factor`, rounded to the printed precision, is what was printed."""
        if not self.decimals and self.integer and float(value).is_integer() and factor == 1.0:
            return value == self.value
        shown = value * factor
        slack = 1e-9 * max(1.0, abs(shown))
        return abs(shown - self.value) <= self.half + slack


NUMBER = re.compile(r"\d{1,3}(?:,\d{3}){1,6}(?!\d)(?:\.\d{1,20})?|\d{1,25}(?:\.\d{1,20})?|\.\d{1,20}")
EXPONENT = re.compile(r"[eE][+\-−]?\d{1,3}(?![\w])|\s?[×x·]\s?10(?:\^\{?|\*\*)?([+\-−⁻]?[\d⁰¹²³⁴-⁹]{1,3})\}?")
SIGNS = "+-−–‑"
PERCENT = re.compile(r"\s?(%|percent\b|per cent\b)|[\s-]?((?:percentage[\s-])?points?\b|pp\b|p\.p\.)")
MAGNITUDE = re.compile(r"([kKMB])\b|\s(thousand|million|billion)\b")
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
        ("levels", r"\b\d{1,2}-bit\b|\b\d-D\b|\b2\s?×\s?2\b|\b2x2\b"),
    )
)  # fmt: skip


def scan(text: str) -> list[Number]:
    """The numbers of a prose text that may be claims, in order."""
    silent = _silent(text)
    found: list[Number] = []
    for match in NUMBER.finditer(text):
        taken = found and match.start() < found[-1].end  # the power in `3 × 10^-4`
        if not silent[match.start()] and not taken:
            number = _number(text, match)
            if number:
                found.append(number)
    return sorted([*found, *_words(text, silent)], key=lambda n: n.start)


def _silent(text: str) -> bytearray:
    mask = bytearray(len(text) + 1)
    for _, pattern in NO_CLAIM:
        for match in pattern.finditer(text):
            mask[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    return mask


def _number(text: str, match: re.Match[str]) -> Number | None:
    """The number at a match with its sign, exponent, percent and magnitude; None where letters are glued to it."""
    start, end = match.span()
    if _glued(text, start, end):
        return None
    digits = match.group().replace(",", "")
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
    if size:
        factor = Decimal(str(SCALE[size.group(1) or size.group(2)]))
        value, unit, end = value * factor, unit * factor, size.end()
    percent = PERCENT.match(text, end)
    shown = ""
    if percent:
        shown, end = ("%" if percent.group(1) else "points"), percent.end()
    start, negative, signed = _sign(text, start)
    value = -value if negative else value
    number = Number(text[start:end], start, end, float(value), float(unit) / 2, decimals, shown, signed)
    return replace(number, relation=_relation(text, start))


def _glued(text: str, start: int, end: int) -> bool:
    """Part of a name, a hash or a range of names: a letter, underscore or joining sign touches it."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if before.isdigit() or after.isdigit():
        return True
    if before.isalpha() or before == "_" or (before in ("/", "@", "\\", ":") and text[start - 2 : start - 1].isalpha()):
        return True
    if before in ("-", "‑", ".") and re.search(r"[A-Za-z][\w.]{0,40}[-‑.]$", text[max(0, start - 42) : start]):
        return True
    if after.isalpha() or after == "_":
        return not (MAGNITUDE.match(text, end) or EXPONENT.match(text, end) or _unit(text, end))
    return after in ("-", "‑") and text[end + 1 : end + 2].isupper()


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


COUNT_NOUNS = (
    "seeds|families|items|rows|conditions|arms|claims|evals|runs|adapters|rules|steps|epochs|tokens|answers|outputs|"
    "zones|passes|modules|examples|prompts|checkpoints|questions|letters|wordings|rewrites|passes|cells|scores|verdicts"
)
WORDS = re.compile(
    rf"(?<![\w-])({'|'.join(WORD_NUMBERS)})\s(?:[a-z][a-z\-]{{2,15}}\s){{0,2}}(?:{COUNT_NOUNS})\b", re.IGNORECASE
)


def _words(text: str, silent: bytearray) -> list[Number]:
    """`two seeds`, `sixteen held-out families`: written numbers right before a thing that is counted."""
    found = []
    for match in WORDS.finditer(text):
        word = match.group(1)
        if word.lower() != "one" and not silent[match.start()]:
            value = WORD_NUMBERS[word.lower()]
            found.append(Number(word, match.start(), match.end(1), float(value), 0.0, 0, word=True))
    return found
