"""`veritune serve-parity`: golden prompts to a served model, and its speed beside the base's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.data.load import load_rows, require_clean
from veritune.data.render import Renderer
from veritune.errors import DataError, InputError, StaleError
from veritune.machine import package_versions
from veritune.records import Json, JsonLike, Row, to_json
from veritune.release.gate.evidence import Evidence, input_hashes, read_evidence, weights_digest, write_evidence
from veritune.release.parity.load import (
    SAMPLES,
    Load,
    Speed,
    TailRule,
    measure,
    ratios,
    sample_lines,
    tail_numbers,
    tails,
    write_samples,
)
from veritune.release.parity.serving import COMMANDS, Server, ServingParity, compare, expected_answers, judged, served
from veritune.store import Store, read_json, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from veritune.train.models import ModelRef

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
BENDING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size")
"""Keys of generation_config.json that bend what a client gets who asks for nothing; and `eos_token_id` ends it."""


@dataclass(frozen=True)
class ServingRequest:
    """What `veritune serve-parity` was given. `base` is the model to compare speed with; None measures no speed.

    `reference` is the folder whose template, tokenizer and stop tokens the answers must follow. With `study` it is the
    study's base as the contract has it; else the base, where one is named. `server` is a name in `serving.COMMANDS` or
    a command; `samples` is the file for the load test's requests.
    """

    model: str
    golden: Path
    url: str | None = None
    served_name: str | None = None
    reference: str | None = None
    base: str | None = None
    base_url: str | None = None
    dtype: str = "bfloat16"
    max_tokens: int = 32
    prompts: int = 16
    study: Path | None = None
    condition: str | None = None
    server: str = "transformers"
    samples: Path | None = None
    load: Load = field(default_factory=Load)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Served:
    """The result: always parity; speed, its ratios and the ratios of the tail if a base was given."""

    parity: ServingParity
    speed: Speed | None
    ratios: dict[str, Any]
    tails: dict[str, Json] = field(default_factory=dict)


def serve_command(asked: ServingRequest) -> Served:
    """Start or find the server, ask, compare, and with a base measure both in alternation.

    Raises InputError, DataError, ModelError, MachineError. With `study` the result is `release/serving.json`.
    """
    from veritune.config.train import Model
    from veritune.train.models import load_base, resolve

    if asked.study is not None and asked.url is not None:
        raise InputError(
            "the weights behind a server at --url are unknown, so its answers cannot be evidence for the gate.",
            fix="Leave out --url, so that the model is served here.",
        )
    if asked.study is not None and "{model}" not in COMMANDS.get(asked.server, asked.server):
        raise InputError(
            f"--server {asked.server!r} does not serve the folder's own weights, so it cannot be evidence for "
            "the gate.",
            fix="Use a server that takes {model}, or leave out --study.",
        )
    rows = golden_rows(asked.golden, asked.prompts)
    ref = resolve(Model(path=asked.model, dtype=asked.dtype), Path())  # type: ignore[arg-type]
    if asked.url is None and not any((ref.path / name).is_file() for name in TOKENIZERS):
        raise InputError(
            f"{ref.path} holds no tokenizer, so no server can tokenize prompts for it.",
            fix="Copy the base's tokenizer files and chat template beside the weights, as they will be served.",
        )
    with_tools = next((row.id for row in rows if row.tools is not None), None)
    if with_tools is not None:
        raise InputError(
            f"golden row {with_tools!r} declares tools, for which a server returns parsed calls, so no text can "
            "be compared.",
            fix="Give golden rows without tools (--golden).",
        )
    prompts = [(row.id, row.prompt) for row in rows]
    told_by = _reference(asked)
    kwargs = told_by.template_kwargs if told_by is not None else asked.template_kwargs
    model, tokenizer = _as_contract(load_base(ref), ref, told_by)
    expected = expected_answers(model, tokenizer, [p for _, p in prompts], asked.max_tokens, kwargs)
    del model
    plain = 0 if told_by is not None and _samples_itself(told_by.path) else 4
    with ExitStack() as stack:
        server = replace(_server(stack, asked, asked.url, ref.path), template_kwargs=kwargs)
        parity = compare(server, prompts, expected, asked.max_tokens, plain=plain)
        if told_by is None:
            parity = _own_word(parity)
        elif asked.url is None:
            parity = _with_cause(parity, ref.path, told_by.path)
        speed, load = None, replace(asked.load, max_tokens=asked.max_tokens)
        if asked.base is not None:
            base = resolve(Model(path=asked.base, dtype=asked.dtype), Path())  # type: ignore[arg-type]
            other = replace(_server(stack, asked, asked.base_url, base.path), template_kwargs=kwargs)
            speed = measure({"base": other, "candidate": server}, prompts, load)
    if kwargs:
        said = ", ".join(f"{name}={value}" for name, value in kwargs.items())
        limits = (
            f"{parity.limits} Requests carried chat_template_kwargs ({said}); one without gets the server's default."
        )
        parity = replace(parity, limits=limits)
    found = Served(parity, speed, ratios(speed, load) if speed else {}, _tails(asked, speed) if speed else {})
    if speed is not None and asked.samples is not None:
        write_samples(asked.samples, speed)
    if asked.study is not None:
        _record(asked, asked.study, found)
    return found


def _tails(asked: ServingRequest, speed: Speed) -> dict[str, Json]:
    """The tail's ratios by the study's policy, else by its defaults."""
    from veritune.config.load import load_study
    from veritune.config.release import ServingGate

    rule = TailRule()
    if asked.study is not None:
        release = load_study(Store.of(asked.study).study_file).release
        policy = release.serving if release is not None else ServingGate()
        rule = TailRule(policy.tail_quantile, policy.alpha, policy.tail_burst)
    return {name: tail_numbers(ratio) for name, ratio in tails(sample_lines(speed), rule).items()}


def _reference(asked: ServingRequest) -> ModelRef | None:
    """The model whose template, tokenizer and stop tokens count (a `ModelRef`); None where nobody named one.

    Raises StaleError when the study's base does not render as its contract says.
    """
    from veritune.config.train import Model
    from veritune.train.models import load_tokenizer, resolve

    if asked.study is None:
        name = asked.reference or asked.base
        kwargs = dict(asked.template_kwargs)
        return resolve(Model(path=name, dtype=asked.dtype, template_kwargs=kwargs), Path()) if name else None  # type: ignore[arg-type]
    from veritune.release.gate.candidate import CandidateChoice, open_case

    case = open_case(asked.study, CandidateChoice(condition=asked.condition))
    ref = resolve(case.study.model, case.store.root)
    kwargs = case.study.model.template_kwargs
    renderer = Renderer(load_tokenizer(ref), case.study.train.max_length, template_kwargs=kwargs)
    for name, found in (("template_sha256", renderer.template_sha256), ("tokenizer_sha256", renderer.tokenizer_sha256)):
        if found != getattr(case.facts, name):
            raise StaleError(
                f"{ref.path}: {name} is {found[:12]}, the contract has {getattr(case.facts, name)[:12]}.",
                fix="Restore the base that the study was frozen with.",
            )
    return ref


def _as_contract(
    model: PreTrainedModel, ref: ModelRef, reference: ModelRef | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The served weights with the reference's tokenizer, template and stop tokens; their own without a reference."""
    from transformers import AutoConfig, GenerationConfig

    from veritune.train.models import load_tokenizer

    if reference is None:
        return model, load_tokenizer(ref)
    if (reference.path / "generation_config.json").is_file():
        shipped = GenerationConfig.from_pretrained(reference.path)
    else:  # what transformers falls back on; the served folder's own would be its own witness
        shipped = GenerationConfig.from_model_config(AutoConfig.from_pretrained(reference.path))
    model.generation_config.eos_token_id = shipped.eos_token_id
    return model, load_tokenizer(reference)


def _shipped(folder: Path) -> dict[str, JsonLike]:
    path = folder / "generation_config.json"
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _samples_itself(folder: Path) -> bool:
    """Whether the reference samples when nobody says otherwise: then a server that does so is right."""
    shipped = _shipped(folder)
    return bool(shipped.get("do_sample")) or shipped.get("repetition_penalty", 1.0) != 1.0


def _with_cause(parity: ServingParity, folder: Path, reference: Path) -> ServingParity:
    """Where generation_config.json is another than the reference's, a drift of stop or decoding says in what."""
    mine, theirs = _shipped(folder), _shipped(reference)
    keys = {"stop": ("eos_token_id",), "sampling": BENDING, "text": BENDING}
    drifts = []
    for drift in parity.drifts:
        other = [k for k in keys.get(drift.kind, ()) if mine.get(k) != theirs.get(k)]
        if other:
            said = ", ".join(f"{k} {mine.get(k, 'unset')} against {theirs.get(k, 'unset')}" for k in other)
            drift = replace(drift, message=f"{drift.message}; generation_config.json has {said}")
        drifts.append(drift)
    return judged(parity.asked, parity.equal, drifts)


def _own_word(parity: ServingParity) -> ServingParity:
    """Without a reference a folder was compared with itself: what drifted inside it cannot show."""
    if parity.status != "passed":
        return parity
    return replace(
        parity,
        status="undecided",
        message=f"{parity.message}; no reference was named, so a template or stop token that drifted inside the folder"
        " itself would not show",
        reading="The server says what its own folder says; whether that is what was trained with was not asked.",
        would_change="Name the base or the study: --reference DIR, --base DIR or --study STUDY.",
    )


def _server(stack: ExitStack, asked: ServingRequest, url: str | None, folder: Path) -> Server:
    if url is not None:
        name = asked.served_name if url == asked.url else None
        return Server(url.rstrip("/"), name or str(folder))
    return stack.enter_context(served(folder, dtype=asked.dtype, server=asked.server))


def golden_rows(path: Path, most: int) -> list[Row]:
    """The first rows of a file of prompts. Raises DataError for an unreadable file, InputError for an empty one."""
    loaded = load_rows(path)
    require_clean(loaded)
    rows = [row for row in loaded.rows if row.prompt][:most]
    if not rows:
        raise InputError(f"{path} holds no prompts.", fix="Give rows with chat messages or prompts.")
    return rows


def _record(asked: ServingRequest, study: Path, found: Served) -> None:
    """Write the evidence. Raises DataError when the model is neither the candidate nor its merge."""
    from veritune.release.gate.candidate import CandidateChoice, open_case

    case = open_case(study, CandidateChoice(condition=asked.condition))
    subject, digest = case.candidate.subject, weights_digest(Path(asked.model))
    merge = read_evidence(case.store, "merge")
    if digest != subject.candidate and (merge is None or merge.subject.merged != digest):
        raise DataError(
            f"{asked.model} holds neither the candidate's weights nor those that merge-parity compared.",
            fix="Run `veritune merge-parity STUDY` first and serve its merged model.",
        )
    outputs: dict[str, str] = {}
    if found.speed is not None:
        write_samples(case.store.root / SAMPLES, found.speed)
        outputs = {SAMPLES: sha256_file(case.store.root / SAMPLES)}
    record = Evidence(
        kind="serving",
        status=found.parity.status,
        message=found.parity.message,
        subject=replace(subject, merged=digest if digest != subject.candidate else None),
        numbers=to_json(
            {
                "ratios": found.ratios,
                "tails": found.tails,
                "parity": found.parity,
                "table": found.speed.table if found.speed else None,
            }
        ),
        inputs=input_hashes(case.store, asked.golden),
        settings={
            "dtype": asked.dtype,
            "max_tokens": asked.max_tokens,
            "server": asked.server,
            "load": to_json(asked.load),
            "packages": package_versions(),
        },
        outputs=outputs,
    )
    write_evidence(case.store, record)


def render_text(found: Served) -> str:
    """The result as text for the screen."""
    parity = found.parity
    lines = [f"serving  {parity.status.upper()}: {parity.message}"]
    lines += [f"  x {d.item}: {d.kind}: {d.message}" for d in parity.drifts[:10]]
    for row in found.speed.table if found.speed else ():
        lines.append(
            f"  {row['side']:<9} {row['rate']:g}/s  first token p50 {_ms(row['first_token_p50'])},"
            f" p90 {_ms(row['first_token_p90'])}, p99 {_ms(row['first_token_p99'])}; answer p99"
            f" {_ms(row['answer_p99'])}; per token p50 {_ms(row['per_token_p50'])};"
            f" {row['errors']} of {row['requests']} failed"
        )
        more = (("throughput", 1, "answers/s"), ("cost_per_request", 1e3, "per 1000"), ("peak_memory", 2**-20, "MiB"))
        lines.append("                   " + "; ".join(f"{n} {_span(row[n], k)} {unit}" for n, k, unit in more))
    for name, ratio in found.ratios.items():
        if ratio["value"] is not None:
            why = f" ({ratio['reason']})" if "reason" in ratio else ""
            if ratio.get("worst") is not None:
                why += f", largest block {ratio['worst']:.3g}"
            lines.append(f"  candidate / base  {name} {_span(ratio)}{why}")
        else:
            lines.append(f"  candidate / base  {name} unknown: {ratio.get('reason', 'too few answers')}")
    for name, tail in found.tails.items():
        why = f" ({tail['reason']})" if tail["reason"] else ""
        lines.append(f"  candidate / base  {name} p{100 * tail['quantile']:g} {_span(tail)}{why}")
    if found.speed is not None:
        lines.append("  intervals: 95 %, over blocks (base and candidate by turns)")
    return "\n".join([*lines, "", parity.reading, parity.limits])


def _span(found: Mapping[str, Any], scale: float = 1.0) -> str:
    """`value [low, high]`, with `no interval` where there is none and `none` for an end that is not known."""
    if found["value"] is None:
        return "unknown"
    value, *ends = (None if v is None else f"{v * scale:.3g}" for v in (found["value"], found["low"], found["high"]))
    span = "no interval" if ends == [None, None] else ", ".join(end or "none" for end in ends)
    return f"{value} [{span}]"


def _ms(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "none"
    low, high = ("none" if found[end] is None else f"{found[end] * 1000:.0f}" for end in ("low", "high"))
    return f"{found['value'] * 1000:.0f} ms [{low}, {high}]"
