"""Three lines for somebody who reads no further: what held, what stays open, what to do next.

They are chosen from the verdicts and the plan; nothing is computed. A claim that is exploratory, or whose confidence is
low, is never named without saying so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veritune.counting import grouped
from veritune.report.read import Records
from veritune.report.views import ClaimCard, text_of

MOST_NAMED = 4
"""Claims that a line names; the others are counted."""
OPEN = ("inconclusive", "untested")
NOT_GOOD = ("poor", "weak")


@dataclass(frozen=True)
class SummaryPart:
    """A claim as named in a summary line: its link target, its name, what of it holds, and what limits that."""

    anchor: str
    name: str
    text: str
    limits: str = ""


@dataclass(frozen=True)
class SummaryLine:
    """One summary line: its lead (`Held`), then claims, or words if no claim is named. `more` counts claims that are
    not named.
    """

    lead: str
    parts: Sequence[SummaryPart] = ()
    words: str = ""
    more: int = 0


def summary(records: Records, cards: Sequence[ClaimCard]) -> list[Sequence[SummaryLine]]:
    """The three summary lines, each of one or more pieces."""
    numbered = list(enumerate(cards, start=1))
    held = [(n, card) for n, card in numbered if card.status == "supported"]
    refuted = [(n, card) for n, card in numbered if card.status == "refuted"]
    left = [(n, card) for n, card in numbered if card.status in OPEN]
    nothing = "no declared claim." if cards else "nothing, since nothing was declared."
    first = [_line("Held", held, nothing)]
    first += [_line("Refuted", refuted)] if refuted else []
    return [
        first,
        [_line("Open", left, "no declared claim." if cards else "everything, since no claim was declared.")],
        [SummaryLine("Next experiment", words=_next(records, cards))],
    ]


def _line(lead: str, found: Sequence[tuple[int, ClaimCard]], otherwise: str = "") -> SummaryLine:
    parts = [SummaryPart(f"claim-{n}", card.name, card.asks, _limits(card)) for n, card in found[:MOST_NAMED]]
    return SummaryLine(lead, parts, "" if parts else otherwise, max(len(found) - MOST_NAMED, 0))


def _limits(card: ClaimCard) -> str:
    """What a reader must know beside a claim's status."""
    settled = card.status not in OPEN
    named = ["exploratory"] if card.exploratory else []
    named += ["untested"] if card.status == "untested" else []
    named += ["low confidence"] if settled and card.grade == "low" else []
    return ", ".join(named)


def weaknesses(card: ClaimCard) -> list[str]:
    """Why the confidence in a claim is limited: evidence that is not good, poor evidence first, as recorded."""
    found = [(NOT_GOOD.index(state), name, why) for name, state, why in _evidence(card) if state in NOT_GOOD]
    return [f"{name}: {why}" for _, name, why in sorted(found, key=lambda x: x[0])]


def _evidence(card: ClaimCard) -> Iterator[tuple[str, str, str]]:
    for name, record in card.evidence:
        state, why = (text_of(record, key) if isinstance(record, dict) else None for key in ("state", "why"))
        if state is not None and why is not None:
            yield name, state, why


def _next(records: Records, cards: Sequence[ClaimCard]) -> str:
    """What would settle the first open claim, as its verdict or the plan says; else what its confidence lacks."""
    if not cards:
        return "declare a claim with its margin before the next run."
    if records.verdict is None:
        return "none can be named before there are verdicts."
    left = [card for card in cards if card.status in OPEN]
    if left:
        return _settling(records, left)
    for card in cards:
        if card.grade != "high" and (missing := weaknesses(card)):
            return f"what the confidence in {card.name} lacks is {missing[0]}."
    return "none is named by the verdicts: nothing is open, and no evidence is weak."


def _settling(records: Records, left: Sequence[ClaimCard]) -> str:
    resolution = records.plan.resolution if records.plan is not None else ()
    reach = {planned.claim: planned.sentence for planned in resolution}
    for card in left:
        verdict = next((v for v in records.verdicts if v.claim == card.name), None)
        settle = None if verdict is None else verdict.details.get("to_settle")
        if settle is None and verdict is not None and verdict.needed_n is not None:
            settle = grouped(verdict.needed_n, "items")
        if settle is not None:
            planned = f" The plan said: {reach[card.name]}" if card.name in reach else ""
            return f"what settles {card.name}: {settle}.{planned}"
    card = left[0]
    if card.name in reach:
        return f"the verdicts name no number that settles {card.name}. The plan said: {reach[card.name]}"
    why = card.no_interval or next(iter(card.warnings), None) or "no reason is recorded"
    return f"the verdicts name no number that settles {card.name} ({why})."
