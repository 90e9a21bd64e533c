"""Who may ask the workbench, and what a page may do.

A browser on this machine sends requests to 127.0.0.1 for any web site that asks it to. So: the `Host` must be one of
ours (a foreign name that was made to point here is refused), writes must come from our own pages, no other origin is
allowed to read, nothing may frame a page, and a page runs no script but ours. Where the server listens beyond this
machine, every request needs a token: once in the address, then in a cookie that scripts cannot read.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import psutil

if TYPE_CHECKING:
    from starlette.types import Message

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
READS = ("GET", "HEAD")
EVERY = ("0.0.0.0", "::")
"""Addresses that mean every interface of this machine."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class ServerRules:
    """What this server allows. `hosts` are the exact accepted values of the `Host` header; `token` is None if only this
    machine can connect.
    """

    hosts: frozenset[str]
    token: str | None = None
    edit: bool = False
    port: int = 0
    form: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def cookie(self) -> str:
        """The cookie's name; cookies of one host are shared by its ports."""
        return f"veritune-{self.port}"


def hosts_of(host: str, port: int) -> frozenset[str]:
    """The `Host` header values that name this server."""
    names = {*LOOPBACK, f"[{host}]" if ":" in host else host} | (_own_names() if host in EVERY else set())
    return frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == 80 else frozenset())


def _own_names() -> set[str]:
    """What this machine is called: its host name, and the addresses of its interfaces."""
    found = {socket.gethostname().lower(), socket.getfqdn().lower()}
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET:
                found.add(address.address)
            elif address.family == socket.AF_INET6:
                found.add(f"[{address.address.split('%')[0]}]")
    return found


class Guard:
    """ASGI middleware that refuses forbidden requests before any page handles them, and adds security headers to every
    answer.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], rules: ServerRules) -> None:
        self.app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 403 and one line of text, or pass the request on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        heads = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {k.lower() for k, _ in message.get("headers", [])}
                message["headers"] = [*message.get("headers", []), *(h for h in HEADERS if h[0] not in there)]
            await send(message)

        if why := self._refused(scope, heads):
            await _plain(sealed, 403, why)
        elif self.rules.token is not None and not self._known(heads):
            await self._enter(scope, sealed)
        else:
            await self.app(scope, receive, sealed)

    def _refused(self, scope: Scope, heads: dict[str, str]) -> str:
        """Why the request is refused, empty where it is not."""
        if heads.get("host", "").lower() not in self.rules.hosts:
            return "This server does not have that host name."
        if scope["method"] in READS:
            return ""
        if not self.rules.edit:
            return "This server is read-only. Start it with --edit to write decisions."
        site = heads.get("sec-fetch-site")
        own = urlsplit(heads.get("origin", "")).netloc == heads["host"] if site is None else site == "same-origin"
        return "" if own else "A write must come from this server's own page."

    def _known(self, heads: dict[str, str]) -> bool:
        pairs = (part.strip().partition("=") for part in heads.get("cookie", "").split(";"))
        return any(name == self.rules.cookie and self._is_token(value) for name, _, value in pairs)

    def _is_token(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), (self.rules.token or "").encode())

    async def _enter(self, scope: Scope, send: Send) -> None:
        """Take the token from the address, keep it in a cookie, and send the browser to the address without it."""
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["method"] != "GET" or not any(self._is_token(value) for value in query.pop("token", [])):
            await _plain(send, 403, "This server needs its token: open the address that it printed.")
            return
        rest = urlencode(query, doseq=True)
        cookie = f"{self.rules.cookie}={self.rules.token}; HttpOnly; SameSite=Strict; Path=/"
        path = scope["path"] if scope["path"].startswith("/") and not scope["path"].startswith("//") else "/"
        heads = [(b"location", (path + (f"?{rest}" if rest else "")).encode("latin-1", "replace"))]
        heads.append((b"set-cookie", cookie.encode()))
        await send({"type": "http.response.start", "status": 303, "headers": heads})
        await send({"type": "http.response.body", "body": b""})


async def _plain(send: Send, status: int, text: str) -> None:
    head = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": text.encode() + b"\n"})
