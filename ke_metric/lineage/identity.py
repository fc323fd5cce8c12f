"""Whether a generation's files are still those that somebody began to read: a lineage may be trained anew meanwhile.

A generation is stored once and never written again, so that a file of another identity is of another training. What
is removed is no other file: weights that are not kept are dropped while a lineage grows.
"""

from __future__ import annotations

from pathlib import Path

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.files import LOSS_WEIGHTS, REPAIRS, SLIM, SPLIT, SPLIT_BITS, VECTORS, WEIGHTS
from ke_metric.lineage.store import Lineage

READ = (WEIGHTS, LOSS_WEIGHTS, REPAIRS, SLIM, SPLIT, SPLIT_BITS, VECTORS)

Identity = tuple[int, int, int]
"""Number on the disk, nanoseconds of the last change, bytes."""


class GenerationIdentities:
    """What the files of a lineage's generations were when this was made.

    Args:
        lineage: Whose.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._before = {number: self._now(number) for number in lineage.numbers}

    def require_same(self, number: int) -> None:
        """Check that what was read of a generation just now is of the training that was there before.

        Raises:
            KeMetricError: It is of another one.
        """
        now = self._now(number)
        # A generation that was not there yet is remembered from the first time that it is read.
        before = self._before.setdefault(number, now)
        changed = [name for name in now if now[name] != before.get(name)]
        if changed:
            raise KeMetricError(
                f"{self._lineage.folder}: the lineage has changed since it was opened (generation {number}: "
                f"{', '.join(changed)}): it was trained anew or replaced; start again to see it as it is now",
                ExitCode.LINEAGE,
            )

    def _now(self, number: int) -> dict[str, Identity]:
        found = {}
        for name in READ:
            path: Path = self._lineage.generation_folder(number) / name
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            found[name] = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        return found
