"""Whether a row is whole: answers that stop in the middle, prompts that cite a text which is not there.

A single row shows an open bracket, a colon with nothing behind it, a word that ends no sentence. The rest of the data
shows cut words: a last word that stands nowhere else and begins a known one, or one that ends no sentence there.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

from veritune.records import Row

_END_MARKS = ".!?…。！？।။។۔؟:;"
_CLOSING = "\"'”’»)]}*_`> \t\n"
_LAST_WORD = re.compile(r"(?:^|[\s(\"'“‘/—-])([^\W\d_][\w'’-]*)\Z")
_SENTENCE_END = re.compile(r"[.!?…](?=[\"'”’)\]]{0,3}(?:\s|\Z))|\n")
_ITEM = re.compile(r"^\s{0,8}(?:[-*•#>|]|\d{1,3}[.)]\s|[A-Za-z][.)]\s)")
_MIN_WORDS = 4  # words of the unfinished sentence; shorter ones are headings, names, closing formulas
_SEEN_INSIDE = 8  # times a word stands inside sentences of the data before "it ends none" means anything
_ENDED = 0.8  # share of a set's answers with an end mark from which its habit is known
_VOCABULARY = 50  # answers a set needs before its words are known

# Words after which an English sentence goes on; "in" and "on" also end one ("come in") and are left out.
_GOES_ON = frozenset(
    word
    for line in (
        "a an the my your our its their his her and or but nor of to with from into onto upon for by at than as",
        "because although though while whereas unless whether which who whose that when where if so then therefore",
        "however is are was were be been being am has have had will would can could should may might must shall",
        "not very also even such every each some any these those between among during without within",
    )
    for word in line.split()
)


def cut_sign(answer: str) -> str | None:
    """What shows that an answer stops in the middle, judged from this answer only; None if nothing does."""
    text = answer.rstrip()
    if not text or _ends_on_address(text):
        return None
    if text.endswith((":", "：")) and text.count("\n") + len(text.split()) > _MIN_WORDS:
        return "it ends on a colon and nothing follows"
    sentence = _last_sentence(text)
    if text[-1] in _END_MARKS or _ITEM.match(text.rsplit("\n", 1)[-1]):
        return None
    if len(sentence.split()) < _MIN_WORDS:
        return None
    if _opens(sentence):
        return "a bracket of its last sentence is never closed"
    word = _LAST_WORD.search(sentence)
    if word is None:
        return None
    last = word[1].lower()
    if last in _GOES_ON:
        return f"its last sentence stops on {word[1]!r}"
    if len(last) == 1 and last.isascii() and last not in "aio" and word[1] == last and _is_prose(sentence):
        return f"its last word is the letter {last!r}"
    return None


def _ends_on_address(text: str) -> bool:
    """Whether the last word is a link or a mail address; a pattern would read a long row without spaces in n² time."""
    word = text.rsplit(maxsplit=1)[-1]
    return any(start in word for start in ("http://", "https://", "www.")) or "@" in word[1:-1]


def _last_sentence(text: str) -> str:
    ends = list(_SENTENCE_END.finditer(text))
    begin = next((m.end() for m in reversed(ends) if m.end() < len(text)), 0)
    return text[begin:].strip()


def _opens(sentence: str) -> bool:
    at = sentence.rfind("(")
    return at >= 0 and ")" not in sentence[at:] and len(sentence) - at < 200 and sentence[at - 1 : at] in (" ", "")


def _is_prose(sentence: str) -> bool:
    return not re.search(r"[=+*/^\\$<>]|\d", sentence)


def cut_words(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Answers whose last word is cut, or never ends a sentence elsewhere in the data: the row and the evidence."""
    answers = [(row, (row.target or "").rstrip()) for row in rows]
    ended = sum(bool(text) and text.rstrip(_CLOSING)[-1:] in tuple(_END_MARKS) for _, text in answers)
    open_ = [
        (row, text)
        for row, text in answers
        if text and text[-1].isalpha() and not _ends_on_address(text) and not _ITEM.match(text.rsplit("\n", 1)[-1])
    ]
    if len(rows) < _VOCABULARY or not open_:
        return
    inside, final = _words(text for _, text in answers)
    known = sorted(word for word, n in inside.items() if n > 1)
    for row, text in open_:
        sentence = _last_sentence(text)
        word = _LAST_WORD.search(sentence)
        if word is None or len(sentence.split()) < _MIN_WORDS or cut_sign(text) is not None:
            continue
        last = word[1].lower()
        if word[1].islower() and inside[last] + final[last] <= 1 and _begins_another(last, known):
            yield row, f"its last word {word[1]!r} is the beginning of another word"
        elif ended >= _ENDED * len(rows) and inside[last] >= _SEEN_INSIDE and final[last] <= 1:
            yield row, f"its last sentence stops on {word[1]!r}, which ends no sentence of this data"


def _words(texts: Iterator[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each word stands inside a sentence, and at the end of one (the end of a text included)."""
    inside: Counter[str] = Counter()
    final: Counter[str] = Counter()
    token = re.compile(r"([^\W\d_][\w'’-]*)([.!?…,;:\"'”’)\]]*)(\s*)")
    for text in texts:
        lowered = text.lower()
        matches = list(token.finditer(lowered))
        for i, match in enumerate(matches):
            ends = any(mark in match[2] for mark in ".!?…") or "\n" in match[3] or i == len(matches) - 1
            (final if ends else inside)[match[1]] += 1
    return inside, final


def _begins_another(word: str, known: Sequence[str]) -> bool:
    at = bisect_right(known, word)
    return at < len(known) and known[at].startswith(word)


# ---------------------------------------------------------------- texts that are cited


_NOUN = (
    "passage|text|article|paragraph|excerpt|extract|document|story|poem|letter|email|report|abstract|transcript|"
    "dialogue|conversation|table|figure|graph|chart|diagram|picture|image|photo|map|code|snippet|statements?|argument|"
    "information|data|scenario|case study"
)
_CITED = re.compile(
    rf"\bthe above\b(?!-)|\b(?:this|the) above-mentioned\b|\b(?:{_NOUN}) (?:above|below)\b|"
    rf"\b(?:above|following) (?:passage|text|article|paragraph|excerpt|extract|document|story|poem|letter|email|"
    rf"table|figure|graph|chart|diagram|picture|image|map|code snippet)\b(?!s)|"
    r"\b(?:according to|based on|in|from|of|by|with|to) (?:the|this) (?:\w+ )?(?:passage|excerpt|article|paragraph)\b|"
    r"\bthe passage\b|\bas (?:shown|depicted|illustrated) in the (?:figure|picture|image|diagram|graph|chart)\b|"
    r"\bdescribed in the (?:passage|article|text)\b"
)
_OPTION = re.compile(r"(?m)^\s{0,8}\(?[A-Ea-e1-5][.):]\s.*$")
_HELD = 14  # words beside the citing sentence that can be the text: a shorter one is an instruction
_COMPOSES = re.compile(r"\b(?:write|create|compose|generate|draft|give me|make up|come up with)\b")


def cites_missing_text(row: Row) -> str | None:
    """The words with which the last user turn, or the answer, cites a text that no earlier turn contains; None if there
    are none.
    """
    asked = [message.content for message in row.prompt]
    if not asked:
        return None
    last = _OPTION.sub("", asked[-1]).strip()
    lowered = last.lower()
    match = _CITED.search(lowered)
    if match is not None and not _COMPOSES.search(lowered[: match.start()]):
        rest = _without_sentence(last, match.start(), match.end())
        if _n_words("\n".join((*asked[:-1], rest))) < _HELD:
            return match[0]
    answer = (row.target or "").lower()[:400]
    told = re.search(
        r"\b(?:according to|as (?:stated|described|mentioned) in) the (?:passage|article|excerpt)\b", answer
    )
    if told is not None and match is None and _n_words("\n".join(asked)) < 2 * _HELD:
        return told[0]
    return None


def _without_sentence(text: str, begin: int, end: int) -> str:
    """The text without the sentence around [begin, end); what stands behind a colon there is the text that is cited."""
    before = [m.end() for m in _SENTENCE_END.finditer(text, 0, begin)]
    after = _SENTENCE_END.search(text, end)
    colon = text.find(":", end, after.end() if after else len(text))
    rest = text[colon + 1 :] if colon >= 0 else text[after.end() :] if after else ""
    return f"{text[: before[-1] if before else 0]} {rest}"


def _n_words(text: str) -> int:
    """Words, where characters of scripts without spaces count as half a word."""
    unspaced = len(re.findall(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]", text))
    return len(text.split()) + unspaced // 2
