"""Numbers in German, French, Spanish and Chinese words: `neun von zehn`, `dix-neuf points`, `el doble de`, `十分之九`.

As for English words, a word is a rounded number: `half` says how far the value may lie from it.
"""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from veritune.writeup.lint.number_words import WrittenNumber

STOP_WORDS = re.compile(
    r"\b(?:der|die|das|und|ist|auf|mit|von|für|nicht|eine?|beträgt|wird|wir|im|bei|sind|den|dem|zu|le|la|les|des|est|sur|avec|pour|une?|dans|du|nous|en|"
    r"el|los|las|una|es|con|para|por|del)\b|[\u3040-\u30ff\u3400-\u9fff]",
    re.IGNORECASE,
)


def foreign(text: str) -> bool:
    """Whether a text is written in one of these languages rather than in English."""
    return len(STOP_WORDS.findall(text)) >= 2


# ---------------------------------------------------------------- the words for 0 to 100

_DE = [
    "null",
    "eins",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
    "dreizehn",
    "vierzehn",
    "fünfzehn",
    "sechzehn",
    "siebzehn",
    "achtzehn",
    "neunzehn",
]
_DE_TENS = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
_FR = [
    "zéro",
    "un",
    "deux",
    "trois",
    "quatre",
    "cinq",
    "six",
    "sept",
    "huit",
    "neuf",
    "dix",
    "onze",
    "douze",
    "treize",
    "quatorze",
    "quinze",
    "seize",
    "dix-sept",
    "dix-huit",
    "dix-neuf",
]
_FR_TENS = ["vingt", "trente", "quarante", "cinquante", "soixante"]
_ES = [
    "cero",
    "uno",
    "dos",
    "tres",
    "cuatro",
    "cinco",
    "seis",
    "siete",
    "ocho",
    "nueve",
    "diez",
    "once",
    "doce",
    "trece",
    "catorce",
    "quince",
    "dieciséis",
    "diecisiete",
    "dieciocho",
    "diecinueve",
    "veinte",
    "veintiuno",
    "veintidós",
    "veintitrés",
    "veinticuatro",
    "veinticinco",
    "veintiséis",
    "veintisiete",
    "veintiocho",
    "veintinueve",
]
_ES_TENS = ["treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa"]
_ZH = "零一二三四五六七八九"


def _german(n: int) -> list[str]:
    if n < 20:
        return [_DE[n], "ein", "eine", "einer", "einem", "einen"] if n == 1 else [_DE[n]]
    tens = _DE_TENS[n // 10 - 2]
    words = tens if n % 10 == 0 else ("ein" if n % 10 == 1 else _DE[n % 10]) + "und" + tens
    return [words, words.replace("ß", "ss")]


def _french(n: int) -> list[str]:
    if n < 20:
        return ["un", "une"] if n == 1 else [_FR[n]]
    if n < 70:
        tens, rest = _FR_TENS[n // 10 - 2], n % 10
        return [tens] if rest == 0 else [f"{tens} et un", f"{tens}-et-un"] if rest == 1 else [f"{tens}-{_FR[rest]}"]
    if n < 80:
        return ["soixante et onze", "soixante-et-onze"] if n == 71 else [f"soixante-{_FR[n - 60]}"]
    return ["quatre-vingts", "quatre-vingt"] if n == 80 else [f"quatre-vingt-{_FR[n - 80]}"]


def _spanish(n: int) -> list[str]:
    if n < 30:
        return ["un", "una", "uno"] if n == 1 else [_ES[n]]
    return [_ES_TENS[n // 10 - 3] + ("" if n % 10 == 0 else f" y {_ES[n % 10]}")]


def _table(of: Callable[[int], list[str]], hundred: tuple[str, ...]) -> dict[str, int]:
    return {word: n for n in range(100) for word in of(n)} | dict.fromkeys(hundred, 100)


@dataclass(frozen=True)
class _Language:
    """The patterns of one language; `parts` and `ratios` map a wording to its value."""

    values: Mapping[str, int]
    of: str
    percent: str
    points: str
    nouns: str
    parts: Mapping[str, float]
    ratios: Mapping[str, float]
    times: str

    @property
    def word(self) -> str:
        return "|".join(sorted(map(re.escape, self.values), key=len, reverse=True))


_LANGUAGES = (
    _Language(
        _table(_german, ("hundert", "einhundert")),
        r"\svon\s(?:je\s)?", r"Prozent", r"(?:Prozent)?[Pp]unkten?",
        "Seeds?|Familien|Fragen|Antworten|Beispielen?|Zeilen|Läufen?|Epochen|Schritten?|Modellen?|Aufgaben|Stunden|Minuten|"
        "Tagen?|Schichten|Regeln|Fehlern?|Personen|Datensätzen?|Sprachen|Durchläufen?|Bedingungen|Adaptern?",
        {r"(?:die\s)?Hälfte(?=\s(?:der|des|aller|von))": 1 / 2, r"(?:einem|ein)\sDrittel": 1 / 3, r"zwei\sDrittel": 2 / 3,
         r"(?:einem|ein)\sViertel": 1 / 4, r"drei\sViertel": 3 / 4, r"(?:einem|ein)\sFünftel": 1 / 5},
        {r"doppelt\sso|verdoppel(?:t|te|n)|verdoppelte": 2, r"halb\sso|halbier(?:t|te|en)|halbierte": 0.5,
         r"verdreifach(?:t|te|en)": 3},
        r"mal\sso|[\s-]?[Ff]ach",
    ),
    _Language(
        _table(_french, ("cent",)),
        r"\ssur\s", r"pour\scent", r"points?(?:\sde\spourcentage)?",
        "graines|familles|questions|réponses|exemples|lignes|exécutions|époques|étapes|modèles|tâches|heures|minutes|jours|"
        "couches|règles|erreurs|personnes|langues|conditions|adaptateurs",
        {r"la\smoitié(?=\s(?:de|du|des))": 1 / 2, r"un\stiers": 1 / 3, r"deux\stiers": 2 / 3, r"un\squart": 1 / 4,
         r"trois\squarts": 3 / 4, r"un\scinquième": 1 / 5},
        {r"doubl(?:e|é|ée|ent)(?=\s(?:le|la|les|du|de|sa|son|ses)\b)": 2, r"tripl(?:e|é|ent)(?=\s(?:le|la|les)\b)": 3,
         r"divis(?:e|é|ée|ent)\spar\sdeux|rédui(?:t|te|sent)\sde\smoitié": 0.5},
        r"\sfois",
    ),
    _Language(
        _table(_spanish, ("cien", "ciento")),
        r"\sde\s(?:cada\s)?", r"por\sciento", r"puntos?(?:\sporcentuales)?",
        "semillas|familias|preguntas|respuestas|ejemplos|filas|ejecuciones|épocas|pasos|modelos|tareas|horas|minutos|días|"
        "capas|reglas|errores|personas|idiomas|condiciones|adaptadores",
        {r"la\smitad(?=\s(?:de|del))": 1 / 2, r"un\stercio": 1 / 3, r"dos\stercios": 2 / 3, r"una?\scuart[oa](?:\sparte)?": 1 / 4,
         r"tres\scuart[oa]s(?:\spartes)?": 3 / 4, r"un\squinto": 1 / 5},
        {r"(?:el\sdoble(?=\s(?:de|que))|duplic(?:a|ó|an|aron))": 2, r"triplic(?:a|ó|an|aron)": 3,
         r"(?:reduc(?:e|en|ido)|redujo)\sa\sla\smitad": 0.5},
        r"\sveces",
    ),
)  # fmt: skip


def written_abroad(text: str) -> Iterator[WrittenNumber]:
    """The numbers written out as words in one of these languages, in no order; of overlapping ones the first."""
    taken: list[tuple[int, int]] = []
    for found in _all(text):
        if not any(a < found.end and found.start < b for a, b in taken):
            taken.append((found.start, found.end))
            yield found


def _all(text: str) -> Iterator[WrittenNumber]:
    if CHINESE.search(text):
        yield from _chinese_shares(text)
        yield from _chinese_counts(text)
    for language, patterns in _PATTERNS:
        if patterns["there"].search(text):
            yield from _of_language(text, language, patterns)


def _patterns(language: _Language) -> Mapping[str, re.Pattern[str]]:
    n, flags = language.word, re.IGNORECASE
    said = (language.of.removesuffix(r"\s(?:je\s)?").replace(r"(?:cada\s)?", ""), language.percent, language.points,
            language.nouns, language.times, *language.parts, *language.ratios)  # fmt: skip
    return {
        "there": re.compile("|".join(said), flags),
        "share": re.compile(rf"(?<![\w-])({n}|\d{{1,3}}){language.of}({n})(?![\w-])", flags),
        "points": re.compile(rf"(?<![\w-])({n})[\s-]{language.points}(?!\w)", flags),
        "percent": re.compile(rf"(?<![\w-])({n})\s{language.percent}(?!\w)", flags),
        "count": re.compile(rf"(?<![\w-])({n})\s(?:[^\W\d_]{{3,15}}\s){{0,1}}?(?:{language.nouns})(?!\w)", flags),
        "times": re.compile(rf"(?<![\w-])({n}){language.times}(?!\w)", flags),
        "parts": re.compile("|".join(rf"(?<![\w-])({p})(?!\w)" for p in language.parts), flags),
        "ratios": re.compile("|".join(rf"(?<![\w-])({r})(?!\w)" for r in language.ratios), flags),
    }


OF = (2, 3, 4, 5, 6, 8, 10, 20, 100)
"""Wholes that a share is told of."""
_PATTERNS = tuple((language, _patterns(language)) for language in _LANGUAGES)


def _of_language(text: str, language: _Language, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[WrittenNumber]:
    def amount(word: str) -> int:
        return int(word) if word.isdigit() else language.values.get(word.lower(), 0)

    for match in patterns["share"].finditer(text):
        top, bottom = amount(match.group(1)), amount(match.group(2))
        if 0 < top <= bottom and bottom in OF and (top, bottom) != (1, 2):
            yield WrittenNumber(match.start(), match.end(), top / bottom, 0.5 / bottom, "share")
    for match in patterns["parts"].finditer(text):
        value = list(language.parts.values())[(match.lastindex or 1) - 1]
        yield WrittenNumber(match.start(), match.end(), value, 0.05, "share")
    for match in patterns["ratios"].finditer(text):
        value = list(language.ratios.values())[(match.lastindex or 1) - 1]
        yield WrittenNumber(match.start(), match.end(), value, 0.1 * value, "ratio")
    for match in patterns["times"].finditer(text):
        if amount(match.group(1)) > 1:
            value = float(amount(match.group(1)))
            yield WrittenNumber(match.start(), match.end(), value, 0.1 * value, "ratio")
    for match in patterns["points"].finditer(text):
        yield WrittenNumber(match.start(), match.end(), float(amount(match.group(1))), 0.5, "points")
    for match in patterns["percent"].finditer(text):
        yield WrittenNumber(match.start(), match.end(), float(amount(match.group(1))), 0.5, "percent")
    for match in patterns["count"].finditer(text):
        if amount(match.group(1)) > 1:
            yield WrittenNumber(match.start(1), match.end(1), float(amount(match.group(1))), 0.0, "count")


# ---------------------------------------------------------------- Chinese

_N = "[零一二两三四五六七八九十百]{1,7}"
CHINESE = re.compile(r"[\u3400-\u9fff]")
_PERCENT_ZH = re.compile(rf"百分之({_N}|\d{{1,3}}(?:\.\d+)?)(?:点([零一二三四五六七八九]{{1,6}}))?")
_SHARE_ZH = re.compile(rf"({_N})分之({_N})")
_TENTHS_ZH = re.compile(rf"({_N})成(?:([零一二三四五六七八九])|(半))?(?![功为立员本])")
_POINTS_ZH = re.compile(rf"({_N})个百分点")
_COUNT_ZH = re.compile(rf"({_N})(?=[个次轮步条项种名位层](?!百分))")
_RATIO_ZH = re.compile(rf"(翻倍|翻了?一番|加倍)|(减半|降低了?一半|减少了?一半)|({_N})倍")
_HALF_ZH = re.compile(r"(?<!降低)(?<!降低了)(?<!减少)(?<!减少了)一半(?=的|以上)?")


def chinese_amount(word: str) -> int:
    """The value of a Chinese number: `九十五` is 95, `两` is 2; 0 for what is not a number."""
    total = digit = 0
    for char in word:
        if char in _ZH or char == "两":
            digit = 2 if char == "两" else _ZH.index(char)
        else:
            total += (digit or 1) * {"十": 10, "百": 100}[char]
            digit = 0
    return total + digit


def _chinese_shares(text: str) -> Iterator[WrittenNumber]:
    for match in _PERCENT_ZH.finditer(text):
        whole, rest = match.groups()
        value = float(whole) if whole[0].isdigit() else float(chinese_amount(whole))
        digits = len(rest) if rest else len(whole.partition(".")[2])
        if rest:
            value += int("".join(str(_ZH.index(c)) for c in rest)) / 10**digits
        yield WrittenNumber(match.start(), match.end(), value, 0.5 / 10**digits, "percent")
    for match in _SHARE_ZH.finditer(text):
        bottom, top = (chinese_amount(g) for g in match.groups())
        if 0 < top <= bottom and bottom > 1:
            yield WrittenNumber(match.start(), match.end(), top / bottom, 0.5 / bottom, "share")
    for match in _TENTHS_ZH.finditer(text):
        tenths = chinese_amount(match.group(1)) + (0.5 if match.group(3) else 0.0)
        tenths += _ZH.index(match.group(2)) / 10 if match.group(2) else 0.0
        if 0 < tenths <= 10:
            half = 0.005 if match.group(2) else 0.05
            yield WrittenNumber(match.start(), match.end(), tenths / 10, half, "share")
    for match in _HALF_ZH.finditer(text):
        yield WrittenNumber(match.start(), match.end(), 0.5, 0.05, "share")


def _chinese_counts(text: str) -> Iterator[WrittenNumber]:
    for match in _POINTS_ZH.finditer(text):
        yield WrittenNumber(match.start(), match.end(), float(chinese_amount(match.group(1))), 0.5, "points")
    for match in _RATIO_ZH.finditer(text):
        value = 2.0 if match.group(1) else 0.5 if match.group(2) else float(chinese_amount(match.group(3)))
        if value:
            yield WrittenNumber(match.start(), match.end(), value, 0.1 * value, "ratio")
    for match in _COUNT_ZH.finditer(text):
        value = float(chinese_amount(match.group(1)))
        if value > 1:
            yield WrittenNumber(match.start(1), match.end(1), value, 0.0, "count")
