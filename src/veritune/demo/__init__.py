"""`veritune demo`: a finished study of a tiny model, its logs, data, base and adapter, to try every command on.

The archive is made from a real run by `examples/demo/make_demo.py`. Nothing here needs torch or a network.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from veritune.demo.tries import TRIES, Try
from veritune.errors import FormatError, InputError
from veritune.files import disk_errors
from veritune.zstd import ZstdFile

ARCHIVE = Path(__file__).with_name("demo.tar.zst")


@dataclass(frozen=True, slots=True)
class Demo:
    """Where the demo was unpacked, its size in bytes, and the commands to try in that folder."""

    folder: Path
    bytes: int
    tries: tuple[Try, ...]


def unpack(folder: Path) -> Demo:
    """Unpack the demo as `folder`, whole or not at all. Raises InputError if the folder exists."""
    if folder.exists():
        raise InputError(f"{folder} already exists.", fix="Name another folder: veritune demo FOLDER")
    members = _members()
    partial = folder.with_name(f".{folder.name}.tmp-folder")
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        size = 0
        for name, content in members:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            size += len(content)
        unpacked = Demo(folder, size, TRIES)
        (partial / "README.md").write_text(demo_text(unpacked) + "\n", encoding="utf-8")
        partial.rename(folder)
    return unpacked


def _members() -> list[tuple[str, bytes]]:
    """The archive's files. Raises FormatError for a damaged one, or one that would write outside its folder."""
    try:
        with ARCHIVE.open("rb") as stream:
            data = io.BufferedReader(ZstdFile(stream)).read()
        found = []
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                inner = tar.extractfile(member) if member.isfile() else None
                if inner is None or member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise FormatError(
                        f"{ARCHIVE.name} holds {member.name}.",
                        fix="Install Veritune again: this archive is not the one that was released.",
                    )
                found.append((member.name, inner.read()))
    except (OSError, tarfile.TarError) as exc:
        raise FormatError(
            f"{ARCHIVE} cannot be read: {exc}.", fix="Install Veritune again: its archive is damaged."
        ) from exc
    return found


def demo_text(demo: Demo) -> str:
    """The demo's page: what the folder holds, and ten commands with the output of each."""
    lines = [
        f"{demo.folder}: {demo.bytes / 1e6:.1f} MB, a finished study with its logs, data, base model and adapter.",
        "The model is a tiny one made for this, runs and verdicts are real: was a house style learned, or the notes",
        "that were shown? No command below needs torch; with veritune[train] every other command works on it too.",
        "",
        f"  cd {demo.folder}",
    ]
    for number, one in enumerate(demo.tries, start=1):
        status = f" (exit status {one.status})" if one.status else ""
        lines += ["", f"{number:>2}  {one.command}", f"    {one.says}{status}:", f"    {one.prints}"]
    lines += ["", "study/report.html is the report, base/ and adapter/ hold one run's model, README.md is this page."]
    return "\n".join(lines)
