"""Options of multiple-choice items: read from a row, shown in a prompt, rendered as answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from veritune.config.evals import CHOICES, QUESTION, Eval
from veritune.data.render import IGNORE, Renderer
from veritune.data.sources.raw import Cell
from veritune.errors import GateError, StudyError
from veritune.records import Message, Rendered, Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ANSWER = "answer"
"""The column with the right option where the eval names none."""


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """The options of one item: their texts, their labels (letters, or the file's own), and the index of the right
    one."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    right: int

    def said(self, spec: Eval) -> tuple[str, ...]:
        """The answer text that the model would give for each option."""
        return self.labels if spec.choices_as == "letters" else self.texts

    def listed(self) -> str:
        """The options as a prompt lists them, one per line: `A. Paris`."""
        return "\n".join(f"{label}. {text}" for label, text in zip(self.labels, self.texts))


def options_of(name: str, spec: Eval, row: Row) -> ChoiceOptions:
    """The options of an item and which is right. Raises StudyError naming the item, what was expected and what was
    found.
    """
    where = f"evals.{name}: item {row.id} (line {row.line})"
    texts, labels = _listed(where, spec, row)
    if len(texts) < 2 or len(set(texts)) < len(texts) or not all(text.strip() for text in texts):
        raise StudyError(
            f"{where}: expected at least two different options, found {list(texts)[:6]}.", fix="Correct the file."
        )
    if len(texts) > len(LETTERS) or len(set(labels)) < len(labels):
        raise StudyError(f"{where}: expected one label for each of up to 26 options, found {list(labels)[:30]}.")
    column = spec.expected or ANSWER
    if row.meta.get(column) is None:
        raise StudyError(
            f"{where}: expected a column {column!r} with the right option, found none.",
            fix=f"Name it in `expected`. Columns there: {', '.join(sorted(row.meta)) or 'none'}.",
        )
    return ChoiceOptions(texts, labels, _right(where, row.meta[column], texts, labels))


def _listed(where: str, spec: Eval, row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels: a list of options, or `{text: [...], label: [...]}` as in ARC."""
    if isinstance(spec.choices, tuple):
        return spec.choices, tuple(LETTERS[: len(spec.choices)])
    found: object = row.meta.get(str(spec.choices))
    own: object = None
    if isinstance(found, Mapping):
        both: Mapping[str, object] = found
        found, own = both.get("text"), both.get("label")
    if not isinstance(found, list) or not all(isinstance(x, str | int | float) for x in found):
        raise StudyError(
            f"{where}: expected a list of options in column {spec.choices!r}, found {type(found).__name__}.",
            fix=f"Columns there: {', '.join(sorted(row.meta)) or 'none'}.",
        )
    labels = tuple(map(str, own)) if isinstance(own, list) and len(own) == len(found) else tuple(LETTERS[: len(found)])
    return tuple(map(str, found)), labels


def _right(where: str, answer: Cell, texts: Sequence[str], labels: Sequence[str]) -> int:
    """The right option's place. A whole number is a place from 0, unless the options have labels of that kind."""
    if isinstance(answer, int) and not isinstance(answer, bool) and str(answer) not in labels:
        if 0 <= answer < len(texts):
            return answer
    elif isinstance(answer, str | int):
        text = str(answer).strip()
        named = {list(names).index(text) for names in (texts, labels) if text in names}
        named |= {labels.index(text.upper())} if text.upper() in labels and not named else set()
        if len(named) == 1:
            return named.pop()
        if not named and text.isdecimal() and int(text) < len(texts):
            return int(text)
        if len(named) > 1:
            raise StudyError(f"{where}: {answer!r} is the text of one option and the label of another.")
    raise StudyError(
        f"{where}: expected the right option's index from 0, its letter or its text, found {answer!r}.",
        fix="Name the column that holds it in `expected`.",
    )


def filled(spec: Eval, question: str, options: ChoiceOptions | None) -> str:
    """The last user turn: the eval's template with its columns filled, and the lettered options in their place."""
    template = spec.template
    if template is None and options is not None and spec.choices_as == "letters":
        template = f"{QUESTION}\n\n{CHOICES}"
    if template is None:
        return question
    before, _, after = template.partition(QUESTION)
    parts = [part if options is None else part.replace(CHOICES, options.listed()) for part in (before, after)]
    return question.join(parts)


def option_rows(row: Row, said: Sequence[str], prompt: tuple[int, ...], renderer: Renderer) -> list[Rendered]:
    """One row per option: the item's prompt with the option as answer, with loss only on the answer and its end token.

    `row` is the item as it is asked. Raises GateError where an option's rendering does not begin with the prompt.
    """
    made = []
    for place, text in enumerate(said):
        whole = renderer.row(replace(row, id=f"{row.id}#{place}", messages=(*row.prompt, Message("assistant", text))))
        if whole.input_ids[: len(prompt)] != prompt:
            raise GateError(
                f"item {row.id}: the prompt before option {text!r} differs from the frozen prompt.",
                fix="The chat template changes the prompt depending on the answer; use `kind: match` instead.",
            )
        n = len(prompt)
        labels = (IGNORE,) * n + tuple(whole.labels[n:])
        made.append(Rendered(whole.row_id, whole.input_ids, labels))
    return made
