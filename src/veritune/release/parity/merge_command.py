"""`veritune merge-parity`: find base, adapter and rows, in a study or by name, and record what came out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.train import Model
from veritune.data.load import load_rows, require_clean
from veritune.data.render import Renderer, render_rows
from veritune.errors import GateError, InputError
from veritune.evaluate import tasks
from veritune.evaluate.scorers import scorer_of
from veritune.machine import package_versions
from veritune.records import Finding, Rendered, to_json
from veritune.release.gate.evidence import Evidence, weights_digest, write_evidence
from veritune.release.parity import quantised_merge as bitwise
from veritune.release.parity.export import INDEX, check_shards
from veritune.release.parity.gguf_file import check_file, convert
from veritune.release.parity.gguf_run import answers_of_file, run_file
from veritune.release.parity.merge import MergeParity, MergePart, joined, judge, merge_adapter, parity
from veritune.release.parity.merge_outputs import MergeOptions
from veritune.release.parity.merge_scores import Answer, ScoredTask, answers_of, paired_scores
from veritune.release.parity.quantised_merge import Bits, check_quantised_merge, dequantise, load, unquantised_merge
from veritune.store import sha256_file
from veritune.train import quantised
from veritune.train.adapters.attach import attach
from veritune.train.adapters.foreign import PeftForm, peft_folder
from veritune.train.models import context_length, load_tokenizer, resolve
from veritune.train.quantised import QLORA, Quantisation, in_bits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from veritune.data.load import TrainOn
    from veritune.release.parity.merge_scores import ScoredTask
    from veritune.release.parity.quantised_merge import Bits
    from veritune.train.models import ModelRef

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer.model", "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """Which task scores to compare: an eval of the study, or a pattern and a column of the data; and the margin."""

    eval: str | None = None
    extract: str | None = None
    expected: str | None = None
    margin: float | None = None
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Exports:
    """Exports to compare with the merged model; with `converter`, a GGUF of type `gguf_type` is made first."""

    shards: Path | None = None
    gguf: Path | None = None
    converter: Path | None = None
    gguf_type: str = "bf16"


@dataclass(frozen=True)
class MergeRequest:
    """What `veritune merge-parity` was given. Either `study`, or `model` and `adapter`; `rows` limits how many rows are
    compared.

    `quantised` says in which bits the base was that the adapter was trained on; in a study its condition says so.
    """

    study: Path | None = None
    model: str | None = None
    adapter: Path | None = None
    condition: str | None = None
    seed: int | None = None
    merged: Path | None = None
    out: Path | None = None
    data: Path | None = None
    rows: int = 32
    train_on: TrainOn = "all"
    quantised: str | None = None
    double_quant: bool = True
    scored: Scored = field(default_factory=Scored)
    exports: Exports = field(default_factory=Exports)


@dataclass(frozen=True)
class Work:
    """What to compare: the base on disk, the adapter, rows, an eval and the base's quantisation."""

    ref: ModelRef
    adapter: Path
    rows: list[Rendered]
    task: ScoredTask | None
    bits: Bits | None


def merge_command(asked: MergeRequest, options: MergeOptions) -> MergeParity:
    """Compare adapter and merged model, merging first if no merged folder is given; in a study the result is
    `release/merge.json`.

    Raises InputError when too little is named, ModelError when adapter, base and merged model do not belong together.
    """
    if (asked.study is None) == (asked.model is None or asked.adapter is None):
        raise InputError(
            "expected a study, or a model and an adapter; found neither.",
            fix="Name one: veritune merge-parity STUDY, or --model and --adapter.",
        )
    if asked.exports.gguf is not None and asked.exports.converter is not None:
        raise InputError(
            "--export FILE.gguf and --converter exclude each other.",
            fix="Give either the finished file or the converter.",
        )
    if asked.study is not None and asked.train_on != "all":
        raise InputError(
            "--train-on cannot be used with a study, whose data.train_on is used.", fix="Leave out --train-on."
        )
    if asked.study is not None:
        return _in_study(asked, options)
    assert asked.model is not None and asked.adapter is not None
    ref = resolve(Model(path=asked.model, dtype=options.dtype), Path())  # type: ignore[arg-type]
    bits = Bits.named(asked.quantised, options.dtype, asked.double_quant) if asked.quantised else None
    rows, task = _rows(ref, asked)
    return _compare(Work(ref, asked.adapter, rows, task, bits), asked, options)[0]


# ---------------------------------------------------------------- comparing


def _compare(work: Work, asked: MergeRequest, options: MergeOptions) -> tuple[MergeParity, Path]:
    """The comparison, and the merged model's folder."""
    written = peft_folder(work.adapter)
    work = replace(work, adapter=written.folder)
    with tempfile.TemporaryDirectory(prefix="veritune-merge-") as scratch:
        base = work.ref if work.bits is None else _dequantised(work.ref, work.bits, Path(scratch))
        merged = _merged(base, work, asked, options)
        found = _told(_found(work, base, merged, (Path(scratch), options)), written)
        parts = [*_exports(base, merged, (work, asked.exports), options)]
        if work.bits is not None and work.rows:
            from veritune.release.parity.quantised_merge import cost

            parts.append(cost(work.ref, work.bits, work.adapter, merged, (base.path, work.rows, options)))
        scores = _scores(work, merged, parts, (asked.exports, options))
    return joined(_scored(found, scores, merged), [*_excused(parts, scores), *scores]), merged


def _told(found: MergeParity, written: PeftForm) -> MergeParity:
    """The comparison with what the adapter's form leaves open."""
    notes = [*written.notes]
    if written.shape != "PEFT":
        notes.append(f"the adapter came in the form of {written.shape} and was read as PEFT's")
    findings = tuple(Finding("merge.form", "note", note) for note in notes)
    return replace(found, findings=(*found.findings, *findings))


def _dequantised(ref: ModelRef, bits: Bits, scratch: Path) -> ModelRef:
    """What the base in bits stands for, written out. Raises GateError where the 4-bit path fails its self-test."""
    from veritune.train.quantised import said, self_test

    if bits.kind != "int8":
        failed = self_test(bits.how).failed
        if failed is not None:
            raise GateError(
                f"the self-test of the 4-bit path failed on this runtime at stage '{failed.stage}': {said(failed)}.",
                fix="Merge on another machine or with other package versions; see `veritune doctor --selftest`.",
            )
    folder = dequantise(load(ref, bits), scratch / "dequantised", load_tokenizer(ref))
    return replace(ref, path=folder)


def _found(work: Work, base: ModelRef, merged: Path, how: tuple[Path, MergeOptions]) -> MergeParity:
    """Weights and outputs, against the base that the adapter was trained on."""
    scratch, options = how
    if work.bits is None:
        return parity(base, work.adapter, merged, work.rows, options)
    if in_bits(merged):
        served = replace(work.ref, path=merged)
        modules, findings = check_quantised_merge(
            base.path, work.adapter, served, work.bits, scratch / "served", options.thresholds
        )
        return judge(modules, findings, None, options.thresholds)
    found = parity(base, work.adapter, merged, work.rows, options)
    slip = (
        None
        if in_bits(work.ref.path)
        else unquantised_merge(found, work.ref.path, work.adapter, merged, options.thresholds)
    )
    if slip is None:
        return found
    return judge(found.modules, [slip, *found.findings], found.outputs, options.thresholds)


def _exports(base: ModelRef, merged: Path, what: tuple[Work, Exports], options: MergeOptions) -> list[MergePart]:
    work, exports = what
    parts = []
    if exports.shards is not None:
        parts.append(check_shards(exports.shards, merged))
    elif (merged / INDEX).is_file():
        parts.append(check_shards(merged))
    path = exports.gguf
    if exports.converter is not None:
        path = _converted(exports, merged)
    if path is not None:
        part = check_file(path, merged, base.path, options.thresholds)
        part = run_file(part, path, replace(work.ref, path=merged), work.rows, options)
        parts.append(replace(part, numbers={**part.numbers, "sha256": sha256_file(path)}))
    return parts


def _converted(exports: Exports, merged: Path) -> Path:
    assert exports.converter is not None
    out = merged.with_name(f"{merged.name}-{exports.gguf_type}.gguf")
    if out.exists():
        raise InputError(f"{out} exists.", fix="Compare it with --export, or remove it.")
    return convert(exports.converter, merged.resolve(), out.resolve(), exports.gguf_type)


def _scores(work: Work, merged: Path, parts: list[MergePart], how: tuple[Exports, MergeOptions]) -> list[MergePart]:
    """Task scores of the merged model, of its GGUF and of the merge in bits again, each against the adapter."""
    if work.task is None:
        return []
    from veritune.train.models import load_base, load_tokenizer

    exports, options = how
    ref, bits, tokenizer = work.ref, work.bits, load_tokenizer(work.ref)
    plain = replace(ref, dtype=options.dtype)

    def base() -> PreTrainedModel:
        return load_base(plain) if bits is None else bitwise.load(ref, bits)

    def in_bits() -> PreTrainedModel:
        assert bits is not None
        return bitwise.load(replace(ref, path=merged), bits)

    adapter = answers_of(lambda: attach(base(), work.adapter), tokenizer)
    whole: Callable[[], Any] = lambda: load_base(replace(plain, path=merged))  # noqa: E731
    others: dict[str, Answer] = {}
    if bits is None or not quantised.in_bits(merged):
        others["merged"] = answers_of(whole, tokenizer)
    if bits is not None:
        others["merged" if not others else bitwise.SERVED[bits.kind]] = answers_of(in_bits, tokenizer)
    file = exports.gguf or merged.with_name(f"{merged.name}-{exports.gguf_type}.gguf")
    if any(p.name == "gguf" and "outputs" in p.numbers for p in parts):
        others["gguf"] = answers_of_file(file, whole, tokenizer)
    found = paired_scores(work.task, adapter, others)
    shown = f"scores of {bitwise.SERVED[bits.kind]}" if bits else ""
    return [replace(p, status=None) if p.name == shown else p for p in found]


def _passed(scores: list[MergePart], name: str) -> bool:
    return any(p.name == f"scores of {name}" and p.status == "passed" for p in scores)


def _scored(found: MergeParity, scores: list[MergePart], merged: Path) -> MergeParity:
    """A merged model that is in bits itself rounds otherwise than its adapter; only scores can pass it."""
    if found.status != "undecided" or found.outputs is not None or not in_bits(merged) or not _passed(scores, "merged"):
        return found
    message = found.message.replace("outputs were not compared", "in bits, it is judged by its scores")
    return replace(found, status="passed", message=message, reading="The merged model scores as the adapter did.")


def _excused(parts: list[MergePart], scores: list[MergePart]) -> list[MergePart]:
    """A quantised GGUF that was read whole and run, with no fault found, passes with its scores."""

    def excused(part: MergePart) -> bool:
        quantised = part.name == "gguf" and not part.numbers["exact"] and not part.numbers["unread"]
        return quantised and part.status == "undecided" and _passed(scores, "gguf")

    return [replace(p, status="passed") if excused(p) else p for p in parts]


# ---------------------------------------------------------------- what is compared


def _merged(base: ModelRef, work: Work, asked: MergeRequest, options: MergeOptions) -> Path:
    from veritune.train.models import load_base

    if asked.merged is not None:
        return asked.merged
    if asked.out is None:
        raise InputError("no merged model was given.", fix="Name it with --merged, or let one be made in --out DIR.")
    if asked.out.exists() and any(asked.out.iterdir()):
        raise InputError(f"--out {asked.out} is not empty.", fix="Name it with --merged, or choose an empty folder.")
    merged = merge_adapter(load_base(replace(base, dtype=options.dtype)), work.adapter, asked.out)
    for name in TOKENIZER_FILES:
        if (work.ref.path / name).is_file():
            shutil.copyfile(work.ref.path / name, merged / name)
    return merged


def _rows(ref: ModelRef, asked: MergeRequest) -> tuple[list[Rendered], ScoredTask | None]:
    """The first rows of the data file as the contract would render them, and all of them as an eval if asked."""
    from veritune.evaluate.regression import AnswerKey

    scored = asked.scored
    if scored.eval is not None:
        raise InputError(
            "--eval names an eval of a study, but no study was given.",
            fix="Without a study give --extract and --expected.",
        )
    key = AnswerKey.of(scored.extract, scored.expected, scored.max_new_tokens)
    if asked.data is None:
        if key is not None:
            raise InputError("--extract needs rows, but none were given.", fix="Name the rows' file with --data.")
        return [], None
    loaded = load_rows(asked.data, train_on=asked.train_on)
    require_clean(loaded)
    renderer = Renderer(load_tokenizer(ref), context_length(ref) or 2048)
    rendered, problems = render_rows(loaded.rows[: asked.rows], renderer)
    if problems:
        raise InputError(f"{problems[0].message} ({len(problems)} rows).", fix="Drop or shorten these rows.")
    if key is None:
        return list(rendered), None
    prompts = tuple(renderer.prompt_ids(row) for row in loaded.rows)
    families = tuple(row.family for row in loaded.rows)
    task = ScoredTask(asked.data.name, key.spec, tuple(loaded.rows), prompts, families, _margin(scored.margin))
    return list(rendered), task


def _margin(margin: float | None) -> float:
    if margin is None:
        raise InputError(
            "scores are compared by a margin, but none was declared.",
            fix="Declare it before you see the scores: --margin 0.02",
        )
    return margin


def _study_task(case: Any, data: Any, asked: MergeRequest) -> ScoredTask | None:
    """The named eval of the study on its own items; the margin of the policy's suite where none is given."""
    scored = asked.scored
    if scored.extract is not None or scored.expected is not None:
        raise InputError(
            "--extract cannot be used with a study, which has its own evals.", fix="Name one of its evals with --eval."
        )
    if scored.eval is None:
        return None
    spec = case.study.evals.get(scored.eval)
    if spec is None:
        names = ", ".join(case.study.evals)
        raise InputError(f"--eval: expected one of {names}, found {scored.eval!r}.")
    suites = case.policy.release.regression.suites.values()
    declared = next((s.margin for s in suites if s.eval == scored.eval), None)
    own = data.benchmarks.get(scored.eval)
    rows = list(own.rows) if own else tasks.items(spec, data.rows, data.zone_of, data.family_of)
    prompts = tuple(data.prompt_of(row.id) for row in rows)
    families = tuple(data.place_of(row.id)[0] for row in rows)
    margin = _margin(scored.margin if scored.margin is not None else declared)
    score = scorer_of(scored.eval, spec, case.store.root)
    return ScoredTask(scored.eval, spec, tuple(rows), prompts, families, margin, score=score)


def _in_study(asked: MergeRequest, options: MergeOptions) -> MergeParity:
    """The candidate of a study on its own held-out rows, recorded as evidence for the gate."""
    from veritune.data.prepare import load_prepared
    from veritune.release.gate.candidate import CandidateChoice, open_case

    assert asked.study is not None
    case = open_case(asked.study, CandidateChoice(condition=asked.condition, seed=asked.seed))
    store, candidate = case.store, case.candidate
    options = replace(options, thresholds=case.study.thresholds.merge)
    ref = resolve(case.study.model, store.root)
    if not (candidate.folder / "adapter_config.json").is_file():
        raise InputError(
            f"{candidate.run_id} is not an adapter: there is nothing to merge.",
            fix="Remove the merge gate from the policy for this run.",
        )
    if asked.quantised is not None:
        raise InputError(
            "--quantised cannot be used with a study, whose condition states the base's quantisation.",
            fix="Leave out --quantised.",
        )
    condition = case.study.conditions[candidate.condition]
    bits = None
    if condition.method == QLORA:
        how = Quantisation.of(condition, ref.dtype)
        bits = Bits(str(dict(how.fields)["bnb_4bit_quant_type"]), how)
    place = replace(asked, out=asked.out or (None if asked.merged else store.release("merged")))
    data = load_prepared(store, case.facts)
    held_out = [r for zone in ("stranger", "validation") for r in data.zone(zone)][: asked.rows]
    task = _study_task(case, data, asked)
    found, merged = _compare(Work(ref, candidate.folder, held_out, task, bits), place, options)
    subject = replace(candidate.subject, merged=weights_digest(merged))
    packages = package_versions()
    settings = {**(found.outputs.settings if found.outputs else {}), "rows": len(held_out), "packages": packages}
    if bits is not None:
        settings["quantised"] = {"kind": bits.kind, **dict(bits.how.fields)}
    limits = {**found.thresholds, **({"margin": task.margin} if task else {})}
    record = Evidence("merge", found.status, found.message, subject, to_json(found.numbers()), limits, {}, settings)
    write_evidence(store, record)
    return found
