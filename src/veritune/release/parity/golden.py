"""Golden outputs: greedy token ids recorded with the released model loaded, and reproduced token for token later.

Each prompt is answered alone, so that nothing depends on its neighbours in a batch. Equality is exact: on another
processor or another version of the stack a bfloat16 model may round another way, and the message says what it was
recorded with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.train import Model
from veritune.data.render import Renderer
from veritune.data.text import first_difference
from veritune.errors import FormatError, InputError, ModelError, VerituneError, first_line
from veritune.evaluate.generate import Decoding, generate
from veritune.machine import describe_machine, package_versions
from veritune.records import (
    BundledBase,
    BundleManifest,
    Finding,
    JsonLike,
    Message,
    Row,
)
from veritune.release.bundle.parts import finding, json_of
from veritune.train.models import (
    BUILTIN,
    HUB_NAME,
    ModelRef,
    load_base,
    load_tokenizer,
    precision,
    quiet_transformers,
    resolve,
    weight_hashes,
)  # fmt: skip

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GOLDEN = "golden.json"
PROMPTS, MAX_TOKENS = 8, 64
ALONE = 1  # prompts in a batch


@dataclass(frozen=True, slots=True)
class Reproduced:
    """The result of answering the golden prompts again. `tokens` counts the ids compared, including prompts."""

    prompts: int
    tokens: int
    findings: tuple[Finding, ...]
    recorded_with: Mapping[str, Any]


def record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_new_tokens: int,
    template_kwargs: Mapping[str, JsonLike] | None = None,
) -> dict[str, JsonLike]:
    """Answer each row's prompt greedily, one at a time, and record the token ids. `template_kwargs` are the study's."""
    renderer = Renderer(tokenizer, 1 << 30, template_kwargs=template_kwargs)
    decoding = Decoding(min(max_new_tokens, MAX_TOKENS), ALONE)
    items = []
    for row in rows:
        ids = list(renderer.prompt_ids(row))
        (output,) = generate(model, tokenizer, [ids], decoding)
        items.append(
            {
                "id": row.id,
                **replace(row, messages=row.prompt).to_chat(),
                "prompt_ids": ids,
                "token_ids": list(output.token_ids),
                "ended": output.ended,
                "text": output.text,
            }
        )
    shape = {"greedy": True, "batch_size": ALONE, "max_new_tokens": decoding.max_new_tokens}
    variables = {"template_kwargs": dict(template_kwargs)} if template_kwargs else {}
    return {"decoding": shape, **variables, "recorded_with": _circumstances(model), "items": items}


def _circumstances(model: PreTrainedModel) -> dict[str, JsonLike]:
    machine = describe_machine()
    kept = {"system": machine.system, "machine": machine.machine, "accelerators": list(machine.accelerators)}
    versions = package_versions()
    kept |= {name: versions[name] for name in ("torch", "transformers", "peft") if name in versions}
    return {**kept, "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}


def reproduce(bundle: Path, manifest: BundleManifest, base: Path | None = None) -> Reproduced:
    """Load the bundle's model and answer its golden prompts again; every token id must equal the recorded one.

    The bundle must have been verified before. `base` says where the base model lies, when its reference does not.
    Raises InputError when the base cannot be found or is another one.
    """
    golden = json_of(bundle / GOLDEN)
    model, tokenizer = load_released(bundle, manifest, base)
    renderer = Renderer(tokenizer, 1 << 30, template_kwargs=golden.get("template_kwargs"))
    findings, tokens = [], 0
    decoding = Decoding(int(golden["decoding"]["max_new_tokens"]), ALONE)
    for item in golden["items"]:
        tools = tuple(item["tools"]) if item.get("tools") else None
        row = Row(item["id"], tuple(Message.from_chat(m) for m in item["messages"]), tools=tools)
        ids = list(renderer.prompt_ids(row))
        (output,) = generate(model, tokenizer, [ids], decoding)
        tokens += len(ids) + len(output.token_ids)
        for what, was, now in (
            ("prompt", item["prompt_ids"], ids),
            ("answer", item["token_ids"], list(output.token_ids)),
        ):
            if was != now:
                findings.append(_diverged(item["id"], what, was, now))
                break
        else:
            if output.ended != item["ended"]:
                message = f"golden prompt {item['id']!r} ended by {output.ended}, but {item['ended']} was recorded"
                findings.append(finding("golden", GOLDEN, message))
    return Reproduced(len(golden["items"]), tokens, tuple(findings), golden["recorded_with"])


def _diverged(item: str, what: str, was: Sequence[int], now: Sequence[int]) -> Finding:
    at = first_difference(was, now)
    ends = "the end"
    left = was[at] if at < len(was) else ends
    right = now[at] if at < len(now) else ends
    message = f"golden prompt {item!r}: the {what} differs from token {at} on: recorded {left}, now {right}"
    return finding("golden", GOLDEN, message)


# ---------------------------------------------------------------- the released model


def load_released(
    bundle: Path, manifest: BundleManifest, base: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that the bundle releases, and its tokenizer. `trust_remote_code` is always off, whatever the bundle
    says.
    """
    dtype = precision(manifest.base.dtype)
    tokenizer = load_tokenizer(ModelRef(manifest.name, bundle / "tokenizer", dtype))
    if manifest.weights.serves == "model":
        return load_base(ModelRef(manifest.name, bundle / "model", dtype)), tokenizer
    from peft import PeftModel

    model = load_base(find_base(manifest.base, base))
    try:
        with quiet_transformers():
            return PeftModel.from_pretrained(model, bundle / "adapter").eval(), tokenizer
    except Exception as exc:  # PEFT raises many kinds for an adapter that does not fit
        line = first_line(exc)
        raise ModelError(f"{bundle / 'adapter'}: the adapter cannot be loaded ({line}).") from None


def find_base(wanted: BundledBase, base: Path | None) -> ModelRef:
    """The base model on this disk, with its files compared by hash. Raises InputError if it is missing or different."""
    path = str(base) if base is not None else wanted.reference
    path = BUILTIN if base is None and path == HUB_NAME and wanted.builtin else path
    try:
        ref = resolve(Model(path=path, revision=wanted.revision, dtype=wanted.dtype), Path.cwd())
    except VerituneError as exc:
        raise InputError(
            f"the base model {path!r} was not found here: {exc.message}", fix="Name its folder: --base DIR."
        ) from None
    found = weight_hashes(ref)
    if found != dict(wanted.files):
        wrong = sorted(k for k in {*found, *wanted.files} if found.get(k) != wanted.files.get(k))
        raise InputError(
            f"{ref.path} is not the bundle's base: {wrong[0]} differs ({len(wrong)} files).",
            fix="Name the folder of the bundle's base: --base DIR.",
        )
    return replace(ref, name=wanted.name)


def golden_problem(path: Path) -> str | None:
    """Why golden outputs cannot be used; None if they can."""
    try:
        golden = json_of(path)
        items = golden["items"]
        whole = all(
            isinstance(i["id"], str)
            and all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in i["messages"])
            and all(type(t) is int for t in [*i["prompt_ids"], *i["token_ids"]])
            for i in items
        )
        limit = int(golden["decoding"]["max_new_tokens"])
    except (FormatError, KeyError, TypeError, ValueError, OverflowError) as exc:
        return f"is damaged: {exc}"
    if not items or not whole or not 1 <= limit <= MAX_TOKENS or len(items) > 64:
        return "holds no usable prompts"
    return None
