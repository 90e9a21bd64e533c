"""`veritune view`: the routes, and the server. Handlers are plain functions, so that a slow one delays no other."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from veritune.errors import InputError, MachineError, VerituneError, describe_os_error
from veritune.view.guard import Guard, ServerRules, hosts_of
from veritune.view.pages import audit, compare, desk, families, home, release, results, review, run, samples
from veritune.view.places import find_places

LOCAL = ("127.0.0.1", "::1", "localhost")


def make_app(folders: Sequence[Path], rules: ServerRules, registry: str | None = None) -> Starlette:
    """The web application for these folders. Raises InputError for a folder that does not exist."""
    own = desk.Desk(find_places(folders), rules, registry, tuple(folders))

    def at(page: Callable[[desk.Desk, Request], Response]) -> Callable[[Request], Response]:
        def handler(request: Request) -> Response:
            try:
                return page(own, request)
            except VerituneError as exc:
                return desk.failure(own, 404 if isinstance(exc, desk.UnknownAddress) else 422, exc.message, exc.fix)
            except OSError as exc:  # a folder may be moved or deleted while it is looked at
                gone = "It may have been moved or deleted; the home page lists all pages."
                return desk.failure(own, 404, describe_os_error(exc)[0], gone)

        return handler

    routes = [
        Route("/", at(home.home)),
        Route("/static/{name}", at(desk.static)),
        Route("/compare", at(compare.compare)),
        Route("/p/{place}", at(home.place)),
        Route("/p/{place}/comment", desk.writing(own, results.comment), methods=["POST"]),
        Route("/p/{place}/samples", at(samples.samples)),
        Route("/p/{place}/samples.{form}", at(samples.samples_export)),
        Route("/p/{place}/run", at(run.run)),
        Route("/p/{place}/run/live", at(run.run_live)),
        Route("/p/{place}/audit", at(audit.audit)),
        Route("/p/{place}/audit", desk.writing(own, families.audit_decide), methods=["POST"]),
        Route("/p/{place}/review", at(review.review)),
        Route("/p/{place}/review", desk.writing(own, review.review_decide), methods=["POST"]),
        Route("/p/{place}/release", at(release.release)),
        Route("/p/{place}/files/{name:path}", at(home.file)),
        Route("/p/{place}/raw/{name:path}", at(home.raw)),
    ]
    handlers = {
        404: lambda request, exc: desk.failure(own, 404, "There is no such page."),
        500: lambda request, exc: desk.failure(own, 500, "This page failed; the terminal shows the error."),
    }
    return Starlette(routes=routes, middleware=[Middleware(Guard, rules=rules)], exception_handlers=handlers)


def rules_for(host: str, port: int, token: str | None, edit: bool) -> ServerRules:
    """The rules for a server at this address. Raises InputError for an address beyond this machine without a token."""
    if host not in LOCAL and not token:
        raise InputError(
            f"--host {host}: other machines could read these folders, so a token is needed.",
            fix="Add --token (a word of 16 characters or more, or `new` for a random one).",
        )
    if token and token != "new" and len(token) < 16:
        raise InputError(
            "--token: expected 16 characters or more.", fix="Use a longer token, or `--token new` for a random one."
        )
    known = secrets.token_urlsafe(24) if token == "new" else token
    return ServerRules(hosts_of(host, port), known, edit, port)


def _ends(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's says that Ctrl-C cut a request off: nothing is wrong, and there is nothing to do."""
    cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return cut or "graceful shutdown exceeded" in record.getMessage()


def serve(folders: Sequence[Path], rules: ServerRules, host: str, registry: str | None = None) -> None:
    """Run the server until Ctrl-C. Raises MachineError if the port is in use."""
    app = make_app(folders, rules, registry)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, rules.port))
        except OSError as exc:
            raise MachineError(
                f"Port {rules.port} on {host}: {exc.strerror}.", fix="Choose another port: --port NUMBER."
            ) from exc
    log = logging.getLogger("uvicorn.error")
    log.setLevel(logging.ERROR)
    log.addFilter(lambda record: not _ends(record))
    uvicorn.run(app, host=host, port=rules.port, log_level="error", access_log=False, timeout_graceful_shutdown=1)
