"""What stands before the page: it answers to its own names and pages only, takes no large bodies, loads nothing."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

SMALL_BODY_BYTES = 1 << 20
POLICY = "; ".join(
    [
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "media-src 'self' blob:", "font-src 'self' data:", "object-src 'none'",
        "form-action 'self'", "base-uri 'self'", "frame-ancestors 'none'",
    ]
)  # fmt: skip
"""The browser itself then refuses every address but ours, whatever a library of the page would like to load."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TooLarge(Exception):  # noqa: N818  # how a request ends, not a fault
    """A body that goes on beyond what was announced or allowed."""


class Guard:
    """ASGI middleware before everything else.

    Args:
        app: what is guarded.
        hosts: names this server answers to; an empty set means any. A page elsewhere that points a name of its own
            at this machine is refused by it.
        max_body_bytes: of an upload; every other request may have a megabyte.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], max_body_bytes: int) -> None:
        self._app, self._hosts, self._max_body_bytes = app, hosts, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal and scope["type"] == "websocket":
            await WebSocketClose(code=1008, reason=refusal)(scope, receive, send)
        elif refusal:
            await PlainTextResponse(refusal, 403)(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send, headers)

    def _refusal(self, headers: Headers) -> str:
        host = headers.get("host", "")
        if self._hosts and (urlsplit(f"//{host}").hostname or "") not in self._hosts:
            return "This server does not answer to that name; start it with --host to serve other machines."
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host:
            return "Pages of other servers may not use this one."
        return ""

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        limit = self._max_body_bytes if "/upload/" in scope["path"] else SMALL_BODY_BYTES
        announced = headers.get("content-length", "0")
        too_large = PlainTextResponse(f"At most {limit / 1e6:.0f} MB are taken.", 413)
        if not announced.isdigit() or int(announced) > limit:
            await too_large(scope, receive, send)
            return
        received, begun = 0, False

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise TooLarge
            return message

        async def marked(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own[name] = value
            await send(message)

        try:
            await self._app(scope, limited, marked)
        except TooLarge:
            if not begun:
                await too_large(scope, receive, send)
