"""One reader for every adapter: what merging it must do to each weight of its base, every tensor accounted for.

    reading = read_adapter("runs/.../adapter", base="models/base")
    for change in reading.changes(): ...

The formulas, in float64 (W as the base stores it, s the scale, B A the factors):

    LoRA                  W + s B A, transposed for Conv1D and embeddings
    DoRA                  m (W + s B A) / |W + s B A|, row by row
    PiSSA, OLoRA          what PEFT takes out of W when it loads the adapter goes first (SVD, QR)
    KaSA                  W without its r smallest singular directions, + s B diag(d) A
    experts               W_e + s B_e A_e, expert by expert
    bias                  its own value; lora_bias: b + s b_B
    tokens, saved modules the adapter's own rows or values
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from veritune.counting import many
from veritune.errors import ModelError
from veritune.train.adapters.config import MOVING, LoraSettings, settings
from veritune.train.adapters.places import FACTOR, PREFIX, TOKENS, AdapterPlan, LoraPlace, plain_key, plan
from veritune.train.adapters.stacked import converted, parts_of
from veritune.train.tensors import Tensors

WEIGHTS = "adapter_model.safetensors"
Change = Callable[[torch.Tensor], torch.Tensor]
"""What merging does to a weight: float64 in and out."""

PARTS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
TRAINING_ONLY = (".lora_monteclora_sampler", ".lora_velora_embed", ".original_module.")


@dataclass(frozen=True)
class ExpectedChange:
    """What merging must do to one weight: `delta` in float64, shaped as the base stores it; `how` names the kind of
    change.

    `module` is the adapter's own name for it, `key` the parameter's. `stored` is the tensor of the base's files that
    holds it: another than `key` where input and output embeddings are one tensor. `merge` merges into any weight of
    that shape: DoRA renormalises, so that what it adds the second time is not what it added the first. `base_rows` are
    the rows that the base has of it, fewer than the adapter's where the vocabulary was resized.
    """

    module: str
    key: str
    weight: torch.Tensor
    delta: torch.Tensor
    how: str
    merge: Change
    stored: str = ""
    base_rows: int | None = None


@dataclass(frozen=True)
class Step:
    """One change that the adapter makes to a parameter; `factors` are A, B and s of a plain LoRA, to compute its
    norm."""

    how: str
    change: Change
    factors: tuple[torch.Tensor, torch.Tensor, float] | None = None
    rows: int | None = None


@dataclass(frozen=True)
class AdapterReading:
    """A completely read adapter. `missing` names adapted modules without tensors; `notes` hold remarks for the user."""

    settings: LoraSettings
    plan: AdapterPlan
    weights: Tensors
    base: Tensors | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    steps: Mapping[str, Sequence[Callable[[], Step]]] = field(repr=False)

    def changes(self) -> Iterator[ExpectedChange]:
        """For every weight that the adapter changes, what its merge must add; only one weight is in memory at a time.

        Raises ModelError for a weight that the base lacks or has in another shape, and for values that are not finite.
        """
        if self.base is None:
            raise ModelError(f"{self.settings.folder}: this reading needs the base weights, but none were given.",
                             fix="Name the base model's folder.")  # fmt: skip
        for parameter, makers in self.steps.items():
            steps = [make() for make in makers]
            yield from self.changed(parameter, steps)

    @property
    def base_folder(self) -> Path:
        """The base's folder. Raises ModelError if none was given."""
        if self.base is None:
            raise ModelError(f"{self.settings.folder}: no base was given.", fix="Name the base model's folder.")
        return self.base.folder

    def stored(self, parameter: str) -> str | None:
        """The tensor of the base's files that holds a parameter; None if it is composed of several."""
        assert self.base is not None
        key = self.base.exact(parameter)
        if key is None and self.plan.tied is not None and parameter in self.plan.tied:
            key = next((k for name in self.plan.tied if (k := self.base.exact(name)) is not None), None)
        return key if key is not None else self.base.key_of(parameter.removesuffix(".weight"))

    def changed(self, parameter: str, steps: Sequence[Step]) -> Iterator[ExpectedChange]:
        """The change of one parameter; several changes if the base's files hold it in parts."""
        assert self.base is not None
        kinds = list(dict.fromkeys(step.how for step in steps))
        how = " and ".join([kind for kind in kinds if kind != "carried base"] or kinds)
        merge = partial(_in_turn, [step.change for step in steps])
        module = parameter.removesuffix(".weight")
        stored = self.stored(parameter)
        if stored is None:
            yield from parts_of(self, parameter, how, merge)
            return
        weight = self.base.whole(stored)
        rows = next((step.rows for step in steps if step.rows is not None), None)
        before = weight.shape[0] if weight.dim() else None
        if rows is not None and before is not None and rows > before:
            weight = torch.cat([weight, weight.new_zeros(rows - before, *weight.shape[1:])])
        after = merge(weight)
        if after.shape != weight.shape:
            raise other_shape(module, tuple(after.shape), tuple(weight.shape))
        if not torch.isfinite(after).all():
            raise ModelError(f"{module}: the adapter holds NaN or infinite values.", fix="Use an earlier checkpoint.")
        grown = before if rows is not None and before is not None and rows > before else None
        yield ExpectedChange(module, parameter, weight, after - weight, how, merge, stored, grown)


def _in_turn(changes: Sequence[Change], weight: torch.Tensor) -> torch.Tensor:
    for change in changes:
        weight = change(weight)
    return weight


def other_shape(module: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> ModelError:
    """The error for an adapter that fits a weight of another shape."""
    return ModelError(
        f"{module}: the adapter fits a weight of shape {list(ours)}, but the base has {list(theirs)}.",
        fix="Name the base that the adapter was trained on.",
    )


# ---------------------------------------------------------------- reading


def read_adapter(adapter: str | Path, base: str | Path | None = None) -> AdapterReading:
    """Config and tensors of a LoRA that PEFT saved, read on its base if one is given.

    Raises ModelError for other adapter types, for a config field that cannot be honoured, for tensors that fit no
    weight of the base, and for factors that are incomplete.
    """
    folder = Path(adapter)
    asked = settings(folder)
    weights = Tensors(folder, WEIGHTS)
    base_weights = Tensors(Path(base)) if base is not None else None
    placed = plan(asked, {plain_key(k): weights.shape(k) for k in weights.names}, Path(base) if base else None)
    if placed.peft is not None:
        weights = converted(weights, placed)
    return _assigned(asked, placed, weights, base_weights)


def _assigned(asked: LoraSettings, placed: AdapterPlan, weights: Tensors, base: Tensors | None) -> AdapterReading:
    keys = {plain_key(k): k for k in weights.names}
    used: set[str] = set()
    steps: dict[str, list[Callable[[], Step]]] = {}
    missing = []
    for place in placed.places:
        parts = _parts(place, keys)
        _require_expected(asked, placed, parts)
        if not parts:
            missing.append(place.module)
            continue
        used |= set(parts.values())
        carried = keys.get(f"{place.prefix}.base_layer.weight")
        if carried is not None and place.layer in ("linear", "embedding"):
            used.add(carried)
            steps.setdefault(place.parameter, []).append(partial(_values, weights, carried, "carried base"))
        make = partial(_lora, asked, place, weights, parts)
        steps.setdefault(place.parameter, []).append(make)
        if "B bias" in parts:
            if placed.parameters is not None and not place.has_bias:
                raise ModelError(
                    f"{place.module}: the adapter holds a bias (lora_bias) but the base's layer has none, so PEFT "
                    "does not merge it.",
                    fix="Serve the adapter unmerged.",
                )
            steps.setdefault(f"{place.module}.bias", []).append(partial(_lora_bias, place, weights, parts["B bias"]))
    for tokens in placed.tokens:
        key = keys.get(tokens.key)
        if key is None:
            missing.append(tokens.parameter)
            continue
        used.add(key)
        steps.setdefault(tokens.parameter, []).append(partial(_rows, weights, key, tokens.rows, tokens.parameter))
    notes = _rest(asked, placed, weights, base, (keys, used, steps))
    _require_whole(asked, missing, weights)
    return AdapterReading(asked, placed, weights, base, tuple(missing), notes, steps)


def _parts(place: LoraPlace, keys: Mapping[str, str]) -> dict[str, str]:
    """The file's keys of one LoRA layer by role. Raises ModelError where one factor stands without the other."""
    a, b = (
        ("lora_embedding_A", "lora_embedding_B") if place.layer == "embedding" else ("lora_A.weight", "lora_B.weight")
    )
    roles = {"A": a, "B": b, "magnitude": "lora_magnitude_vector", "diag": "lora_diag", "B bias": "lora_B.bias"}
    parts = {role: keys[f"{place.prefix}.{part}"] for role, part in roles.items() if f"{place.prefix}.{part}" in keys}
    factors = sorted(set(parts) & {"A", "B"})
    if parts and factors != ["A", "B"]:
        raise ModelError(
            f"{place.module}: expected factors A and B, found {factors}: the adapter file is incomplete.",
            fix="Copy the adapter's file again.",
        )
    return parts


def _require_expected(asked: LoraSettings, placed: AdapterPlan, parts: Mapping[str, str]) -> None:
    """Raises ModelError for a part that PEFT would pass over: the config does not ask for it."""
    known = placed.expected or None
    beside = {"magnitude": asked.dora, "diag": asked.kasa, "B bias": bool(asked.raw.get("lora_bias"))}
    for role, key in parts.items():
        passed_over = plain_key(key) not in known if known is not None else not beside.get(role, True)
        if passed_over:
            raise ModelError(
                f"{asked.folder}: the file holds {key}, which adapter_config.json does not name, so PEFT would "
                "ignore it.",
                fix="Use adapter_config.json and weights of the same run.",
            )


def _rest(
    asked: LoraSettings,
    placed: AdapterPlan,
    weights: Tensors,
    base: Tensors | None,
    state: tuple[Mapping[str, str], set[str], dict[str, list[Callable[[], Step]]]],
) -> tuple[str, ...]:
    """Account for what is no factor: biases, modules saved in full, what only training used. The rest is refused."""
    keys, used, steps = state
    stray, notes = [], list(_ambiguous(asked, placed))
    copies = {f"{PREFIX}{t.parameter.removesuffix('.weight')}{TOKENS}" for t in placed.tokens}  # of tied rows
    for plain, key in sorted(keys.items()):
        if key in used or any(mark in key for mark in TRAINING_ONLY) or key in copies:
            continue
        name = plain.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".token_adapter.", ".")
        own = plain.removeprefix(PREFIX)
        if ".modules_to_save." in own and f"{PREFIX}{own.replace('.modules_to_save.', '.')}" in keys:
            continue  # written twice by PEFT after a resize; the other is the one that it loads
        known = placed.parameters
        exists = name in known if known is not None else base is None or base.key_of(name.removesuffix(".weight"))
        if FACTOR.match(plain) or ".lora_" in plain or not exists:
            stray.append(name)
            continue
        whole = own == name
        how = "bias" if name.endswith(".bias") else "saved in full" if whole else "carried base"
        steps.setdefault(name, []).insert(0, partial(_values, weights, key, how))
        if base is None:
            notes.append(f"{name} is saved in full and was not compared: no base was given")
    if stray:
        raise ModelError(
            f"{asked.folder}: {len(stray)} of {len(keys)} tensors fit no weight of this base, first {stray[0]}: the "
            "adapter was made for another base, or by a tool that names modules differently.",
            fix="Name the base that the adapter was trained on.",
        )
    return tuple(notes)


def _ambiguous(asked: LoraSettings, placed: AdapterPlan) -> Iterator[str]:
    """Patterns that match one module with different values: PEFT takes the first, and sorts them when it saves."""
    for name, patterns in (("rank_pattern", asked.rank_pattern), ("alpha_pattern", asked.alpha_pattern)):
        if len(patterns) < 2:
            continue
        for place in placed.places:
            values = {v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", place.module)}
            if len(values) > 1:
                yield (
                    f"several patterns of {name} match {place.module} with different values: PEFT uses the first, but "
                    "sorts them when it saves, so the loaded adapter may differ from the trained one"
                )
                break


def _require_whole(asked: LoraSettings, missing: Sequence[str], weights: Tensors) -> None:
    if not missing or (asked.init in (True, None, "gaussian", "eva") and not asked.dora and not asked.kasa):
        return
    raise ModelError(
        f"{asked.folder}: {many(len(missing), 'adapted modules', 'have')} no tensors in the file, first {missing[0]}, "
        f"and with init_lora_weights = {asked.init!r} they would not start at zero change.",
        fix="Copy the adapter's file again.",
    )


# ---------------------------------------------------------------- what each part does


def _values(weights: Tensors, key: str, how: str) -> Step:
    values = weights.whole(key)
    return Step(how, lambda _: values, rows=values.shape[0] if values.dim() == 2 else None)


def _rows(weights: Tensors, key: str, rows: Sequence[int], parameter: str) -> Step:
    values = weights.whole(key)
    if len(rows) != values.shape[0]:
        raise ModelError(f"{parameter}: {len(rows)} token ids are named, but the file holds {values.shape[0]} rows.")

    def change(weight: torch.Tensor) -> torch.Tensor:
        if max(rows, default=0) >= weight.shape[0] or min(rows, default=0) < 0:
            raise ModelError(
                f"{parameter}: the adapter trains token {max(rows)}, but the base has {weight.shape[0]} rows.",
                fix="Resize the base's vocabulary as in training, and name that base.",
            )
        moved = weight.clone()
        moved[list(rows)] = values
        return moved

    return Step("tokens", change)


def _lora_bias(place: LoraPlace, weights: Tensors, key: str) -> Step:
    added = place.scale * weights.whole(key)
    return Step("bias", lambda bias: bias + added)


def _lora(asked: LoraSettings, place: LoraPlace, weights: Tensors, parts: Mapping[str, str]) -> Step:
    a, b = weights.whole(parts["A"]), weights.whole(parts["B"])
    if not torch.isfinite(a).all() or not torch.isfinite(b).all():
        raise ModelError(f"{place.module}: the adapter holds NaN or infinite values.", fix="Use an earlier checkpoint.")
    if a.numel() == 0 or b.numel() == 0 or min(a.dim(), b.dim()) < 2:
        raise ModelError(
            f"{place.module}: empty factors of shapes {list(a.shape)} and {list(b.shape)}: one shard was saved "
            "instead of the whole.",
            fix="Gather the shards (ZeRO-3, FSDP) before saving.",
        )
    a, b = _whole_blocks(asked, place, a, b)
    rank = a.shape[0] // place.experts
    if rank != place.rank or b.shape[1] != a.shape[0]:
        raise ModelError(
            f"{place.module}: the file holds factors of rank {rank}, but the config says {place.rank}.",
            fix="Use adapter_config.json and weights of the same run.",
        )
    if "diag" in parts:
        b = b * weights.whole(parts["diag"])
    if place.layer != "linear" and (asked.init in MOVING or asked.kasa):
        raise ModelError(
            f"{place.module}: {asked.init!r} factors on {place.layer} cannot be read.",
            fix="Merge the adapter with PEFT, and compare the checkpoints.",
        )
    magnitude = weights.whole(parts["magnitude"]).reshape(-1) if "magnitude" in parts else None
    if asked.dora and magnitude is None:
        raise ModelError(
            f"{place.module}: use_dora is set, but the file holds no magnitude.", fix="Copy the adapter's file again."
        )
    moved = asked.init if asked.init in MOVING else "kasa" if asked.kasa else None
    change = partial(merged_weight, place=place, factors=(a, b), magnitude=magnitude, moved=(moved, asked))
    plain = magnitude is None and moved is None and place.layer in ("linear", "embedding")
    how = "dora" if magnitude is not None else str(moved) if moved else "experts" if place.experts > 1 else "lora"
    rows = a.shape[1] if place.layer == "embedding" else None
    return Step(how, change, (a, b, place.scale) if plain else None, rows)


def _whole_blocks(
    asked: LoraSettings, place: LoraPlace, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors stored as diagonal blocks (BD-LoRA), written out."""
    blocks = int(str(asked.blocks.get("nblocks") or 1))

    def matches(name: str) -> bool:
        patterns = asked.blocks.get(name) or []
        return isinstance(patterns, list) and any(str(p) in place.module for p in patterns)

    if matches("target_modules_bd_a"):
        a = torch.block_diag(*a.chunk(blocks, dim=0))  # type: ignore[no-untyped-call]
    if matches("target_modules_bd_b"):
        b = torch.block_diag(*b.chunk(blocks, dim=0))  # type: ignore[no-untyped-call]
    return a, b


def product(place: LoraPlace, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product s B A in the form in which the base stores the weight."""
    if place.experts > 1:
        a_E = a.reshape(place.experts, -1, a.shape[-1])
        b_E = b.reshape(b.shape[0], -1, place.experts)
        stacked = torch.einsum("ore,eri->eoi" if place.swapped else "ore,eri->eio", b_E, a_E)
        return place.scale * stacked
    if place.layer == "conv":
        return place.scale * torch.einsum("or,r...->o...", b.flatten(1), a)
    dense = place.scale * (b @ a)
    return dense.t() if place.transposed or place.layer == "embedding" else dense


def merged_weight(
    weight: torch.Tensor,
    place: LoraPlace,
    factors: tuple[torch.Tensor, torch.Tensor],
    magnitude: torch.Tensor | None,
    moved: tuple[bool | str | None, LoraSettings],
) -> torch.Tensor:
    """The weight with its adapter merged, in float64. Raises ModelError if the shapes do not fit."""
    delta = product(place, *factors)
    if delta.shape != weight.shape:
        raise other_shape(place.module, tuple(delta.shape), tuple(weight.shape))
    if moved[0]:
        weight = _without_start(weight, place, moved)
    after = weight + delta
    if magnitude is None:
        return after
    if place.layer == "embedding" or place.transposed:  # DoRA's directions are the columns here
        columns: torch.Tensor = after * (magnitude / torch.linalg.vector_norm(after, dim=0)).reshape(1, -1)
        return columns
    size = torch.linalg.vector_norm(after.flatten(1), dim=1)
    rows: torch.Tensor = after * (magnitude / size).reshape(-1, *[1] * (after.dim() - 1))
    return rows


def _without_start(
    weight: torch.Tensor, place: LoraPlace, moved: tuple[bool | str | None, LoraSettings]
) -> torch.Tensor:
    """The base as PEFT leaves it once the adapter's start is taken out of it."""
    how, rank = moved[0], place.rank
    left: torch.Tensor
    if how == "pissa":  # W less its r largest singular directions
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        left = weight - (u[:, :rank] * s[:rank]) @ v[:rank]
    elif how == "kasa":  # W less its r smallest
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        keep = len(s) - rank
        left = (u[:, :keep] * s[:keep]) @ v[:keep]
    else:
        if place.transposed:
            raise ModelError(
                f"{place.module}: OLoRA on a Conv1D layer cannot be read.",
                fix="Merge the adapter with PEFT, and compare the checkpoints.",
            )
        q, r = torch.linalg.qr(weight)
        left = weight - place.scale * q[:, :rank] @ r[:rank]
    return left
