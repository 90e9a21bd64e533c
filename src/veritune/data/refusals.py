"""Records that are refused by name: fields that cannot be honoured, preference sets, and records without turns.

Every refusal names the way out that this record has; an option is named only where it works on the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from veritune.data.columns import Mapped, Shape, suggestion
from veritune.data.fields import (
    BESIDE_TURNS,
    LABEL_COLUMNS,
    MESSAGE_COLUMNS,
    PREFERENCE_PAIRS,
    PROMPTS,
    RIVALS,
    ROW_FIELDS,
    TOKEN_COLUMNS,
    TRAIN_ON_INPUT,
)
from veritune.data.sources.raw import Cell, Reject, native, show
from veritune.data.tools import is_empty

if TYPE_CHECKING:
    pass

_REFUSED_IN_ROWS = tuple(f.name for f in ROW_FIELDS.values() if f.fate == "refused" and f.name not in BESIDE_TURNS)
_WORSE = {name for pair in PREFERENCE_PAIRS for name in pair} - {"response", *MESSAGE_COLUMNS}
_VERDICTS = {"desirable": True, "undesirable": False, "chosen": True, "rejected": False}
"""KTO's labels in words, as its own code and its paper call them."""

_WATCHED = frozenset((*_REFUSED_IN_ROWS, *LABEL_COLUMNS))


def refuse_fields(value: Mapping[str, Cell], shape: Shape, mapping: Mapped) -> None:
    """Raises Reject for a field of a row that changes the training and that is not supported here."""
    if _WATCHED.isdisjoint(value):
        return
    taken = {*shape.columns, *mapping.ignore}
    for name in _REFUSED_IN_ROWS:
        if name in taken or is_empty(value.get(name)):
            continue
        if name in TRAIN_ON_INPUT and not flag(value[name]):
            continue
        if name in _WORSE:
            if mapping.shape is None:
                raise preference(value)
            continue
        what = f"{name}: {ROW_FIELDS[name].what}; --columns ignore={name} leaves it out"
        raise Reject("refused_field", what, name, f"rows without {name}", show(value[name]))
    for name in LABEL_COLUMNS:
        if name in value and name not in taken and says_of_answer(name, value[name]) is False:
            what = (
                f"{name} is {_label_word(value[name])}: in this preference set (KTO) that marks a rejected answer, "
                "which is not trained on; audit FILE --drop good.jsonl writes the other rows, "
                f"--columns ignore={name} trains on all"
            )
            raise Reject("preference", what, name, f"{name} true", show(value[name]))


def _label_word(held: Cell) -> str:
    """A label as a message quotes it: a yes or no in JSON's spelling, a word as it stands."""
    return "false" if flag(held) is False or number_label(held) == 0 else str(held)


def is_preference(value: Mapping[str, Cell]) -> bool:
    """Whether a record holds a better and a worse answer."""
    return any(not is_empty(value.get(a)) and not is_empty(value.get(b)) for a, b in PREFERENCE_PAIRS)


def labelled(value: Mapping[str, Cell], ignore: frozenset[str]) -> str | None:
    """The column that labels an answer as good or bad (KTO); None if there is none."""
    names = (n for n in LABEL_COLUMNS if n in value and n not in ignore)
    return next((n for n in names if says_of_answer(n, value[n]) is not None), None)


def says_of_answer(name: str, value: Cell) -> bool | None:
    """What a label says about the answer beside it. A column named `label` may hold a class, so 0 and 1 mean nothing
    there.
    """
    if isinstance(value, str) and value.strip().casefold() in _VERDICTS:
        return _VERDICTS[value.strip().casefold()]
    number = number_label(value) if name == "kto_tag" else None
    return flag(value) if number is None else bool(number)


def preference(value: Mapping[str, Cell]) -> Reject:
    """The finding that refuses a preference pair, with the option that trains on the better answer, if one exists."""
    there = [p for p in PREFERENCE_PAIRS if not is_empty(value.get(p[0])) and not is_empty(value.get(p[1]))]
    half = [p for p in PREFERENCE_PAIRS if not is_empty(value.get(p[1])) or not is_empty(value.get(p[0]))]
    good, bad = (there or half)[0]
    option = _better_alone(value, good)
    way = f"--columns {option} trains on the better one alone" if option else _by_hand(value, good)
    what = f"this is a preference set ({good}, {bad}): two answers of which one is better; {way}"
    return Reject("preference", what, good, "one answer", f"{good} and {bad}")


def _better_alone(value: Mapping[str, Cell], good: str) -> str | None:
    """The mapping that takes the better answer of this record; None where no mapping can."""
    held = value.get(good)
    turns = _messages(held)
    if turns and any(_speaker(turn) in ("user", "human") for turn in turns):
        return f"messages={good}"
    prompt = next(
        (n for n in PROMPTS if n != good and (isinstance(value.get(n), str) or _messages(value.get(n)))), None
    )
    return f"user={prompt},assistant={good}" if prompt and (turns or isinstance(held, str)) else None


def _by_hand(value: Mapping[str, Cell], good: str) -> str:
    held = value.get(good)
    turns = next((n for n in MESSAGE_COLUMNS if n != good and _messages(value.get(n))), None)
    if turns is not None:
        return f"--columns messages={turns} trains on {turns} alone"
    if isinstance(held, str):
        return f"{good} holds a whole conversation as one text: write it as a list of messages"
    prompt = next((n for n in PROMPTS if isinstance(value.get(n), Mapping)), None)
    return f"write the turns of {f'{prompt} and {good}' if prompt else good} as one list of messages"


def _messages(held: Cell) -> list[Mapping[str, Cell]]:
    """A list of messages, empty for anything else."""
    held = native(held)
    turns = [t for t in held if isinstance(t, Mapping) and _speaker(t)] if isinstance(held, list) else []
    return turns if isinstance(held, list) and len(turns) == len(held) else []


def _speaker(turn: Mapping[str, Cell]) -> str:
    return str(turn.get("role") or turn.get("from") or "").casefold()


def nothing_found(value: Mapping[str, Cell]) -> Reject:
    """The finding for a record without turns, with the name of its data format if its columns are known."""
    if is_preference(value):
        return preference(value)
    found = "columns " + (", ".join(map(str, value)) or "none")
    expected = "messages, prompt and completion, or a mapping"
    rivals = next(((a, b) for a, b in RIVALS if not is_empty(value.get(a)) and not is_empty(value.get(b))), None)
    if rivals is not None:
        what = (
            f"this is a preference set: {rivals[0]} and {rivals[1]} are two answers, and which one is better stands in "
            "another column; write the better one as completion beside prompt"
        )
        return Reject("preference", what, rivals[0], "one answer", found)
    if isinstance(value.get("completions"), list | tuple):
        what = "no turns: completions holds several answers, or steps of one, and nothing says which to train on"
        return Reject("missing_messages", f"{what}; write one of them as completion", "completions", expected, found)
    for name in BESIDE_TURNS:
        if not is_empty(value.get(name)) and (name not in TOKEN_COLUMNS or _are_tokens(value[name])):
            what = f"no turns: {name} holds {ROW_FIELDS[name].what}"
            return Reject("missing_messages", what, "messages", expected, found)
    what = f"no turns: none of the known columns is there; {suggestion(value)}"
    return Reject("missing_messages", what, "messages", "messages, prompt and completion, or a column mapping", found)


def _are_tokens(held: Cell) -> bool:
    """Whether a value is what a tokenizer or a mask leaves behind: a list of numbers, or Tinker's object of one."""
    held = native(held)
    if isinstance(held, list | tuple):
        return bool(held) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in held[:100])
    return isinstance(held, Mapping)


# ---------------------------------------------------------------- yes, no, 0 and 1


def flag(value: Cell) -> bool | None:
    """A yes or no as JSON, CSV and numpy write it; None for anything else."""
    value = native(value)
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def number_label(value: Cell) -> int | None:
    """0 or 1 as JSON, CSV and numpy write them; None for anything else, also for a yes or no."""
    value = native(value)
    if isinstance(value, str):
        return {"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(value.strip())
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1) else None
