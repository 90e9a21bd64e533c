"""Representation geometry: do different personas' hidden states move together when the model is trained?

    prompts = render_personas(tokenizer, PERSONAS, QUESTIONS)
    base, trained = states(model_a, prompts), states(model_b, prompts)
    change = geometry(base, trained, prompts)

For each layer, a persona's centroid is its mean hidden state over the questions. What is measured of the centroids, and
which measure sees what, stands in `veritune.stats.centroids`: M1 (uncentred), M1 around an outside reference (the same
questions without a persona), M1 without the largest channel, the intra-class correlation of hidden states, the
separation of the centroids and their common drift. `geometry_grid` reads them side by side. Centring on the personas'
own mean is not offered: it makes M1 -1/(m - 1) whatever the model does. Layers are read one question at a time; what is
kept does not grow with the number of questions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from veritune.config.thresholds import DEFAULTS
from veritune.errors import DataError, ModelError, ScoreError, first_line
from veritune.probe.batches import evaluating, model_device
from veritune.probe.geometry_grid import read_alone
from veritune.records import Geometry, JsonValue, LayerGeometry
from veritune.stats.centroids import Centroids, changes, m1_parts
from veritune.untrusted import parse_yaml, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class Prompts:
    """Token ids [persona][question], the same questions without a persona, and a hash of the texts."""

    personas: tuple[str, ...]
    ids: tuple[tuple[tuple[int, ...], ...], ...]
    reference: tuple[tuple[int, ...], ...]
    hash: str


@dataclass(frozen=True)
class States:
    """Means over questions, per layer (0: embeddings), and what the ICC needs of the single states: inner products of
    states minus their question's mean over personas, summed over questions.
    """

    centroid_L_P_H: Floats
    reference_L_H: Floats
    gram_L_P_P: Floats
    n_questions: int
    method: Method
    prompts_hash: str

    def side(self, layer: int) -> Centroids:
        """One layer in the form that `stats.centroids` takes."""
        return Centroids(
            self.centroid_L_P_H[layer], self.reference_L_H[layer], self.gram_L_P_P[layer], self.n_questions
        )


def render_personas(
    tokenizer: PreTrainedTokenizerBase, personas: Mapping[str, str], questions: Sequence[str]
) -> Prompts:
    """The prompts, rendered with the tokenizer's chat template: system text, question, generation prompt."""
    least = DEFAULTS.geometry.min_personas
    if len(personas) < least or len(questions) < 2:
        raise DataError(
            f"expected at least {least} personas and 2 questions, found {len(personas)} and {len(questions)}."
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
    gram: Floats = np.zeros(())
    with evaluating(model), torch.no_grad():
        for q in range(n_questions):
            rows = [prompts.ids[p][q] for p in range(n_personas)] + [prompts.reference[q]]
            hidden = _hidden(model, rows, method, max_new_tokens)
            if not np.isfinite(hidden).all():
                raise ModelError(
                    f"question {q}: hidden states are not finite.", fix="Try float32, and check the model's weights."
                )
            if sums is None:
                layers, _, width = hidden.shape
                sums, reference = np.zeros((layers, n_personas, width)), np.zeros((layers, width))
                gram = np.zeros((layers, n_personas, n_personas))
            own = hidden[:, :n_personas]
            sums += own
            reference += hidden[:, n_personas]
            around = own - own.mean(1, keepdims=True)
            gram += around @ around.transpose(0, 2, 1)
    assert sums is not None
    return States(sums / n_questions, reference / n_questions, gram, n_questions, method, prompts.hash)


def _hidden(model: PreTrainedModel, rows: Sequence[tuple[int, ...]], method: Method, max_new_tokens: int) -> Floats:
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


# ---------------------------------------------------------------- before and after


def geometry(
    base: States, trained: States, prompts: Prompts, *, level: float = 0.95, layers: Sequence[int] | None = None
) -> Geometry:
    """What changed from base to trained, per layer (None: all), with its reading by the default thresholds.

    Raises ScoreError when the two were not read from the same prompts by the same method, or the models differ in
    shape.
    """
    origins = {(s.prompts_hash, s.method) for s in (base, trained)}
    same = len(origins) == 1 and base.prompts_hash == prompts.hash
    if not same or base.centroid_L_P_H.shape != trained.centroid_L_P_H.shape:
        raise ScoreError(
            "base and trained states differ in prompts, method or architecture.",
            fix="Read both with states(model, prompts) and the same prompts.",
        )
    read = range(len(base.centroid_L_P_H)) if layers is None else layers
    lines = [_layer(base.side(layer), trained.side(layer), layer, level) for layer in read]
    made = Geometry(
        n_personas=len(prompts.personas),
        n_questions=base.n_questions,
        prompts_hash=prompts.hash,
        method=base.method,
        layers=tuple(lines),
        reading="",
        limits="Centroids say how alike the states are, not how alike the answers read; these personas only.",
        would_change="More personas narrow the intervals and lower the smallest p; plain M1 alone cannot distinguish a "
        "common drift from a loss of distinctness.",
    )
    return read_alone(made)


def _layer(base: Centroids, trained: Centroids, layer: int, level: float) -> LayerGeometry:
    energy_H = np.square(base.centroid_P_H).sum(0)
    whole = float(energy_H.sum())
    drift, arrangement = m1_parts(base.centroid_P_H, trained.centroid_P_H) or (None, None)
    found = changes(base, trained, level)
    return LayerGeometry(
        layer=layer,
        top_channel_share=float(energy_H.max() / whole) if whole > 0 else None,
        m1_from_drift=drift,
        m1_from_arrangement=arrangement,
        m1=found["m1"],
        m1_around_reference=found["m1_around_reference"],
        m1_without_top_channel=found["m1_without_top_channel"],
        icc=found["icc"],
        separation=found["separation"],
        common_drift=found["common_drift"],
    )


def read_personas(path: str | Path) -> dict[str, str]:
    """The personas in a YAML or JSON file that maps names to system texts. Raises DataError for another structure."""
    found = _read_yaml(path)
    texts = {str(k): v for k, v in found.items() if isinstance(v, str) and v.strip()} if isinstance(found, dict) else {}
    if not isinstance(found, dict) or len(texts) < len(found):
        raise DataError(
            f"{path}: expected a mapping from a persona's name to its text.", fix="Write each like: name: You are ..."
        )
    return texts


def read_questions(path: str | Path) -> list[str]:
    """The questions in a YAML or JSON list, or in a text file with one per line. Raises DataError for another
    structure.
    """
    if str(path).endswith((".yaml", ".yml", ".json")):
        found = _read_yaml(path)
    else:
        found = [line.strip() for line in _text_of(path).splitlines() if line.strip()]
    questions = [q for q in found if isinstance(q, str) and q.strip()] if isinstance(found, list) else []
    if not isinstance(found, list) or len(questions) < len(found):
        raise DataError(
            f"{path}: expected a list of questions.",
            fix="Write one question per line in a .txt file, or a YAML or JSON list.",
        )
    return questions


def _read_yaml(path: str | Path) -> JsonValue:
    import yaml

    try:
        content: JsonValue = parse_yaml(_text_of(path))
    except (yaml.YAMLError, ValueError) as exc:
        raise DataError(f"{path} is not valid YAML or JSON: {first_line(exc)}.") from None
    return content


def _text_of(path: str | Path) -> str:
    try:
        return read_text(Path(path))
    except (OSError, ValueError) as exc:
        raise DataError(f"{path} cannot be read: {exc}.") from None
