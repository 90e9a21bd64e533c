"""What a GGUF file answers, in llama.cpp through llama-cpp-python, beside the merged model.

The merged weights are computed in float32 as the reference. What rounding makes is how far the same weights in the
serving precision are from it: arithmetic, never the file. An unquantised file must stay within it; a quantised file is
another model, whose loss is shown and which only task scores can pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.thresholds import MergeThresholds
from veritune.errors import MachineError, ModelError
from veritune.evaluate.generate import Decoding, Output, generate, stop_tokens
from veritune.records import Rendered
from veritune.release.parity.merge import MergePart, Status
from veritune.release.parity.merge_outputs import (
    AnswerDivergence,
    MergeOptions,
    first_divergence,
    kl_per_position,
    paired_change,
    prompt_of,
    row_losses,
    target_logits,
    with_ties,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from veritune.evaluate.generate import Output
    from veritune.release.parity.merge_scores import Answer
    from veritune.train.models import ModelRef

RUNTIME = "llama_cpp"
FIX = "pip install llama-cpp-python (it compiles llama.cpp), or serve the file and use veritune serve-parity --url."


def missing_runtime() -> str:
    """Why llama.cpp cannot be run here; empty if it can."""
    if util.find_spec(RUNTIME) is None:
        return "llama-cpp-python is not installed, so the file was not run"
    return ""


@dataclass
class LlamaCpp:
    """A loaded GGUF file. Raises MachineError without llama-cpp-python, ModelError for a file that llama.cpp cannot
    load.
    """

    path: Path
    context: int

    def __post_init__(self) -> None:
        reason = missing_runtime()
        if reason:
            raise MachineError(f"{reason}.", fix=FIX)
        import torch
        from llama_cpp import Llama

        try:
            self.model = Llama(
                str(self.path), n_ctx=self.context, n_batch=self.context, n_threads=torch.get_num_threads(),
                logits_all=True, verbose=False, seed=0,
            )  # fmt: skip
        except (ValueError, RuntimeError, AssertionError) as exc:
            raise ModelError(f"{self.path}: llama.cpp cannot load it ({str(exc)[:120]}).") from None

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits at every position, float32 [T, V]."""
        import numpy as np
        import torch

        self.model.reset()
        self.model.eval(list(ids))
        return torch.from_numpy(np.array(self.model.scores[: len(ids)], dtype=np.float32))

    def answer(
        self, prompt: Sequence[int], stops: Sequence[int], max_new_tokens: int, tokenizer: PreTrainedTokenizerBase
    ) -> Output:
        """The greedy answer, as `veritune.evaluate.generate` gives it."""
        self.model.reset()
        kept: list[int] = []
        ended = "length"
        for token in self.model.generate(list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0):
            if token in stops:
                ended = "stop_token"
                break
            kept.append(int(token))
            if len(kept) == max_new_tokens:
                break
        return Output(tokenizer.decode(kept, skip_special_tokens=True), tuple(kept), ended)  # type: ignore[arg-type]


def run_file(
    file: MergePart, path: Path, merged: ModelRef, rows: Sequence[Rendered], options: MergeOptions
) -> MergePart:
    """Run the file, and add its outputs to the result of `check_file`. `merged` is the merged model's `ModelRef`.

    Where they cannot be had the part is undecided, and says why; a part that failed stays so.
    """
    reason = missing_runtime() or ("" if rows else "no rows were given, so the file was not run")
    if reason:
        status: Status = "failed" if file.status == "failed" else "undecided"
        return replace(file, status=status, message=f"{file.message}; {reason}", lines=(*file.lines, f"! {FIX}"))
    numbers, told = _measure(path, merged, rows, options)
    faults = [d for d in told if not d.tie]
    exact = bool(file.numbers["exact"])
    status = _status(exact, numbers["floors"], faults, options.thresholds)
    change = numbers["nll"]
    span = "" if change["low"] is None else f" [{change['low']:+.4f}, {change['high']:+.4f}]"
    message = (
        f"{file.message}; KL {numbers['kl_mean']:.2g} nats a position, {numbers['floors']:.2g} times what"
        f" {options.dtype}"
        f" makes; loss {change['value']:+.4f}{span}; {numbers['agree']} of {len(rows)} greedy answers are equal"
    )
    if exact and faults:
        message += f"; {len(faults)} diverge where the merged model was sure, first {faults[0].row_id}"
    if not exact:
        message += "; a quantised file is a different model, so only task scores can pass it"
    lines = [_line(d) for d in told[:5]]
    from veritune.release.gate.noninferior import worst

    status = worst([status, *([file.status] if file.status else [])])
    return replace(
        file, status=status, message=message, lines=(*file.lines, *lines), numbers={**file.numbers, "outputs": numbers}
    )


def _status(exact: bool, floors: float, faults: Sequence[AnswerDivergence], limits: MergeThresholds) -> Status:
    if not exact:
        return "undecided"
    if faults or not floors <= limits.fail_floors:
        return "failed"
    return "passed" if floors <= limits.pass_floors else "undecided"


def _line(d: AnswerDivergence) -> str:
    word = "a tie under rounding" if d.tie else "no tie"
    tokens = f"merged {d.adapter_token} against {d.merged_token}"
    return f"  {d.row_id} at token {d.position}: {tokens} (gap {d.gap:.2g}: {word})"


def _measure(
    path: Path, merged: ModelRef, rows: Sequence[Rendered], options: MergeOptions
) -> tuple[dict[str, Any], tuple[AnswerDivergence, ...]]:
    """KL, loss and greedy answers of the file against the merged model in float32, and what the precision makes."""
    import torch

    from veritune.train.models import load_base, load_tokenizer

    tokenizer = load_tokenizer(merged)
    reference = load_base(replace(merged, dtype="float32"))
    right = list(target_logits(reference, rows, tokenizer.pad_token_id, 1))
    rounded = load_base(replace(merged, dtype=options.dtype))
    here = list(target_logits(rounded, rows, tokenizer.pad_token_id, 1))
    del rounded
    longest = max(len(row.input_ids) for row in rows)
    runtime = LlamaCpp(path, longest + options.max_new_tokens + 1)
    theirs = list(_targets(runtime, rows))
    floor = float(torch.cat([kl_per_position(a, b) for a, b in zip(right, here)]).mean())
    kl_N = torch.cat([kl_per_position(a, b) for a, b in zip(right, theirs)])
    if not bool(torch.isfinite(kl_N).all()):
        raise ModelError(f"{path}: the logits hold NaN or infinite values in llama.cpp.")
    ties = max(float((a - b).abs().max()) for a, b in zip(right, here))
    prompts, stops = [prompt_of(row) for row in rows], stop_tokens(reference, tokenizer)
    answers = generate(reference, tokenizer, prompts, Decoding(options.max_new_tokens, 1))
    told = []
    for row, prompt, answer in zip(rows, prompts, answers):
        other = runtime.answer(prompt, stops, options.max_new_tokens, tokenizer)
        if (answer.token_ids, answer.ended) != (other.token_ids, other.ended):
            told.append(first_divergence(reference, row, prompt, (answer, other), tokenizer))
    losses = [y - x for x, y in zip(row_losses(right, rows), row_losses(theirs, rows))]
    numbers = {
        "kl_mean": float(kl_N.mean()),
        "kl_p99": float(kl_N.quantile(0.99)),
        "kl_precision": floor,
        "floors": float(kl_N.mean()) / max(floor, options.thresholds.least_kl),
        "logit_max": max(float((a - b).abs().max()) for a, b in zip(right, theirs)),
        "nll": paired_change(losses),
        "answers": len(rows),
        "agree": len(rows) - len(told),
    }
    return numbers, with_ties(told, ties)


def answers_of_file(path: Path, merged: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """An answerer for `merge_scores` that uses the file; the merged model determines the stop tokens."""

    def ask(prompts: Sequence[Sequence[int]], most: int, batch: int) -> list[Output]:
        stops = stop_tokens(merged(), tokenizer)
        runtime = LlamaCpp(path, max(len(p) for p in prompts) + most + 1)
        return [runtime.answer(prompt, stops, most, tokenizer) for prompt in prompts]

    return ask


def _targets(runtime: LlamaCpp, rows: Sequence[Rendered]) -> Iterator[torch.Tensor]:
    for row in rows:
        where = [t - 1 for t, label in enumerate(row.labels) if label != -100 and t > 0]
        yield runtime.logits(row.input_ids)[where]
