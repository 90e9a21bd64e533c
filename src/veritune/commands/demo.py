"""The command that unpacks a finished study to try the others on: demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption
from veritune.commands.output import json_text
from veritune.commands.screen import put

if TYPE_CHECKING:
    from veritune import demo as demos
else:
    demos = lazy("veritune.demo")


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to unpack into; it must not exist yet.")] = Path(
        "veritune-demo"
    ),
    as_json: JsonOption = False,
) -> None:
    """Unpack a finished study with report, logs, data, model and adapter, and list ten commands to try on it."""
    unpacked = demos.unpack(folder)
    put(json_text(unpacked) if as_json else demos.demo_text(unpacked), raw=as_json)
