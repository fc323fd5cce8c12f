"""Room and permission where lineages, temporary files and decoded pictures are written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ke_metric.diagnosis.packages import Finding

LITTLE = 2_000_000_000
"""Free bytes below which a training of a larger network may not end."""
TOO_LITTLE = 100_000_000
"""Free bytes below which hardly any does."""


def place_findings(lineages: Path, temporary: Path | None = None) -> Iterator[Finding]:
    """Yield what is to be said of the folder of lineages and of that of temporary files.

    Args:
        lineages: Where lineages lie, or will.
        temporary: The folder of temporary files; that of the system when None.
    """
    yield _looked_at("lineages", lineages, "ke-metric train RECIPE --lineage /a/larger/disk/NAME")
    elsewhere = "export TMPDIR=/a/larger/disk"
    try:
        place = temporary or Path(tempfile.gettempdir())
    except OSError as error:
        yield Finding("temporary files", "broken", str(error), elsewhere)
        return
    yield _looked_at("temporary files", place, elsewhere)


def _looked_at(topic: str, folder: Path, cure: str) -> Finding:
    place = folder.absolute()
    try:
        above = next(path for path in (place, *place.parents) if path.exists())
    except OSError as error:
        # A folder inside one that may not be entered: whether it is there, nobody is told.
        return Finding(topic, "broken", f"{folder}: cannot be looked at: {error.strerror or error}", cure)
    where = str(folder) if above == place else f"{folder}, to be made in {above}"
    if not above.is_dir():
        return Finding(topic, "broken", f"{above} is no folder", cure)
    try:
        with tempfile.TemporaryFile(dir=above) as file:
            file.write(b"written")
            file.flush()
        free = shutil.disk_usage(above).free
    except OSError as error:
        return Finding(topic, "broken", f"{where}: cannot be written: {error.strerror or error}", cure)
    told = f"{where}: can be written, {free / 1e9:,.1f} GB free"
    if free < TOO_LITTLE:
        return Finding(topic, "broken", told, cure)
    return Finding(topic, "advice", told, cure) if free < LITTLE else Finding(topic, "ok", told)
