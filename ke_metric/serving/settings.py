"""What the service takes, and from whom."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ke_metric.errors import ExitCode, KeMetricError

TOKEN_VARIABLE = "KE_METRIC_SERVE_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Limits:
    """How much of everything.

    Attributes:
        max_bytes: Of an upload.
        max_pixels: Of an uploaded picture, width x height.
        max_k: Neighbours that can be asked for, or that expansion and re-ranking may look at.
        max_batch: Pictures per forward pass.
        batch_seconds: How long a forward pass waits for pictures that are on their way.
        queue: Pictures that may wait for their forward pass; one more is answered 503.
        held_bytes: Of all uploads that are arriving or waiting; more are answered 503.
        connections: Open at a time; one more is answered 503.
        header_seconds: From a request's first byte, or a connection's begin, to the end of its headers.
        header_bytes: Of a request line with its headers, about.
        upload_seconds: From the end of the headers to the end of the body.
        answer_seconds: From the end of the body to the begin of the work.
        send_seconds: In which a client must take `send_bytes` of an answer that waits for it.
        idle_seconds: Between two requests of a connection.
        stop_seconds: For what is in work when the service is stopped.
        image_bytes: Of a picture of the gallery that is sent out.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    max_k: int = 100
    max_batch: int = 64
    batch_seconds: float = 0.002
    queue: int = 256
    held_bytes: int = 256_000_000
    connections: int = 1024
    header_seconds: float = 10.0
    header_bytes: int = 65_536
    upload_seconds: float = 20.0
    answer_seconds: float = 30.0
    send_seconds: float = 20.0
    send_bytes: int = 65_536
    idle_seconds: int = 30
    stop_seconds: int = 10
    image_bytes: int = 50_000_000


@dataclass(frozen=True)
class ServiceSettings:
    """Where the service listens, who may ask, and how much.

    Attributes:
        host: Address or name to listen on.
        port: 0: one that is free.
        token: What requests must carry; None: they need none, which only a loopback address allows.
        limits: How much of everything.
        serves: An `index`, which is searched, or a `classifier`.

    Raises:
        KeMetricError: USAGE: an address that others reach, without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    serves: Literal["index", "classifier"] = "index"

    def __post_init__(self) -> None:
        if self.token is None and not self.is_loopback:
            raise KeMetricError(
                f"--host {self.host}: other machines reach this address, so requests must carry a token: name a file "
                f"that holds one with --token-file, or set the environment variable {TOKEN_VARIABLE}",
                ExitCode.USAGE,
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def address(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def url(self) -> str:
        """Where clients find the service."""
        return f"http://{self.address}:{self.port}"


def read_token(file: Path | None) -> str | None:
    """Return the token of a file, or of the environment where no file is named; None where there is neither.

    Raises:
        KeMetricError: USAGE: the file cannot be read, or what is there is no token.
    """
    if file is None:
        text, where = os.environ.get(TOKEN_VARIABLE), f"the environment variable {TOKEN_VARIABLE}"
        if text is None:
            return None
    else:
        where = f"--token-file {file}"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KeMetricError(f"{where}: cannot be read: {error}", ExitCode.USAGE) from error
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise KeMetricError(
            f"{where}: {len(token)} characters are no token, must be at least {SHORTEST_TOKEN} visible ASCII "
            "characters without blanks, such as those of: openssl rand -hex 32",
            ExitCode.USAGE,
        )
    return token
