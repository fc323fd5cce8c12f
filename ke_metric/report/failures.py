"""What a section says where it cannot be made: a file that is missing or damaged takes nothing else off the page."""

from __future__ import annotations

from ke_metric.errors import KeMetricError
from ke_metric.lineage.files import MISFITS
from ke_metric.lineage.store import Lineage
from ke_metric.report.places import places_of, without_places

FAILURES = (KeMetricError, *MISFITS)
"""What is raised where a file is not there, or holds something else than was written."""


def told_failure(error: Exception, lineage: Lineage) -> str:
    """Return why something cannot be shown, as a sentence of the page."""
    if isinstance(error, KeMetricError):
        text = without_places(str(error), *places_of(lineage))
    else:
        found = without_places(str(error), *places_of(lineage))
        text = f"a file of the lineage holds something else than was written ({type(error).__name__}: {found})"
    return f"This cannot be shown: {text}{'' if text.endswith('.') else '.'}"
