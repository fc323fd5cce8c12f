"""A Milvus server for tests: the real standalone one, from the package milvus, with a fresh folder of data.

It listens on every address of the machine, whatever its settings say. So it runs in a network namespace of its own,
which has nothing but a loopback; this file, run as a script, is the process that starts it there and passes on what
comes to one port of 127.0.0.1. The server ends when that process does, and that one when the test's process does.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

URI = "KE_METRIC_MILVUS_URI"
"""Names a server in place of one that is started; the token of KE_METRIC_MILVUS_TOKEN, if any, is told to it."""
PORT, HEALTH = 19530, 9091
SECONDS = 180
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
SET_FLAGS, UP = 0x8914, (16 * b"\0").replace(b"\0\0", b"lo", 1) + b"\x01\0" + 22 * b"\0"
QUICK: dict[str, object] = {"proxy.timeTickInterval": "50", "common.session.ttl": "3"}
"""Ticks of 0.05 seconds, which a write and a strong read wait for, where 0.2 are usual; and a server that was killed
is forgotten after 3 seconds, not 30, in which what was loaded there is loaded nowhere else."""
ALL = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")

# --- the process that starts the server ---------------------------------------------------------------------------


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _leave_the_network() -> None:
    """Move this process into a network namespace of its own, and turn on the loopback there."""
    from fcntl import ioctl

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK if os.geteuid() == 0 else NEW_NETWORK | NEW_USER):
        raise OSError(ctypes.get_errno(), "no network namespace can be made for a Milvus server")
    with socket.socket() as loopback:
        ioctl(loopback, SET_FLAGS, UP)


def _programs() -> Path:
    """Return the folder of the server's programs: 207 MB, unpacked once in twelve seconds, and kept."""
    from fcntl import LOCK_EX, flock

    milvus = import_module("milvus")  # on Linux with x86-64 alone
    folder = Path(tempfile.gettempdir()) / f"ke-metric-milvus-{milvus.__version__}-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.geteuid(), folder
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        milvus._initialize_data_files(str(folder))
    return folder / "bin"


def _start(folder: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    config = import_module("milvus").MilvusServerConfig(data_dir=str(folder))
    alone = {f"{part}.ip": "127.0.0.1" for part in ALL}
    for name, value in ({"log.level": "warn", "log.stdout": "false"} | alone | settings).items():
        config.set(name, value)
    config.resolve()
    programs = _programs()
    paths = {"METRICS_PORT": str(HEALTH), "MILVUS_RUN_DIR": str(folder / "run"), "LD_LIBRARY_PATH": str(programs)}
    return subprocess.Popen(
        [programs / "milvus", "run", "standalone"],
        cwd=folder,
        env=os.environ | {"DEPLOY_MODE": "STANDALONE"} | paths,
        stdout=sys.stderr,
        stderr=sys.stderr,
        preexec_fn=_end_with_parent,  # noqa: PLW1509
    )


def _is_healthy() -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{HEALTH}/healthz", timeout=5) as page:
            return b"OK" in page.read()
    except OSError:
        return False


def _pour(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**18):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _pass_on(door: socket.socket) -> None:
    while True:
        outside, _ = door.accept()
        inside = socket.create_connection(("127.0.0.1", PORT))
        for one in (outside, inside):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for ends in ((outside, inside), (inside, outside)):
            threading.Thread(target=_pour, args=ends, daemon=True).start()


def main(folder: Path, port: int, settings: dict[str, object]) -> int:
    """Start a server, say its process id when it is healthy, and pass on what comes until it ends."""
    _end_with_parent()
    door = socket.socket()  # it stays in the network that it was made in
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", port))
    _leave_the_network()
    server = _start(folder, settings)
    while server.poll() is None and not _is_healthy():
        time.sleep(0.05)
    if server.poll() is None:
        door.listen()
        threading.Thread(target=_pass_on, args=(door,), daemon=True).start()
        sys.stdout.write(f"{server.pid}\n")
        sys.stdout.flush()
    return server.wait()


# --- what tests use -----------------------------------------------------------------------------------------------


@cache
def is_installed() -> bool:
    """Whether a server can be started: the package is there, and a network namespace can be made."""
    packages = all(find_spec(name) is not None for name in ("pymilvus", "milvus"))
    return packages and not subprocess.run([sys.executable, __file__], capture_output=True, check=False).returncode


class MilvusServer:
    """A server of its own folder, which is gone when it is stopped; its URI stays the same when it is killed.

    Args:
        settings: Of its configuration, by their names: {"quotaAndLimits.limitWriting.forceDeny": "true"}.
    """

    def __init__(self, settings: dict[str, object] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ke-metric-milvus-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.settings = settings or {}
        self.start()

    def start(self) -> None:
        """Start it; when this returns it is healthy."""
        with (self.folder / "log").open("ab") as log:
            self._door = subprocess.Popen(
                [sys.executable, __file__, self.folder, self.uri.rpartition(":")[2], json.dumps(self.settings)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        late = threading.Timer(SECONDS, self._door.kill)
        late.start()
        said = self._door.stdout.readline()
        late.cancel()
        assert said, f"no Milvus server within {SECONDS} seconds: {self.log}"
        self.process = int(said)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._door.poll() is None:
            os.kill(self.process, how)
            self._door.wait(SECONDS)
        self._door.stdout.close()

    def stop(self) -> None:
        """End it, and remove all it has."""
        self._end(signal.SIGKILL)  # told to end, it takes half a minute
        shutil.rmtree(self.folder)


@cache
def started_server() -> MilvusServer:
    """Return the one server of this process; it ends with it."""
    server = MilvusServer(QUICK)
    owner = os.getpid()
    atexit.register(lambda: server.stop() if os.getpid() == owner else None)
    return server


def server_uri() -> str:
    """Return the URI of the server that the environment names, or of this process's own; children take the same."""
    if URI not in os.environ:
        os.environ[URI] = started_server().uri
    return os.environ[URI]


def drop(collection: str) -> None:
    """Delete a collection of the server's, and its journal, if they are there."""
    from pymilvus import MilvusClient

    client = MilvusClient(server_uri(), token=os.environ.get("KE_METRIC_MILVUS_TOKEN", ""), timeout=SECONDS)
    for name in (collection, f"{collection}_journal"):
        client.drop_collection(name, timeout=SECONDS)
    client.close()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        _leave_the_network()
    else:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])))
