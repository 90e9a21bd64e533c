"""What the verdicts allow to be said: no cause without an intervention, no win the records do not carry.

A randomised difference of conditions counts as an intervention for that contrast only: `all_layer scores higher than the
baseline because its target modules were trained` may be said where that contrast is supported; why it works may not.
A sentence that denies, asks or quotes is free: `this does not show …`, `whether …`, what stands under "may not be said".
"""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from veritune.counting import many
from veritune.patterns import search
from veritune.writeup.lint.markdown import Block, Sentence
from veritune.writeup.lint.number_words import WRITTEN, amount
from veritune.writeup.lint.rules import Rules
from veritune.writeup.lint.scope import COMPARED
from veritune.writeup.lint.structure import Raised, grade_said
from veritune.writeup.lint.winwords import EQUAL, MEMORISED, WIN_OR_PROOF, denied, denied_abroad
from veritune.writeup.lint.words import Lexicon, Mention
from veritune.writeup.quantities import BASELINE, CheckedRecords, Quantity

OUTCOME = re.compile(
    r"\b(?:scor\w+|better|worse|higher|lower|improv\w+|gap|gain\w*|learn\w*|generali[sz]\w+|outperform\w*|drop\w*|r[io]se\w*|success\w*|"
    r"works?|wins?|follow\w*|style|perform\w*|effect\w*|result\w*|differ\w*|advantage|lift\w*|carr(?:y|ies|ied)|transfer\w*|fail\w*|reach\w*)\b",
    re.IGNORECASE,
)
CAUSAL = re.compile(
    r"\b(?:because(?:\sof)?|caus(?:es|ed by|ed|ing)|due to|owing to|thanks to|as a result of|leads? to|led to|drives?|driven by|"
    r"explains? (?:why|the)|the reason|is why|responsible for|stems? from|(?:gain|gap|improvement|difference|advantage|lift)s? (?:\w+ ){0,5}(?:comes?|came) from|attributable to|brought about|enabl(?:es|ed)|"
    r"results? from|gives rise to|forces?|makes (?:the|it))\b",
    re.IGNORECASE,
)
PROBES = (
    r"nll|loss(?:es)?|log-likelihood|gradients?|weights?|norms?|perplexity|geometry|activations?|neurons?|representations?|"
    r"attention heads?|circuits?|layers? (?:store|encode|hold)|mlps?\b"
)
MECHANISM = re.compile(
    rf"\b(?:{PROBES})\b.{{0,120}}\b(?:show(?:s|ed)?|prove[sd]?|demonstrate[sd]?|reveal(?:s|ed)?|mean(?:s|t)?|confirm(?:s|ed)?|explain(?:s|ed)?|"
    r"tell(?:s)? us|indicate[sd]?|impl(?:y|ies|ied))\b.{0,120}\b(?:learn\w*|understand\w*|understood|knows?|knew|internali[sz]\w*|memori[sz]\w*|stor(?:e|es|ed)|"
    r"encod\w+|represent\w*|acquir\w+|mechanism|reason\w*|why|how)\b",
    re.IGNORECASE | re.DOTALL,
)
GENERAL = re.compile(
    r"\b(?:in general|generally (?:better|superior|stronger|higher)|always (?:better|wins?|beats?|improves?|scores?|outperforms?)|superior(?:ity)?|state[\s-]of[\s-]the[\s-]art|SOTA|"
    r"(?:on|across|for|to|in) (?:any|all|every|other) (?:models?|tasks?|benchmarks?|domains?|datasets?)|universal(?:ly)?|"
    r"best (?:method|choice|way|practice)|should always|everywhere|any (?:model|task)|fine-tuning works|language models in general|"
    r"(?:is|are) (?:simply |clearly |strictly |just )?the (?:better|best) (?:method|choice|recipe|option|approach)|in practice one should)\b",
    re.IGNORECASE,
)
SIZE = re.compile(
    r"\b(?:substantial(?:ly)?|dramatic(?:ally)?|vast(?:ly)?|huge(?:ly)?|massive(?:ly)?|enormous(?:ly)?|considerabl[ey]|marked(?:ly)?|"
    r"meaningful(?:ly)?|relevant amount|practically (?:relevant|important|significant)|far (?:better|higher|worse|lower)|a large (?:gap|gain|improvement|effect|margin)|"
    r"much (?:better|higher|worse|lower))\b",
    re.IGNORECASE,
)
TREND = re.compile(
    r"\b(?:(?:a|the|clear|positive|strong) trend|trend(?:s|ing|ed)? (?:towards?|to|in|up)|tends? to (?:be|score|do)|(?:marginally|almost|nearly|borderline|approach\w+|close to|just short of) signific\w+|"
    r"approach\w+ significance|numerically (?:better|higher|ahead|superior)|directionally|slight edge|suggestive of)\b",
    re.IGNORECASE,
)
SETTLED_WORD = re.compile(
    r"outperform|outscor|beats?|doubl|tripl|halv|\bby\shalf\b|\bcuts?\b.{0,40}\bin\shalf\b|significant|surpass|superior|übertr|verdoppel|halbier|dépasse|supera|duplica|优|超|胜|翻倍",
    re.IGNORECASE,
)
"""Wins that need a verdict even where one arm or none is named."""
STATUS = re.compile(
    r"\b(supported|confirmed|refuted|rejected|disproved|inconclusive|unresolved|untested)\b", re.IGNORECASE
)
STATUS_OF = {"confirmed": "supported", "rejected": "refuted", "disproved": "refuted", "unresolved": "inconclusive"}
ZERO = re.compile(
    r"\b(?:interval|CI)s?\b[^.;]{0,60}?\b(?:(?P<out>excludes?|excluding|misses|lies (?:above|below)|is (?:above|below))|"
    r"(?:holds?|includes?|including|contains?|covers?|cross(?:es)?|spans?))\s(?:0|zero)\b(?![.,]\d)",
    re.IGNORECASE,
)
_N = rf"(?:\d{{1,3}}|{WRITTEN})"
TALLY = re.compile(
    rf"\b(?:(?P<all>all|every|both|each)(?:\s(?:of\s)?(?:the|our|its|these))?(?:\s(?P<of>{_N}))?|(?P<none>none|no|neither)(?:\sof)?(?:\s(?:the|our|its))?(?:\s{_N})?|"
    rf"(?:only\s|just\s|exactly\s)?(?P<n>{_N})(?:\s(?:out\s)?of\s(?:the\s|our\s|its\s)?(?P<whole>{_N}))?)"
    r"\s(?:(?:declared|confirmatory|pre-declared|pre-registered|other|remaining)\s)?(?:claims?|hypothes[ei]s|verdicts?)\s"
    r"(?:is|are|was|were|came out|come out|comes out|ended|end|stays?|stayed|remains?|remained|holds?|held)?(?:\sas)?\s?"
    r"(?P<status>supported|confirmed|refuted|rejected|inconclusive|unresolved|untested|open|undecided|(?<=hold)|(?<=holds)|(?<=held))(?!\w)",
    re.IGNORECASE,
)
"""A number of claims with one outcome."""
TALLIED = {"": "supported", "open": "inconclusive", "undecided": "inconclusive"}
EXPLORED = re.compile(
    r"\b(?:as (?:we )?predicted|as expected|as declared|pre-?registered|pre-?declared|confirm(?:s|ed|atory)|planned in advance)\b",
    re.I,
)
UP = re.compile(
    r"\b(?:outperform(?:s|ed)?|outscor(?:es|ed)|beats?|(?:scor\w+|is|was|are|were|ends?|lies|sits|stays?|comes? out|does|did|performs?|performed) (?:\w+ )?(?:higher|better|ahead|above)|better than|higher than|ahead of|surpass(?:es|ed)|exceeds?|"
    r"improv(?:es|ed) (?:on|over|upon))\b",
    re.IGNORECASE,
)
DOWN = re.compile(
    r"\b(?:(?:scor\w+|is|was|are|were|ends?|lies|sits|stays?|comes? out|does|did|performs?|performed) (?:\w+ )?(?:lower|worse|behind|below)|worse than|lower than|trails|trailed|falls? (?:short of|behind|below)|fell (?:short of|behind|below)|"
    r"loses to|lost to|behind)\b",
    re.IGNORECASE,
)
RECIPE = re.compile(
    r"\b(?:this|the|our|that|a) (?:[\w-]+ ){0,2}recipe\b|\brecipes?\s(?:works?|improves?|scores?|beats?|wins?)",
    re.IGNORECASE,
)
QUOTED = re.compile(r"“[^”]{0,400}”|\"[^\"]{0,400}\"")
FORBIDDEN_SECTIONS = ("may not", "not be said", "does not show")
"""Headings under which quotes are what nobody says."""
FREE_SECTIONS = (*FORBIDDEN_SECTIONS, "next", "background", "question", "motivation", "future")


SIZED = re.compile(
    r"\s+(?:\w+\s+)?(?:gap|gain|improvement|effect|difference|increase|drop|rise|fall|change|advantage)\b", re.I
)
"""What a word of size speaks of, behind it."""


def _is_name(found: re.Match[str], text: str, mentions: list[Mention]) -> bool:
    """Whether a word is the study's own name of an eval or another thing (`all_layer on marked`), and no size."""
    named = any(m.start <= found.start() and found.end() <= m.end for m in mentions)
    return named and not SIZED.match(text, found.end())


class Speech:
    """Checks sentences against the verdicts."""

    def __init__(self, records: CheckedRecords, lexicon: Lexicon, rules: Rules) -> None:
        self.records, self.lexicon, self.rules = records, lexicon, rules
        self.verdicts = [(v, records.claim(v["claim"])) for v in records.verdicts]
        self.scores = {q.name: q for q in records.quantities if q.kind == "score" and not q.stale}

    def check(self, block: Block, sentence: Sentence, previous: str = "") -> Iterator[Raised]:
        """Findings on one sentence."""
        free = bool(block.section) and any(w in block.section[-1].lower() for w in FORBIDDEN_SECTIONS)
        text = QUOTED.sub(lambda m: " " * len(m.group()), sentence.text)
        mentions = self.lexicon.mentions(text)
        at = sentence.start
        for rule in self.rules.forbid:
            match = search(rule.pattern, text)
            if match and not (rule.unless and search(rule.unless, text)):
                yield rule.id, at + match.start(), rule.message, ""
        if free:
            return
        yield from self._wording(text, mentions, at, previous)
        yield from self._against_verdicts(text, mentions, at)

    # -- words on their own -----------------------------------------------------------------------------------

    def _wording(self, text: str, mentions: list[Mention], at: int, previous: str) -> Iterator[Raised]:
        mechanism = MECHANISM.search(text)
        if mechanism and not denied(text, mechanism.start(), mechanism.end()):
            yield (
                "speech.mechanism",
                at + mechanism.start(),
                "an NLL or another probe names no mechanism",
                "say what was measured",
            )
        general = GENERAL.search(text)
        if general and not denied(text, general.start(), general.end()):
            n_evals = len(self.records.evals)
            message = f"{general.group()!r}: one model and {many(n_evals, 'evals')} were measured"
            yield "speech.general", at + general.start(), message, "name the model, the eval and the zone"
        causal = CAUSAL.search(text)
        if causal and not mechanism and not denied(text, 0, causal.end()) and self._causes(text, causal, mentions):
            message = f"{causal.group()!r} claims a cause that no intervention of this study isolates"
            yield "speech.causal", at + causal.start(), message, "say what differed, not why"
        trend = TREND.search(text)
        if trend and not denied(text, trend.start(), trend.end()):
            yield (
                "speech.trend",
                at + trend.start(),
                f"{trend.group()!r}: the interval decides, not the point estimate",
                "",
            )
        recipe = RECIPE.search(text)
        if recipe and not denied(text, recipe.start(), recipe.end()) and self._few_seeds(mentions):
            yield (
                "speech.recipe",
                at + recipe.start(),
                "one seed speaks of this adapter, not of the recipe",
                "this adapter",
            )
        size = next((found for found in SIZE.finditer(text) if not _is_name(found, text, mentions)), None)
        if size and not denied(text, size.start(), size.end()) and not self._size_known(mentions, text):
            message = f"{size.group()!r}: no margin was declared for this, so its size is unresolved"
            yield "speech.size", at + size.start(), message, "give the gap and its interval"

    def _causes(self, text: str, causal: re.Match[str], mentions: list[Mention]) -> bool:
        """Whether a causal sentence about an outcome goes beyond the contrast that was randomised."""
        if not OUTCOME.search(text) and not any(m.dimension == "condition" for m in mentions):
            return False
        if re.search(PROBES, text, re.IGNORECASE):
            return True
        arms = {m.value for m in mentions if m.dimension == "condition"}
        backward = re.match(
            r"because|due|owing|thanks|as a result|caused by|driven by|stem|come|attrib|result", causal.group(), re.I
        )
        cause = text[causal.end() :] if backward else text[: causal.start()]
        about = {m.value for m in self.lexicon.mentions(cause) if m.dimension == "condition"}
        factor = any(
            f.replace("_", " ").rstrip("s") in cause.lower() for f in self.records.terms["study"].get("factor", ())
        )
        trained = (
            bool(re.search(r"\b(?:training|fine[\s-]?tuning|fine[\s-]?tune|trained)\b", cause, re.I))
            and BASELINE in arms
        )
        contrast = len(arms) > 1 and self._supported(arms)
        return not (contrast and (about or factor or trained) and len(cause.split()) <= 14)

    def _supported(self, arms: set[Any]) -> bool:
        return any(
            v["status"] == "supported" and {c.get("condition"), c.get("against")} <= arms for v, c in self.verdicts
        )

    def _few_seeds(self, mentions: list[Mention]) -> bool:
        """Whether the arms that are spoken of have one run each."""
        said = {m.value for m in mentions if m.dimension == "condition" and m.value != BASELINE}
        runs: dict[str, int] = {}
        for summary in self.records.runs.values():
            if summary.seed is not None:
                runs[summary.condition] = runs.get(summary.condition, 0) + 1
        counted = [n for name, n in runs.items() if not said or name in said]
        return bool(counted) and min(counted) < 2

    def _size_known(self, mentions: list[Mention], text: str) -> bool:
        arms = {m.value for m in mentions if m.dimension == "condition"}
        if not arms and not OUTCOME.search(text):
            return True
        for verdict, claim in self.verdicts:
            pair = {claim.get("condition"), claim.get("against")}
            sized = verdict.get("margin") is not None and "by the margin" in str(verdict.get("decision"))
            if sized and (not arms or arms <= pair or pair <= arms):
                return True
        return False

    # -- against the verdicts ---------------------------------------------------------------------------------

    def _against_verdicts(self, text: str, mentions: list[Mention], at: int) -> Iterator[Raised]:
        named = [
            pair
            for pair in self.verdicts
            if any(m.dimension == "claim" and m.value == pair[0]["claim"] for m in mentions)
        ]
        yield from self._status(text, named, at)
        yield from self._tally(text, at)
        about = named or self._about(mentions)
        yield from self._zero(text, about, at)
        equal = EQUAL.search(text)
        free = equal is None or denied(text, equal.start(), equal.end()) or not self._performance(text, mentions)
        if equal and not free and not any(_equivalent(v) for v, _ in about):
            yield (
                "speech.equal",
                at + equal.start(),
                f"{equal.group()!r}: no equivalence within a margin was shown",
                "a high p is not equality",
            )
            return
        yield from self._memorised(text, at)
        yield from self._wins(text, mentions, about, at)
        yield from self._direction(text, mentions, at)
        explored = EXPLORED.search(text)
        only = bool(about) and all(v.get("exploratory") for v, _ in about)
        if explored and only and not denied(text, explored.start(), explored.end()):
            yield (
                "speech.exploratory",
                at + explored.start(),
                "the claim is exploratory",
                "call it exploratory",
            )

    def _performance(self, text: str, mentions: list[Mention]) -> bool:
        """Whether a sentence compares outcomes: two arms, or an arm and an outcome word."""
        arms = {m.value for m in mentions if m.dimension == "condition"}
        return (
            len(arms) > 1
            or (bool(arms) and bool(OUTCOME.search(text)))
            or bool(
                re.search(r"\b(?:conditions|arms|adapters|zones|choice of|target modules)\b", text, re.I)
                and OUTCOME.search(text)
            )
        )

    def _about(self, mentions: list[Mention]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Verdicts whose two arms a sentence names, in the zones it names."""
        arms = {m.value for m in mentions if m.dimension == "condition"}
        zones = {m.value for m in mentions if m.dimension == "zone"}
        evals = {m.value for m in mentions if m.dimension == "eval"}
        found = []
        for verdict, claim in self.verdicts:
            pair = {claim.get("condition"), claim.get("against")}
            places = (
                {claim.get("zone"), claim.get("from_zone"), claim.get("to_zone")}
                if verdict["kind"] == "generalises"
                else {claim.get("zone")}
            )
            if pair <= arms and (not zones or zones & places) and (not evals or self.records.eval_of(claim) in evals):
                found.append((verdict, claim))
        return found

    def _tally(self, text: str, at: int) -> Iterator[Raised]:
        """`all three claims are supported`, `two of three claims hold` against the number of such verdicts."""
        for match in TALLY.finditer(text):
            word = match["status"].lower()
            status = TALLIED.get(word, STATUS_OF.get(word, word))
            if denied(text, match.start("status"), match.end("status")) and not match["none"]:
                continue
            exploratory = [v for v, _ in self.verdicts if v.get("exploratory")]
            confirmatory = [v for v, _ in self.verdicts if not v.get("exploratory")]
            right = set()
            for group in (confirmatory, [*confirmatory, *exploratory]):
                n = sum(v["status"] == status for v in group)
                right |= {(n, None), (n, len(group))}
            total = None
            if match["all"]:
                said = total = len(confirmatory) if match["of"] is None else amount(match["of"])
            elif match["none"]:
                said = 0
            else:
                said, total = amount(match["n"]), amount(match["whole"]) if match["whole"] else None
            if (said, total) not in right:
                n = sum(v["status"] == status for v in confirmatory)
                message = f"{match.group()!r}: {n} of {len(confirmatory)} declared claims are {status}"
                yield "speech.verdict", at + match.start(), message, "Count the verdicts again."

    def _zero(self, text: str, about: list[Any], at: int) -> Iterator[Raised]:
        """`the interval excludes 0` against the interval of the only verdict that the sentence is about."""
        match = ZERO.search(text)
        if match is None or len(about) != 1:
            return
        verdict = about[0][0]
        if verdict["kind"] in ("generalises", "keeps", "probe") or not verdict["estimates"]:
            return
        low, high = (verdict["estimates"][0][end] for end in ("low", "high"))
        if low is None or high is None:
            return
        out = bool(match["out"]) != denied(text, match.start(), match.end())
        if out != (low > 0 or high < 0):
            message = f"the interval of {verdict['claim']} is [{low:.3f}, {high:.3f}]"
            yield "speech.verdict", at + match.start(), message, "Say whether it holds 0."

    def _status(self, text: str, named: list[Any], at: int) -> Iterator[Raised]:
        """`learns_the_style is supported (low confidence)` against the verdict."""
        said = STATUS.search(text)
        if said and len(named) == 1 and not denied(text, said.start(), said.start()):
            word = STATUS_OF.get(said.group(1).lower(), said.group(1).lower())
            verdict = named[0][0]
            words = {STATUS_OF.get(w.lower(), w.lower()) for w in STATUS.findall(text)}
            if word != verdict["status"] and verdict["status"] not in words:
                yield "speech.verdict", at + said.start(), f"{verdict['claim']} is {verdict['status']}", ""
        if len(named) == 1:
            grade, recorded = grade_said(text), str(named[0][0]["confidence"].get("grade"))
            explicit = grade is not None and re.search(r"\bconfidence\b", text, re.I)
            if explicit and grade != recorded and grade != "none":
                yield "title.confidence", at, f"{named[0][0]['claim']} is graded {recorded}, the text says {grade}", ""

    def _wins(self, text: str, mentions: list[Mention], about: list[Any], at: int) -> Iterator[Raised]:
        """A settled wording for a verdict that is not settled that way."""
        win = WIN_OR_PROOF.search(text)
        if not win or denied(text, win.start(), win.end()) or STATUS.search(text):
            return
        if denied_abroad(text, win.start()):
            return
        if not about:
            yield from self._undeclared(text, mentions, win, at)
            return
        if any(v["status"] == "supported" for v, _ in about):
            return
        if re.match("equivalent|no regr|is not", win.group(), re.IGNORECASE) and any(_equivalent(v) for v, _ in about):
            return
        loser = DOWN.search(text)
        settled = [v for v, _ in about if v["status"] == "refuted" and (loser or "worse" in str(v.get("decision")))]
        if settled or any(
            "size unresolved" in str(v.get("decision")) and v["kind"] not in ("generalises", "keeps") for v, _ in about
        ):
            return
        verdict = about[0][0]
        message = f"{win.group()!r}: {verdict['claim']} is {verdict['status']}"
        yield "speech.verdict", at + win.start(), message, "write what the verdict's own sentence says"

    def _undeclared(self, text: str, mentions: list[Mention], win: re.Match[str], at: int) -> Iterator[Raised]:
        """A win that no claim was declared on: two arms without a verdict between them, or one that won nothing."""
        arms = {str(m.value) for m in mentions if m.dimension == "condition"}
        words = f"{win.group()!r}"
        if len(arms) > 1:
            if any({c.get("condition"), c.get("against")} <= arms for _, c in self.verdicts):
                return  # a claim on another zone or eval: the numbers are checked on their own
            named = " against ".join(sorted(arms)[:2])
            yield (
                "speech.verdict",
                at + win.start(),
                f"{words}: no claim was declared on {named}",
                "Declare a claim on that contrast before training, or give both scores and say no more.",
            )
            return
        if not SETTLED_WORD.search(win.group()) or not self._performance(text, mentions):
            return
        won = [v for v, c in self.verdicts if v["status"] == "supported" and (not arms or c.get("condition") in arms)]
        if not won:
            whose = f" of {next(iter(arms))}" if arms else ""
            message = f"{words}: no verdict supports a win{whose}"
            yield "speech.verdict", at + win.start(), message, "Write what the verdict's own sentence says."

    def _memorised(self, text: str, at: int) -> Iterator[Raised]:
        """`it memorised nothing` needs a supported claim that the gain carries to other families."""
        found = MEMORISED.search(text)
        if found is None or denied(text, 0, found.start()):
            return
        if not any(v["kind"] == "generalises" and v["status"] == "supported" for v, _ in self.verdicts):
            message = f"{found.group()!r}: no claim shows that the gain carries to families it never saw"
            yield (
                "speech.verdict",
                at + found.start(),
                message,
                "Give the share carried to strangers with its interval.",
            )

    def _direction(self, text: str, mentions: list[Mention], at: int) -> Iterator[Raised]:
        """`A outscores B` where the records have it the other way round."""
        arms = [m for m in mentions if m.dimension == "condition"]
        up, down = UP.search(text), DOWN.search(text)
        word = up or down
        if (
            len({m.value for m in arms}) != 2
            or word is None
            or (up and down)
            or re.search(r"\b(?:nll|loss|nats|parameters)\b", text, re.I)
        ):
            return
        if denied(text, word.start(), word.end()):
            return
        subject = _compared_subject(text, arms, word)
        if subject is None:
            return
        other = next(m.value for m in arms if m.value != subject.value)
        gaps = [a - b for a, b in self._means(str(subject.value), str(other), mentions)]
        sign = 1 if up else -1
        if gaps and all(g * sign < 0 for g in gaps):
            yield (
                "speech.direction",
                at + word.start(),
                f"the records have {subject.value} {'below' if up else 'above'} {other}",
                "",
            )

    def _means(self, a: str, b: str, mentions: list[Mention]) -> Iterator[tuple[float, float]]:
        zones = {m.value for m in mentions if m.dimension == "zone"}
        evals = {m.value for m in mentions if m.dimension == "eval"}
        for q in self.scores.values():
            s = q.scope
            if (
                s.condition == a
                and s.seed is None
                and (not zones or s.zone in zones)
                and (not evals or s.eval in evals)
            ):
                other: Quantity | None = self.scores.get(f"score.{s.eval}.{s.zone}.{b}")
                if other is not None:
                    yield q.value, other.value


PART = re.compile(r"[,;:(]|\b(?:so|and|but|or|while|whereas|because|since|although|where)\b", re.IGNORECASE)
"""Where a part of a sentence begins, with a subject of its own."""
SET_APART = re.compile(r"\b(?:unlike|not|with|without|beside)\s(?:the\s)?$", re.IGNORECASE)


def _compared_subject(text: str, arms: list[Mention], word: re.Match[str]) -> Mention | None:
    """The arm that a comparative speaks of: the one of its own part of the sentence, else the only one before it.

    `A gets .8, 8 points less than B, so B is better than A` is about B. None where the words leave it open.
    """

    def free(m: Mention) -> bool:
        before = text[max(0, m.start - 40) : m.start]
        return not COMPARED.search(before) and not SET_APART.search(before)

    ahead = [m for m in arms if m.end <= word.start() and free(m)]
    begin = max((p.end() for p in PART.finditer(text, 0, word.start())), default=0)
    own = [m for m in ahead if m.start >= begin]
    for among in (own, ahead):
        if among:
            return among[0] if len({m.value for m in among}) == 1 else None
    return next((m for m in arms if free(m)), arms[0])


def _equivalent(verdict: Mapping[str, Any]) -> bool:
    return verdict.get("decision") == "equivalent" or (
        verdict["status"] == "supported" and verdict["kind"] in ("equivalent", "no_regression", "not_worse")
    )
