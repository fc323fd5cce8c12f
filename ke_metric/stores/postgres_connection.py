"""A connection to PostgreSQL on which nothing waits for ever, and which is opened again after it was lost.

A password comes from where libpq looks for one: the variable PGPASSWORD, or a file .pgpass. Nothing here reads it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import psycopg
from psycopg import errors, pq, sql
from psycopg.adapt import Buffer, Dumper
from psycopg.conninfo import conninfo_to_dict

from ke_metric.errors import ExitCode, KeMetricError

SCHEMES = ("postgresql", "postgres")
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
LEAST_PGVECTOR = (0, 8)
"""The first whose graphs go on searching where a condition leaves too few of what they found."""
SECONDS = 120
"""That a request may take."""
SECONDS_MORE = 15
"""After which a server that should have given up, and says nothing, is given up."""
SECONDS_FOR_LOCK = 3
"""That a server may take to notice that the process that had the lock was killed."""
LIMITS = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Of libpq, in seconds, the last in milliseconds; what the URI says of them comes first."""
SETTINGS = {
    "statement_timeout": f"{SECONDS}s",
    "client_connection_check_interval": "1s",
    "jit": "off",
    "hnsw.iterative_scan": "strict_order",
    "hnsw.ef_search": "128",
}
"""Of a session; what the variable PGOPTIONS or the URI's `options` say comes first."""
LOOK = """
    SELECT current_schema(), extension.extversion, quote_ident(place.nspname),
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
    FROM (VALUES (1)) AS one LEFT JOIN pg_extension AS extension ON extension.extname = 'vector'
    LEFT JOIN pg_namespace AS place ON place.oid = extension.extnamespace
"""


@dataclass(frozen=True)
class Packed:
    """A value in the binary form of the type that the statement asks for there."""

    data: bytes


class PackedDumper(Dumper):
    """Sends a `Packed` as it is."""

    format = pq.Format.BINARY

    def dump(self, obj: Packed) -> Buffer | None:
        """Return the bytes."""
        return obj.data


def read_uri(uri: str) -> dict[str, Any]:
    """Return what a URI says, by libpq's names; USAGE for another text, or one with a password in it."""
    scheme, _, rest = uri.partition("://")
    shown = f"{scheme}://..." if scheme in SCHEMES else "..."  # the rest may hold a password
    try:
        found: dict[str, Any] = conninfo_to_dict(uri) if rest and scheme in SCHEMES else {}
    except (psycopg.Error, UnicodeError):
        found = {}
    if not found:
        raise KeMetricError(f"postgres: uri = {shown}, must be postgresql://USER@HOST:PORT/DATABASE", ExitCode.USAGE)
    if secret := [name for name in SECRETS if name in found]:
        raise KeMetricError(
            f"postgres: uri = {shown}{found.get('host', '')}: must not hold a {secret[0]}, since it is stored and "
            "shown; a password goes into the variable PGPASSWORD or a file .pgpass",
            ExitCode.USAGE,
        )
    return found


@contextmanager
def explained(place: str, doing: str) -> Iterator[None]:
    """Tell errors of PostgreSQL as ours, ENVIRONMENT, with what was waited for."""
    try:
        yield
    except TimeoutError:
        said = "PostgreSQL does not answer any more"
    except psycopg.Error as error:
        said = f"PostgreSQL says: {_said(error)}"
    else:
        return
    raise KeMetricError(f"{place}: {doing}: {said}", ExitCode.ENVIRONMENT)


def _said(error: psycopg.Error) -> str:
    said = [error.diag.message_primary or " ".join(str(error).split())[:1000], error.diag.message_detail]
    if isinstance(error, errors.InsufficientPrivilege):
        said.append("docs/postgres.md says which rights are needed")
    elif "password" in str(error):
        said.append("the password is that of the variable PGPASSWORD, or of a file .pgpass")
    return "; ".join(filter(None, said))


def _until(waited: Generator[Any, Any, Any], end: float) -> Generator[Any, Any, Any]:
    """Pass on what psycopg waits for until a time of `time.monotonic`; it looks up ten times a second."""
    try:
        wanted = next(waited)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > end:
                raise TimeoutError
            wanted = waited.send(ready)
    except StopIteration as stop:
        return stop.value


class Database:
    """A connection to a database; close it. All methods may be called by several threads.

    Args:
        uri: Where it is, without a password; it may be shown.
        making: Whether the extension `vector` is made where it is missing.

    Attributes:
        schema: The first schema of the search path, where tables lie whose schema is not named; None: it has none.

    Raises:
        KeMetricError: USAGE: see `read_uri`; ENVIRONMENT: no answer, no entry, or no pgvector.
    """

    def __init__(self, uri: str, *, making: bool) -> None:
        self.uri, self._making = uri, making
        self.schema: str | None = None
        self._turn = RLock()
        self._more = 0
        self._lock: tuple[int, str] | None = None
        self._connection: psycopg.Connection[Any] | None = self._open()

    def _open(self) -> psycopg.Connection[Any]:
        found = read_uri(self.uri)
        options = [f"-c {name}={value}" for name, value in SETTINGS.items()]
        options.append(found.get("options") or os.environ.get("PGOPTIONS", ""))
        fixed = {"client_encoding": "utf8", "application_name": "ke_metric", "options": " ".join(options)}
        with explained(self.uri, "connecting"):
            connection: psycopg.Connection[Any] = psycopg.connect(
                **{**LIMITS, **found, **fixed}, autocommit=True, prepare_threshold=None
            )
        try:
            with explained(self.uri, "opening the database"):
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        wait = connection.wait

        def limited(waited: Any, *others: Any, **options: Any) -> Any:
            return wait(_until(waited, time.monotonic() + SECONDS + self._more + SECONDS_MORE), *others, **options)

        connection.wait = limited  # type: ignore[method-assign, assignment]
        connection.adapters.register_dumper(Packed, PackedDumper)
        ((schema, version, place, _),) = connection.execute(LOOK).fetchall()
        self.schema = self.schema or schema
        if version is None and self._making:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            ((_, version, place, _),) = connection.execute(LOOK).fetchall()
        if version is None or tuple(map(int, version.split(".")[:2])) < LEAST_PGVECTOR:
            raise KeMetricError(
                f"{self.uri}: the extension vector (pgvector) of this database is {version or 'missing'}, needed is "
                f"{'.'.join(map(str, LEAST_PGVECTOR))}; docs/postgres.md says how it is made",
                ExitCode.ENVIRONMENT,
            )
        # Types and operators are found there, whatever else has their names; a table is always named with its schema.
        connection.execute("SELECT set_config('search_path', %s, false)", (place,))

    def lock(self, number: int, place: str) -> None:
        """Have a lock as long as the connection lives, and again after it was lost; errors call it by `place`.

        Raises:
            KeMetricError: LINEAGE: another process has it.
        """
        with self._asked("waiting for the lock") as connection:
            _take(connection, number, place)
        self._lock = number, place

    @contextmanager
    def _asked(self, doing: str, more: int = 0) -> Iterator[psycopg.Connection[Any]]:
        """Give the connection, opened again where it was lost, for requests that take so many seconds more."""
        assert self._connection is not None, "closed"
        with self._turn, explained(self.uri, doing):
            if self._connection.closed:
                self._connection = self._open()
                if self._lock is not None:
                    _take(self._connection, *self._lock)
            before, self._more = self._more, max(self._more, more)  # within a change that has more time, all have it
            try:
                yield self._connection
            except TimeoutError:
                self._connection.close()
                raise
            finally:
                self._more = before

    def ask(self, doing: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of the answer to one statement; `doing` is what an error says was waited for."""
        with self._asked(doing) as connection:
            answer = connection.execute(query.encode(), parameters, binary=True)
            return answer.fetchall() if answer.pgresult and answer.pgresult.nfields else []

    @contextmanager
    def changing(self, doing: str, more: int = 0) -> Iterator[psycopg.Cursor[Any]]:
        """Give a cursor in a transaction, which is whole when the block is left, and after an error never was.

        With `more` a statement may take so many seconds more than others, whatever the session's own limit is.
        """
        with (
            self._asked(f"{doing}, all or none", more) as connection,
            connection.transaction(),
            connection.cursor() as cursor,
        ):
            if more:
                cursor.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(f"{SECONDS + more}s"))
            yield cursor

    def pages(self, doing: str, query: str, rows: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows of the answer to one statement, so many at a time, as they were when it began.

        On a connection of its own: this one goes on answering.
        """
        connection = self._open()
        try:
            with connection.transaction(), connection.cursor(name="pages", binary=True) as cursor:
                with explained(self.uri, doing):
                    cursor.execute(query.encode())
                    page = cursor.fetchmany(rows)
                while page:
                    yield page
                    with explained(self.uri, doing):
                        page = cursor.fetchmany(rows)
        finally:
            connection.close()

    def close(self) -> None:
        """Close it, and let go of the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _take(connection: psycopg.Connection[Any], number: int, place: str) -> None:
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(f"{SECONDS_FOR_LOCK}s"))
            connection.execute("SELECT pg_advisory_lock(%s::bigint)", (number,))
    except errors.LockNotAvailable:
        raise KeMetricError(f"{place}: another process is writing it; one at a time can", ExitCode.LINEAGE) from None
