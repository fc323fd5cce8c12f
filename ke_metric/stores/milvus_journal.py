"""The journal of a Milvus collection, a second collection: it makes changes of several requests whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.milvus_collection import (
    JOURNAL,
    MESSAGE_BYTES,
    REQUEST_ROWS,
    TEXT_BYTES,
    TEXTS,
    Collection,
    Row,
    one_of,
    parts,
    quoted,
    size_of,
)

# Ids of the rows of a journal, in this order. A change is what is after its own name, which is that of its writer and
# a number: its entries, and that it is committed. Earlier versions wrote no names: entries right after FACTS, and
# COMMIT alone.
BY, COMMIT, FACTS, GONE, PUT, WRITER = "by", "commit", "facts", "gone ", "put ", "writer "


def _start(change: str) -> str:
    """Return what the ids of a change begin with; of "", which has no name, nothing."""
    return f"{WRITER}{change} " if change else ""


def _bounds(change: str) -> tuple[str, str]:
    """Return what the ids of a change are between."""
    return (_start(change), f"{WRITER}{change}!") if change else (FACTS, WRITER)


def _is_entry(name: str) -> bool:
    return name in (BY, COMMIT, FACTS) or name.startswith((GONE, PUT, WRITER))


@dataclass
class Journal:
    """The journal of a collection `main`, itself the collection `own`: it makes changes of several requests whole.

    A change is written down here, then committed by one row, then carried out, and then forgotten; whoever writes
    next finishes what was committed and forgets what was not. The journal also keeps what the collection says of
    itself, and who writes it.

    Two that write are kept apart by the order of their requests. A writer commits when all its entries are there and
    nobody has signed since; whoever begins to write signs first, and looks afterwards. So it finds all entries of
    what may be committed: with the commit it finishes them, without it forgets them, and a commit that comes later
    commits nothing. For the same reason no two changes have one name, be they of one writer: a request whose answer
    was lost may be carried out when its change has been settled, and must not count as part of the next one.

    Attributes:
        name: Of this writer; its changes are its own.
        signing: Whether other writers are to be expected, as nothing but `name` keeps them away.
    """

    main: Collection
    own: Collection
    dimension: int
    name: str
    signing: bool
    _numbers: Iterator[int] = field(default_factory=count)
    _signature: str | None = None

    def make(self, facts: Mapping[str, str]) -> None:
        """Make it, in place of one that was left of a collection half made or half dropped.

        Raises:
            KeMetricError: DATA: what has its name is no such journal; it stays.
        """
        if self.own.exists:
            self._require_left()
            self.own.drop()
        self.own.make(self.dimension)
        text = json.dumps(dict(sorted(facts.items())), ensure_ascii=False)
        assert len(text.encode()) <= TEXT_BYTES, f"facts of {len(text)} characters"
        self.own.put([self._row(FACTS, text)])

    def _require_left(self) -> None:
        """Refuse what may be somebody's gallery, or another program's: nothing but a journal may be dropped."""
        self.own.check_fields()
        self.own.load("FLAT")
        self.own.wait_until_loaded()
        names = (row["id"] for page in self.own.pages(["id"], width=TEXT_BYTES) for row in page)
        is_gallery = replace(self.own, name=f"{self.own.name}{JOURNAL}").exists
        if is_gallery or not all(map(_is_entry, names)):
            raise KeMetricError(
                f"{self.main.place}: its journal would be the collection {self.own.name}, which holds something "
                "else; choose another name",
                ExitCode.DATA,
            )
        if self.main.exists:  # all of this takes a while
            raise KeMetricError(f"{self.main.place}: another process has just made it", ExitCode.LINEAGE)

    def look(self) -> tuple[dict[str, str], bool]:
        """Return what the collection says of itself, and whether there is a change to be settled."""
        rows = self.own.query('id > ""', ["id", "label"], limit=3)
        found = [row for row in rows if row["id"] == FACTS] or list(self.own.find([FACTS], ["label"]))
        facts = dict(json.loads(found[0]["label"])) if found else {}
        return facts, any(row["id"] not in (BY, FACTS) for row in rows)

    def sign(self) -> None:
        """Say that this one writes from now on; whoever did before is refused at its next change."""
        # Each time in other words: one whose answer was lost, and that is carried out late, is none of this writer's.
        signature = self._next_name()
        self.own.put([self._row(BY, signature)])
        self._signature = signature

    @property
    def has_signed(self) -> bool:
        """Whether it said so, be it that another has since."""
        return self._signature is not None

    def require_signed(self) -> None:
        """Refuse to write, as LINEAGE, where another has begun to write since."""
        if not self._is_signed():
            raise KeMetricError(
                f"{self.main.place}: another process has begun to write it since; one at a time does, the last that "
                "began. What was added and removed before is kept",
                ExitCode.LINEAGE,
            )

    def _is_signed(self) -> bool:
        return not self.signing or [row["label"] for row in self.own.find([BY], ["label"])] == [self._signature]

    def put(self, rows: Sequence[Row], *, replacing: bool) -> None:
        """Write rows into the collection, in place of those of the same ids, if there are any; all or none.

        A server writes what is large, and new rows and the removal of the old ones, into its log as several messages,
        and may be killed between two.
        """
        requests, change = list(parts(rows, size_of)), self._next_name()
        start = _start(change) + PUT
        entries = ([row | {"id": start + row["id"]} for row in one] for one in requests)
        at_once = self._is_whole(requests, sum(map(size_of, rows))) and not (replacing and self.signing)
        self._change(change, self.main.put, requests, entries, at_once=at_once)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows of the collection; all or none."""
        requests = [one_of("id", part) for part in parts(ids, lambda text: len(quoted(text).encode()) + 2)]
        change = self._next_name()
        entries = parts((self._row(_start(change) + GONE + text) for text in ids), size_of)
        at_once = self._is_whole(requests, sum(len(one.encode()) for one in requests))
        self._change(change, self.main.delete, requests, entries, at_once=at_once)

    def _is_whole(self, requests: Sequence[Any], size: int) -> bool:
        """Return whether it is one request of so many bytes that is carried out as a whole: Milvus Lite does so."""
        return len(requests) == 1 and (not self.signing or size <= MESSAGE_BYTES)

    def _next_name(self) -> str:
        return f"{self.name}.{next(self._numbers)}"

    def _change(
        self,
        change: str,
        make: Callable[[Any], None],
        requests: Sequence[Any],
        entries: Iterable[list[Row]],
        *,
        at_once: bool,
    ) -> None:
        """Make a change, written down while it is carried out if not at once; after an error it stays there."""
        if at_once:
            make(requests[0])
            return
        for entry in entries:
            self.own.put(entry)
        self.require_signed()
        self.own.put([self._row(_start(change) + COMMIT)])
        self._carry_out(make, requests)
        self._forget(change)

    def _carry_out(self, make: Callable[[Any], None], requests: Iterable[Any]) -> None:
        """Make requests for as long as nobody else writes, who finishes them, and changes the same items later."""
        for request in requests:
            self.require_signed()
            make(request)

    def settle(self, *, others: bool) -> None:
        """Finish what was committed and forget what was not, of this one or of all; whoever signed later does it."""
        changes = self._changes()
        if others:
            changes.insert(0, "")
        else:
            changes = [change for change in changes if change.partition(".")[0] == self.name]
        # Of those that are found before this one is seen to be the last, all have come before.
        if self._is_signed():
            for change in changes:
                self._settle(change)

    def _changes(self) -> list[str]:
        """Return the names of the changes that are here."""
        found: list[str] = []
        after = WRITER
        while page := next(self.own.pages(["id"], width=TEXT_BYTES, after=after, most=1), None):
            found.append(page[0]["id"].split(" ")[1])
            after = _bounds(found[-1])[1]
        return found

    def _settle(self, change: str) -> None:
        committed = bool(list(self.own.find([_start(change) + COMMIT], ["id"])))
        if committed:
            for page in self._pages(change, [*TEXTS, "vector"]):
                self._finish(_start(change), page)
        if committed or any(self._pages(change, ["id"], most=1)):
            self.require_signed()  # whoever signed meanwhile may be carrying it out
            self._forget(change)

    def _pages(self, change: str, fields: Sequence[str], *, most: int = REQUEST_ROWS) -> Iterator[list[Row]]:
        low, high = _bounds(change)
        width = 4 * self.dimension + TEXT_BYTES
        return self.own.pages(fields, width=width, after=low, most=most, expression=f"id < {quoted(high)}")

    def _finish(self, start: str, page: Sequence[Row]) -> None:
        put, gone = start + PUT, start + GONE
        puts = [row | {"id": row["id"].removeprefix(put)} for row in page if row["id"].startswith(put)]
        rows = ({name: row[name] for name in (*TEXTS, "vector")} for row in puts)
        self._carry_out(self.main.put, parts(rows, size_of))
        ids = [row["id"].removeprefix(gone) for row in page if row["id"].startswith(gone)]
        self._carry_out(self.main.delete, [one_of("id", ids)] if ids else [])

    def _forget(self, change: str) -> None:
        # The commit first: a change that is forgotten in part must not be carried out again.
        self.own.delete(one_of("id", [_start(change) + COMMIT]))
        low, high = _bounds(change)
        self.own.delete(f"id > {quoted(low)} and id < {quoted(high)}")

    def _row(self, name: str, label: str = "") -> Row:
        return {"id": name, "path": "", "label": label, "vector": [1.0] + [0.0] * (self.dimension - 1)}
