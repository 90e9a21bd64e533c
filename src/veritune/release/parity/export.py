"""Is an export the merged model? Safetensors shards here; a GGUF file in `gguf_file`.

Shards: the index names every tensor once, each lies in the file that the index says, no file lies outside the index,
the sizes add up, and every value is the merged model's, bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from veritune.counting import many
from veritune.errors import ModelError
from veritune.records import Finding
from veritune.release.parity.merge import MergePart, weights_error
from veritune.train.tensors import Tensors
from veritune.untrusted import parse_json, read_bytes

if TYPE_CHECKING:
    from veritune.train.tensors import Tensors

INDEX = "model.safetensors.index.json"


def check_shards(folder: Path, merged: Path | None = None) -> MergePart:
    """Check the safetensors of `folder` for consistency, and with `merged` that tensors and values are the same.

    Raises ModelError when there are no safetensors, or an index that cannot be read.
    """
    held = _headers(folder)
    findings = [*_index(folder, held), *_twice_there(held)]
    if merged is not None:
        findings += _same_tensors(folder, merged)
    n = len({name for tensors in held.values() for name in tensors})
    bad = [f for f in findings if f.severity == "error"]
    same = " with the merged model's values" if merged is not None else ""
    message = bad[0].message if bad else f"{many(n, 'tensors')} in {many(len(held), 'files')}{same}, as the index says"
    numbers = {"files": len(held), "tensors": n, "findings": [f.check for f in findings]}
    return MergePart("shards", "failed" if bad else "passed", message, (), tuple(findings), numbers)


def _headers(folder: Path) -> dict[str, dict[str, int]]:
    """Size in bytes of every tensor, by file and name."""
    from safetensors import SafetensorError, safe_open

    held: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="np"):
                pass  # the library checks that the header fits the file
            head = path.open("rb")
        except (SafetensorError, OSError) as exc:
            raise ModelError(f"{path}: cannot be read ({str(exc)[:120]}).", fix="Export the model again.") from None
        with head:
            header = parse_json(head.read(int.from_bytes(head.read(8), "little")))
        held[path.name] = {
            name: entry["data_offsets"][1] - entry["data_offsets"][0]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    if not held:
        raise ModelError(f"{folder}: no safetensors weights found.", fix="Name the folder of the export.")
    return held


def _index(folder: Path, held: dict[str, dict[str, int]]) -> list[Finding]:
    """What the index and the files say against each other."""
    path = folder / INDEX
    if not path.is_file():
        return [] if len(held) == 1 else [weights_error("shards.no_index", f"{len(held)} files and no {INDEX}")]
    try:
        index = parse_json(read_bytes(path), finite=False)
        places = {str(k): str(v) for k, v in index["weight_map"].items()}
        total = index.get("metadata", {}).get("total_size")
    except (ValueError, KeyError, AttributeError, TypeError) as exc:
        raise ModelError(
            f"{path}: expected a usable index ({type(exc).__name__}).", fix="Export the model again."
        ) from None
    found = []
    gone = sorted({f for f in places.values() if f not in held})
    if gone:
        found.append(
            weights_error("shards.file_missing", f"the index names {gone[0]}, which is missing ({len(gone)} files)")
        )
    stray = sorted(set(held) - set(places.values()))
    if stray:
        found.append(weights_error("shards.file_unnamed", f"{stray[0]} is not in the index ({len(stray)} files)"))
    lost = [k for k, f in places.items() if f in held and k not in held[f]]
    if lost:
        message = f"{lost[0]} is not in {places[lost[0]]}, where the index places it ({len(lost)} tensors)"
        found.append(weights_error("shards.tensor_missing", message, lost))
    extra = [k for f, tensors in held.items() if f in places.values() for k in tensors if k not in places]
    if extra:
        found.append(
            weights_error("shards.tensor_unnamed", f"{extra[0]} is not in the index ({len(extra)} tensors)", extra)
        )
    size = sum(held[f].get(k, 0) for k, f in places.items() if f in held)
    if isinstance(total, int) and total != size and not found:
        found.append(weights_error("shards.size", f"the index states {total:,} bytes, but its tensors have {size:,}"))
    return found


def _twice_there(held: dict[str, dict[str, int]]) -> list[Finding]:
    where: dict[str, list[str]] = {}
    for file, tensors in held.items():
        for name in tensors:
            where.setdefault(name, []).append(file)
    twice = [name for name, files in where.items() if len(files) > 1]
    if not twice:
        return []
    message = (
        f"{twice[0]} is in {' and '.join(where[twice[0]])}: which of them is loaded is undefined ({len(twice)} tensors)"
    )
    return [weights_error("shards.tensor_twice", message, twice)]


def _same_tensors(folder: Path, merged: Path) -> list[Finding]:
    new, old = Tensors(folder), Tensors(merged)
    found = []
    sides = (("missing", old, new, "the export lacks"), ("added", new, old, "the merged model lacks"))
    for check, left, right, words in sides:
        names = [n for n in left.names if n not in set(right.names)]
        if names:
            found.append(weights_error(f"shards.{check}", f"{words} {names[0]} ({len(names)} tensors)", names))
    changed, recast = [], []
    for name in (n for n in old.names if n in set(new.names)):
        if old.shape(name) != new.shape(name) or not _equal(old, new, name):
            changed.append(name)
        elif old.dtype(name) != new.dtype(name):
            recast.append(name)
    if changed:
        message = f"{changed[0]} has other values than in the merged model ({len(changed)} tensors)"
        found.append(weights_error("shards.values", message, changed))
    if recast:
        first = recast[0]
        message = f"{first} is {new.dtype(first)}, the merged model's {old.dtype(first)} ({len(recast)} tensors)"
        found.append(Finding("shards.dtype", "warning", message, evidence={"weights": recast}))
    return found


def _equal(old: Tensors, new: Tensors, name: str) -> bool:
    import torch

    dtype = new.dtype(name)
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in zip(old.blocks(name), new.blocks(name)))
