"""Servers whose stores are measured: started, watched by what the system tells of their processes, asked as they are.

The servers are those of the tests, fresh and on this machine. A bare client repeats the requests that a store made,
on a connection of its own with the same settings.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.shared.rounds import in_turn

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # postgres_server, milvus_server
SECONDS_BETWEEN_LOOKS = 2.0
"""Looking at the memory of processes with gigabytes takes a tenth of a second."""
SECONDS_TO_INDEX = 3600
LOOKS = 3
"""That find nothing left to index, one after another: Milvus begins again where it merges what it has."""
TICK = os.sysconf("SC_CLK_TCK")
POSTGRES_OPTIONS = "-c maintenance_work_mem={memory}MB -c max_parallel_maintenance_workers={workers}"
"""As docs/postgres.md says it, for a graph that fits; with the process that builds there is one for each core."""
POSTGRES_SETTINGS = {"shared_buffers": "{memory}MB", "max_wal_size": "4GB"}
Work = Callable[[], object]


@dataclass(frozen=True)
class Server:
    """A server on this machine.

    Attributes:
        uri: Where stores and clients find it.
        process: Id of its first process.
        folder: Where its data lie.
        settings: What was set for it, in words.
    """

    uri: str
    process: int
    folder: Path
    settings: str


@contextmanager
def started(kind: str, vector_bytes: int) -> Iterator[Server | None]:
    """Give a fresh server for stores of a kind, None where they need none.

    Args:
        kind: `postgres`, `milvus-server` or another one.
        vector_bytes: Of all vectors, for the settings of a server that has some.
    """
    if kind == "postgres":
        with _postgres(vector_bytes) as server:
            yield server
    elif kind == "milvus-server":
        import milvus_server

        running = milvus_server.MilvusServer()
        try:
            yield Server(running.uri, running.process, running.folder, "as installed")
        finally:
            running.stop()
    else:
        yield None


@contextmanager
def _postgres(vector_bytes: int) -> Iterator[Server]:
    import postgres_server
    import psycopg

    megabytes = max(64, 4 * vector_bytes >> 20)
    options = POSTGRES_OPTIONS.format(memory=megabytes, workers=(os.cpu_count() or 2) - 1)
    settings = {name: value.format(memory=megabytes) for name, value in POSTGRES_SETTINGS.items()}
    running = postgres_server.PostgresServer()
    before = os.environ.get("PGOPTIONS")
    try:
        with psycopg.connect(running.uri, autocommit=True) as admin:
            for name, value in settings.items():
                admin.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        running.end()
        running.start()
        os.environ["PGOPTIONS"] = options
        said = ", ".join(f"{name} {value}" for name, value in settings.items())
        yield Server(
            running.uri,
            running.process.pid,
            running.folder,
            f"{said}; {options.replace('-c ', '').replace('=', ' ')}",
        )
    finally:
        os.environ.pop("PGOPTIONS", None)
        if before is not None:
            os.environ["PGOPTIONS"] = before
        running.stop()


def lacking(kind: str) -> str:
    """Return what is not installed of what stores of a kind need; empty for nothing."""
    import milvus_server
    import postgres_server

    there = {"postgres": postgres_server.is_installed, "milvus-server": milvus_server.is_installed}
    return "" if kind not in there or there[kind]() else f"{kind}: no server can be started here"


def free_memory() -> int:
    """Return the bytes of memory that programs can still have."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files of a folder; one that goes away meanwhile has none."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


# --- what a server's processes take ---------------------------------------------------------------------------------


def processes_of(first: int) -> list[int]:
    """Return the ids of a process and of all that it started, and they."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _fields(int(folder.name))):
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [first]
    for process in found:
        found += parents.get(process, [])
    return found


def _fields(process: int) -> list[str]:
    """Return what stands after the name in /proc/PID/stat: state, parent, ...; nothing for a process that is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(server: Server | None) -> float:
    """Return the seconds that processors spent on all processes of a server, with those that ended; 0 without one."""
    if server is None:
        return 0.0
    ticks = [sum(map(int, fields[11:15])) for one in processes_of(server.process) if (fields := _fields(one))]
    return sum(ticks) / TICK


def megabytes_now(server: Server) -> float:
    """Return the memory of all processes of a server, in MB; what several share is counted once."""
    total = 0
    for process in processes_of(server.process):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


@contextmanager
def watched(server: Server | None, found: dict[str, Any], name: str) -> Iterator[None]:
    """Enter the most memory that a server has while the block runs, seen every two seconds; nothing without one."""
    if server is None:
        yield
        return
    over, most = threading.Event(), [megabytes_now(server)]

    def look() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            most.append(megabytes_now(server))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        found[name] = max(most)


@dataclass(frozen=True)
class Costs:
    """What one way of searching cost in each round: seconds on the clock, of processors here, and of the server's."""

    wall: list[float]
    client: list[float]
    server: list[float]

    def named(self, name: str) -> dict[str, list[float]]:
        """Return them as entries of a line of results."""
        return {name: self.wall, f"{name}_client": self.client, f"{name}_server": self.server}


def in_turns(ways: Mapping[str, Work], rounds: int, server: Server | None = None) -> dict[str, Costs]:
    """Return what each way costs in each round; they take turns in being first, after one call not counted."""
    of_server: dict[str, list[float]] = {name: [] for name in ways}

    def metered(name: str) -> None:
        before = cpu_seconds(server)
        ways[name]()
        of_server[name].append(cpu_seconds(server) - before)

    for way in ways.values():
        way()
    clocked = in_turn({name: lambda name=name: metered(name) for name in ways}, rounds)  # type: ignore[misc]
    return {
        name: Costs([one.wall for one in each], [one.cpu for one in each], of_server[name])
        for name, each in clocked.items()
    }


# --- bare clients ---------------------------------------------------------------------------------------------------

Request = tuple[str, tuple[Any, ...], dict[str, Any]]


def requests_of(store: Any, work: Work) -> list[Request]:
    """Return the requests to the server that a call of a store makes."""
    asked: list[Request] = []
    owner, names = (
        (store._database, ("ask",)) if hasattr(store, "_database") else (store._main.client, ("search", "query"))
    )

    def noting(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **settings: Any) -> Any:
            asked.append((name, arguments, settings))
            return ask(*arguments, **settings)

        return noted

    for name in names:
        setattr(owner, name, noting(name, getattr(owner, name)))
    try:
        work()
    finally:
        for name in names:
            delattr(owner, name)
    return asked


@contextmanager
def bare_client(kind: str, server: Server) -> Iterator[Callable[[Request], object]]:
    """Give what makes a request and reads all of its answer, by the server's own library alone."""
    with _bare_postgres(server) if kind == "postgres" else _bare_milvus(server) as ask:
        yield ask


@contextmanager
def _bare_postgres(server: Server) -> Iterator[Callable[[Request], object]]:
    import psycopg

    from ke_metric.stores.postgres_connection import SETTINGS, Packed, PackedDumper

    options = " ".join([*(f"-c {name}={value}" for name, value in SETTINGS.items()), os.environ.get("PGOPTIONS", "")])
    with psycopg.connect(server.uri, autocommit=True, prepare_threshold=None, options=options) as connection:
        connection.adapters.register_dumper(Packed, PackedDumper)

        def ask(request: Request) -> object:
            _, query, *parameters = request[1]
            return connection.execute(query.encode(), parameters, binary=True).fetchall()

        yield ask


@contextmanager
def _bare_milvus(server: Server) -> Iterator[Callable[[Request], object]]:
    from pymilvus import MilvusClient

    client = MilvusClient(uri=server.uri)

    def ask(request: Request) -> object:
        name, arguments, settings = request
        answer = getattr(client, name)(*arguments, **settings)
        return (
            [[(hit["id"], hit["distance"]) for hit in hits] for hits in answer] if name == "search" else list(answer)
        )

    try:
        yield ask
    finally:
        client.close()


def wait_until_indexed(store: Any) -> None:
    """Wait until Milvus has indexed what was added: it does so in its own time."""
    client, name = store._main.client, store._main.name
    index = client.list_indexes(name, field_name="vector")[0]
    end = time.monotonic() + SECONDS_TO_INDEX
    looks = 0
    while time.monotonic() < end:
        facts = client.describe_index(name, index)
        looks = looks + 1 if facts["state"] == "Finished" and not facts["pending_index_rows"] else 0
        if looks == LOOKS:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)
    raise TimeoutError(f"Milvus has not indexed {name} in {SECONDS_TO_INDEX} seconds")
