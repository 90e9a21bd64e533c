"""Representation geometry: do different personas' hidden states move together when the model is trained?

    prompts = render_personas(tokenizer, PERSONAS, QUESTIONS)
    base, trained = states(model_a, prompts), states(model_b, prompts)
    change = geometry(base, trained, prompts)

For each layer, a persona's centroid is its mean hidden state over the questions. M1 is the mean cosine between the
centroids of different personas. It is near its ceiling in most models, because one or two channels carry most of every
centroid's norm; so beside it stand M1 around an outside reference (the same questions without a persona), M1 without
the largest channel, and the intra-class correlation of hidden states: the share of variance that the persona explains.
Centring on the personas' own mean is not offered: it makes M1 -1/(m - 1) whatever the model does. Layers are read one
question at a time; what is kept does not grow with the number of questions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from veritune.errors import DataError, ModelError, ScoreError
from veritune.probe.batches import evaluating, model_device
from veritune.probe.clusters import t_quantile
from veritune.records import FORMAT_VERSION, Json

Floats = npt.NDArray[np.float64]
Method = Literal["last_input_token", "response_mean"]

PERSONAS: Mapping[str, str] = {
    "ship's cook": "You cook on a cargo ship. You are cheerful, practical and always a little short of space.",
    "judge": "You are a retired judge. You weigh both sides before you say anything, and you dislike exaggeration.",
    "street magician": "You are a street magician. You speak in short, playful lines and love a surprise.",
    "nurse": "You are a night nurse. You are calm, kind and direct, and you check that you were understood.",
    "beekeeper": "You keep bees on a hillside farm. You talk about weather, patience and small animals.",
    "detective": "You are a tired detective. You trust details more than people and say so.",
    "kindergarten teacher": "You teach four-year-olds. You use simple words and a warm voice.",
    "stockbroker": "You are a stockbroker on a busy floor. You are fast, blunt and fond of numbers.",
    "poet": "You are a poet. You answer in images and never in lists.",
    "drill sergeant": "You are a drill sergeant. You give orders, loudly and without excuses.",
    "librarian": "You are a librarian in a small town. You are precise, quiet and know where everything is.",
    "space pilot": "You fly freight between moons. You are relaxed about danger and strict about checklists.",
}
QUESTIONS: tuple[str, ...] = (
    "What should I do first when I wake up?",
    "How do I say sorry to a friend?",
    "Is it ever right to tell a lie?",
    "What makes a good meal?",
    "How can I stay calm when things go wrong?",
    "What would you do with a day off?",
    "How do I learn something difficult?",
    "What is worth being afraid of?",
    "How should I spend a small amount of money?",
    "What do you think about rain?",
    "How do I know whom to trust?",
    "Why do people argue?",
    "What is the best way to end a long day?",
    "How would you explain the sea to somebody who never saw it?",
    "What is a mistake you would make again?",
    "How do I decide between two good things?",
)

CULPRIT_BELOW, WORSE_ABOVE, SMALL_CHANGE = 0.5, 1.5, 0.005
MIN_PERSONAS = 4
ALPHA = 0.05


@dataclass(frozen=True)
class Prompts:
    """Token ids [persona][question], the same questions without a persona, and a hash of the texts."""

    personas: tuple[str, ...]
    ids: tuple[tuple[tuple[int, ...], ...], ...]
    reference: tuple[tuple[int, ...], ...]
    hash: str


@dataclass(frozen=True)
class States:
    """Means over questions, per layer (0: embeddings), and sums of squares [L] for the ICC."""

    centroid_L_P_H: Floats
    reference_L_H: Floats
    total_sq_L: Floats
    question_sq_L: Floats
    n_questions: int
    method: Method
    prompts_hash: str


@dataclass(frozen=True)
class Geometry:
    """The record. `layers[l]` holds M1 and its variants before and after, their change with a jackknife interval over
    personas, and a permutation p with its Benjamini-Hochberg adjustment over the layers."""

    n_personas: int
    n_questions: int
    prompts_hash: str
    method: str
    layers: tuple[Json, ...]
    reading: str
    limits: str
    would_change: str
    kind: str = "geometry"
    format: int = FORMAT_VERSION


def render_personas(tokenizer: Any, personas: Mapping[str, str], questions: Sequence[str]) -> Prompts:
    """Prompts through the tokenizer's chat template: system text, question, generation prompt."""
    if len(personas) < MIN_PERSONAS or len(questions) < 2:
        raise DataError(
            f"expected at least {MIN_PERSONAS} personas and 2 questions, found {len(personas)} and {len(questions)}."
        )

    def ids(turns: list[dict[str, str]]) -> tuple[int, ...]:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    asked = [{"role": "user", "content": q} for q in questions]
    made = tuple(tuple(ids([{"role": "system", "content": text}, q]) for q in asked) for text in personas.values())
    text = json.dumps([dict(personas), list(questions)], ensure_ascii=False, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return Prompts(tuple(personas), made, tuple(ids([q]) for q in asked), digest)


def states(
    model: torch.nn.Module, prompts: Prompts, *, method: Method = "last_input_token", max_new_tokens: int = 32
) -> States:
    """Centroids of hidden states at the last input token, or the mean over greedily generated response tokens.

    One forward pass per question over all personas; memory holds one question. Raises ModelError on NaN states.
    """
    n_personas, n_questions = len(prompts.personas), len(prompts.reference)
    sums: Floats | None = None
    reference: Floats = np.zeros(())
    total_sq: Floats = np.zeros(())
    question_sq: Floats = np.zeros(())
    with evaluating(model), torch.no_grad():
        for q in range(n_questions):
            rows = [prompts.ids[p][q] for p in range(n_personas)] + [prompts.reference[q]]
            hidden = _hidden(model, rows, method, max_new_tokens)
            if not np.isfinite(hidden).all():
                raise ModelError(f"question {q}: hidden states are not finite.", fix="Try float32, check the weights.")
            if sums is None:
                layers, _, width = hidden.shape
                sums, reference = np.zeros((layers, n_personas, width)), np.zeros((layers, width))
                total_sq, question_sq = np.zeros(layers), np.zeros(layers)
            own = hidden[:, :n_personas]
            sums += own
            reference += hidden[:, n_personas]
            total_sq += np.square(own).sum((1, 2))
            question_sq += np.square(own.mean(1)).sum(1)
    assert sums is not None
    q_n = n_questions
    return States(sums / q_n, reference / q_n, total_sq, question_sq, q_n, method, prompts.hash)


def _hidden(model: Any, rows: Sequence[tuple[int, ...]], method: Method, max_new_tokens: int) -> Floats:
    """One state per row and layer [L, N, H], float64. Left padding puts every last token in the last column."""
    width = max(len(r) for r in rows)
    ids_N_T = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows]).to(model_device(model))
    mask_N_T = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]).to(ids_N_T.device)
    keep_N_T = torch.zeros_like(mask_N_T)
    keep_N_T[:, -1] = 1
    if method == "response_mean":
        pad = model.generation_config.pad_token_id or 0
        made_N_T = model.generate(
            input_ids=ids_N_T, attention_mask=mask_N_T, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
        )
        answer_N_T = made_N_T[:, width:]
        ends = model.generation_config.eos_token_id
        last = [] if ends is None else ends if isinstance(ends, list) else [ends]
        stop = torch.isin(answer_N_T, torch.tensor(last, dtype=torch.long, device=made_N_T.device))
        said_N_T = (stop.cumsum(1) - stop.long() == 0).long()  # up to and with the first end token
        ids_N_T, mask_N_T = made_N_T, torch.cat([mask_N_T, said_N_T], 1)
        keep_N_T = torch.cat([torch.zeros_like(keep_N_T), said_N_T], 1)
    place_N_T = (mask_N_T.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=ids_N_T, attention_mask=mask_N_T, position_ids=place_N_T, output_hidden_states=True, use_cache=False
    )
    share_N_T = (keep_N_T / keep_N_T.sum(1, keepdim=True)).double()
    kept = [torch.einsum("nth,nt->nh", h.double(), share_N_T).cpu().numpy() for h in out.hidden_states]
    return np.stack(kept)


# ---------------------------------------------------------------- statistics


def m1(centroid_P_H: Floats) -> float | None:
    """Mean cosine between different rows; None when a row is zero."""
    norm_P = np.linalg.norm(centroid_P_H, axis=1)
    if not (norm_P > 1e-12 * max(1.0, float(norm_P.max()))).all():
        return None
    unit = centroid_P_H / norm_P[:, None]
    cosine = unit @ unit.T
    p = len(unit)
    return float((cosine.sum() - np.trace(cosine)) / (p * (p - 1)))


def icc(s: States, layer: int) -> float | None:
    """Intra-class correlation of hidden states by persona, question effects removed: two-way, traces of mean squares.

    (MSP - MSE)/(MSP + (Q - 1) MSE). Source: Shrout & Fleiss 1979, Psychol. Bull. 86:420, ICC(3,1), over dimensions.
    """
    centroid_P_H = s.centroid_L_P_H[layer]
    p, q = len(centroid_P_H), s.n_questions
    grand = float(np.square(centroid_P_H.mean(0)).sum()) * p * q
    persona = q * float(np.square(centroid_P_H).sum()) - grand
    question = p * float(s.question_sq_L[layer]) - grand
    rest = float(s.total_sq_L[layer]) - grand - persona - question
    between, within = persona / (p - 1), rest / ((p - 1) * (q - 1))
    bottom = between + (q - 1) * within
    return (between - within) / bottom if bottom > 1e-12 * max(1.0, grand) else None


def _variants(s: States, layer: int, channel: int) -> dict[str, Floats]:
    """Centroids as they are, around the outside reference, and without the base's largest channel."""
    plain = s.centroid_L_P_H[layer]
    return {
        "m1": plain,
        "m1_around_reference": plain - s.reference_L_H[layer],
        "m1_without_top_channel": np.delete(plain, channel, axis=1),
    }


def geometry(base: States, trained: States, prompts: Prompts, *, level: float = 0.95) -> Geometry:
    """What changed from base to trained, per layer. Raises ScoreError when the two were not read from the same prompts
    by the same method, or the models differ in shape."""
    same = (base.prompts_hash, base.method) == (
        trained.prompts_hash,
        trained.method,
    ) and base.prompts_hash == prompts.hash
    if not same or base.centroid_L_P_H.shape != trained.centroid_L_P_H.shape:
        raise ScoreError(
            "base and trained states come from other prompts, another method or another architecture.",
            fix="Read both with states(model, prompts) from the same prompts.",
        )
    layers = [_layer(base, trained, layer, level) for layer in range(len(base.centroid_L_P_H))]
    _adjust(layers)
    reading, limits, change = _sentences(layers)
    return Geometry(
        n_personas=len(prompts.personas),
        n_questions=base.n_questions,
        prompts_hash=prompts.hash,
        method=base.method,
        layers=tuple(layers),
        reading=reading,
        limits=limits,
        would_change=change,
    )


def _layer(base: States, trained: States, layer: int, level: float) -> dict[str, Any]:
    energy_H = np.square(base.centroid_L_P_H[layer]).sum(0)
    channel = int(energy_H.argmax())
    whole = float(energy_H.sum())
    made: dict[str, Any] = {
        "layer": layer,
        "top_channel_share": float(energy_H[channel] / whole) if whole > 0 else None,
        "icc": {"base": icc(base, layer), "trained": icc(trained, layer)},
    }
    before, after = _variants(base, layer, channel), _variants(trained, layer, channel)
    for name in before:
        made[name] = _change(before[name], after[name], level)
    return made


def _change(a_P_H: Floats, b_P_H: Floats, level: float) -> dict[str, Any]:
    """M1 before and after, the change with a jackknife over personas and an exact permutation p."""
    before, after = m1(a_P_H), m1(b_P_H)
    if before is None or after is None:
        return {"base": before, "trained": after, "change": None, "reason": "a centroid is zero: no direction"}
    p = len(a_P_H)
    leave = np.array([_delta(np.delete(a_P_H, i, 0), np.delete(b_P_H, i, 0)) for i in range(p)])
    se = float(np.sqrt((p - 1) / p * np.square(leave - leave.mean()).sum()))
    half = t_quantile(0.5 + level / 2, p - 1) * se
    change = after - before
    n_swaps, p_value = permutation_p(a_P_H, b_P_H)
    return {
        "base": before,
        "trained": after,
        "change": change,
        "low": change - half,
        "high": change + half,
        "p": p_value,
        "n_permutations": n_swaps,
    }


def _delta(a_P_H: Floats, b_P_H: Floats) -> float:
    after, before = m1(b_P_H), m1(a_P_H)
    return (after or 0.0) - (before or 0.0)


def permutation_p(a_P_H: Floats, b_P_H: Floats, *, limit: int = 4096, seed: int = 0) -> tuple[int, float]:
    """Two-sided p of the change in M1 when each persona's two centroids change places: all 2^P swaps up to `limit`,
    else that many drawn ones, the observed one counted (Phipson & Smyth 2010)."""
    p = len(a_P_H)
    both = np.concatenate([a_P_H, b_P_H])
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    cosine = unit @ unit.T
    if 2**p <= limit:
        swap_S_P = np.array(list(itertools.product([0, 1], repeat=p)))
    else:
        swap_S_P = np.random.default_rng(seed).integers(0, 2, (limit, p))
        swap_S_P[0] = 0
    one_S_K = np.concatenate([1 - swap_S_P, swap_S_P], 1).astype(float)  # which of the 2P rows stand for the base
    two_S_K = 1 - one_S_K
    statistic_S = np.einsum("sk,kl,sl->s", two_S_K, cosine, two_S_K, optimize=True)
    statistic_S -= np.einsum("sk,kl,sl->s", one_S_K, cosine, one_S_K, optimize=True)
    extreme = np.abs(statistic_S) >= abs(statistic_S[0]) - 1e-12
    return len(swap_S_P), float(extreme.mean())


def _adjust(layers: list[dict[str, Any]]) -> None:
    """Benjamini-Hochberg over the layers, within each variant."""
    from scipy.stats import false_discovery_control

    for name in ("m1", "m1_around_reference", "m1_without_top_channel"):
        known = [line[name] for line in layers if line[name].get("p") is not None]
        if known:
            for line, adjusted in zip(known, false_discovery_control([k["p"] for k in known])):
                line["p_adjusted"] = float(adjusted)


def against_reference(run: Geometry, reference: Geometry, name: str = "m1_around_reference") -> list[dict[str, Any]]:
    """Per layer, the run's change over a reference run's: below 0.5 the reference's method is the culprit, above 1.5
    the run is markedly worse, between them the change is generic. A reference change that is small, or whose interval
    holds 0, decides nothing."""
    if run.prompts_hash != reference.prompts_hash or len(run.layers) != len(reference.layers):
        raise ScoreError("the two runs were read from other prompts or other architectures.")
    made = []
    for ours, theirs in zip(run.layers, reference.layers):
        a, b = ours[name], theirs[name]
        line: dict[str, Any] = {"layer": ours["layer"], "ratio": None, "verdict": "undecided"}
        if a["change"] is None or b["change"] is None:
            line["reason"] = "a centroid is zero"
        elif abs(b["change"]) < SMALL_CHANGE or b["low"] <= 0 <= b["high"]:
            line["reason"] = f"the reference's change {b['change']:.4f} is too small or not clear of 0"
        else:
            ratio = a["change"] / b["change"]
            line["ratio"] = ratio
            if ratio < 0:
                line["note"] = "the two runs moved in opposite directions"
            line["verdict"] = (
                "reference is the culprit" if ratio < CULPRIT_BELOW else "worse" if ratio > WORSE_ABOVE else "generic"
            )
        made.append(line)
    return made


def _sentences(layers: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    name = "m1_around_reference"
    clear = [x for x in layers if x[name].get("p_adjusted", 1) < ALPHA and not x[name]["low"] <= 0 <= x[name]["high"]]
    if not clear:
        said = f"In none of {len(layers)} layers did personas clearly move together or apart{_why_not(layers, name)}."
    else:
        most = max(clear, key=lambda x: abs(x[name]["change"]))
        word = "together" if most[name]["change"] > 0 else "apart"
        said = (
            f"In {len(clear)} of {len(layers)} layers personas moved, most in layer {most['layer']}, {word}: mean "
            f"cosine around the reference {most[name]['base']:.2f} before, {most[name]['trained']:.2f} after."
        )
    return (
        said,
        "Cosines of centroids say how alike the states are, not how alike the answers read; these personas only.",
        "More personas narrow the intervals; plain M1 alone would not, it sits near its ceiling in most models.",
    )


def _why_not(layers: Sequence[Mapping[str, Any]], name: str) -> str:
    """What a reading of no change must add: nothing changed at all, or nothing could have been shown."""
    known = [x[name] for x in layers if x[name].get("p") is not None]
    if not known:
        return ": in each a centroid is zero and has no direction"
    if not any(x["change"] for x in known):
        return ": both models have the same states (nothing was trained, or the two are one model)"
    least = 2 / min(x.get("n_permutations", np.inf) for x in known)
    if least >= ALPHA:
        return f", and none could be shown: with so few personas the smallest p there is is {least:.3g}"
    return ""


# ---------------------------------------------------------------- a grid of layers and methods


@dataclass(frozen=True)
class Grid:
    """The record of one run: a `Geometry` per method, p adjusted over all layers and methods of a variant together,
    and the ratios to a reference run where one was given. `files` holds SHA-256 of the user's own files."""

    label: str
    methods: Mapping[str, Geometry]
    against: Mapping[str, tuple[Json, ...]] | None
    files: Mapping[str, str]
    reading: str
    limits: str
    would_change: str
    kind: str = "geometry_grid"
    format: int = FORMAT_VERSION


def grid(
    label: str,
    found: Mapping[str, Geometry],
    reference: Mapping[str, Geometry] | None = None,
    files: Mapping[str, str] | None = None,
) -> Grid:
    """One run's readings by every method. Benjamini-Hochberg runs over layers x methods, which is no weaker than by
    method: a layer is not called moved because several methods were tried."""
    methods = {name: _copied(g) for name, g in found.items()}
    _adjust([line for g in methods.values() for line in g.layers])  # type: ignore[misc]
    against = None if reference is None else {m: tuple(against_reference(methods[m], reference[m])) for m in methods}
    said = [f"By {name}: {_sentences(g.layers)[0]}" for name, g in methods.items()]
    for name, cells in (against or {}).items():
        counts = {v: sum(c["verdict"] == v for c in cells) for v in dict.fromkeys(c["verdict"] for c in cells)}
        said.append(f"Against the reference by {name}: " + ", ".join(f"{v} in {n}" for v, n in counts.items()) + ".")
    first = next(iter(methods.values()))
    return Grid(label, methods, against, dict(files or {}), " ".join(said), first.limits, first.would_change)


def _copied(g: Geometry) -> Geometry:
    from dataclasses import replace

    layers = tuple({k: dict(v) if isinstance(v, dict) else v for k, v in line.items()} for line in g.layers)
    return replace(g, layers=layers)


def read_personas(path: Any) -> dict[str, str]:
    """A YAML or JSON file that maps names to system texts. Raises DataError for another shape."""
    found = _read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(v, str) and v.strip() for v in found.values()):
        raise DataError(f"{path}: expected a mapping from a persona's name to its text.", fix="name: You are ...")
    return {str(k): v for k, v in found.items()}


def read_questions(path: Any) -> list[str]:
    """A YAML or JSON list of questions, or a text file with one a line. Raises DataError for another shape."""
    if str(path).endswith((".yaml", ".yml", ".json")):
        found = _read_yaml(path)
    else:
        found = [line.strip() for line in _text_of(path).splitlines() if line.strip()]
    if not isinstance(found, list) or not all(isinstance(q, str) and q.strip() for q in found):
        raise DataError(f"{path}: expected a list of questions.", fix="One question a line in a .txt file.")
    return list(found)


def _read_yaml(path: Any) -> Any:
    import yaml

    try:
        return yaml.safe_load(_text_of(path))
    except yaml.YAMLError as exc:
        raise DataError(f"{path} is no YAML or JSON: {str(exc).splitlines()[0]}.") from None


def _text_of(path: Any) -> str:
    from pathlib import Path

    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path} cannot be read: {exc}.") from None
