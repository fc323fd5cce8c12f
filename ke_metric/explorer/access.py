"""Who may see the page's data: on this machine everybody, from elsewhere whoever has entered the token.

The page itself says nothing about anybody's pictures and is given to all. A browser cannot send a token with every
picture, so that it is entered once, and a cookie that no script can read stands for it until the explorer ends.
"""

from __future__ import annotations

import hmac
import secrets

from ke_metric.serving.exchange import Door, Exchange, Headers, ServiceSettings

LONGEST_TOKEN = 1024


class PageDoor(Door):
    """Lets requests in; see `Door`, whose checks of Host and Origin are the same.

    Args:
        settings: Where the page is served; the token, where there is one.
        open_paths: What needs no token.
    """

    def __init__(self, settings: ServiceSettings, open_paths: frozenset[str]) -> None:
        super().__init__(settings)
        self._given, self._open_paths = settings.token, open_paths
        # Of the port: a browser sends the cookies of a host to all of its ports.
        self._cookie = f"ke_metric_explorer_{settings.port}"
        self._secret = secrets.token_urlsafe(32)

    def is_open(self, path: str) -> bool:
        """Whether a route needs no token."""
        return path in self._open_paths

    def knows(self, exchange: Exchange) -> bool:
        """Whether a request carries the token, or the cookie that stands for it."""
        if super().knows(exchange):
            return True
        # Not SimpleCookie: it stops at what it cannot read, and cookies of others on this host may be anything.
        pairs = (pair.strip().partition(b"=") for pair in exchange.headers.get(b"cookie", b"").split(b";"))
        own = self._cookie.encode()
        return any(name == own and hmac.compare_digest(value, self._secret.encode()) for name, _, value in pairs)

    def admit(self, token: bytes) -> Headers | None:
        """Return the header that gives a browser the cookie; None where the token is a wrong one."""
        if self._given is not None and not hmac.compare_digest(token, self._given.encode()):
            return None
        return [(b"set-cookie", f"{self._cookie}={self._secret}; Path=/; HttpOnly; SameSite=Strict".encode())]
