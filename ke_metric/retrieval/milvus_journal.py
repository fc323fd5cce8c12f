"""The journal of a Milvus collection: a second collection that makes changes of several requests whole.

A request is all or nothing: Milvus has it or has it not. A change that does not fit into one is first written down
here, then committed by one row, then carried out, and then forgotten; whoever opens the collection for writing
finishes what was committed and forgets what was not. It also keeps what the collection says of itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ke_metric.retrieval.milvus_collection import TEXT_BYTES, TEXTS, Collection, Row, parts, size_of
from ke_metric.retrieval.milvus_expression import one_of, quoted

# Ids of its rows, in this order: what is after FACTS is a change.
COMMIT, FACTS, GONE, PUT = "commit", "facts", "gone ", "put "


@dataclass(frozen=True)
class Journal:
    """The journal of a collection.

    Attributes:
        main: The collection that it belongs to.
        own: The collection that it is itself.
        dimension: Length D of the vectors.
    """

    main: Collection
    own: Collection
    dimension: int

    def make(self, facts: Mapping[str, str]) -> None:
        """Make it, in place of one whose collection was never made."""
        if self.own.exists:
            self.own.drop()
        self.own.make(self.dimension)
        self.own.load("FLAT")
        text = json.dumps(dict(sorted(facts.items())), ensure_ascii=False)
        assert len(text.encode()) <= TEXT_BYTES, f"facts of {len(text)} characters"
        self.own.put([self._row(FACTS, text)])

    @property
    def facts(self) -> dict[str, str]:
        """What the collection says of itself."""
        found = list(self.own.find([FACTS], ["label"]))
        return dict(json.loads(found[0]["label"])) if found else {}

    def put(self, rows: Sequence[Row]) -> None:
        """Write rows into the collection, in place of those of the same ids; all or none."""
        requests = list(parts(rows, size_of))
        if len(requests) > 1:
            self._commit([row | {"id": PUT + row["id"]} for row in part] for part in requests)
        for request in requests:
            self.main.put(request)
        if len(requests) > 1:
            self._forget(committed=True)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows of the collection; all or none."""
        requests = list(parts(ids, lambda text: len(quoted(text).encode()) + 2))
        if len(requests) > 1:
            self._commit(parts((self._row(GONE + text) for text in ids), size_of))
        for request in requests:
            self.main.delete(one_of("id", request))
        if len(requests) > 1:
            self._forget(committed=True)

    def settle(self) -> None:
        """Finish the change that was committed; forget one that was not."""
        committed = bool(list(self.own.find([COMMIT], ["id"])))
        if committed:
            for page in self.own.pages([*TEXTS, "vector"], width=4 * self.dimension + TEXT_BYTES, after=FACTS):
                puts = [row | {"id": row["id"].removeprefix(PUT)} for row in page if row["id"].startswith(PUT)]
                for part in parts(puts, size_of):
                    self.main.put([{name: row[name] for name in (*TEXTS, "vector")} for row in part])
                gone = [row["id"].removeprefix(GONE) for row in page if row["id"].startswith(GONE)]
                if gone:
                    self.main.delete(one_of("id", gone))
        if committed or any(self.own.pages(["id"], width=TEXT_BYTES, after=FACTS, most=1)):
            self._forget(committed=committed)

    def _commit(self, requests: object) -> None:
        for request in requests:  # type: ignore[attr-defined]
            self.own.put(request)
        self.own.put([self._row(COMMIT)])

    def _forget(self, *, committed: bool) -> None:
        if committed:  # first: a change that is forgotten in part must not be carried out again
            self.own.delete(one_of("id", [COMMIT]))
        self.own.delete(f"id > {quoted(FACTS)}")

    def _row(self, name: str, label: str = "") -> Row:
        return {"id": name, "path": "", "label": label, "vector": [1.0] + [0.0] * (self.dimension - 1)}
