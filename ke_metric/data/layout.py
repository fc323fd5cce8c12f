"""Finding a published benchmark's files on disk, in whichever of its known layouts they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe import Data


@dataclass(frozen=True)
class Layout:
    """One way in which the files of a benchmark lie on disk.

    Attributes:
        name: Stands in notes and errors.
        paths: What a path is for, to the places relative to the base where it may lie, the usual one first. A path
            that ends in `/` is a folder, and may hold one folder of its own name that has the content instead.
    """

    name: str
    paths: Mapping[str, Sequence[str]]

    def find(self, base: Path) -> dict[str, Path]:
        """Return what is there, by what it is for; complete when it has as many entries as `paths`."""
        found = {}
        for purpose, places in self.paths.items():
            there = next((base / place for place in places if _is_there(base, place)), None)
            if there:
                found[purpose] = _unnested(there)
        return found

    def describe(self) -> str:
        """Return the usual places of the expected files in one line."""
        return f"{self.name}: " + ", ".join(places[0] for places in self.paths.values())


@dataclass(frozen=True)
class FoundLayout:
    """A layout of which every file is there: the folder it lies in, and what a path is for, to the path."""

    layout: Layout
    base: Path
    paths: Mapping[str, Path]


def find_layout(data: Data, layouts: Sequence[Layout], *, recognize: Callable[[Path], str | None]) -> FoundLayout:
    """Return the first layout that is complete in `data.root` or in one folder directly below it.

    Args:
        data: The recipe's section; the root is `data/<benchmark>` where it names none.
        layouts: Those a reader knows; an earlier one wins inside one folder.
        recognize: Given a folder without a complete layout, says what it looks like (a wrong or partial archive), or
            None.

    Raises:
        KeMetricError: No layout is complete, or those of two folders are; the message lists what is expected, where
            it was looked for, what is missing, and the command that prepares an archive.
    """
    root = Path(data.root or f"data/{data.benchmark}").expanduser()
    below = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for bases in ([root], below):
        complete = [found for base in bases if (found := _first_complete(base, layouts))]
        if len(complete) > 1:
            raise KeMetricError(
                f"data.root = {str(root)!r} has the files of {data.benchmark} in more than one folder: "
                f"{', '.join(found.base.name for found in complete)}; name one of them",
                ExitCode.DATA,
            )
        if complete:
            return complete[0]
    raise KeMetricError(
        _nothing_found(data, root, bases=[root, *below], layouts=layouts, recognize=recognize), ExitCode.DATA
    )


def _is_there(base: Path, place: str) -> bool:
    path = base / place
    return path.is_dir() if place.endswith("/") else path.is_file()


def _unnested(path: Path) -> Path:
    # Copies on the web pack a folder into one of its own name: cars_train/cars_train/00001.jpg.
    inner = path / path.name
    return inner if inner.is_dir() else path


def _first_complete(base: Path, layouts: Sequence[Layout]) -> FoundLayout | None:
    for layout in layouts:
        paths = layout.find(base)
        if len(paths) == len(layout.paths):
            return FoundLayout(layout, base, paths)
    return None


def _nothing_found(
    data: Data,
    root: Path,
    *,
    bases: Sequence[Path],
    layouts: Sequence[Layout],
    recognize: Callable[[Path], str | None],
) -> str:
    default = "" if data.root else f" (the default of data.benchmark = {data.benchmark})"
    state = "and in the folders directly below it" if root.is_dir() else "which is no folder"
    lines = [
        f"data.root = {str(root)!r}{default}: the files of {data.benchmark} are not there.",
        f"Looked in {root.absolute()}, {state}. Expected one of:",
        *(f"  {layout.describe()}" for layout in layouts),
    ]
    base, layout = max(((base, layout) for base in bases for layout in layouts), key=lambda pair: _share(*pair))
    found = layout.find(base)
    if found:
        missing = [places[0] for purpose, places in layout.paths.items() if purpose not in found]
        lines.append(f"Closest: {base} has a part of {layout.name}; missing: {', '.join(missing)}.")
    lines += dict.fromkeys(said for base in bases if (said := recognize(base)))
    lines.append(
        "An archive or folder you have elsewhere is taken over by: "
        f"ke-metric data prepare {data.benchmark} --from PATH"
    )
    return "\n".join(lines)


def _share(base: Path, layout: Layout) -> float:
    return len(layout.find(base)) / len(layout.paths)
