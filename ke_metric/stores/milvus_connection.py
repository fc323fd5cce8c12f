"""A connection to Milvus: to a server, or to Milvus Lite, which is started for it in this process on a folder.

Written against the files of milvus-lite 3.2.2. One process at a time opens a database, be it to read. A write that
was answered is in the write-ahead log, which a SIGKILL does not touch; but some of what a SIGKILL leaves stands in
the way afterwards, and Lite does not mend it:

- a collection's folder without schema.json: the collection can never be made again;
- an index file that is half written: the collection can never be loaded again;
- a write-ahead log that is in the data files already, for it is removed after the manifest says so: each of its rows
  is found twice.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.milvus_collection import explained

if TYPE_CHECKING:
    from pymilvus import MilvusClient


LOCK = "ke_metric.lock"
OPENED = "ke_metric.open"
MANIFEST_VERSION = 2
LOG = re.compile(r"wal_(?:data|delta)_(\d+)\.arrow")
ONE_AT_A_TIME = (
    "one process at a time opens a Milvus Lite database, be it to read or to write; a Milvus server, named by its "
    "URI, has no such limit"
)
SCHEMES = ("http", "https", "tcp")
SECONDS_TO_CONNECT = 10.0
SECONDS = 120.0
"""That a request to a server may take. Milvus Lite, in this process, takes what it takes."""
CHANNEL = {"grpc.keepalive_time_ms": 310_000}
"""pymilvus pings every 10 s. Milvus Lite allows a ping in 300 s: it hangs up in the middle of a longer request, which
pymilvus then sends again."""
SERVER_CHANNEL = {"grpc.use_local_subchannel_pool": 1}
"""Without, a connection that is opened anew waits as long as the lost one would, up to two minutes, and fails
meanwhile, whether the server is back or not."""


class LiteFolder:
    """The hold on a database; whoever has it may start Milvus Lite on the folder.

    Args:
        path: Of the database, ending with .db.
        writing: Make it if it is not there.

    Attributes:
        was_killed: Whether whoever had it open before did not close it.

    Raises:
        KeMetricError: DATA: it is not there, or of Milvus Lite 2; LINEAGE: it is held by another; ENVIRONMENT: it
            cannot be read or written.
    """

    def __init__(self, path: Path, *, writing: bool) -> None:
        self.path = path
        if path.is_file():
            raise KeMetricError(
                f"{path}: a database of Milvus Lite 2, which Milvus Lite 3 cannot open; build the index again, "
                "from pictures or with ke-metric index build --from ANOTHER_INDEX",
                ExitCode.DATA,
            )
        if not writing and not path.is_dir():
            raise KeMetricError(f"{path}: there is no Milvus Lite database here", ExitCode.DATA)
        self._lock = FileLock(path / LOCK, timeout=0, thread_local=False)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self.was_killed = (path / OPENED).exists()
            with FileLock(path / "LOCK", timeout=0, thread_local=False):  # Milvus Lite's own
                if self.was_killed:
                    self._mend()
            (path / OPENED).touch()
        except Timeout:
            self._lock.release()
            raise KeMetricError(f"{path}: another process has it open; {ONE_AT_A_TIME}", ExitCode.LINEAGE) from None
        except OSError as error:
            self._lock.release()
            raise KeMetricError(
                f"{path}: cannot be opened: {error.strerror or error}; Milvus Lite writes into its folder even to "
                "search. A faiss or memmap store needs no writing for that: ke-metric index build --from makes one",
                ExitCode.ENVIRONMENT,
            ) from error

    def _mend(self) -> None:
        """Remove what a SIGKILL leaves; nothing of it is data that is not elsewhere."""
        for folder in sorted((self.path / "collections").glob("*/")):
            if not (folder / "schema.json").exists():
                shutil.rmtree(folder)
                continue
            for index in folder.glob("partitions/*/indexes/*.idx"):
                index.unlink()
            _remove_flushed_logs(folder)

    def close(self) -> None:
        """Let others open it; Milvus Lite has been stopped."""
        (self.path / OPENED).unlink(missing_ok=True)
        self._lock.release()

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(_size(file) for file in self.path.rglob("*"))


def _remove_flushed_logs(collection: Path) -> None:
    # One atomic write of the manifest names both the data files and the first log that is not in them.
    try:
        manifest = json.loads((collection / "manifest.json").read_bytes())
        known = manifest["manifest_format_version"] == MANIFEST_VERSION
        first = manifest["active_wal_number"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    if not known or not isinstance(first, int):
        return
    for file in collection.glob("wal/*.arrow"):
        found = LOG.fullmatch(file.name)
        if found and int(found[1]) < first:
            file.unlink()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:  # Milvus Lite merges data files in the background
        return 0


class Connection:
    """A connection; close it.

    Args:
        uri: A file that ends with .db, or a server; it may be shown.
        writing: A file that is not there is made.
        token: What a server asks for; never stored or printed.

    Attributes:
        lite: The hold on the file; None for a server.
        client: Speaks to either.

    Raises:
        KeMetricError: USAGE: no such URI. ENVIRONMENT: pymilvus is not installed, or the server does not answer.
            DATA: see `LiteFolder`.
    """

    def __init__(self, uri: str, *, writing: bool, token: str | None = None) -> None:
        server = is_server(uri)
        _require("pymilvus", *([] if server else ["milvus_lite"]))
        self.uri, self._open = uri, True
        self.lite = None if server else LiteFolder(Path(uri).absolute(), writing=writing)
        try:
            self.client = _server(uri, token) if self.lite is None else _started(self.lite)
        except BaseException:
            if self.lite is not None:
                self.lite.close()
            raise

    @property
    def timeout(self) -> float | None:
        """Seconds that a request may take, or a wait for the next step of a longer one; None: for ever."""
        return SECONDS if self.lite is None else None

    def close(self) -> None:
        """Close it; for a file, stop Milvus Lite and let others open it."""
        if self._open:
            self._open = False
            self.client.close()
            if self.lite is not None:
                _stop(self.lite)
                self.lite.close()


def is_server(uri: str) -> bool:
    """Return whether a URI is that of a server; refuse one that is of nothing, or holds a password, as USAGE."""
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

    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it writes 200 lines of each error that it raises
    with explained(uri, "connecting", SECONDS_TO_CONNECT):
        return MilvusClient(
            uri, token=token or "", timeout=SECONDS_TO_CONNECT, grpc_options=SERVER_CHANNEL, dedicated=True
        )


def _started(folder: LiteFolder) -> MilvusClient:
    from ke_metric.evaluation.backend import load_faiss

    _let_settings_through(load_faiss())  # Milvus Lite imports it: after torch, and only if it is whole
    from pymilvus import MilvusClient

    with explained(str(folder.path), "starting Milvus Lite", None):
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
