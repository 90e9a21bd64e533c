"""From an eval's contract to what scores its outputs; and one item through all of it before many are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from veritune.config.evals import Eval
from veritune.errors import MachineError, StudyError
from veritune.evaluate import judge, tasks
from veritune.evaluate.function import call, load_function
from veritune.evaluate.generate import Output
from veritune.records import JsonLike, Row, Score
from veritune.stats.reasons import is_models

Scorer = Callable[[Row, Output], Score]
Verdict = tuple[float | None, str | None, dict[str, JsonLike]]
"""A value, or the reason why there is none, and what stands beside it in the scores."""
JUDGED = Path("audit/judge")
"""Where a study keeps what its judges said."""


def scorer_of(name: str, spec: Eval, root: Path) -> Scorer:
    """The scorer of an eval's outputs. `root` is the study's folder. Raises StudyError."""
    if spec.kind == "function":
        function = load_function(root, str(spec.function))
        return lambda row, output: _of_text(name, row, output, lambda text: call(function, row, text))
    if spec.kind == "judge":
        asked = judge.Judge.of(spec, root / JUDGED)
        return lambda row, output: _of_text(name, row, output, lambda text: asked.verdict(asked.values(row, text)))
    if spec.kind == "choice":
        raise StudyError(
            f"evals.{name}: `kind: choice` compares options, so outputs cannot be scored.",
            fix="Name an eval of another kind.",
        )
    return lambda row, output: tasks.score(name, spec, row, output)


def _of_text(name: str, row: Row, output: Output, score: Callable[[str], Verdict]) -> Score:
    ended: dict[str, JsonLike] = {"ended": output.ended, "n_tokens": len(output.token_ids)}
    if not output.text.strip():
        return Score("", name, row.id, None, reason="empty_output", output=output.text, parts=ended)
    value, reason, parts = score(output.text)
    return Score("", name, row.id, value, reason=reason, output=output.text, parts={**ended, **parts})


def check_scorer(name: str, spec: Eval, rows: Sequence[Row], root: Path) -> None:
    """Raises StudyError for an eval that could not be scored: a missing function, or a column that a prompt names and
    no item has.
    """
    if spec.kind == "function":
        load_function(root, str(spec.function))
    if spec.kind == "judge":
        judge.check_prompt(name, spec, rows)


def refuse_first(name: str, run_id: str, score: Score) -> None:
    """Raises MachineError if the machine, not the model, caused the loss of the first item's score: the other items
    would fail too.
    """
    if score.value is None and not is_models(score.reason) and score.reason != "pattern_too_slow":
        why = score.parts.get("why")
        raise MachineError(
            f"run {run_id}, eval {name}: the first item, {score.item_id}, could not be scored: {score.reason}"
            + (f" ({why})" if why else "")
            + ".",
            fix="Correct the cause; no other item of this eval was asked.",
        )
