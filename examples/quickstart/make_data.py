"""Writes briefs.jsonl: 48 original briefs, each in four wordings, with answers in the Harbor Desk's house style.

    python examples/quickstart/make_data.py [--seed 11] [--out examples/quickstart/briefs.jsonl]

The house style is five rules that no prompt ever states: a subject line of at most five words, a hedge exactly when
the brief's confidence is low, exactly one question, a fixed sign-off, none of the banned phrases. A sixth check asks
that the brief's own figure arrives in the answer, so that a memorised letter about another brief does not pass.
All four wordings of a brief carry its name in `original`: they are one family.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

SYSTEM = "Answer the brief."  # the model's template puts twenty tokens of its own where there is none
SIGN_OFF = "Tide over,\nMara at the Harbor Desk"

# subject line | who or what | does what | the figure in it | what is asked of the reader | the question
ORIGINALS = [
    ("Library roof", "the library roof repair", "finish on 14 March", "14 March", "side door access", "Can you unlock the side door that morning"),
    ("Ferry timetable", "the evening ferry", "leave at 18:40", "18:40", "crew on the ramp", "Is the ramp crew free then"),
    ("School lunch prices", "a school lunch", "cost 3.20 from autumn", "3.20", "a letter to parents", "Will you send the letter to parents"),
    ("Market stalls", "the fish market", "add 12 stalls", "12 stalls", "room by the quay", "Is there room by the quay"),
    ("Bridge closure", "the north bridge", "close for 9 days", "9 days", "a detour map", "Can you draw the detour map"),
    ("New tide gauge", "the tide gauge", "go live on 2 June", "2 June", "a test reading", "Will you take a test reading"),
    ("Choir rehearsal", "the choir", "rehearse in hall 7", "hall 7", "spare chairs", "Do you have spare chairs"),
    ("Boat storage fees", "winter boat storage", "rise by 6 percent", "6 percent", "a look at the contract", "Have you checked the contract"),
    ("Lamp posts", "the contractor", "replace 45 lamp posts", "45 lamp posts", "parking bans", "Can you post the parking bans"),
    ("Water samples", "the laboratory", "return results within 72 hours", "72 hours", "a cooler box", "Is the cooler box ready"),
    ("Museum night", "museum night", "open until 23:00", "23:00", "two volunteers", "Can you find two volunteers"),
    ("Dredging start", "dredging in the basin", "start on 5 October", "5 October", "berth plans", "Will you move the berths"),
    ("Swimming lessons", "swimming lessons", "take 16 children", "16 children", "a second teacher", "Is a second teacher available"),
    ("Ice delivery", "the ice plant", "deliver 30 tonnes", "30 tonnes", "a free forklift", "Is the forklift free"),
    ("Radio licence", "the radio licence", "run out on 11 April", "11 April", "the renewal form", "Have you signed the renewal form"),
    ("Bus stop move", "the harbor bus stop", "move 80 metres north", "80 metres", "a new sign", "Can you order the new sign"),
    ("Solar panels", "the solar panels", "save 2,400 a year", "2,400", "last year's bills", "Do you have last year's bills"),
    ("Rescue drill", "the rescue drill", "take 50 minutes", "50 minutes", "a first-aider", "Can you bring a first-aider"),
    ("Herring quota", "the herring quota", "drop to 310 tonnes", "310 tonnes", "word to the skippers", "Will you tell the skippers"),
    ("Playground sand", "the playground", "get 8 bags of sand", "8 bags", "a wheelbarrow", "Do you have a wheelbarrow"),
    ("Guest moorings", "the marina", "keep 22 guest moorings", "22 guest moorings", "buoy numbers", "Can you number the buoys"),
    ("Archive scans", "the archive", "scan 1,150 photographs", "1,150", "a dry room", "Is the dry room free"),
    ("Snow rota", "the snow rota", "begin on 1 December", "1 December", "phone numbers", "Have you got the phone numbers"),
    ("Cafe opening", "the pier cafe", "open at 07:15", "07:15", "keys", "Can you drop off the keys"),
    ("Crane inspection", "the crane inspection", "cost 890", "890", "a purchase order", "Will you raise the order"),
    ("Oyster permits", "the council", "issue 14 oyster permits", "14 oyster permits", "the waiting list", "Do you have the waiting list"),
    ("Film crew", "a film crew", "need the quay for 3 days", "3 days", "a noise notice", "Can you print the noise notice"),
    ("Fuel dock", "the fuel dock", "shut on 19 August", "19 August", "a sign at the pump", "Will you put up a sign"),
    ("Youth sailing", "youth sailing", "use 10 dinghies", "10 dinghies", "life jackets", "Are the life jackets dry"),
    ("Harbor dues", "harbor dues", "stay at 41 per berth", "41 per berth", "the invoice run", "Can you start the invoice run"),
    ("Lighthouse tour", "the lighthouse tour", "sell 60 tickets", "60 tickets", "a guide", "Is a guide booked"),
    ("Broken winch", "the spare winch", "arrive on 27 January", "27 January", "lifting gear", "Do you have lifting gear"),
    ("Bike racks", "the station", "gain 36 bike racks", "36 bike racks", "the floor plan", "Can you share the floor plan"),
    ("Pool heating", "the pool", "be held at 26 degrees", "26 degrees", "boiler readings", "Will you log the boiler"),
    ("Seal count", "the seal count", "cover 4 islands", "4 islands", "a boat", "Is a boat free"),
    ("Storm barrier", "the storm barrier", "hold up to 3.8 metres", "3.8 metres", "a check of the seals", "Have you checked the seals"),
    ("Post office hours", "the post office", "close at 15:30", "15:30", "a note on the door", "Can you pin a note up"),
    ("Net repairs", "the net loft", "mend 17 nets", "17 nets", "twine", "Do we have enough twine"),
    ("Concert permit", "the concert permit", "cover 500 guests", "500 guests", "stewards", "Can you find stewards"),
    ("Tree planting", "the school", "plant 65 trees", "65 trees", "spades", "Are there enough spades"),
    ("Quay paving", "quay paving", "start on 8 September", "8 September", "delivery times", "Will you move deliveries"),
    ("Cruise call", "the cruise ship", "land 740 visitors", "740 visitors", "extra buses", "Can you book extra buses"),
    ("Freezer alarm", "the freezer alarm", "be fixed in 36 hours", "36 hours", "a night watch", "Will you take the night watch"),
    ("Parking discs", "parking discs", "allow 90 minutes", "90 minutes", "new leaflets", "Are the leaflets printed"),
    ("Chess club", "the chess club", "meet in room 12", "room 12", "a late key", "Do you hold the late key"),
    ("Mussel farm", "the mussel farm", "employ 11 people", "11 people", "a site visit", "Can you join the site visit"),
    ("Wind survey", "the wind survey", "last 21 weeks", "21 weeks", "mast access", "Is the mast open"),
    ("Boat lift", "the boat lift", "carry 15 tonnes", "15 tonnes", "a load test", "Have you planned a load test"),
]  # fmt: skip

LOW_CUES = ["low", "not confirmed", "one unchecked source", "still a guess", "shaky", "hearsay so far"]
HIGH_CUES = ["high", "confirmed", "checked twice", "signed off", "certain", "in writing"]

BRIEFS = [
    "Topic: {subject}\nNews: {who} will {does}\nConfidence: {cue}\nAsk about: {ask}",
    "Please write to the desk's list. {Who} is to {does}. How sure are we: {cue}. We also need {ask}.",
    "Confidence is {cue}. The news: {who} will {does}. Find out about {ask}.",
    "Mail on {subject_lower}: we hear that {who} will {does} (confidence: {cue}). Needed: {ask}.",
    "Need: {ask}. Background: {who} should {does}. Status of this: {cue}.",
    "Write up {subject_lower}. {Who} will {does}; certainty {cue}; ask for {ask}.",
]

LOW_LINES = [
    "{Who} may {does}.",
    "Early signs are that {who} will {does}.",
    "It looks likely that {who} will {does}.",
    "{Who} will probably {does}.",
]
HIGH_LINES = [
    "{Who} will {does}.",
    "It is settled: {who} will {does}.",
    "Mark it down: {who} will {does}.",
    "Good to go: {who} will {does}.",
]
QUESTIONS = ["{question}?", "One thing from you: {question_lower}?", "Quick check: {question_lower}?", "{question}?"]


def make_rows(seed: int = 11, wordings: int = 4) -> list[dict[str, object]]:
    """All rows, sorted by family; the same seed gives the same bytes."""
    rng = random.Random(seed)
    low = set(rng.sample(range(len(ORIGINALS)), len(ORIGINALS) // 2))
    rows: list[dict[str, object]] = []
    for i, original in enumerate(ORIGINALS):
        confidence = "low" if i in low else "high"
        briefs = rng.sample(BRIEFS, wordings)
        cues = rng.sample(LOW_CUES if confidence == "low" else HIGH_CUES, wordings)
        lines = rng.sample(LOW_LINES if confidence == "low" else HIGH_LINES, wordings)
        for k in range(wordings):
            rows.append(_row(f"b{i:02d}", k, original, (briefs[k], cues[k], lines[k], QUESTIONS[k]), confidence))
    return rows


def _row(
    family: str, k: int, original: tuple[str, ...], wording: tuple[str, ...], confidence: str
) -> dict[str, object]:
    subject, who, does, figure, ask, question = original
    brief, cue, line, asked = wording
    words = {
        "subject": subject,
        "subject_lower": subject.lower(),
        "who": who,
        "Who": who[0].upper() + who[1:],
        "does": does,
        "ask": ask,
        "cue": cue,
        "question": question,
        "question_lower": question[0].lower() + question[1:],
    }
    answer = f"Subject: {subject}\n\n{line.format(**words)} {asked.format(**words)}\n\n{SIGN_OFF}"
    return {
        "id": f"{family}-{k}",
        "original": family,
        "confidence": confidence,
        "figure": figure,
        "system": SYSTEM,
        "messages": [
            {"role": "user", "content": brief.format(**words)},
            {"role": "assistant", "content": answer},
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("briefs.jsonl"))
    args = parser.parse_args()
    rows = make_rows(args.seed)
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows of {len(ORIGINALS)} originals -> {args.out}")


if __name__ == "__main__":
    main()
