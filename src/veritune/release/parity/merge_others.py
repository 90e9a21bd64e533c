"""The weights that an adapter leaves alone, and input and output embeddings that are one tensor.

A base that ties them keeps one tensor for two weights. Here they are two all the same: an adapter on one of them asks
for a merged model that keeps the other, which one tensor cannot hold. What a loader makes of the merged folder is
decided by the tensors and by `tie_word_embeddings` in its config.json, and both are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from veritune.counting import many
from veritune.records import Finding
from veritune.store import read_json
from veritune.train.adapters.reading import AdapterReading
from veritune.train.models import quiet_transformers
from veritune.train.tensors import Tensors

Stored = Callable[[Any], Any]
"""What storing does to a weight: float64 in, the values that come back in float64."""

INPUTS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
OUTPUTS = ("lm_head.weight", "embed_out.weight")


def says_tied(folder: Path) -> bool:
    """Whether a model's config ties input and output embeddings, using transformers' defaults where it does not say."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder)
        text = config.get_text_config()
        return bool(getattr(text, "tie_word_embeddings", getattr(config, "tie_word_embeddings", False)))
    except Exception:
        path = folder / "config.json"
        return path.is_file() and bool(read_json(path, finite=False).get("tie_word_embeddings"))


def named_ends(folder: Path, held: Tensors) -> tuple[str, str] | None:
    """Names of input and output embedding of a base that ties them, found by their usual names."""
    if not says_tied(folder):
        return None
    first = [n for n in held.names if n.endswith(INPUTS)]
    last = [n for n in held.names if n.endswith(OUTPUTS)] or ["lm_head.weight"]
    return (first[0], last[0]) if len(first) == 1 and len(last) == 1 else None


@dataclass(frozen=True)
class Ties:
    """Where the merged folder keeps each weight. `base` names the base's tied pair, `merged` tells whether it ties
    them.
    """

    new: Tensors
    base: tuple[str, str] | None
    merged: bool

    @classmethod
    def of(cls, base: tuple[str, str] | None, folder: Path, new: Tensors) -> Ties:
        return cls(new, base, says_tied(folder) if base is not None else False)

    def find(self, key: str, stored: str) -> str | None:
        """The merged folder's tensor for a weight of the base; None if it has none."""
        if self.new.exact(key):
            return key
        if self.base is not None and key in self.base:
            other = next(k for k in self.base if k != key)
            by_prefix = self._own(key)
            return by_prefix or ((self.new.exact(other) or self._own(other)) if self.merged else None)
        return self.new.exact(stored) or self.new.key_of(key.removesuffix(".weight"))

    def _own(self, key: str) -> str | None:
        ends = [n for n in self.new.names if n.endswith("." + key) or key.endswith("." + n)]
        return ends[0] if len(ends) == 1 else None

    def pair(self) -> tuple[str | None, str | None]:
        """The merged folder's tensors for input and output embedding."""
        assert self.base is not None
        first, last = (self.find(k, k) for k in self.base)
        return first, last


def other_weights(
    reading: AdapterReading, ties: Ties, touched: set[str], stored: Mapping[str, Stored]
) -> list[Finding]:
    """Weights that the adapter does not change but the merged model changed, lacks or extended with rows; and the
    ties."""
    old = reading.base
    assert old is not None
    sides = {key: key for key in old.names if key not in touched}
    if ties.base is not None:  # both weights of the one tensor
        held = reading.stored(ties.base[0]) or ties.base[0]
        sides.pop(held, None)
        sides |= {key: held for key in ties.base if key not in touched}
    changed: list[str] = []
    lost: list[str] = []
    grown: list[str] = []
    for key, source in sides.items():
        other = ties.find(key, source)
        if other is None or old.shape(source)[1:] != ties.new.shape(other)[1:]:
            lost.append(key)
        elif old.shape(source) != ties.new.shape(other):
            rows = (old.shape(source) or (0,))[0]
            more = ties.new.shape(other)[0] > rows and torch.equal(
                _first(ties.new, other, rows), _kept(old, source, ties.new, other)
            )
            (grown if more else lost).append(key)
        elif not _same(old, source, ties.new, other, stored.get(source)):
            changed.append(key)
    together = _tied_findings(ties, touched, changed)
    if any(f.check == "merge.tied" and f.severity == "error" for f in together):
        changed = [key for key in changed if key not in (ties.base or ())]
    return [*together, *_listed(changed, lost, grown)]


def _listed(changed: Sequence[str], lost: Sequence[str], grown: Sequence[str]) -> list[Finding]:
    found = []
    if changed:
        message = (
            f"{many(len(changed), 'weights')} that the adapter does not touch differ from the base's: "
            f"{', '.join(changed[:3])}"
        )
        found.append(Finding("merge.others_changed", "error", message, evidence={"weights": list(changed)}))
    if lost:
        message = f"{many(len(lost), 'weights')} of the base are missing in the merged model: {', '.join(lost[:3])}"
        found.append(Finding("merge.others_missing", "error", message, evidence={"weights": list(lost)}))
    if grown:
        message = (
            f"the merged model has more rows than the base in {', '.join(grown[:3])}, which the adapter does not hold:"
            " the vocabulary was resized, and nothing says what the new rows should be"
        )
        found.append(Finding("merge.vocabulary", "warning", message, evidence={"weights": list(grown)}))
    return found


def _tied_findings(ties: Ties, touched: set[str], changed: Sequence[str]) -> list[Finding]:
    """An adapter on one of two tied weights, and a config that ties what its tensors do not."""
    if ties.base is None:
        return []
    found = []
    first, last = ties.pair()
    apart = first is not None and last is not None and first != last
    differ = apart and not _equal(ties.new, str(first), str(last))
    if ties.merged and differ:
        message = (
            f"config.json of the merged model ties input and output embeddings, but its tensors {first} and {last} "
            "differ: a loader that follows the config loses one of them; set tie_word_embeddings to false"
        )
        found.append(Finding("merge.tie_flag", "error", message, evidence={"weights": [str(first), str(last)]}))
    ends = [key for key in ties.base if key in touched]
    if len(ends) != 1:
        return found
    (own,) = ends
    other = next(key for key in ties.base if key != own)
    start = f"the adapter changes only {own}, but the base keeps it and {other} in one tensor"
    if differ:
        found.append(
            Finding("merge.tied", "warning", f"{start}: the merged model has untied them", evidence={"weights": ends})
        )
    elif other in changed:
        message = f"{start}: the merged model changed both, which makes it a different model; untie them before merging"
        found.append(Finding("merge.tied", "error", message, evidence={"weights": [own, other]}))
    return found


def _equal(held: Tensors, one: str, two: str) -> bool:
    if held.shape(one) != held.shape(two):
        return False
    return all(torch.equal(a, b) for a, b in zip(held.blocks(one), held.blocks(two)))


def _first(held: Tensors, key: str, rows: int) -> torch.Tensor:
    return held.whole(key)[:rows]


def _kept(old: Tensors, key: str, new: Tensors, other: str) -> torch.Tensor:
    return old.whole(key).to(new.dtype(other)).double()


def _same(old: Tensors, key: str, new: Tensors, other: str, keep: Stored | None) -> bool:
    """Whether a weight is what storing the base's makes of it, bit for bit."""
    if keep is not None:  # stored again, or left as it was
        values = old.whole(key)
        return torch.equal(keep(values), new.whole(other)) or torch.equal(values, new.whole(other))
    dtype = new.dtype(other)
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in zip(old.blocks(key), new.blocks(other)))
