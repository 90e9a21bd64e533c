"""The workbench in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.errors import MachineError

if TYPE_CHECKING:
    from veritune.view import app as workbench
else:
    workbench = lazy("veritune.view.app")


def view(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Studies, folders of studies, audits, score files; default: here.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the server.")] = 7878,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --token.")
    ] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(help="Token that a browser must send; `new` makes a random one.")] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Let pages write review and family decisions.")] = False,
    registry: Annotated[str | None, typer.Option(help="Registry whose channels are shown on the release page.")] = None,
) -> None:
    """Look at studies, samples, runs, audits and releases in the browser, and review rows."""
    try:
        rules = workbench.rules_for(host, port, token, edit)
    except ImportError as exc:
        raise MachineError(
            f"The workbench needs a package that is not installed: {exc.name}.", fix="pip install 'veritune[view]'"
        ) from exc
    address = f"http://{host if host != '0.0.0.0' else 'localhost'}:{port}/"
    print(f"{address}{f'?token={rules.token}' if rules.token else ''}   (Ctrl-C ends it)", flush=True)
    workbench.serve(folders or [Path()], rules, host, registry)
