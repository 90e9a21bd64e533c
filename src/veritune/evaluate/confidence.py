"""How sure a model is of its answers, in the two forms that calibration is measured on.

multiple choice   the options' log-likelihoods, made shares by softmax; the confidence is the largest share
short answers     the probability of the whole greedy answer, its end token included

Also read from lm-evaluation-harness samples, which hold the options' log-likelihoods as text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from veritune.data.sources.raw import Cell
from veritune.data.tables import table_rows, text_of
from veritune.errors import DataError, ScoreError
from veritune.records import Message, Rendered, Row
from veritune.store import read_jsonl
from veritune.untrusted import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Normalise = Literal["none", "length"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; `answer` is the index of the right option."""

    id: str
    prompt: tuple[Message, ...]
    choices: tuple[str, ...]
    answer: int
    family: str | None = None


@dataclass(frozen=True)
class Judged:
    """One confidence and outcome per item. `shares` are the options' probabilities, empty for short answers; `right` is
    the index of the right option, None if unknown.
    """

    ids: tuple[str, ...]
    confidence: tuple[float | None, ...]
    correct: tuple[float | None, ...]
    families: tuple[str | None, ...]
    shares: tuple[tuple[float, ...], ...] = ()
    right: tuple[int | None, ...] = ()
    notes: tuple[str, ...] = ()


def shares_of(loglik: Sequence[float], where: str = "") -> tuple[float, ...]:
    """The softmax of log-likelihoods. Raises ScoreError if the list is empty or a value is not finite; `where` names
    the item in errors.
    """
    if not loglik or not all(math.isfinite(x) for x in loglik):
        raise ScoreError(
            f"{where + ': ' * bool(where)}expected finite log-likelihoods, found {list(loglik)[:6]}.",
            fix="Score the item again, with a model whose weights are intact.",
        )
    top = max(loglik)
    weights = [math.exp(x - top) for x in loglik]
    total = sum(weights)
    return tuple(w / total for w in weights)


def multiclass_brier(shares: Sequence[float], right: int) -> float:
    """sum_k (share_k - [k is right])^2, in [0, 2]. Brier 1950, Mon. Weather Rev. 78:1."""
    return sum((p - (k == right)) ** 2 for k, p in enumerate(shares))


# ---------------------------------------------------------------- lm-evaluation-harness


def from_lm_eval(path: str | Path, metric: Literal["acc", "acc_norm"] = "acc") -> Judged:
    """Confidences from the samples of a multiple-choice task (`lm_eval --log_samples`).

    For `acc_norm` log-likelihoods are divided by the option's length in characters first, as the harness does; that
    share is no probability the model ever gave. Raises ScoreError when a line is no multiple-choice sample, or when
    the harness's own outcome cannot be had from its log-likelihoods.
    """
    path = Path(path)
    rows = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, parse_json(line, finite=False)))
            except ValueError as exc:
                raise ScoreError(f"{path.name}, line {number}: expected a JSON object, found {exc}.") from None
    if not rows:
        raise ScoreError(f"{path.name}: expected samples, found none.")
    made = [_lm_sample(row, metric, f"{path.name}, line {number}") for number, row in rows]
    ids = tuple(str(row["doc_id"]) for _, row in rows)
    if len(set(ids)) < len(ids):
        raise ScoreError(f"{path.name}: an item occurs twice; give the samples of one filter and one run.")
    return Judged(
        ids=ids,
        confidence=tuple(max(shares) for shares, _, _ in made),
        correct=tuple(correct for _, correct, _ in made),
        families=(None,) * len(ids),
        shares=tuple(shares for shares, _, _ in made),
        right=tuple(right for _, _, right in made),
        notes=(f"metric {metric}",),
    )


def _lm_sample(row: Any, metric: str, where: str) -> tuple[tuple[float, ...], float, int | None]:
    """(shares, outcome, the right option's place where it can be told)."""
    try:
        loglik = [float(pair[0]) for pair in row["filtered_resps"]]
        options = [_option(argument) for argument in _arguments(row)]
        outcome = float(row[metric])
    except (KeyError, IndexError, TypeError, ValueError):
        raise ScoreError(
            f"{where}: expected a multiple-choice sample with log-likelihoods and {metric!r}.",
            fix="Calibration needs `lm_eval --log_samples` on a multiple_choice task.",
        ) from None
    if len(loglik) != len(options) or outcome not in (0.0, 1.0):
        raise ScoreError(
            f"{where}: expected a multiple-choice sample, found {len(loglik)} log-likelihoods for {len(options)} "
            f"options and {metric} {outcome}."
        )
    if metric == "acc_norm":
        loglik = [x / max(1, len(option)) for x, option in zip(loglik, options)]
    shares = shares_of(loglik, where)
    chosen = loglik.index(max(loglik))
    gold = _gold(row.get("target"), options)
    if gold is not None and outcome != float(gold == chosen):
        raise ScoreError(
            f"{where}: {metric} is {outcome:g}, but option {chosen} has the highest log-likelihood and {gold} is "
            "right.",
            fix="Use the unedited log of a task whose options were scored by log-likelihood.",
        )
    return shares, outcome, chosen if outcome else gold


def _arguments(row: Mapping[str, Any]) -> list[Cell]:
    arguments = row["arguments"]
    return (
        [arguments[k] for k in sorted(arguments, key=lambda k: int(k.rsplit("_", 1)[-1]))]
        if isinstance(arguments, dict)
        else list(arguments)
    )


def _option(argument: Any) -> str:
    text = argument["arg_1"] if isinstance(argument, dict) else argument[1]
    return str(text).removeprefix(" ")


def _gold(target: Cell, options: Sequence[str]) -> int | None:
    """The right option's place from `target`: a place, or an option's text; None where it could be either."""
    text = str(target).strip()
    place = int(text) if text.isdecimal() and int(text) < len(options) else None
    named = [k for k, option in enumerate(options) if option.strip() == text]
    if place is not None and named and named != [place]:
        return None
    return place if place is not None else named[0] if len(named) == 1 else None


# ---------------------------------------------------------------- any file


def read_judged(
    path: str | Path,
    *,
    confidence: str = "confidence",
    correct: str = "correct",
    family_field: str | None = None,
    metric: str = "acc",
) -> Judged:
    """Confidences from lm-eval samples, or from a JSONL or CSV table with a confidence and an outcome column (empty
    cell: missing).

    Raises ScoreError for an unknown metric, a column that is not there, and cells that are no numbers.
    """
    from veritune.evaluate.logs import sniff

    path = Path(path)
    if sniff(path) == "lm-eval":
        if metric not in ("acc", "acc_norm"):
            raise ScoreError(f"metric: expected acc or acc_norm, found {metric!r}.")
        return from_lm_eval(path, "acc" if metric == "acc" else "acc_norm")
    rows = table_rows(path)
    for name in (confidence, correct, *([family_field] if family_field else [])):
        if rows and name not in rows[0]:
            raise ScoreError(
                f"{path.name}: no column {name!r}.", fix=f"Columns: {', '.join(map(str, list(rows[0])[:12]))}."
            )
    return Judged(
        ids=tuple(str(row.get("id", i)) for i, row in enumerate(rows, start=1)),
        confidence=tuple(_cell(row, confidence, path, i) for i, row in enumerate(rows, start=1)),
        correct=tuple(_cell(row, correct, path, i) for i, row in enumerate(rows, start=1)),
        families=tuple(_family(row, family_field, f"{path.name}, row {i}") for i, row in enumerate(rows, start=1)),
    )


def _family(row: Mapping[str, Any], field: str | None, where: str) -> str | None:
    """The row's family; without a column for it None. An empty cell is no family that all such rows share."""
    if field is None:
        return None
    if row.get(field) is None or not str(row[field]).strip():
        raise DataError(
            f"{where}: no family name in column {field!r}.", fix="Fill in the family, or leave out --family-field."
        )
    return str(row[field])


def _cell(row: Mapping[str, Any], name: str, path: Path, number: int) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ScoreError(f"{path.name}, row {number}, {name}: expected a number, found {str(value)[:40]!r}.")
    return found


# ---------------------------------------------------------------- a model's own


def read_questions(path: str | Path, family_field: str | None = None) -> list[Question]:
    """Questions from JSONL: `question` (or `prompt`, or `messages`), `choices`, and `answer` as index, letter or text.

    Raises DataError naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file at {path}.", fix="Name a JSONL file with questions.")
    rows = read_jsonl(path)
    if not rows:
        raise DataError(f"{path} holds no questions.")
    return [_question(row, f"{path.name}, line {n}", n, family_field) for n, row in enumerate(rows, start=1)]


def _question(row: Any, where: str, number: int, family_field: str | None) -> Question:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {type(row).__name__}.")
    asked, choices = row.get("question", row.get("prompt")), row.get("choices")
    if isinstance(row.get("messages"), list):
        prompt = tuple(Message(str(m["role"]), str(m["content"])) for m in row["messages"])
    elif isinstance(asked, str):
        prompt = (Message("user", asked),)
    else:
        raise DataError(f"{where}: expected `question`, `prompt` or `messages`, found {sorted(row)[:8]}.")
    if not isinstance(choices, list) or len(choices) < 2 or len(set(map(str, choices))) < len(choices):
        raise DataError(f"{where}: expected `choices`, a list of at least two different options.")
    options = tuple(str(c) for c in choices)
    if family_field is not None and family_field not in row:
        raise DataError(f"{where}: no column {family_field!r}.", fix=f"Columns: {', '.join(sorted(row))}.")
    family = _family(row, family_field, where)
    return Question(str(row.get("id", number)), prompt, options, _place(row.get("answer"), options, where), family)


def _place(answer: Cell, options: Sequence[str], where: str) -> int:
    """The right option's place from a place, an option's text or a letter."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    if isinstance(answer, str) and answer in options:
        return options.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer.upper() in LETTERS[: len(options)]:
        return LETTERS.index(answer.upper())
    raise DataError(f"{where}: expected `answer` as an index, a letter or an option's text, found {answer!r}.")


def judge_choices(
    model: PreTrainedModel,
    renderer: Any,
    questions: Sequence[Question],
    normalise: Normalise = "none",
    batch_size: int = 8,
) -> Judged:
    """Score each option as the assistant's whole answer including its end token; the most probable one is the model's
    choice.

    `length` divides a log-likelihood by the option's tokens. Raises DataError when an option cannot be rendered.
    """
    rows = [
        renderer.row(Row(f"{q.id}#{k}", (*q.prompt, Message("assistant", option))))
        for q in questions
        for k, option in enumerate(q.choices)
    ]
    total = sequence_logprobs(model, rows, batch_size=batch_size)
    if normalise == "length":
        total = [x / row.n_target for x, row in zip(total, rows)]
    shares, at = [], 0
    for q in questions:
        shares.append(shares_of(total[at : at + len(q.choices)], f"question {q.id}"))
        at += len(q.choices)
    return Judged(
        ids=tuple(q.id for q in questions),
        confidence=tuple(max(s) for s in shares),
        correct=tuple(float(s.index(max(s)) == q.answer) for s, q in zip(shares, questions)),
        families=tuple(q.family for q in questions),
        shares=tuple(shares),
        right=tuple(q.answer for q in questions),
        notes=(f"normalise {normalise}",),
    )


def sequence_logprobs(model: PreTrainedModel, rows: Sequence[Rendered], *, batch_size: int = 8) -> list[float]:
    """Summed log-probability in nats of each row's labelled tokens, in the order given."""
    import torch

    from veritune.probe.batches import evaluating, in_batches, model_device, require_targets, token_losses

    require_targets(rows)
    made = [0.0] * len(rows)
    device = model_device(model)
    with evaluating(model), torch.no_grad():
        for index, batch in in_batches(rows, batch_size):
            loss_N_T, _ = token_losses(model, batch.to(device))
            for i, value in zip(index, (-loss_N_T.double().sum(1)).tolist()):
                made[i] = value
    return made


def answer_token_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Any],
    batch_size: int = 8,
) -> list[list[tuple[str, float]]]:
    """Each token of each answer (`generate.Output`) as text, with its NLL in nats given all tokens before it.

    The end token is not among them; an answer without tokens has none. A character that several tokens spell shows as
    a replacement sign in each.
    """
    from veritune.probe.batches import evaluating, in_batches, model_device, token_losses

    asked = [i for i, (prompt, output) in enumerate(zip(prompts, outputs)) if output.token_ids and len(prompt)]
    rows = [
        Rendered(str(i), (*prompts[i], *outputs[i].token_ids), (-100,) * len(prompts[i]) + tuple(outputs[i].token_ids))
        for i in asked
    ]
    made: list[list[tuple[str, float]]] = [[] for _ in prompts]
    if not rows:
        return made
    import torch

    with evaluating(model), torch.no_grad():
        for index, batch in in_batches(rows, batch_size):
            loss_N_T, scored_N_T = token_losses(model, batch.to(model_device(model)))
            for n, i in enumerate(index):
                values = loss_N_T[n][scored_N_T[n]].double().tolist()
                words = [tokenizer.decode([token]) for token in outputs[asked[i]].token_ids]
                made[asked[i]] = [(word, round(value, 4)) for word, value in zip(words, values, strict=True)]
    return made


def answer_confidences(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Any],
    end_ids: Sequence[int],
    batch_size: int = 8,
) -> list[float | None]:
    """The probability of each whole answer (`generate.Output`) including its end token, given its prompt's token ids.

    Of several end tokens the likeliest counts: it is the one that greedy decoding took. An answer that was cut has no
    end token and is counted as far as it goes; None where nothing was generated at all.
    """
    rows, places = [], []
    for i, (prompt, output) in enumerate(zip(prompts, outputs)):
        for end in [(e,) for e in end_ids] if output.ended == "stop_token" else [()]:
            ids = (*output.token_ids, *end)
            if ids:
                rows.append(Rendered(str(i), (*prompt, *ids), ((-100,) * len(prompt)) + ids))
                places.append(i)
    made: list[float | None] = [None] * len(prompts)
    if rows:
        for i, value in zip(places, sequence_logprobs(model, rows, batch_size=batch_size)):
            if not math.isfinite(value):
                raise ScoreError(
                    f"answer {i}: expected a finite log-probability, found {value}.",
                    fix="Try float32, and check the checkpoint: the weights may be damaged, or half precision "
                    "may overflow.",
                )
            made[i] = max(made[i] or 0.0, min(1.0, math.exp(value)))
    return made
