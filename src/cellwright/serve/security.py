"""Who may talk to the page: one middleware in front of all routes.

- The token of the printed link is exchanged for a cookie (HttpOnly, SameSite=Strict); nothing is answered without it. A
  token is good for one exchange; the next is announced then, for another browser.
- The header Host must be an address that is served: pages of other sites that resolve their name to this machine (DNS
  rebinding) are refused. So are requests that another site starts (Origin, Sec-Fetch-Site); there is no CORS.
- Bodies are limited in size before they are read; answers carry a content-security policy and the like.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = dict[str, Any]
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
# Browsers take it from encrypted connections and from this machine, and log an error for any other.
OPENER = ("cross-origin-opener-policy", "same-origin")
# Of a report: its own style and pictures, and no script, form or origin, whatever is in the file.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; sandbox"
)
MAX_JSON = 16 << 20
_SAFE = ("GET", "HEAD")


@dataclass(frozen=True)
class Access:
    """What is served, and to whom. hosts: names and addresses besides those of the machine itself.

    any_address: a request may name any numeric address; for servers that listen on all of them. announce: called with
    the next token when one was exchanged.
    """

    port: int
    hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost", "::1"})
    any_address: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    max_upload: int = 4 << 30
    announce: Callable[[str], object] = lambda _: None

    @property
    def cookie(self) -> str:
        """The name of the cookie; ports of one machine share their cookies."""
        return f"cellwright-{self.port}"

    def is_served(self, host: str) -> bool:
        """Whether the header Host names what is served."""
        name, port = _split_host(host)
        if port != self.port or name is None:
            return False
        return name in self.hosts or (self.any_address and _is_address(name))


@dataclass(frozen=True)
class Refusal:
    """An answer of the guard itself."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)


class Guard:
    """The middleware; see the module."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app, self._access, self._token = app, access, access.token

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send, HEADERS | dict([OPENER]) if _is_trustworthy(scope) else HEADERS)
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, refusal)
            return
        limit = self._access.max_upload if scope["path"] == "/api/upload" else MAX_JSON
        declared = _header(scope, b"content-length")
        if declared is not None and (not declared.isdecimal() or int(declared) > limit):
            await _answer(send, Refusal(413, f"this is too large: at most {limit} bytes"))
            return
        await self._app(scope, _limited(receive, limit), send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Why a request is not passed on."""
        access, host = self._access, _header(scope, b"host") or ""
        if not access.is_served(host):
            return Refusal(403, "this host is not served here; open the link that cellwright serve has printed")
        site, origin = _header(scope, b"sec-fetch-site"), _header(scope, b"origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return Refusal(403, "requests from other sites are not answered")
        is_visit = scope["path"] == "/" and scope["method"] in _SAFE
        if site not in (None, "same-origin", "none") and not is_visit:
            return Refusal(403, "requests from other sites are not answered")
        if is_visit and b"token=" in scope.get("query_string", b""):
            return self._exchange(scope)
        if not self._is_known(scope):
            return Refusal(401, "open the link with the token that cellwright serve has printed")
        if scope["method"] not in _SAFE:
            if origin is None:
                return Refusal(403, "a request that changes something needs the header Origin")
            kind = (_header(scope, b"content-type") or "").split(";")[0].strip().lower()
            if scope["path"] != "/api/upload" and scope["method"] != "DELETE" and kind != "application/json":
                return Refusal(415, "send JSON, with the header Content-Type: application/json")
        return None

    def _is_known(self, scope: Scope) -> bool:
        """Whether a request has the cookie."""
        return hmac.compare_digest(_cookie(scope, self._access.cookie).encode(), self._access.session.encode())

    def _exchange(self, scope: Scope) -> Refusal:
        try:
            given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=50).get("token", [""])[0]
        except ValueError:
            given = ""
        if self._is_known(scope):
            return Refusal(303, "", {"location": "/"})
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return Refusal(401, "this link was used, or is of another start; open the last that the terminal shows")
        self._token = secrets.token_urlsafe(32)
        self._access.announce(self._token)
        cookie = f"{self._access.cookie}={self._access.session}; HttpOnly; SameSite=Strict; Path=/"
        return Refusal(303, "", {"set-cookie": cookie, "location": "/"})


def _split_host(host: str) -> tuple[str | None, int]:
    """The name or address in a header Host, and its port."""
    name, colon, port = host.rpartition(":")
    if not colon or name.endswith(":") or (host.startswith("[") and host.endswith("]")):
        name, port = host, "80"
    if not port.isdecimal() or len(port) > 5:
        return None, 0
    if name.startswith("["):
        return (name[1:-1], int(port)) if name.endswith("]") else (None, 0)
    return name.lower(), int(port)


def _is_trustworthy(scope: Scope) -> bool:
    """Whether browsers take the connection for one that nobody can listen to: encrypted, or to this machine."""
    name, _ = _split_host(_header(scope, b"host") or "")
    if scope.get("scheme") == "https" or name == "localhost":
        return True
    return name is not None and _is_address(name) and ipaddress.ip_address(name).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _header(scope: Scope, name: bytes) -> str | None:
    """The value of a header; two of the same name are joined, and so match nothing."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(values) if values else None


def _cookie(scope: Scope, name: str) -> str:
    try:
        cookies = SimpleCookie(_header(scope, b"cookie") or "")
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


class TooLarge(Exception):
    """A body that is longer than it may be."""


def _limited(receive: Any, limit: int) -> Callable[[], Any]:
    n = 0

    async def limited() -> Any:
        nonlocal n
        message = await receive()
        if message["type"] == "http.request":
            n += len(message.get("body", b""))
            if n > limit:
                raise TooLarge
        return message

    return limited


def _with_headers(send: Any, headers: Mapping[str, str]) -> Callable[[Any], Any]:
    async def with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {key.lower() for key, _ in message["headers"]}
            more = [(k.encode(), v.encode()) for k, v in headers.items() if k.encode() not in names]
            if b"cache-control" not in names:
                more.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return with_headers


async def _answer(send: Any, refusal: Refusal) -> None:
    body = json.dumps({"error": {"message": refusal.text}}).encode() if refusal.text else b""
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    start = {
        "type": "http.response.start",
        "status": refusal.status,
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
