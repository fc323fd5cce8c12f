"""A connection to Milvus: to Milvus Lite, which is started for it in this process, or to a server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.milvus_collection import explained
from ke_metric.retrieval.milvus_lite_folder import LiteFolder

if TYPE_CHECKING:
    from pymilvus import MilvusClient

SCHEMES = ("http", "https", "tcp")
SECONDS_TO_CONNECT = 10.0
SECONDS = 120.0
"""That a request to a server may take. Milvus Lite, in this process, takes what it takes."""

CHANNEL = {"grpc.keepalive_time_ms": 310_000}
"""pymilvus pings every 10 s. Milvus Lite allows a ping in 300 s: it hangs up in the middle of a longer request, which
pymilvus then sends again."""


class Connection:
    """A connection; close it.

    Args:
        uri: A file that ends with .db, or a server.
        writing: A file that is not there is made.
        token: What a server asks for; never stored or printed.

    Attributes:
        uri: The same; it may be shown.
        lite: The hold on the file; None for a server.
        client: Speaks to either.

    Raises:
        KeMetricError: USAGE: no such URI. ENVIRONMENT: pymilvus is not installed, or the server does not answer.
            DATA: see `LiteFolder`.
    """

    def __init__(self, uri: str, *, writing: bool, token: str | None = None) -> None:
        is_server = _is_server(uri)
        _require("pymilvus", *([] if is_server else ["milvus_lite"]))
        self.uri, self._open = uri, True
        self.lite = None if is_server else LiteFolder(Path(uri).absolute(), writing=writing)
        try:
            self.client = _server(uri, token) if self.lite is None else _started(self.lite)
        except BaseException:
            if self.lite is not None:
                self.lite.close()
            raise

    @property
    def timeout(self) -> float | None:
        """Seconds that a request may take; None: for ever."""
        return SECONDS if self.lite is None else None

    def close(self) -> None:
        """Close it; for a file, stop Milvus Lite and let others open it."""
        if self._open:
            self._open = False
            self.client.close()
            if self.lite is not None:
                _stop(self.lite)
                self.lite.close()


def _is_server(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        _ = parts.port  # a bad one is refused when it is looked at
    except ValueError as error:
        shown = "..." if "@" in uri else repr(uri)  # before an @ is a password
        raise KeMetricError(f"milvus: uri = {shown}: {error}", ExitCode.USAGE) from None
    if parts.scheme in SCHEMES:
        if "@" in parts.netloc or parts.query:
            raise KeMetricError(
                f"milvus: uri = {parts.scheme}://...{parts.hostname or ''}: must not hold a user, password or query, "
                "since it is stored and shown; a token (or user:password) goes into the variable "
                "KE_METRIC_MILVUS_TOKEN",
                ExitCode.USAGE,
            )
        return True
    if not uri.endswith(".db"):
        raise KeMetricError(
            f"milvus: uri = {uri!r}, must be a file that ends with .db, or a server: http://host:19530",
            ExitCode.USAGE,
        )
    return False


def _require(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise KeMetricError(
                f"milvus: {name} is not installed: pip install 'ke_metric[cpu,milvus]'; beside faiss-gpu see "
                "docs/milvus.md",
                ExitCode.ENVIRONMENT,
            )


def _server(uri: str, token: str | None) -> MilvusClient:
    from pymilvus import MilvusClient

    with explained(uri):
        return MilvusClient(uri, token=token or "", timeout=SECONDS_TO_CONNECT, grpc_options=CHANNEL)


def _started(folder: LiteFolder) -> MilvusClient:
    from ke_metric.evaluation.faiss_library import load_faiss

    _let_settings_through(load_faiss())  # Milvus Lite imports it: after torch, and only if it is whole
    from pymilvus import MilvusClient

    with explained(str(folder.path)):
        return MilvusClient(str(folder.path), grpc_options=CHANNEL)


def _let_settings_through(faiss: Any) -> None:
    """Let FAISS's indexes take the settings of a search again, which Milvus Lite gives them with every one.

    pytorch_metric_learning imports faiss.contrib.torch_utils, which replaces `search` by one that takes none.
    """
    # Imported now, it cannot replace it later.
    import_module("faiss.contrib.torch_utils")
    replaced: list[Any] = [kind for kind in vars(faiss).values() if "search_numpy" in getattr(kind, "__dict__", {})]
    for kind in replaced:
        kind.search = _with_settings(kind.search)


def _with_settings(search: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(search, "takes_settings"):
        return search

    @wraps(search)
    def searched(index: Any, queries: Any, k: int, *places: Any, params: Any = None, **outputs: Any) -> Any:
        if params is None:
            return search(index, queries, k, *places, **outputs)
        return index.search_numpy(queries, k, *places, params=params, **outputs)

    searched.takes_settings = True  # type: ignore[attr-defined]
    return searched


def _stop(folder: LiteFolder) -> None:
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(str(folder.path))
