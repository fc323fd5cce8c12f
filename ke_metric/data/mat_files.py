"""Arrays of the MATLAB files that Stanford Cars, Flowers102 and Stanford Dogs bring along."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
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
    try:
        return [(str(record[path_field]), int(record["class"])) for record in _records(path, (path_field, "class"))]
    except (TypeError, ValueError) as error:
        raise KeMetricError(f"{path}: a record's class is not a number: {error}", ExitCode.DATA) from error


def read_flags(path: Path, *, field: str) -> list[bool]:
    """Read a yes or no of every record of the struct array `annotations`, in the order of the file.

    Args:
        path: A .mat file.
        field: Name of the field, which holds 0 or 1.

    Raises:
        KeMetricError: The file, the array or the field is missing or cannot be read, or holds something else.
    """
    flags = [str(record[field]) for record in _records(path, (field,))]
    for position, flag in enumerate(flags, start=1):
        if flag not in ("0", "1"):
            raise KeMetricError(
                f"{path}: annotations, record {position}: {field} must be 0 or 1, not {flag!r}", ExitCode.DATA
            )
    return [flag == "1" for flag in flags]


def read_strings(path: Path, key: str) -> list[str]:
    """Read a cell array of strings.

    Args:
        path: A .mat file.
        key: Name of the cell array in it.

    Raises:
        KeMetricError: The file or the array is missing or cannot be read.
    """
    return [str(text) for text in _read_array(path, key)]


def read_whole_numbers(path: Path, key: str) -> list[int]:
    """Read a vector of whole numbers, which files of one benchmark keep as bytes and of another as fractions.

    Args:
        path: A .mat file.
        key: Name of the array in it: one row or one column.

    Raises:
        KeMetricError: The file or the array is missing or cannot be read, is a table, or an entry is not whole.
    """
    array = _read_array(path, key)
    if array.ndim > 1:
        shape = " x ".join(str(side) for side in array.shape)
        raise KeMetricError(f"{path}: {key!r} must be one row or one column, not {shape}", ExitCode.DATA)
    numbers = array.tolist()
    for position, number in enumerate(numbers, start=1):
        if not (isinstance(number, int) or (isinstance(number, float) and number.is_integer())):
            raise KeMetricError(
                f"{path}: {key}, entry {position}: must be a whole number, not {number!r}", ExitCode.DATA
            )
    return [int(number) for number in numbers]


def _records(path: Path, fields: Sequence[str]) -> Any:
    """Return the records of the struct array `annotations`, which have all these fields."""
    records = _read_array(path, "annotations")
    found = records.dtype.names or ()
    missing = [name for name in fields if name not in found]
    if missing:
        raise KeMetricError(
            f"{path}: the records have no field {', '.join(missing)}; they have {', '.join(found) or 'none'}",
            ExitCode.DATA,
        )
    return records


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
