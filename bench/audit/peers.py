"""The tools people use today, set up as well as we know how, each as one function over texts.

A family peer takes texts and returns one integer per row, equal within a family. A peer whose package is not installed
raises ImportError and is left out of the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]
_WORD = re.compile(r"[a-z0-9]+")
_DIGITS = re.compile(r"\d+")


def shingles(text: str, n: int = 3) -> set[str]:
    """Word n-grams, lower case, every number as 0."""
    words = _WORD.findall(_DIGITS.sub("0", text.lower()))
    return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def merge(n: int, left: Codes, right: Codes) -> Codes:
    """Connected components, by scipy."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def rensa_families(texts: list[str], threshold: float = 0.3, bands: int = 42) -> Codes:
    """rensa: masked word 3-grams, 126 permutations in 42 bands of 3, candidates verified on the whole signature.

    In chunks of 20,000 rows, so that shingles need not be held; verification is vectorised.
    """
    from rensa import RMinHash, RMinHashLSH

    perms = bands * 3
    index = RMinHashLSH(threshold=threshold, num_perm=perms, num_bands=bands)
    digests = np.empty((len(texts), perms), np.uint32)
    left: list[Codes] = []
    right: list[Codes] = []
    for a in range(0, len(texts), 20_000):
        chunk = RMinHash.from_token_sets([shingles(t) for t in texts[a : a + 20_000]], perms, 42)
        digests[a : a + len(chunk)] = [m.digest() for m in chunk]
        index.insert_many(chunk, a)
        for i, found in enumerate(index.query_all(chunk)):
            hits = np.array(found, np.int64)
            hits = hits[hits < a + i]
            if not len(hits):
                continue
            hits = hits[(digests[hits] == digests[a + i]).mean(axis=1) >= threshold]
            left.append(np.full(len(hits), a + i))
            right.append(hits)
    none = [np.zeros(0, np.int64)]
    return merge(len(texts), np.concatenate(left or none), np.concatenate(right or none))


def datasketch_families(texts: list[str], threshold: float = 0.3) -> Codes:
    """datasketch: the same shingles, 128 permutations, its own choice of bands, verified on signatures."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=128)
    kept = []
    left, right = [], []
    for i, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([s.encode() for s in shingles(text)])
        for j in index.query(sketch):
            if kept[j].jaccard(sketch) >= threshold:
                left.append(i)
                right.append(j)
        index.insert(i, sketch)
        kept.append(sketch)
    return merge(len(texts), np.array(left, np.int64), np.array(right, np.int64))


def veritune_families(texts: list[str], threshold: float = 0.38) -> Codes:
    """Veritune's near-duplicate pass alone, from the same Python strings the peers get."""
    from veritune.data.families import FamilyColumns, find_families
    from veritune.data.near import TextBuffer

    columns = FamilyColumns([], TextBuffer.from_strings(texts))
    return find_families(columns, exact=False, threshold=threshold).code_N


FAMILY_PEERS: dict[str, Callable[[list[str]], Codes]] = {
    "veritune": veritune_families,
    "veritune, split-safe": lambda texts: veritune_families(texts, 0.32),
    "rensa >= .3, 42 x 3": rensa_families,
    "rensa >= .4, 42 x 3": lambda texts: rensa_families(texts, 0.4),
    "rensa >= .5, 42 x 3": lambda texts: rensa_families(texts, 0.5),
    "datasketch >= .3": datasketch_families,
}


def veritune_contamination(texts: list[str], items: list[str]) -> npt.NDArray[np.bool_]:
    """Veritune's whole check, rows flagged from `confirmed` on."""
    from veritune.data.contamination import check_contamination
    from veritune.data.families import FamilyColumns
    from veritune.data.near import TextBuffer

    result = check_contamination(FamilyColumns([], TextBuffer.from_strings(texts)), {"test": items})
    flag_N = np.zeros(len(texts), bool)
    flag_N[result.row_P[result.status_P <= 1]] = True
    return flag_N


def lm_eval_pass(texts: list[str], items: list[str], n: int = 13) -> npt.NDArray[np.bool_]:
    """lm-eval's n-gram pass as it is: `Janitor.clean_python`, its normalisation, its n-grams, the passage cut out.

    A row is flagged when something was cut. The compiled `janitor_util` is in no release, wheel or source.
    """
    from lm_eval.decontamination.janitor import Janitor

    found: list[bool] = []

    class Counting(Janitor):  # type: ignore[misc]
        def _split_chunks(self, dirty_string: str, dirty_parts: Iterable[tuple[Any, ...]]) -> list[str]:
            parts = list(dirty_parts)
            found.append(bool(parts))
            return list(super()._split_chunks(dirty_string, parts))

    janitor = Counting(ngram_n=n)
    for item in items:
        janitor.register_contaminant_python(item)
    for text in texts:
        janitor.clean_python(text)
    return np.array(found, bool)


def lm_eval_lookup(texts: list[str], items: list[str], n: int = 13) -> npt.NDArray[np.bool_]:
    """Less than lm-eval's pass: its normalisation and n-grams, a row is flagged at the first one, nothing is cut."""
    from lm_eval.decontamination.janitor import Janitor, word_ngrams

    janitor = Janitor(ngram_n=n)
    for item in items:
        janitor.register_contaminant_python(item)
    known = janitor.dirt_ngrams
    return np.array([any(g in known for g in word_ngrams(janitor.normalize_string(t), n)) for t in texts], bool)


def any_ngram_contamination(texts: list[str], items: list[str], n: int = 8) -> npt.NDArray[np.bool_]:
    """The usual script: any shared n-gram of lower-case words, in plain Python."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = _WORD.findall(text.lower())
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    known = set().union(*(runs(item) for item in items))
    return np.array([not known.isdisjoint(runs(t)) for t in texts], bool)


CONTAMINATION_PEERS: dict[str, Callable[[list[str], list[str]], npt.NDArray[np.bool_]]] = {
    "veritune >= .45": veritune_contamination,
    "lm-eval's pass, 13-gram": lm_eval_pass,
    "lm-eval's pass, 8-gram": lambda texts, items: lm_eval_pass(texts, items, 8),
    "lm-eval, bare look-up, 13-gram": lm_eval_lookup,
    "any 8-gram, plain Python": any_ngram_contamination,
}
