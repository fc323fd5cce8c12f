"""How the processes of one training end together, whichever of them ends first and whatever the others are doing.

Every process has a connection to the first one. Who stops with an error says so over it; who is killed is missed at
once, as the operating system closes the connection. Waiting for each other's tensors does not do for that: NCCL waits
for minutes, and a process that scores alone for an hour waits for nobody.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import NamedTuple

import click

from ke_metric.cli.display import CONSOLE
from ke_metric.cli.recording import resume_command
from ke_metric.errors import ExitCode, KeMetricError, readable
from ke_metric.lineage.store import holds_lineage
from ke_metric.training.engine import Engine, lost_process

# Seconds that a process is left to end by itself when another one has ended; then it is ended wherever it is.
GRACE = 5.0
# Seconds that a process waits to hear why another one has ended, before it says that it does not know.
ANSWER = 5.0
# A connection to a machine that has lost its power is closed by nobody; it counts as lost after 25 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class End(NamedTuple):
    """How a process of a training has ended.

    Attributes:
        code: Its exit code; 0 when it has done all there was to do.
        text: What is to be said of it; empty where another process says it.
    """

    code: int
    text: str = ""


class Processes:
    """The other processes of a training as this one sees them; nothing where it is the only one.

    Args:
        engine: Knows the processes.
        folder: The lineage's, whether it is there already or not.
        device: The torch device that was asked for.

    Attributes:
        record: Called in the first process with exit code and reason, before it is ended wherever it is.
    """

    def __init__(self, engine: Engine, folder: Path, device: str | None) -> None:
        self._engine, self._folder, self._device = engine, folder, device
        self.record: Callable[[ExitCode, str], None] = lambda code, reason: None
        self._connections: list[Connection] = []
        self._heard: End | None = None
        self._is_connected, self._has_heard, self._is_over = (threading.Event() for _ in range(3))
        if engine.processes == 1:
            return
        key, listener = secrets.token_bytes(32), None
        if engine.is_main:
            listener = Listener(("127.0.0.1" if _on_one_machine(engine) else "", 0), backlog=128, authkey=key)
        port, key = engine.gather_records([(listener.address[1], key)] if listener else [])[0]
        threading.Thread(target=self._watch, args=(listener, int(port), key), daemon=True).start()

    def _watch(self, listener: Listener | None, port: int, key: bytes) -> None:
        """Wait for the first end that is not a good one; end this process if it does not end by itself then."""
        try:
            connections = self._accepted(listener) if listener else [self._connected(port, key)]
        except (OSError, EOFError, AuthenticationError) as error:
            click.echo(f"warning: process {self._engine.rank} cannot watch the first one: {error}", err=True)
            return
        self._connections = connections
        self._is_connected.set()
        if end := self._first_end():
            self._hear(end)

    def _first_end(self) -> End | None:
        """Wait until a process ends before it has done all, and return how; None when all have done all."""
        alive = list(self._connections)
        while alive:
            for connection in wait(alive):
                assert isinstance(connection, Connection), connection
                end = _received(connection)
                if end is None:
                    return End(ExitCode.ENVIRONMENT, self._gone("it said nothing before"))
                if end.code:
                    return end
                alive.remove(connection)
        return None

    def _accepted(self, listener: Listener) -> list[Connection]:
        found: list[Connection] = []
        with listener:
            while len(found) < self._engine.processes - 1:
                # Whoever does not know the key is none of ours.
                with suppress(AuthenticationError, EOFError, ConnectionError):
                    found.append(_kept_alive(listener.accept()))
        return found

    def _connected(self, port: int, key: bytes) -> Connection:
        host = "127.0.0.1" if _on_one_machine(self._engine) else os.environ["MASTER_ADDR"]
        return _kept_alive(Client((host, port), authkey=key))

    def _hear(self, end: End) -> None:
        """Hand on how another process has ended, and wait until this one has, too, or end it."""
        self._heard = end
        if self._engine.is_main:
            self._send(End(end.code))
        self._has_heard.set()
        if self._is_over.wait(GRACE):
            return
        if self._engine.is_main:
            self.record(ExitCode(end.code), end.text)
        if self._speaks(end):
            CONSOLE.show_cursor()
            _print(end.text)
        os._exit(end.code)

    def _speaks(self, end: End) -> bool:
        """Return whether this process says how another one has ended: the first, and if it is gone one a machine."""
        first_of_machine = self._engine.rank == 1 or os.environ.get("LOCAL_RANK") == "0"
        return bool(end.text) and (self._engine.is_main or first_of_machine)

    def _send(self, end: End) -> None:
        message = json.dumps(end).encode()
        for connection in self._connections:
            # Whoever is gone already need not be told.
            with suppress(OSError):
                connection.send_bytes(message)

    def done(self) -> None:
        """Tell the others that this process has done all there was to do."""
        if self._engine.processes > 1:
            self._is_connected.wait(ANSWER)
            self._send(End(ExitCode.OK))
            self._is_over.set()

    def stopped_by(self, error: BaseException) -> BaseException:
        """Tell the others that an error ends this process; return what it ends with, which only one of them says."""
        if self._engine.processes == 1:
            return error
        self._is_connected.wait(ANSWER)
        own = _end_of(error)
        if self._engine.is_main:
            self._send(End(own.code))
            self._is_over.set()
            return error
        if self._heard is None:
            self._send(own)
        # The first process has heard of it when it hands it on.
        self._has_heard.wait(ANSWER)
        self._is_over.set()
        heard = self._heard or own
        if not isinstance(error, KeMetricError | KeyboardInterrupt):
            return error
        if self._speaks(heard) or self._heard is None:
            _print(heard.text)
        return SystemExit(int(heard.code))

    @contextmanager
    def lost_in_words(self) -> Iterator[None]:
        """Tell in words when another process of the training ends while this one waits for it.

        Raises:
            KeMetricError: Another process has gone (exit code 5), or has said why it ends (its exit code).
        """
        try:
            yield
        except RuntimeError as error:
            reason = lost_process(error) if self._engine.processes > 1 else None
            if reason is None:
                raise
            self._has_heard.wait(ANSWER)
            end = self._heard or End(ExitCode.ENVIRONMENT)
            raise KeMetricError(end.text or self._gone(reason), ExitCode(end.code)) from error

    def _gone(self, reason: str) -> str:
        went_on = "No lineage was begun yet: start it again"
        if holds_lineage(self._folder):
            went_on = f"What was saved last is complete. Go on with: {resume_command(self._folder, self._device)}"
        return f"another process of this training has gone: it was killed or ran out of memory ({reason}). {went_on}"


@contextmanager
def together(engine: Engine, folder: Path, device: str | None) -> Iterator[Processes]:
    """Have all processes of a training end when one does, with its exit code, its reason said once.

    Args:
        engine: Knows the processes.
        folder: The lineage's, whether it is there already or not.
        device: The torch device that was asked for.

    Raises:
        KeMetricError: In the first process: another one has gone (exit code 5), or has said why it ends.
        SystemExit: In another process, in place of an error that the first one says.
    """
    processes = Processes(engine, folder, device)
    try:
        with processes.lost_in_words():
            yield processes
    except BaseException as error:
        ending = processes.stopped_by(error)
        if ending is error:
            raise
        raise ending from error
    processes.done()


def _end_of(error: BaseException) -> End:
    if isinstance(error, KeMetricError):
        return End(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return End(ExitCode.INTERRUPTED, "another process of this training was stopped at once")
    text = f"another process of this training stopped with an error of its own: {type(error).__name__}: {error}"
    return End(ExitCode.UNEXPECTED, text)


def _on_one_machine(engine: Engine) -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == str(engine.processes)


def _kept_alive(connection: Connection) -> Connection:
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _received(connection: Connection) -> End | None:
    """Return what a process has said; None when it is gone."""
    try:
        return End(*json.loads(connection.recv_bytes()))
    except (OSError, EOFError):
        return None


def _print(text: str) -> None:
    click.echo(f"ke-metric: {readable(text)}", err=True)
