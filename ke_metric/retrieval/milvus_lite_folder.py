"""The folder of a Milvus Lite database: who has it open, and what a SIGKILL leaves in it.

Written against the files of milvus-lite 3.2.2. One process at a time opens a database, be it to read. A write that
was answered is in the write-ahead log, which a SIGKILL does not touch; but some of what a SIGKILL leaves stands in
the way afterwards, and Lite does not mend it:

- a collection's folder without schema.json: the collection can never be made again;
- an index file that is half written: the collection can never be loaded again;
- a write-ahead log that is in the data files already, for it is removed after the manifest says so: each of its rows
  is found twice.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from ke_metric.errors import ExitCode, KeMetricError

LOCK = "ke_metric.lock"
OPENED = "ke_metric.open"
MANIFEST_VERSION = 2
LOG = re.compile(r"wal_(?:data|delta)_(\d+)\.arrow")
ONE_AT_A_TIME = (
    "one process at a time opens a Milvus Lite database, be it to read or to write; a Milvus server, named by its "
    "URI, has no such limit"
)


class LiteFolder:
    """The hold on a database; whoever has it may start Milvus Lite on the folder.

    Args:
        path: Of the database, ending with .db.
        writing: Make it if it is not there.

    Attributes:
        path: The same.
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
