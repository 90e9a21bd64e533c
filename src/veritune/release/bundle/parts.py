"""What may lie in a bundle and under which names. A bundle may come from anybody: each part is checked before use.

Kinds of file are on an allow-list; everything that can run code when it is read (pickles, Python, shared objects) is
refused with its reason. Names are plain relative paths in one spelling: no `..`, no absolute path, no link, and no two
names that a file system which ignores case or Unicode form would take for one.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veritune.errors import FormatError
from veritune.records import Finding, JsonLike
from veritune.untrusted import parse_json

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
ALLOWED = (".json", ".jsonl", ".md", ".safetensors", ".jinja", ".txt", ".yaml", ".model")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".h5", ".keras")
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ipynb", ".exe")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".whl")
MAX_NAME = 240
MAX_HEADER = 100 << 20  # bytes; the limit of the safetensors library
MAX_JSON = 256 << 20  # bytes of one JSON file that a bundle may hold
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\.|$)")
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def finding(check: str, name: str, message: str) -> Finding:
    """A finding about one file of a bundle."""
    return Finding(f"bundle.{check}", "error", message, source=name)


# ---------------------------------------------------------------- names


def name_problem(name: JsonLike) -> str | None:
    """Why a name is not allowed in a bundle; None if it is allowed."""
    if not isinstance(name, str) or not name:
        return "is not a valid file name"
    if len(name) > MAX_NAME:
        return f"is longer than {MAX_NAME} characters"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "is not a relative path with forward slashes"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of the bundle or is not in normalised form"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in name):
        return "holds a control or invisible character"
    if unicodedata.normalize("NFKC", name) != name:
        return "is not in Unicode's NFKC form"
    if any(_RESERVED.match(part) or part != part.strip() or part.endswith(".") for part in parts):
        return "is a name that some file systems change"
    return None


def kind_problem(name: str) -> str | None:
    """Why a kind of file is not allowed in a bundle; None if it is allowed."""
    suffix = Path(name).suffix.lower()
    if name == SIGNATURE or suffix in ALLOWED:
        return None
    if suffix in PICKLED:
        return "is of a kind that can run code when it is loaded; weights are read from safetensors only"
    if suffix in CODE:
        return "is code, which a bundle must not contain"
    if suffix in ARCHIVES:
        return "is an archive; a bundle holds plain files only"
    return f"is of a kind that a bundle must not contain ({suffix or 'no suffix'})"


def collisions(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of file or folder names that a file system ignoring case or Unicode form treats as equal."""
    first: dict[str, str] = {}
    found = []
    for name in sorted(names):
        parts = name.split("/")
        for k in range(1, len(parts) + 1):
            part = "/".join(parts[:k])
            other = first.setdefault(unicodedata.normalize("NFKC", part).casefold(), part)
            if other != part:
                found.append((other, part))
    return found


# ---------------------------------------------------------------- a folder on disk


@dataclass
class Tree:
    """The plain files under a folder by name, and what is there but not allowed."""

    files: dict[str, Path] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def walk(root: Path) -> Tree:
    """Everything under `root`; links are reported and never followed."""
    tree = Tree()
    for folder, folders, names in os.walk(root, followlinks=False):
        for entry in sorted([*folders, *names]):
            path = Path(folder) / entry
            name = path.relative_to(root).as_posix()
            mode = path.lstat().st_mode
            problem = name_problem(name)
            if stat.S_ISLNK(mode):
                tree.findings.append(finding("symlinked", name, f"{name} is a link; a bundle holds plain files only"))
                if entry in folders:
                    folders.remove(entry)
            elif problem:
                tree.findings.append(finding("name", name, f"{name!r} {problem}"))
            elif stat.S_ISREG(mode):
                tree.files[name] = path
            elif not stat.S_ISDIR(mode):
                tree.findings.append(finding("special", name, f"{name} is not a plain file"))
        folders.sort()
    tree.findings += [finding("name", b, f"{b!r} and {a!r} are the same name on some file systems")
                      for a, b in collisions(tree.files)]  # fmt: skip
    return tree


def content_problem(name: str, path: Path) -> str | None:
    """Why a file is not allowed in a bundle, judged by its kind and its first bytes; None if it is allowed."""
    problem = kind_problem(name)
    if problem:
        return problem
    with path.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(_PICKLE_STARTS) and not name.endswith(".safetensors"):
        return "holds a pickle or an archive under another name"
    if name.endswith(".safetensors"):
        try:
            tensors(path)
        except FormatError as exc:
            return f"is not a valid safetensors file ({exc.message})"
    if name.endswith(".json"):
        return _json_problem(name, path)
    return None


def _json_problem(name: str, path: Path) -> str | None:
    """Settings that make a library import or download code named by the file."""
    base = name.rsplit("/", 1)[-1]
    if base not in ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json"):
        return None
    found = json_of(path)
    if not isinstance(found, dict):
        return "is not a JSON object"
    keys = ("auto_map", "auto_mapping", "megatron_config", "custom_generate", "custom_pipelines")
    named = [key for key in keys if found.get(key)]
    return f"names code to import ({named[0]}), which a bundle must not contain" if named else None


def json_bytes(path: Path) -> bytes:
    """The bytes of a JSON file. Raises FormatError if it is too large."""
    if path.stat().st_size > MAX_JSON:
        raise FormatError(
            f"{path} is larger than {MAX_JSON >> 20} MiB.",
            fix="Get the bundle again: the JSON files of a bundle are smaller.",
        )
    return path.read_bytes()


def json_of(path: Path) -> Any:
    """The value in a JSON file. Raises FormatError if it is damaged, too large or nested too deeply."""
    try:
        return parse_json(json_bytes(path), finite=False)
    except ValueError as exc:
        raise FormatError(f"{path} is damaged: {exc}.", fix="Restore it.") from exc


Shape = tuple[int, ...]


def tensors(path: Path) -> dict[str, tuple[str, Shape]]:
    """Dtype and shape of every tensor, read from the header. Raises FormatError if the header contradicts the file.

    The format: eight bytes with the header's length, a JSON header, the data. https://huggingface.co/docs/safetensors
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise FormatError(f"{path.name}: the header's length does not fit the file.")
        raw = stream.read(length)
    try:
        header = parse_json(raw)
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        found = {name: _tensor(entry, size - 8 - length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as exc:
        raise FormatError(f"{path.name}: the header is damaged: {type(exc).__name__}.") from None
    return found


def _tensor(entry: Mapping[str, Any], room: int) -> tuple[str, Shape]:
    begin, end = (int(x) for x in entry["data_offsets"])
    shape = tuple(int(n) for n in entry["shape"])
    if not 0 <= begin <= end <= room or any(n < 0 for n in shape):
        raise ValueError("offsets")
    return str(entry["dtype"]), shape


def folder_tensors(folder: Path) -> dict[str, tuple[str, Shape]]:
    """The tensors in all *.safetensors files of a folder."""
    found: dict[str, tuple[str, Shape]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= tensors(path)
    return found
