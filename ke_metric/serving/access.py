"""The door: who may ask at all."""

from __future__ import annotations

import hmac
import re

from ke_metric.serving.exchange import Exchange, Refused
from ke_metric.serving.settings import ServiceSettings

PORT = re.compile(rb":\d{1,5}\Z")
OPEN_PATH = "/health"


class Door:
    """Lets requests in.

    On a loopback address the Host header must name this machine: a page whose name was pointed at 127.0.0.1 (DNS
    rebinding) reaches the port, but its browser sends the page's name. A request that a page of another origin made
    is refused everywhere. With a token, every route but /health needs it.

    Args:
        settings: Address and token.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._token = None if settings.token is None else b"Bearer " + settings.token.encode()
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        names = {own, "127.0.0.1", "localhost", "[::1]"}
        self._hosts = {name.encode() for name in names} if settings.is_loopback else None

    def check(self, exchange: Exchange) -> None:
        """Raise Refused unless the request may come in: 401 without the token, 403 from a foreign page."""
        headers = exchange.headers
        host = headers.get(b"host", b"")
        if self._hosts is not None and PORT.sub(b"", host.lower()) not in self._hosts:
            raise Refused(403, "the Host header names another machine")
        origin = headers.get(b"origin")
        if origin is not None and origin not in (b"http://" + host, b"https://" + host):
            raise Refused(403, "requests of pages of another origin are refused")
        if self._token is not None and exchange.scope["path"] != OPEN_PATH:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._token):
                raise Refused(401, "the token is missing or wrong", headers=[(b"www-authenticate", b"Bearer")])
