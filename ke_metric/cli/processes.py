"""How the processes of one training end together, whichever of them ends first and whatever the others are doing.

Every process has a connection to the first one. Who stops with an error says so over it; who is killed is missed at
once, as the operating system closes the connection, which no forked child holds open. Waiting for the others' tensors
does not do for that: NCCL waits for minutes, and a process that scores alone for an hour waits for nobody.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import click

from ke_metric.cli.display import CONSOLE, resume_command
from ke_metric.errors import ExitCode, KeMetricError, readable
from ke_metric.lineage.store import holds_lineage
from ke_metric.training.engine import Engine, lost_process

# Seconds that a process is left to end by itself when another one has ended; then it is ended wherever it is.
GRACE = 5.0
# Seconds that a process waits to hear why another one has ended, before it says that it does not know.
ANSWER = 5.0
# Seconds within which all processes are connected, or the first one says that they are not.
CONNECTED = 30.0
# Seconds by which the end of another process may be heard after the SIGTERM that torchrun sends because of it.
LATER = 1.0
# A connection to a machine that has lost its power is closed by nobody; it counts as lost after 25 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class _TerminatedError(KeyboardInterrupt):
    """A SIGTERM outside the steps, which stops at once."""


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
        self._lock = threading.Lock()
        self._heard: End | None = None
        self._unconnected = "no answer"
        self._is_connected, self._has_heard, self._is_over = (threading.Event() for _ in range(3))
        if engine.processes > 1:
            with self.lost_in_words():
                self._connect()

    def _connect(self) -> None:
        """Connect every process with the first one; say so, and go on, where that fails."""
        key, listener, host = secrets.token_bytes(32), None, _address_of_first(self._engine)
        if self._engine.is_main:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, 0), family=family, backlog=128)
        port = listener.getsockname()[1] if listener else 0
        host, port, key = self._engine.gather_records([(host, port, key)] if listener else [])[0]
        if listener:
            threading.Thread(target=self._admit_all, args=(listener, key), daemon=True).start()
        else:
            threading.Thread(target=self._join, args=((host, port), key), daemon=True).start()
        if not self._is_connected.wait(CONNECTED):
            missing = self._engine.processes - 1 - len(self._connections) if listener else 1
            click.echo(
                f"warning: process {self._engine.rank} has no connection to {missing} of the others at {host}:{port} "
                f"({self._unconnected}); where one of them is killed, the training may go on waiting for it",
                err=True,
            )

    def _admit_all(self, listener: socket.socket, key: bytes) -> None:
        """Let the other processes in; each in a thread of its own, so that a silent stranger keeps nobody out."""
        listener.settimeout(1.0)
        with listener:
            while not self._is_connected.is_set():
                with suppress(TimeoutError):
                    connection = _kept_alive(listener.accept()[0])
                    threading.Thread(target=self._admit, args=(connection, key), daemon=True).start()

    def _admit(self, connection: Connection, key: bytes) -> None:
        try:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
        except (AuthenticationError, EOFError, OSError):
            # Whoever does not know the key is none of ours.
            connection.close()
        else:
            self._follow(connection)

    def _join(self, address: tuple[str, int], key: bytes) -> None:
        try:
            connection = _kept_alive(socket.create_connection(address, timeout=CONNECTED))
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
        except (AuthenticationError, EOFError, OSError) as error:
            self._unconnected = str(error) or type(error).__name__
        else:
            self._follow(connection)

    def _follow(self, connection: Connection) -> None:
        """Wait until the process at the other side ends; end this one if it has not done all there was to do."""
        # A worker that is forked later would keep the connection open for a while after its parent was killed.
        os.register_at_fork(after_in_child=connection.close)
        with self._lock:
            self._connections.append(connection)
            if len(self._connections) == (self._engine.processes - 1 if self._engine.is_main else 1):
                self._is_connected.set()
        end = _received(connection) or End(ExitCode.ENVIRONMENT, self._gone("it said nothing before"))
        if end.code:
            self._hear(end)

    def _hear(self, end: End) -> None:
        """Say and hand on how another process has ended, and wait until this one has, too, or end it."""
        with self._lock:
            if self._heard or self._is_over.is_set():
                return
            self._heard = end
            # At once: torchrun ends this process as soon as it has seen the other one's end.
            if self._speaks(end):
                _print(end.text)
            if self._engine.is_main:
                self._send(End(end.code))
        self._has_heard.set()
        if self._is_over.wait(GRACE):
            return
        if self._engine.is_main:
            self.record(ExitCode(end.code), end.text)
        if self._speaks(end):
            CONSOLE.show_cursor()
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
            self._send(End(ExitCode.OK))
            self._is_over.set()

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Handle a SIGTERM: stop at once, but where the end of another process is what ends this one already."""
        if self._heard is None:
            raise _TerminatedError

    def stopped_by(self, error: BaseException) -> BaseException:
        """Tell the others that an error ends this process; return what it ends with, which only one of them says."""
        if self._engine.processes == 1:
            return error
        if isinstance(error, _TerminatedError):
            self._has_heard.wait(LATER)
        own = _end_of(error)
        with self._lock:
            heard = self._heard
            if self._engine.is_main:
                self._is_over.set()
                if heard is None:
                    self._send(End(own.code))
        if not self._engine.is_main:
            heard = self._answer(own)
        if not isinstance(error, KeMetricError | KeyboardInterrupt):
            return error
        if heard is None:
            return error
        is_said = isinstance(error, KeyboardInterrupt) or own.text == heard.text
        # An answer without a text says that the first process has said what this one told it.
        return SystemExit(int(heard.code)) if is_said or not heard.text else error

    def _answer(self, own: End) -> End | None:
        """Tell the first process how this one ends; return what it hands on, which may be what it heard before."""
        with self._lock:
            if self._heard is None:
                self._send(own)
        self._has_heard.wait(ANSWER)
        with self._lock:
            self._is_over.set()
            return self._heard

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
    if engine.processes == 1:
        yield processes
        return
    before = signal.signal(signal.SIGTERM, processes.terminate)
    try:
        with processes.lost_in_words():
            yield processes
    except BaseException as error:
        # This process is ending: torchrun's signal would only take its exit code from it. Its SIGKILL comes later.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ending = processes.stopped_by(error)
        if ending is error:
            raise
        raise ending from error
    processes.done()
    signal.signal(signal.SIGTERM, before)


def _end_of(error: BaseException) -> End:
    if isinstance(error, KeMetricError):
        return End(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return End(ExitCode.INTERRUPTED, "another process of this training was stopped at once")
    text = f"another process of this training stopped with an error of its own: {type(error).__name__}: {error}"
    return End(ExitCode.UNEXPECTED, text)


def _on_one_machine(engine: Engine) -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == str(engine.processes)


def _address_of_first(engine: Engine) -> str:
    """Return, in the first process, the address of its own by which the others reach it.

    What MASTER_ADDR names may be an address of the first machine that only itself knows, or that of a service.
    """
    if _on_one_machine(engine):
        return "127.0.0.1"
    addresses = engine.gather_records([_own_address(os.environ["MASTER_ADDR"])])
    return _own_address(addresses[-1])


def _own_address(other: str) -> str:
    """Return by which address of its own this machine reaches another one; nothing is sent."""
    family, kind, _, _, address = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _kept_alive(connected: socket.socket) -> Connection:
    connected.settimeout(None)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(connected.detach())


def _received(connection: Connection) -> End | None:
    """Return what a process has said; None when it is gone."""
    try:
        return End(*json.loads(connection.recv_bytes()))
    except (OSError, EOFError):
        return None


def _print(text: str) -> None:
    click.echo(f"ke-metric: {readable(text)}", err=True)
