"""Task scores of the merged model, paired by item with the adapter's: not worse by more than a margin.

The eval's own scorer, the same prompts in the same batches; the decision is that of `not_worse` (docs/statistics.md):
by the interval, never by the point. Equal answers are what a merge should give, so that nothing moved is no reason to
doubt here (whether the adapter was loaded at all is what the weights show); too little headroom still is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from veritune.config.evals import Eval
from veritune.errors import InputError
from veritune.evaluate import tasks
from veritune.evaluate.generate import Decoding, generate
from veritune.records import Row, Score
from veritune.release.parity.merge import MergePart

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from veritune.evaluate.generate import Output
    from veritune.evaluate.scorers import Scorer

Answer = Callable[[Sequence[Sequence[int]], int, int], list[Any]]
"""Prompts as token ids, most new tokens, prompts in a batch; the outputs in their order."""


@dataclass(frozen=True)
class ScoredTask:
    """An eval with its items, their prompts and families, and the declared margin."""

    name: str
    spec: Eval
    rows: tuple[Row, ...]
    prompts: tuple[tuple[int, ...], ...]
    families: tuple[str | None, ...]
    margin: float
    alpha: float = 0.05
    score: Scorer | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"eval {self.name} has no items.", fix="Name an eval with items, or other rows.")
        if not 0 < self.margin < 1:
            raise InputError(f"--margin: expected a share between 0 and 1, found {self.margin:g}.")
        tasks.check_items(self.name, self.spec, self.rows)


def answers_of(make: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """An answerer whose model is loaded when it is used and freed afterwards."""

    def ask(prompts: Sequence[Sequence[int]], most: int, batch: int) -> list[Output]:
        return generate(make(), tokenizer, prompts, Decoding(most, batch))

    return ask


def paired_scores(task: ScoredTask, adapter: Answer, others: dict[str, Answer]) -> list[MergePart]:
    """One part for each other way to serve, compared with the adapter on its base. Scores are in [0, 1]."""
    from veritune.release.gate.noninferior import Bar, not_worse
    from veritune.stats.table import ScoreTable

    before = _scores(task, "adapter", adapter)
    base = ScoreTable.from_scores(before, condition="adapter", fixed=True)
    bar = Bar(task.margin, task.alpha, outputs_differ=True, scale=(0.0, 1.0))
    parts = []
    for name, ask in others.items():
        after = _scores(task, name, ask)
        found = not_worse(ScoreTable.from_scores(after, condition=name, fixed=True), base, bar)
        equal = sum(a.output == b.output for a, b in zip(before, after))
        words = f"{found.message}; {equal} of {len(after)} answers are equal"
        numbers = {**found.numbers, "eval": task.name, "margin": task.margin, "alpha": task.alpha, "equal": equal}
        parts.append(MergePart(f"scores of {name}", found.status, words, (), (), numbers))
    return parts


def _scores(task: ScoredTask, name: str, ask: Answer) -> list[Score]:
    outputs = ask(task.prompts, task.spec.max_new_tokens, task.spec.batch_size)
    score = task.score or partial(tasks.score, task.name, task.spec)
    return [
        replace(score(row, output), run_id=name, family=family)
        for row, family, output in zip(task.rows, task.families, outputs)
    ]
