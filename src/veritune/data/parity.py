"""What rendering does to a dataset, and whether training and serving see the same tokens.

`render_stats` counts tokens, truncation and packing; `check_parity` compares the contract's ids with the tokenizer's
own; `first_divergence` shows where two tokenizers or templates part; `html_view` shows one row's tokens and mask.
"""

from __future__ import annotations

import html
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from veritune.counting import many
from veritune.data.render import IGNORE, Renderer, Traced
from veritune.data.split import stratum_of
from veritune.data.template import Stops, stops_of, twin_templates
from veritune.data.text import first_difference
from veritune.data.unfit import Unfit
from veritune.errors import DataError
from veritune.records import (
    Finding,
    JsonValue,
    Message,
    Rendered,
    Row,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALL = "(all)"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of one group of rows."""

    n: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    max: int | None

    @classmethod
    def of(cls, counts: Sequence[int]) -> Lengths:
        if not counts:
            return cls(0, None, None, None, None, None)
        p50, p90, p95 = (float(q) for q in np.percentile(counts, [50, 90, 95]))
        return cls(len(counts), float(np.mean(counts)), p50, p90, p95, int(max(counts)))


@dataclass(frozen=True, slots=True)
class Truncation:
    """What cutting rows at `limit` tokens would do to `rows` rows. The contract never cuts: it refuses such rows."""

    limit: int
    rows: int
    over: int
    lose_answer: int
    lose_all: int
    answer_tokens_lost: int


@dataclass(frozen=True, slots=True)
class RenderStats:
    """Statistics of a rendering. Keys of the mappings are sources; `ALL` stands for all rows.

    `system_tokens` counts system prompts' own tokens, the template's default one included; `packing` is the share of
    `max_length`-sized bins that holds tokens (best fit, longest first), `padding` the same for batches of `batch` rows
    as they come, padded to their longest.
    """

    tokens: Mapping[str, Lengths]
    prompt_tokens: Mapping[str, Lengths]
    target_tokens: Mapping[str, Lengths]
    truncation: Mapping[str, Truncation]
    n_rows: int
    n_tokens: int
    n_target: int
    system_tokens: int
    system_prompts: int
    default_system: str | None
    packing: float | None
    bins: int
    padding: float | None
    batch: int
    nothing_to_learn: tuple[str, ...]
    problems: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token at which two renderings of one row differ; `index` is 0-based, and the tokens are shown with
    context.
    """

    row_id: str
    index: int
    left: tuple[str, ...]
    right: tuple[str, ...]
    left_ids: tuple[int, ...]
    right_ids: tuple[int, ...]
    shared: str
    n_differing_rows: int
    n_rows: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Several rows in one sequence. `start_R1` are the rows' starts followed by the end; `segment_L` is each token's
    row number.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    position_ids: tuple[int, ...]
    start_R1: tuple[int, ...] = field(default=())

    @property
    def segment_L(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(len(self.start_R1) - 1), np.diff(self.start_R1))


# ---------------------------------------------------------------- statistics


def render_stats(rows: Sequence[Row], renderer: Renderer, *, batch: int = 8) -> RenderStats:
    """Token statistics for the renderer and its `max_length`; rows that cannot be rendered are in `problems`."""
    total: dict[str, list[int]] = defaultdict(list)
    prompt: dict[str, list[int]] = defaultdict(list)
    target: dict[str, list[int]] = defaultdict(list)
    traced: list[tuple[Row, Traced]] = []
    problems = []
    for row in rows:
        found = renderer.try_trace(row)
        if isinstance(found, Finding):
            problems.append(found)
            continue
        traced.append((row, found))
        for name in (stratum_of(row, "source"), ALL):
            total[name].append(found.stop)
            prompt[name].append(len(found.prompt_ids))
            target[name].append(sum(found.labelled))
    stops = [t.stop for _, t in traced]
    packing, bins = packing_efficiency([min(s, renderer.max_length) for s in stops], renderer.max_length)
    empty = tuple(str(p.row_id) for p in problems if p.check in ("render.empty_answer", "render.no_target"))
    system = _system_cost([row for row, _ in traced], renderer)
    return RenderStats(
        tokens={k: Lengths.of(v) for k, v in total.items()},
        prompt_tokens={k: Lengths.of(v) for k, v in prompt.items()},
        target_tokens={k: Lengths.of(v) for k, v in target.items()},
        truncation=_truncation(traced, renderer.max_length),
        n_rows=len(traced),
        n_tokens=sum(stops),
        n_target=sum(sum(t.labelled) for _, t in traced),
        system_tokens=system[0],
        system_prompts=system[1],
        default_system=system[2],
        packing=packing,
        bins=bins,
        padding=padding_efficiency(stops, batch),
        batch=batch,
        nothing_to_learn=empty,
        problems=tuple(problems),
    )


def _truncation(traced: Sequence[tuple[Row, Traced]], limit: int) -> dict[str, Truncation]:
    by_source: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    for row, t in traced:
        lost = sum(t.labelled[limit:])
        facts = (t.stop > limit, lost > 0, lost == sum(t.labelled), lost)
        for name in (stratum_of(row, "source"), ALL):
            by_source[name].append(facts)
    return {name: Truncation(limit, len(f), *(int(sum(column)) for column in zip(*f))) for name, f in by_source.items()}


def _system_cost(rows: Sequence[Row], renderer: Renderer) -> tuple[int, int, str | None]:
    """(tokens of system prompts over all rows, distinct system prompts, the template's default one if it has one)."""
    default = default_system(renderer)
    cost: dict[str, int] = {}
    total = 0
    for row in rows:
        said = row.text("system", "developer")
        text = said if row.messages[0].role in ("system", "developer") else (default or "")
        if text not in cost:
            cost[text] = len(renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
        total += cost[text]
    return total, len([text for text in cost if text]), default


def default_system(renderer: Renderer) -> str | None:
    """The system prompt that the template adds to a conversation without one; None if it adds none."""
    user = Message("user", "ping")
    try:
        without = renderer.text([user], prompt=True)
        empty = renderer.text([Message("system", "\0"), user], prompt=True)
    except Unfit:
        return None
    left, _, right = empty.partition("\0")
    if (
        not right
        or not without.startswith(left)
        or not without.endswith(right)
        or len(without) < len(left) + len(right)
    ):
        return None
    return without[len(left) : len(without) - len(right)].strip() or None


def packing_efficiency(lengths: Sequence[int], size: int) -> tuple[float | None, int]:
    """(share of the bins that holds tokens, bins) when rows fill bins of `size` tokens, longest first, best fit."""
    if not lengths:
        return None, 0
    room: list[int] = []
    for n in sorted(lengths, reverse=True):
        at = bisect_left(room, n)
        left = room.pop(at) if at < len(room) else size
        insort(room, left - n)
    return sum(lengths) / (len(room) * size), len(room)


def padding_efficiency(lengths: Sequence[int], batch: int) -> float | None:
    """Share of real tokens in batches of `batch` consecutive rows, each padded to its longest row."""
    if not lengths:
        return None
    chunks = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(lengths) / sum(len(chunk) * max(chunk) for chunk in chunks)


# ---------------------------------------------------------------- packing


def pack(rows: Sequence[Rendered]) -> Packed:
    """Rows concatenated, with positions that restart at each row, and no loss on the first token of a row."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    starts = [0]
    for row in rows:
        ids.extend(row.input_ids)
        labels.extend((IGNORE, *row.labels[1:]))
        positions.extend(range(len(row.input_ids)))
        starts.append(len(ids))
    return Packed(tuple(ids), tuple(labels), tuple(positions), tuple(starts))


def check_packing(packed: Packed, attention_LL: npt.NDArray[np.bool_] | None = None) -> list[Finding]:
    """Whether one row's loss or attention reaches into another row of a packed sequence, as findings.

    Checked: no label on the first token of a row (its logits come from the row before), positions that start at 0 in
    every row, and, where a mask is given (`attention_LL[i, j]`: token i sees token j), no pair across two rows.
    """
    found = []
    inner = [b for a, b in pairwise(packed.start_R1) if b < len(packed.input_ids)]
    loss = [b for b in inner if packed.labels[b] != IGNORE]
    if loss:
        text = f"the loss crosses from one row into the next at {len(loss)} of {len(inner)} borders"
        found.append(Finding("packing.loss", "error", text, evidence={"at": loss[:10]}))
    position = [b for b in inner if packed.position_ids[b] != 0]
    if position:
        text = f"positions run on across {len(position)} of {len(inner)} borders: without a mask rows see each other"
        found.append(Finding("packing.positions", "error", text, evidence={"at": position[:10]}))
    if attention_LL is not None:
        segment = packed.segment_L
        crossing = attention_LL & (segment[:, None] != segment[None, :])
        if crossing.any():
            i, j = (int(x[0]) for x in np.nonzero(crossing))
            n = int(crossing.sum())
            text = f"attention crosses rows in {many(n, 'pairs')} of tokens, first token {i} attends to token {j}"
            found.append(Finding("packing.attention", "error", text, evidence={"n": n, "first": [i, j]}))
    return found


def attention_leak(forward: Callable[[Packed], npt.NDArray[Any]], rows: Sequence[Rendered]) -> float:
    """Largest absolute difference between the logits of `rows` packed together and each alone.

    `forward` runs the real model as training does and gives logits with shape (tokens, vocabulary). A leak shows as a
    difference far above the rounding of the dtype; a mask that only looks right cannot pass this.
    """
    together = np.asarray(forward(pack(rows)), dtype=np.float64)
    alone = np.concatenate([np.asarray(forward(pack([row])), dtype=np.float64) for row in rows])
    return float(np.abs(together - alone).max())


# ---------------------------------------------------------------- parity


def check_parity(
    rows: Sequence[Row], renderer: Renderer, *, stop_ids: Sequence[int] | None = None
) -> tuple[list[Finding], dict[str, JsonValue]]:
    """Findings from comparing training ids with `apply_chat_template`'s own, end tokens with the stop tokens, loss
    masks, and the template's switches.

    `stop_ids` are what generation stops on; without them generation_config.json in the tokenizer's folder says it, else
    config.json, else the tokenizer (`template.stops_of`).
    """
    findings: list[Finding] = []
    traced: list[tuple[Row, Traced]] = []
    for row in rows:
        found = renderer.try_trace(row)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            traced.append((row, found))
    differ = [
        row.id for row, t in traced if renderer.template_ids(row.messages, row.tools)[: t.stop] != t.ids[: t.stop]
    ]
    if differ:
        text = f"{len(differ)} of {len(traced)} rows have other ids under apply_chat_template(tokenize=True)"
        findings.append(Finding("parity.ids", "error", text, differ[0], evidence={"rows": differ[:10]}))
    stops = Stops(tuple(sorted(set(stop_ids))), "given") if stop_ids is not None else stops_of(renderer.tokenizer)
    ends = {t.ids[end] for _, t in traced for end in t.ends}
    findings += stop_findings(ends, stops, renderer.tokenizer)
    findings += _mask_findings(traced, renderer)
    findings += _turn_notes(traced, renderer)
    findings += _added_twice(traced, renderer)
    quirks = template_quirks(renderer)
    tokens = renderer.tokenizer.convert_ids_to_tokens
    facts = {
        "rows": len(traced),
        "ids_differ": len(differ),
        "template_sha256": renderer.template_sha256,
        "tokenizer_sha256": renderer.tokenizer_sha256,
        "template_variables": {name: renderer.template_kwargs.get(name) for name in renderer.variables},
        "end_tokens": tokens(sorted(ends)),
        "stop_tokens": tokens(sorted(stops.ids)),
        "stops_from": stops.source,
        "quirks": [q.check for q in quirks],
    }
    return [*findings, *quirks], facts


def stop_findings(ends: Collection[int], stops: Stops, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """An error if trained answers end on a token at which generation does not stop, so that it would run on."""
    if set(ends) <= set(stops.ids):
        return []
    names = tokenizer.convert_ids_to_tokens
    trained, served = (", ".join(map(str, names(sorted(s)))) or "none" for s in (ends, stops.ids))
    text = f"answers are trained to end on {trained}, generation stops on {served} ({stops.source})"
    evidence = {"trained": sorted(ends), "stops": sorted(stops.ids), "source": stops.source}
    return [Finding("parity.stop", "error", text, evidence=evidence)]


def _mask_findings(traced: Sequence[tuple[Row, Traced]], renderer: Renderer) -> list[Finding]:
    """Where the template's own generation mask puts the loss elsewhere than the mask that is trained on."""
    differ: list[tuple[Row, Traced, int]] = []
    for row, t in traced:
        theirs = renderer.generation_mask(row.messages, row.tools)
        if theirs is None:
            continue
        at = first_difference(t.labelled[: t.stop], theirs[: t.stop])
        if at < t.stop:
            differ.append((row, t, at))
    if not differ:
        return []
    row, t, at = differ[0]
    token = renderer.tokenizer.convert_ids_to_tokens(t.ids[at])
    here, there = ("with", "without") if t.labelled[at] else ("without", "with")
    text = (
        f"the template's own generation mask differs from the loss here in {len(differ)} of {len(traced)} rows: "
        f"first {row.id}, token {at + 1} {token!r}, {here} loss here and {there} in the template"
    )
    return [Finding("parity.generation_mask", "warning", text, row.id, evidence={"n": len(differ), "token": at})]


def _turn_notes(traced: Sequence[tuple[Row, Traced]], renderer: Renderer) -> list[Finding]:
    """What the template does to turns in every row, so that it is no fault of one."""
    found = []
    stripped = [row.id for row, t in traced if t.stripped]
    if stripped:
        text = (
            f"the template removes the reasoning from earlier turns in {len(stripped)} of {len(traced)} rows; these "
            "turns carry no loss, and serving removes it too"
        )
        found.append(Finding("parity.think_stripped", "note", text, stripped[0], evidence={"n": len(stripped)}))
    developers = sum(any(m.role == "developer" for m in row.messages) for row, _ in traced)
    if developers and "developer" not in renderer.template:
        text = f"the template has no developer role: it is rendered as system in {many(developers, 'rows')}"
        found.append(Finding("parity.developer", "note", text, evidence={"n": developers}))
    return found


def _added_twice(traced: Sequence[tuple[Row, Traced]], renderer: Renderer) -> list[Finding]:
    """Special tokens that `tokenizer(text)` adds to rendered text by default, and that the template writes as well."""
    if not traced:
        return []
    _, t = traced[0]
    default, names = tuple(renderer.tokenizer(t.text)["input_ids"]), renderer.tokenizer.convert_ids_to_tokens
    at = next((i for i in range(len(default) - len(t.ids) + 1) if default[i : i + len(t.ids)] == t.ids), None)
    if at is None or len(default) == len(t.ids):
        return []
    before, after = default[:at], default[at + len(t.ids) :]
    twice = [i for i in before if i in t.ids[:1]] + [i for i in after if i in t.ids[-2:]]
    evidence = {"before": names(list(before)), "after": names(list(after))}
    if twice:
        token = names(twice[0])
        text = (
            f"template and tokenizer both write {token}: tokenising the rendered text with default settings writes it "
            "twice; use add_special_tokens=False (the ids here hold it once)"
        )
        return [Finding("parity.bos", "warning", text, evidence=evidence)]
    added = ", ".join(map(str, [*evidence["before"], *evidence["after"]]))
    text = f"the tokenizer adds {added} to rendered text, but the template does not: use add_special_tokens=False"
    return [Finding("parity.bos", "note", text, evidence=evidence)]


def template_quirks(renderer: Renderer) -> list[Finding]:
    """Findings about what the template does by itself: a default system prompt, today's date, switches, a second
    template in another file.
    """
    found = []
    default = default_system(renderer)
    if default is not None:
        text = f"the template writes a system prompt of its own where a row has none: {default[:80]!r}"
        found.append(Finding("parity.default_system", "note", text, evidence={"text": default}))
    if "strftime_now" in renderer.template or "date_string" in renderer.template:
        text = "the template writes a date, so that training and serving differ from day to day"
        found.append(Finding("parity.date", "warning", text, evidence={}))
    probe = [Message("user", "ping")]
    renderings = {flag: renderer.text(probe, prompt=True, enable_thinking=flag) for flag in (True, False)}
    if renderings[True] != renderings[False]:
        now = renderer.template_kwargs.get("enable_thinking")
        text = (
            f"the generation prompt depends on enable_thinking ({'not set' if now is None else f'set to {now}'}): "
            "serve with the setting used in training (model.template_kwargs)"
        )
        found.append(Finding("parity.thinking", "warning", text, evidence={"enable_thinking": now}))
    others = [name for name in renderer.variables if name != "enable_thinking"]
    if others:
        text = f"the template also reads {', '.join(others)}: set in model.template_kwargs, else left to the template"
        evidence = {name: renderer.template_kwargs.get(name) for name in others}
        found.append(Finding("parity.variables", "note", text, evidence=evidence))
    twins = twin_templates(renderer.tokenizer)
    if twins:
        text = f"two chat templates that differ: {twins[0]} is used here, {', '.join(twins[1:])} by other tools"
        found.append(Finding("parity.two_templates", "warning", text, evidence={"files": list(twins)}))
    return found


def first_divergence(rows: Sequence[Row], left: Renderer, right: Renderer, *, context: int = 5) -> Divergence | None:
    """The first difference between the tokens of two renderers (training and serving); None if they agree on every row.

    Compared are the ids of whole conversations as the template renders them. Ids are compared by the text of their
    tokens as well, so that two vocabularies with other numbers but the same tokens do not diverge on the text alone.
    """
    first: Divergence | None = None
    differing = 0
    for row in rows:
        a, b = left.template_ids(row.messages, row.tools), right.template_ids(row.messages, row.tools)
        if a == b:
            continue
        differing += 1
        if first is None:
            at = first_difference(a, b)
            shown = slice(at, at + context)
            first = Divergence(
                row.id,
                at,
                tuple(left.tokenizer.convert_ids_to_tokens(list(a[shown]))),
                tuple(right.tokenizer.convert_ids_to_tokens(list(b[shown]))),
                a[shown],
                b[shown],
                str(left.tokenizer.decode(list(a[max(0, at - 3 * context) : at]))),
                0,
                len(rows),
            )
    if first is None:
        return None
    return replace(first, n_differing_rows=differing)


# ---------------------------------------------------------------- the view


_STYLE = (
    "body{font:14px/1.9 ui-monospace,monospace;margin:2em;max-width:70em}"
    "span{padding:2px 1px;border-radius:3px;white-space:pre-wrap;border-right:1px solid #fff}"
    ".off{background:#eceff1;color:#455a64}.on{background:#a5d6a7;color:#102a12}.end{background:#ffcc80;color:#3e2500}"
    ".cut{background:#fff;color:#9e9e9e;border:1px dashed #bdbdbd}"
    "@media(prefers-color-scheme:dark){body{background:#121212;color:#eee}.off{background:#263238;color:#b0bec5}}"
)


def tokens_text(row: Row, renderer: Renderer) -> str:
    """A rendered row as text: its number of tokens, then the part without loss and the part with loss."""
    rendered = renderer.row(row)
    lines = [f"row {row.id}: {many(len(rendered.input_ids), 'tokens')}, {rendered.n_target} with loss"]
    for part, has_loss in (("prompt", False), ("target", True)):
        ids = [i for i, label in zip(rendered.input_ids, rendered.labels) if (label != -100) == has_loss]
        lines.append(f"--- {part}\n{renderer.tokenizer.decode(ids)}")
    return "\n".join(lines)


def html_view(row: Row, renderer: Renderer) -> str:
    """A page with every token of `row`: grey without loss, green with, orange the end token, dashed what is cut off.

    Each token's tooltip holds position, id and token. All text from the row is escaped. Raises DataError when the row
    cannot be rendered.
    """
    traced = renderer.try_trace(row)
    if isinstance(traced, Finding):
        raise DataError(f"{traced.message}.", fix=str(traced.evidence["fix"]))
    tokens = renderer.tokenizer.convert_ids_to_tokens(list(traced.ids))
    parts = []
    for i, (token, (start, end)) in enumerate(zip(tokens, traced.offsets)):
        before = traced.offsets[i - 1][1] if i else 0
        text = traced.text[max(start, before) : end] if end > before else ""
        shown = html.escape(text).replace("\n", "⏎\n") or "·"
        title = html.escape(f"{i}: id {traced.ids[i]} {token}", quote=True)
        parts.append(f'<span class="{_class(traced, i)}" title="{title}">{shown}</span>')
    n, on = traced.stop, sum(traced.labelled)
    head = f"row {row.id}: {many(n, 'tokens')}, {on} with loss; template {renderer.template_sha256[:12]}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(row.id)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(head)}</h1><p>"
        '<span class="off">no loss</span> <span class="on">loss</span> <span class="end">end token, loss</span> '
        f'<span class="cut">cut off</span></p><p>{"".join(parts)}</p></html>\n'
    )


def _class(traced: Traced, i: int) -> str:
    if i >= traced.stop:
        return "cut"
    if not traced.labelled[i]:
        return "off"
    start, end = traced.offsets[i]
    last = i + 1 == len(traced.labelled) or not traced.labelled[i + 1]
    return "end" if last and any(s.content_end <= start and end <= s.limit for s in traced.spans) else "on"
