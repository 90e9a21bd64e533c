"""Words that state a win, an equality or that nothing was memorised, in five languages: each needs a verdict."""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re

_WINS = (
    r"\b(?:improv(?:es|ed|ement)\b|beats?\b|beaten|outperform\w*|outscor\w*|better (?:than|by)|higher (?:than|by)|scor(?:es|ed) higher|wins\b|won\b(?!['’])|superior|exceed(?:s|ed)?\b|ahead of|surpass\w*|"
    r"worse (?:than|by)|lower (?:than|by)|scor(?:es|ed) lower|differs? (?:from|by)|is not worse|no regression|equivalent|"
    r"(?:doubl|tripl|halv)(?:es|ed)\b|twice (?:as|the)\b|half (?:as many|the) (?:errors?|mistakes|failures)|significant(?:ly)? (?:better|higher|improve\w*|outperform\w*|gain|difference|worse|lower)|"
    # German
    r"besser (?:als|um)|(?:signifikant|deutlich|klar) besser|übertr(?:ifft|af|offen|effen)\w*|schlägt|schlug|überlegen|verbessert|verdoppel\w+|halbier\w+|höher als|niedriger als|schlechter als|doppelt so|halb so viele|gewinnt|"
    # French
    r"meilleure?s? que|mieux que|(?:nettement|significativement) (?:mieux|meilleure?s?)|surpass\w+|dépass\w+|supérieure?s? (?:à|au)|inférieure?s? (?:à|au)|double (?:le|la|les)|réduit de moitié|divis\w+ par deux|deux fois (?:plus|moins|mieux)|"
    r"l['’]emporte sur|améliore\w*|pires? que|"
    # Spanish
    r"mejor(?:es)? que|(?:significativamente|claramente) mejor(?:es)?|supera(?:n|ron|ba)?\b|superó|superior(?:es)? a|inferior(?:es)? a|duplic(?:a|ó|an|aron)\b|el doble de|reduc\w+ a la mitad|vence\w* a|gan(?:a|ó) a|mejora(?:n|ron)?\b|mejoró|peor(?:es)? que)"
    # Chinese
    r"|优于|超过了?|胜过|好于|超越|击败|翻倍|翻了一番|翻番|减半|降低了?一半|高于|低于|差于|不如|更好|显著提[升高]|提[升高]了"
)
WIN = re.compile(_WINS, re.IGNORECASE)
WIN_OR_PROOF = re.compile(
    _WINS
    + r"|\b(?:(?:confirms?|confirmed|shows?|showed|proves?|proved|demonstrates?|establish\w*|supports?) (?:that|the claim)|"
    r"matters\b|carr(?:ies|ied) (?:over|to)|generali[sz]es?\b)",
    re.IGNORECASE,
)
"""A win, or that the claim of a study holds: where claims were declared, these words are about them."""
DOWN_WORDS = re.compile(
    r"\b(?:worse|lower|behind|trail\w*|loses? to|lost to|schlechter|niedriger|unterliegt|pires?|inférieure?s?|peor(?:es)?|inferior(?:es)?)\b|低于|差于|不如|劣于",
    re.IGNORECASE,
)
EQUAL = re.compile(
    r"\b(?:no (?:real |measurable |meaningful |significant |statistical )?(?:difference|effect|gap|change|regression|loss in)|equally (?:good|well|strong)|equal(?:s|led)?(?: to| in| score)?\b|on par|on a par|"
    r"(?:is|are|was|were|be) (?:statistically |practically |essentially )?(?:equal|identical|equivalent|the same|indistinguishable|comparable)|"
    r"as (?:good|high|strong|accurate) as|perform(?:s|ed)? as well as|perform(?:s|ed)? (?:the same|identically|comparably|alike|equivalently)|same (?:score|performance|quality|result)s?|match(?:es|ed)? (?:the |that )|"
    r"makes? no difference|does not (?:matter|differ|change)|do not (?:matter|differ)|did not (?:matter|differ)|tied?\b|"
    r"kein(?:en|e|er)? (?:messbare[nr]? |signifikante[nr]? )?Unterschiede?|gleich gut|gleichauf|(?:eben|genau)so gut wie|unterscheide[nt] sich nicht|"
    r"aucune différence|pas de différence|aussi bon(?:ne)?s? que|à égalité|ne diff[éè]re(?:nt)? pas|"
    r"ninguna diferencia|no hay (?:ninguna )?diferencias?|sin diferencias?|tan buen[oa]s? como|igual de buen[oa]s?|no difieren?|empata\w*)|"
    r"没有(?:显著|明显)?(?:的)?(?:差异|区别|差别)|无(?:显著|明显)?(?:差异|区别|差别)|持平|不相上下|(?:性能|表现|效果)相当",
    re.IGNORECASE,
)
MEMORISED = re.compile(
    r"\b(?:memori[sz]ed nothing|nothing (?:was|is|has been) memori[sz]ed|no memori[sz]ation|without memori[sz]ing|did not memori[sz]e|does not memori[sz]e|has not memori[sz]ed|"
    r"nichts (?:auswendig gelernt|memoriert)|rien (?:mémorisé|retenu par cœur)|sans (?:rien )?mémoriser|no (?:ha )?memoriz(?:ó|ado) nada|nada memorizado|sin memorizar)|"
    r"没有(?:死记|记忆|背|记住)|未(?:死记|记住|背)",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"\b(?:not|no|never|nor|cannot|can't|doesn't|does not|don't|isn't|aren't|wasn't|won't|neither|nothing|without|whether|rather than|"
    r"unless|if|would|unclear|unknown|untested|may not|must not|open|forbids?|avoid|hypothes[ie]s|might|could|should|questions?|"
    r"ask(?:s|ed)?|test(?:s|ed)? (?:whether|if|that)|instead of|declared|h[0-9]\b|require[sd]?|needs?|to learn|to know|inconclusive|unresolved)\b|n't\b|\?",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"\b(?:weder|ob|wenn|falls|si\b|tampoco|sin que|no)\b|不(?:能|会|是)?|并非|未(?:必|能)|是否|如果", re.IGNORECASE
)
_ANYWHERE = re.compile(r"\bnicht\b(?! nur)|\bn(?:e\s|['’])[^.;]{1,40}\bpas\b", re.IGNORECASE)
"""In German and French the denial of a verb stands behind it too."""


def denied(text: str, start: int, end: int) -> bool:
    """Whether the clause contains a denial or question before the wording at [start, end) or inside it."""
    begin = max(text.rfind(";", 0, start), text.rfind(", but ", 0, start), text.rfind(", so ", 0, start)) + 1
    if text.rstrip().endswith(("?", "？")):
        return True
    own = re.match(r"(?:no|not|without|does not|do not|did not|has not|makes? no)\b", text[start:end], re.IGNORECASE)
    return bool(DENIED.search(text, begin, start)) or (own is None and bool(DENIED.search(text, start, end)))


def denied_abroad(text: str, start: int) -> bool:
    """The same as `denied` for German, French, Spanish and Chinese, for a wording that begins at `start`."""
    return _BEFORE.search(text, 0, start) is not None or _ANYWHERE.search(text) is not None
