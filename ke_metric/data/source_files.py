"""Which of the files a user has make up a benchmark, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ke_metric.data.archive_members import archive_format
from ke_metric.data.published_files import (
    DISTRIBUTIONS,
    Distribution,
    PublishedFile,
    describe,
    identify,
    published_as,
)
from ke_metric.data.table import some_of
from ke_metric.errors import ExitCode, KeMetricError


@dataclass(frozen=True)
class SourceFile:
    """A file the user has, and the published file it claims to be; None for an archive nobody published."""

    path: Path
    published: PublishedFile | None


def choose_files(name: str, source: Path) -> tuple[SourceFile, ...]:
    """Find the files of one complete distribution of a benchmark.

    Args:
        name: A benchmark of `DISTRIBUTIONS`.
        source: One archive, or a folder that holds the files itself or in folders directly below.

    Returns:
        All files of the first distribution that is complete, or the one archive of unknown name that is there; empty
        for a folder without any of these.

    Raises:
        KeMetricError: DATA: nothing usable, or a distribution is incomplete; the message has what was found and what
            is missing.
    """
    candidates = [source] if source.is_file() else _candidates(source)
    ours = {file for each in DISTRIBUTIONS[name] for file in each.files}
    # By content only where names are not enough: a folder of downloads can hold a lot that is none of our business.
    for recognize in (published_as, identify):
        identified = [(path, published) for path in candidates if (published := recognize(path))]
        found = [SourceFile(path, published) for path, published in identified if published in ours]
        if chosen := _first_complete(name, source, found):
            return chosen
    if found:
        raise _incomplete(name, source, found)
    if identified:
        raise KeMetricError(
            f"{source}: no file of {name}, but {some_of([describe(published) for _, published in identified])}",
            ExitCode.DATA,
        )
    return _unknown_archive(name, source, candidates)


def archives_in(folder: Path) -> list[Path]:
    """List the tar, tar.gz and zip archives in a folder and in the folders directly below it."""
    return [path for path in _files_in(folder) if archive_format(path)]


def _candidates(source: Path) -> list[Path]:
    """List what may be a published file: archives by content, others by name."""
    return [path for path in _files_in(source) if published_as(path) or archive_format(path)]


def _files_in(folder: Path) -> list[Path]:
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    below = [path for entry in entries if entry.is_dir() for path in sorted(entry.iterdir())]
    return [path for path in [*entries, *below] if path.is_file() and not path.name.startswith(".")]


def _first_complete(name: str, source: Path, found: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    for distribution in DISTRIBUTIONS[name]:
        chosen = tuple(each for each in found if each.published in distribution.files)
        if {each.published for each in chosen} == set(distribution.files):
            _refuse_twice(source, chosen)
            return chosen
    return ()


def _incomplete(name: str, source: Path, found: Sequence[SourceFile]) -> KeMetricError:
    mixed = " Files of different layouts do not go together." if len(DISTRIBUTIONS[name]) > 1 else ""
    lines = [
        f"{source}: incomplete. Found: {', '.join(each.path.name for each in found)}.",
        *(line for distribution in DISTRIBUTIONS[name] if (line := _missing(distribution, found))),
        f"Put the files into one folder and give that folder; or unpack all of them there yourself.{mixed}",
    ]
    return KeMetricError("\n".join(lines), ExitCode.DATA)


def _missing(distribution: Distribution, found: Sequence[SourceFile]) -> str:
    have = {each.published for each in found}
    missing = [file.name for file in distribution.files if file not in have]
    begun = len(missing) < len(distribution.files)
    return f"Missing for {distribution.name}: {', '.join(missing)}." if begun else ""


def _refuse_twice(source: Path, chosen: Sequence[SourceFile]) -> None:
    if len({each.published for each in chosen}) < len(chosen):
        raise KeMetricError(
            f"{source}: a file is there more than once: {', '.join(str(each.path) for each in chosen)}; keep one",
            ExitCode.DATA,
        )


def _unknown_archive(name: str, source: Path, candidates: Sequence[Path]) -> tuple[SourceFile, ...]:
    archives = [path for path in candidates if archive_format(path)]
    if len(archives) == 1:
        return (SourceFile(archives[0], None),)
    if not archives and source.is_dir():
        return ()
    expected = "; or ".join(", ".join(file.name for file in each.files) for each in DISTRIBUTIONS[name])
    found = f"{len(archives):,} archives of unknown names ({some_of([path.name for path in archives])})"
    raise KeMetricError(
        f"{source}: {found if archives else 'not an archive'}. Expected {expected}; or one archive that holds "
        "everything; or the unpacked folder.",
        ExitCode.DATA,
    )
