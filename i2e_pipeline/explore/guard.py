"""Whom the app answers, and what browsers may do with the answer.

Other sites that a reader's browser has open can neither read nor mark: the host that is asked for, and where a request
comes from, are looked at. Pages allow no script but their own file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost", "[::1]")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Guarded:
    """Answers none but this machine's own pages: another name that leads here (DNS rebinding) and requests of other
    sites are refused. Says what browsers may do with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if why := refused(scope["method"], headers):
            await Response(why, 403, media_type="text/plain")(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cross-origin-resource-policy", b"same-origin"),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)


def refused(method: str, headers: Mapping[str, str]) -> str | None:
    """Why a request is not answered; None: it is. headers: by name in small letters."""
    host = headers.get("host", "")
    if re.sub(r":\d+$", "", host) not in HOSTS:
        return f"this app answers on {', '.join(HOSTS)} alone, and not as {host}"
    if headers.get("sec-fetch-site", "none") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        return "another site's page asked: refused"
    if method == "POST":
        origin = headers.get("origin")
        if origin is None or urlsplit(origin).netloc != host:
            return "marks are taken from this app's own pages alone"
        if headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return "marks are JSON"
    return None
