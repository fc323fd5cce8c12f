"""The image and class counts of published benchmarks, and their comparison with what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ke_metric.data.table import Table
from ke_metric.errors import ExitCode, KeMetricError


@dataclass(frozen=True)
class PublishedCounts:
    """What the files of a benchmark must hold.

    Attributes:
        parts: Name of a part to its number of images and of classes.
        class_sizes: Fewest and most images of a class over all parts; None where not published.
        suspects: Total number of images over all parts, to the archive that has so many.
        remark: Added to every mismatch.
    """

    parts: Mapping[str, tuple[int, int]]
    class_sizes: tuple[int, int] | None = None
    suspects: Mapping[int, str] = field(default_factory=dict)
    remark: str = ""

    def verify(self, table: Table) -> None:
        """Compare with what a reader found.

        Args:
            table: With the parts that `parts` names.

        Raises:
            KeMetricError: A count differs; the message has every wrong count, expected and found.
        """
        wrong = [
            f"{part} {what}: expected {expected:,}, found {found:,}"
            for part, items in table.parts.items()
            for what, expected, found in zip(
                ("images", "classes"),
                self.parts[part],
                (len(items), len({item.class_id for item in items})),
                strict=True,
            )
            if expected != found
        ]
        wrong = wrong or self._wrong_class_sizes(table)
        if wrong:
            total = sum(len(items) for items in table.parts.values())
            hints = [self.suspects.get(total, ""), self.remark]
            raise KeMetricError(
                "\n".join(
                    [
                        f"{table.origin}: not the published benchmark:",
                        *(f"  {line}" for line in wrong),
                        *(hint for hint in hints if hint),
                        "data.verify_counts = false takes them as they are; published scores do not compare then",
                    ]
                ),
                ExitCode.DATA,
            )

    def _wrong_class_sizes(self, table: Table) -> list[str]:
        if self.class_sizes is None:
            return []
        fewest, most = self.class_sizes
        sizes = Counter(item.class_id for items in table.parts.values() for item in items)
        return [
            f"images of class {class_id}: expected {fewest} to {most}, found {size:,}"
            for class_id, size in sorted(sizes.items())
            if not fewest <= size <= most
        ]
