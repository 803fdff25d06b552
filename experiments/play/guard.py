"""What may talk to the page's server, and what it may say: this machine, this page, and JSON of a known shape."""

import json
import secrets
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LARGEST_BODY = 2**16
MOST_TOKENS = 1024
LARGEST_NUMBER = 2**53 - 1

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class RefusedError(Exception):
    """A request that is not answered: its status, and one line that says why."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


def policy(nonce: str) -> str:
    """The content security policy of the page: its own script and style by nonce, and nothing from anywhere else."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def refusal(error: RefusedError) -> JSONResponse:
    """The answer to a refused request."""
    return JSONResponse({"error": str(error)}, error.status, HEADERS)


class Guard:
    """Lets through what is said to this machine by name, and by no page of another origin."""

    def __init__(self, app: ASGIApp, port: int):
        self.app = app
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it in one line."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        try:
            self.refuse_stranger(request)
        except RefusedError as error:
            await refusal(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def refuse_stranger(self, request: Request) -> None:
        """Make sure that a request names this machine, and comes from its own page or from no page.

        Raises:
          RefusedError: it does not.
        """
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            raise RefusedError(403, "this server answers to 127.0.0.1 and localhost only")
        if any(origin not in {f"http://{host}" for host in self.hosts} for origin in origins):
            raise RefusedError(403, "a page of another origin may not ask here")


def refuse_token(given: str | None, token: str) -> None:
    """Make sure that whoever asks knows the token of this start.

    Raises:
      RefusedError: they don't.
    """
    if not secrets.compare_digest((given or "").encode(), token.encode()):
        raise RefusedError(403, "open the address that the command printed: this one has no token, or an old one")


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
      RefusedError: it is no JSON, too long, too deep, or no object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "send application/json")
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_BODY:
            raise RefusedError(413, f"a request may have {LARGEST_BODY:,} bytes at most")
    try:
        found = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the request is no JSON that can be read") from error
    if not isinstance(found, dict):
        raise RefusedError(400, "the request is no JSON object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


Field = Callable[[Any], bool]


def text(value: Any) -> bool:
    """A short text."""
    return isinstance(value, str) and len(value) <= 64


def whole(value: Any) -> bool:
    """A whole number that every reader of JSON holds."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_NUMBER


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def tokens(value: Any) -> bool:
    """A list of whole numbers that fit 32 bits."""
    return (
        isinstance(value, list) and len(value) <= MOST_TOKENS and all(whole(one) and one < 2**31 for one in value)
    )  # fmt: skip


def maybe(field: Field) -> Field:
    """Such a value, or null."""
    return lambda value: value is None or field(value)


def checked(found: dict[str, Any], fields: dict[str, Field]) -> dict[str, Any]:
    """A request with exactly these fields, each of its kind.

    Raises:
      RefusedError: a field is missing, unknown, or of another kind.
    """
    for name in found:
        if name not in fields:
            raise RefusedError(400, f"unknown field {name[:40]!r}; there are {', '.join(fields)}")
    for name, fits in fields.items():
        if name not in found:
            raise RefusedError(400, f"field {name} is missing")
        if not fits(found[name]):
            raise RefusedError(400, f"field {name} is not what it should be")
    return found
