"""What a lineage is grown on and scored on: every picture's key, class and content, and what has changed since.

A fingerprint is kept beside the lineage. It holds enough to name what was added, removed or changed, and no picture.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ke_metric.errors import some_of

TRAIN = "train"
# What a part is called in a sentence; where there is no gallery of its own, the queries are the test part.
NAMES = {TRAIN: "training part", "query": "queries", "gallery": "gallery", "validation": "validation part"}


@dataclass(frozen=True)
class PartFingerprint:
    """The pictures of a part, in order.

    Attributes:
        keys: N item keys.
        labels: N class numbers.
        class_names: C names, indexed by label.
        contents: N digests of what the pictures hold, in hexadecimal digits; empty where nobody has read them.
    """

    keys: tuple[str, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    contents: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        assert len(self.keys) == len(self.labels), (len(self.keys), len(self.labels))
        assert len(self.contents) in (0, len(self.keys)), (len(self.contents), len(self.keys))
        assert all(0 <= label < len(self.class_names) for label in self.labels), "label without a class name"

    @property
    def classes(self) -> dict[str, str]:
        """Key to the name of its class."""
        return {key: self.class_names[label] for key, label in zip(self.keys, self.labels, strict=True)}

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in order."""
        digest = hashlib.sha256()
        for values in (self.keys, self.labels, self.class_names, self.contents):
            for value in values:
                # Names of files may hold bytes that are no text; the zero ends a value as no name can.
                digest.update(f"{value}\0".encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return its size and digest, as a provenance record has it."""
        return {"images": len(self.keys), "classes": len(set(self.labels)), "digest": self.digest}


@dataclass(frozen=True)
class DataFingerprint:
    """The parts of a benchmark.

    Attributes:
        parts: `train`, `query`, `gallery` (only where it is not the queries themselves) and `validation` (only where
            there is one), each with its pictures.
        task: `retrieval` or `classification`.
        since: The first generation that is known to have been trained on them; later than 1 for a lineage of before
            fingerprints were kept, of whose earlier generations nobody knows.
    """

    parts: Mapping[str, PartFingerprint]
    task: str = "retrieval"
    since: int = 1

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return part to its size and digest, as a provenance record has it."""
        return {name: part.describe() for name, part in self.parts.items()}

    @property
    def tested(self) -> DataFingerprint:
        """The parts that a network is scored on, alone."""
        return DataFingerprint({name: part for name, part in self.parts.items() if name != TRAIN}, self.task)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        parts = {name: {key: list(values) for key, values in vars(part).items()} for name, part in self.parts.items()}
        return {"task": self.task, "since": self.since, "parts": parts}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DataFingerprint:
        """Return what `to_json` gave; what is not of that form raises LookupError, TypeError or AssertionError."""
        parts = {
            name: PartFingerprint(**{key: tuple(values) for key, values in part.items()})
            for name, part in document["parts"].items()
        }
        return cls(parts, document["task"], int(document.get("since", 1)))

    def changes(self, now: DataFingerprint) -> list[str]:
        """Return what differs in `now`, a sentence each; none where nothing does.

        Contents are compared where both have them. A part that `now` does not have at all is told as removed.
        """
        told = [_moved(self, now)]
        for name in dict.fromkeys((*self.parts, *now.parts)):
            empty = PartFingerprint((), (), ())
            changed = _part_changes(self.parts.get(name, empty), now.parts.get(name, empty))
            told.append(f"{self._name(name, now)}: {', '.join(changed)}" if changed else "")
        return [sentence for sentence in told if sentence]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes trained on, in the order of a classifier's logits."""
        return self.parts[TRAIN].class_names

    def _name(self, part: str, now: DataFingerprint) -> str:
        alone = part == "query" and "gallery" not in (*self.parts, *now.parts)
        return "test part" if alone else NAMES.get(part, part)


def class_name_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """Return how class names differ, whose order is that of a classifier's logits; empty where they do not."""
    if tuple(before) == tuple(now):
        return ""
    gone, new = ([each for each in one if each not in set(other)] for one, other in ((before, now), (now, before)))
    told = [*([f"gone: {some_of(gone, 3)}"] if gone else []), *([f"new: {some_of(new, 3)}"] if new else [])]
    return f"{len(before):,} classes then, {len(now):,} now; {', '.join(told) or 'in another order'}"


def _moved(before: DataFingerprint, now: DataFingerprint) -> str:
    """Return which classes were trained on and are tested on now, of a retrieval the gravest change."""
    if before.task == "classification":
        return ""
    trained = set(before.parts[TRAIN].classes.values()) if TRAIN in before.parts else set()
    tested, tested_before = (
        {name for part in each.tested.parts.values() for name in part.classes.values()} for each in (now, before)
    )
    moved = sorted((trained & tested) - tested_before)
    return f"classes that were trained on are now tested on: {some_of(moved, 3)}" if moved else ""


def _part_changes(before: PartFingerprint, now: PartFingerprint) -> list[str]:
    then, today = before.classes, now.classes
    both = [key for key in then if key in today]
    added, removed = [key for key in today if key not in then], [key for key in then if key not in today]
    moved = [f"{key} ({today[key]}, was {then[key]})" for key in both if then[key] != today[key]]
    told = [
        _counted(added, "added"),
        _counted(removed, "removed"),
        _counted(moved, "of another class"),
        _counted(_other_contents(before, now, both), "with other content"),
        _class_counts(then.values(), today.values()),
    ]
    found = [each for each in told if each]
    if not found and before.keys != now.keys:
        found.append("the same pictures in another order")
    if not found and before.class_names != now.class_names:
        found.append("the same classes in another order")
    return found


def _other_contents(before: PartFingerprint, now: PartFingerprint, keys: Iterable[str]) -> list[str]:
    if not before.contents or not now.contents:
        return []
    then, today = (dict(zip(part.keys, part.contents, strict=True)) for part in (before, now))
    return [key for key in keys if then[key] != today[key]]


def _class_counts(before: Iterable[str], now: Iterable[str]) -> str:
    then, today = Counter(before), Counter(now)
    gone, new = (sorted(one.keys() - other.keys()) for one, other in ((then, today), (today, then)))
    told = [(f"class{'es' * (len(some) > 1)} {what}", some) for what, some in (("gone", gone), ("new", new)) if some]
    return ", ".join(f"{what}: {some_of(some, 3)}" for what, some in told)


def _counted(keys: Sequence[str], what: str) -> str:
    return f"{len(keys):,} picture{'s' * (len(keys) > 1)} {what} ({some_of(keys, 3)})" if keys else ""
