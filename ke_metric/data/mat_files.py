"""Records of the MATLAB files that Stanford Cars brings along."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError


def read_labels(path: Path, *, path_field: str) -> list[tuple[str, int]]:
    """Read picture path and class of every record of the struct array `annotations`.

    Fields are found by name, since their order differs between the distributions, and classes become whole numbers,
    since the file's uint8 overflows when something is added.

    Args:
        path: A .mat file.
        path_field: Name of the field with the picture's path.

    Raises:
        KeMetricError: The file, the array or a field is missing or cannot be read.
    """
    records = _read_array(path, "annotations")
    found = records.dtype.names or ()
    missing = [name for name in (path_field, "class") if name not in found]
    if missing:
        raise KeMetricError(
            f"{path}: the records have no field {', '.join(missing)}; they have {', '.join(found) or 'none'}",
            ExitCode.DATA,
        )
    try:
        return [(str(record[path_field]), int(record["class"])) for record in records]
    except (TypeError, ValueError) as error:
        raise KeMetricError(f"{path}: a record's class is not a number: {error}", ExitCode.DATA) from error


def read_strings(path: Path, key: str) -> list[str]:
    """Read a cell array of strings.

    Args:
        path: A .mat file.
        key: Name of the cell array in it.

    Raises:
        KeMetricError: The file or the array is missing or cannot be read.
    """
    return [str(text) for text in _read_array(path, key)]


def _read_array(path: Path, key: str) -> Any:
    """Return an array of the file, at least one-dimensional: squeezing makes a single record zero-dimensional."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, squeeze_me=True)
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError, zlib.error) as error:
        raise KeMetricError(f"{path}: cannot be read as a MATLAB file: {error}", ExitCode.DATA) from error
    if key not in content:
        names = ", ".join(name for name in content if not name.startswith("__"))
        raise KeMetricError(f"{path}: has no array {key!r}; it has {names or 'none'}", ExitCode.DATA)
    return np.atleast_1d(content[key])
