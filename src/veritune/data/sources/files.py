"""Where rows lie: files, folders of shards, hub ids; their kinds, names and hashes."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from veritune.data.sources.raw import show
from veritune.errors import DataError, MachineError
from veritune.untrusted import parse_json, read_bytes
from veritune.zstd import ZstdFile

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
SQUEEZED = (".gz", ".zst")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.+-]+)?$")


def find_files(path: str | Path) -> list[tuple[Path, str, str]] | None:
    """(file, name shown, id stem) of every file to read; None for a hub id. Raises DataError if nothing is found."""
    place = Path(path)
    if place.is_file():
        return [(place, place.name, stem_of(place.name))]
    if place.is_dir():
        return _folder(place)
    name = str(path)
    if _HUB_ID.match(name) and kind_of(name) is None and not name.startswith("."):
        return None
    raise DataError(f"{name}: no such file or folder.", fix="Check the path; a hub dataset is written owner/name.")


def _folder(place: Path) -> list[tuple[Path, str, str]]:
    if (place / "dataset_dict.json").is_file():
        splits = _names_in(place, "dataset_dict.json", lambda found: found["splits"])
        raise DataError(
            f"{place} holds the splits {', '.join(splits)}.", fix=f"Name one of them, for example {place / splits[0]}."
        )
    if (place / "state.json").is_file():
        names = _names_in(place, "state.json", lambda found: [entry["filename"] for entry in found["_data_files"]])
        return [(place / n, f"{place.name}/{n}", f"{place.name}/{Path(n).stem}") for n in names]
    found = sorted(f for f in place.rglob("*") if f.is_file() and kind_of(f.name) and not _hidden(f.relative_to(place)))
    if not found:
        raise DataError(
            f"{place} holds no data file; expected {', '.join(TABLE_SUFFIXES)}, also .gz and .zst.",
            fix="Name the file itself, or a folder that `datasets` saved.",
        )
    shown = [(f, f.relative_to(place).as_posix()) for f in found]
    return [(f, name, stem_of(name)) for f, name in shown]


def _names_in(place: Path, file: str, take: Callable[[Any], Any]) -> list[str]:
    """Names that a `datasets` folder's own file lists. Raises DataError where one leads out of the folder."""
    try:
        names = take(parse_json(read_bytes(place / file)))
        plain = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place / file} cannot be read: {error!r}.", fix="Save the dataset again.") from error
    if not plain:
        raise DataError(f"{place / file}: expected names of files, found {show(names)}.", fix="Save the dataset again.")
    root = place.resolve()
    for name in names:
        if "\0" in name or not name or (place / name).resolve().parent != root:
            raise DataError(
                f"{place / file}: expected names of files in this folder, found {show(name)}.",
                fix="Do not use a dataset that reads files elsewhere; save it again.",
            )
    return list(names)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def kind_of(name: str) -> str | None:
    """`jsonl`, `json`, `csv`, `tsv`, `parquet` or `arrow`, None for anything else."""
    suffixes = [s.lower() for s in Path(name).suffixes]
    if suffixes and suffixes[-1] in SQUEEZED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in (".jsonl", ".ndjson"):
        return "jsonl"
    return last[1:] if last in (".json", ".csv", ".tsv", ".parquet", ".arrow") else None


def stem_of(name: str) -> str:
    """The name without its data suffixes: `a/train.jsonl.gz` becomes `a/train`."""
    while Path(name).suffix.lower() in (*TABLE_SUFFIXES, *SQUEEZED, ".arrow"):
        name = name[: -len(Path(name).suffix)]
    return name


def open_bytes(file: Path) -> IO[bytes]:
    """A file opened for reading bytes, decompressed if it is .gz or .zst."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(ZstdFile(file.open("rb")), buffer_size=1 << 20)
    return file.open("rb", buffering=1 << 20)


def from_hub(name: str) -> Any:
    """The rows of one split of a hub dataset (`owner/name`, split `train`; or `owner/name:split`)."""
    try:
        import datasets
    except ImportError as exc:
        raise MachineError(
            f"{name} looks like a hub dataset.", fix="pip install 'veritune[hub]', or name a file."
        ) from exc
    repo, _, split = name.partition(":")
    try:
        return datasets.load_dataset(repo, split=split or "train")
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise DataError(
            f"{name} is not a file here, and the hub has no such dataset: {type(error).__name__}: {show(error, 160)}.",
            fix="Check the path; without a network (or with HF_HUB_OFFLINE set) name a local file.",
        ) from error


def hash_files(files: list[tuple[Path, str, str]]) -> str:
    """SHA-256 of the one file's bytes, or of the sorted names and hashes of several."""

    def one(file: Path) -> str:
        try:
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"{file} cannot be read: {error.strerror}.", fix="Check the path and its permissions."
            ) from error

    if len(files) == 1:
        return one(files[0][0])
    lines = sorted(f"{name}\t{one(file)}\n" for file, name, _ in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
