"""Making a benchmark ready: from archives or folders that a user has, or, of `emoji`, by rendering its artwork.

Of archives first which of the files make up a distribution, and what is missing; then they are compared, unpacked and
read; nothing is downloaded. Emoji: the artwork of eight icon sets, fetched, joined by emoji and rendered once.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ke_metric.benchmarks import cub_and_cars, official_lists, products, solar
from ke_metric.benchmarks.drawn import EMOJI_COLUMNS, EmojiRow
from ke_metric.benchmarks.layout import Layout
from ke_metric.benchmarks.registry import default_task, load_benchmark
from ke_metric.datasets.archives import archive_format, extract_into
from ke_metric.datasets.emoji_artwork import (
    STYLES,
    DrawingError,
    IconSet,
    fetch_packages,
    join_styles,
    read_icon_set,
    render,
)
from ke_metric.datasets.published_files import (
    DISTRIBUTIONS,
    Distribution,
    PublishedFile,
    describe,
    identify,
    published_as,
    verify_published,
)
from ke_metric.disk import new_folder, refuse_occupied
from ke_metric.errors import ExitCode, KeMetricError, closest, some_of
from ke_metric.images.decoding import Progress
from ke_metric.images.image_set import Benchmark, PartCounts, count_parts, counts_text
from ke_metric.recipe.schema import Data

LAYOUTS: Mapping[str, Sequence[Layout]] = {
    "cub": (cub_and_cars.CUB,),
    "cars": cub_and_cars.CARS,
    **{name: (products.LAYOUTS[name],) for name in ("sop", "inshop")},
    **{name: (official_lists.LAYOUTS[name],) for name in ("flowers", "aircraft", "mit67", "dogs")},
    "solar": (solar.LAYOUT,),
}
"""Benchmarks that can be prepared, to the layouts their readers know."""


@dataclass(frozen=True)
class SourceFile:
    """A file the user has, and the published file it claims to be; None for an archive nobody published."""

    path: Path
    published: PublishedFile | None


@dataclass(frozen=True)
class TakenFile:
    """A file that was unpacked or copied.

    Attributes:
        name: As the user has it.
        size: In bytes.
        action: `unpacked` or `copied`.
        checksum: What the comparison with the published checksum gave, in words.
    """

    name: str
    size: int
    action: str
    checksum: str


@dataclass(frozen=True)
class PrepareReport:
    """A benchmark that is ready.

    Attributes:
        benchmark: Name, as in a recipe's `data.benchmark`.
        root: What a recipe's `data.root` has to be.
        taken: What was unpacked or copied; empty where the user's folder is used as it is.
        counts: Part to its number of images and classes.
        notes: What the reader has to say: layout, split.
    """

    benchmark: str
    root: Path
    taken: tuple[TakenFile, ...]
    counts: Mapping[str, PartCounts]
    notes: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "benchmark": self.benchmark,
            "root": str(self.root),
            "taken": [asdict(file) for file in self.taken],
            "counts": {part: counts.to_json() for part, counts in self.counts.items()},
            "notes": dict(self.notes),
        }


def prepare(
    name: str,
    source: Path,
    *,
    target: Path,
    verify_counts: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> PrepareReport:
    """Unpack a published benchmark and check that it is the right one.

    A folder that is unpacked already is checked and left where it is: the report's root is that folder.

    Args:
        name: One of `LAYOUTS`.
        source: An archive, a folder with the archives, or an unpacked folder.
        target: The data folder to make; may exist when it is empty. Not used when the source is unpacked.
        verify_counts: Refuse image and class counts that are not the published ones.
        progress: Told in words what is being done, before every step that takes long.

    Raises:
        KeMetricError: DATA: unknown benchmark, files missing, damaged, incomplete or of another data set, or the
            target holds something; ENVIRONMENT: the disk is full. Nothing is left behind in either case.
    """
    if name not in LAYOUTS:
        raise KeMetricError(
            f"{name!r} cannot be prepared from archives{closest(name, LAYOUTS)}; these can: {', '.join(LAYOUTS)}",
            ExitCode.DATA,
        )
    source, target = source.expanduser(), target.expanduser()
    if not source.exists():
        raise KeMetricError(f"{source}: no such file or folder", ExitCode.DATA)
    files = () if source.is_dir() and _is_unpacked(name, source) else choose_files(name, source)
    if not files:
        # Of a folder without archives only the reader can say what it lacks.
        progress(f"checking {source}")
        data = Data(benchmark=name, root=str(source), verify_counts=verify_counts)
        return _report(load_benchmark(data, default_task(name)), source, ())
    refuse_occupied(target)
    checksums = [_checked(file, progress) for file in files]
    with new_folder(target) as folder:
        taken = [_take(file, checksum, folder, progress) for file, checksum in zip(files, checksums, strict=True)]
        progress("checking what was unpacked")
        data = Data(benchmark=name, root=str(folder), verify_counts=verify_counts)
        benchmark = _load_unpacked(data, source, folder=folder, target=target)
    return _report(benchmark, target, tuple(taken))


def prepare_text(report: PrepareReport) -> str:
    """Return the report as plain lines."""
    taken = [f"{file.name}: {file.action}, {file.size:,} bytes, {file.checksum}" for file in report.taken]
    return "\n".join(
        [
            f"{report.benchmark} is ready: data.root = {report.root}",
            *(taken or ["unpacked already; used where it is, nothing was copied"]),
            counts_text(report.counts),
            *(f"{topic}: {note}" for topic, note in report.notes.items()),
        ]
    )


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
    candidates = [source]
    if source.is_dir():
        candidates = [path for path in _files_in(source) if published_as(path) or archive_format(path)]
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


def _files_in(folder: Path) -> list[Path]:
    """List the files in a folder and in the folders directly below it, without hidden ones."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    below = [path for entry in entries if entry.is_dir() for path in sorted(entry.iterdir())]
    return [path for path in [*entries, *below] if path.is_file() and not path.name.startswith(".")]


def _first_complete(name: str, source: Path, found: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    for distribution in DISTRIBUTIONS[name]:
        chosen = tuple(each for each in found if each.published in distribution.files)
        if {each.published for each in chosen} == set(distribution.files):
            if len(chosen) > len(distribution.files):
                twice = ", ".join(str(each.path) for each in chosen)
                raise KeMetricError(f"{source}: a file is there more than once: {twice}; keep one", ExitCode.DATA)
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


def _is_unpacked(name: str, source: Path) -> bool:
    bases = [source, *(path for path in source.iterdir() if path.is_dir())]
    return any(len(layout.find(base)) == len(layout.paths) for base in bases for layout in LAYOUTS[name])


def _checked(file: SourceFile, progress: Callable[[str], None]) -> str:
    if file.published is None:
        return "not a published file, no checksum to compare with"
    progress(f"comparing the checksum of {file.path.name}")
    return verify_published(file.path, file.published)


def _take(file: SourceFile, checksum: str, folder: Path, progress: Callable[[str], None]) -> TakenFile:
    """Unpack an archive, or copy another file, to the place where the reader looks for it."""
    place = folder / file.published.place if file.published else folder
    place.mkdir(exist_ok=True)
    copied = file.published is not None and not file.published.is_archive
    progress(f"{'copying' if copied else 'unpacking'} {file.path.name}")
    if file.published is not None and copied:
        shutil.copyfile(file.path, place / file.published.name)
    else:
        extract_into(file.path, place)
    return TakenFile(file.path.name, file.path.stat().st_size, "copied" if copied else "unpacked", checksum)


def _load_unpacked(data: Data, source: Path, *, folder: Path, target: Path) -> Benchmark:
    """Read what was unpacked, whose errors have to name the target: the temporary folder vanishes with them."""
    try:
        return load_benchmark(data, default_task(data.benchmark))
    except KeMetricError as error:
        lines = [f"{source}: unpacked, but not usable as {data.benchmark}; nothing was kept."]
        if inner := [path.name for path in _files_in(folder) if archive_format(path)]:
            lines.append(f"It holds archives: {some_of(inner)}. Unpack the outer one and give the folder.")
        lines.append(str(error).replace(str(folder), str(target)))
        raise KeMetricError("\n".join(lines), error.exit_code) from error


def _report(benchmark: Benchmark, root: Path, taken: tuple[TakenFile, ...]) -> PrepareReport:
    return PrepareReport(benchmark.name, root, taken, count_parts(benchmark), benchmark.notes)


EMOJI_SIDE = 64
MIN_STYLES = 5


@dataclass(frozen=True)
class PreparedEmoji:
    """What `prepare_emoji` made.

    Attributes:
        classes: Number of emojis.
        images: Number of pictures.
        left_out: `style/name: reason` of the drawings that gave no picture.
    """

    classes: int
    images: int
    left_out: tuple[str, ...]


def prepare_emoji(target: Path, *, source: Path | None = None, progress: Progress | None = None) -> PreparedEmoji:
    """Render the artwork of eight openly licensed icon sets, once.

    Writes `index.csv`, `images/<code points>/<style>.png` (64 x 64 pixels, RGB, on white) and `licences.json`. The
    folder appears when all of it is there: one that exists is complete.

    Args:
        target: Folder to make; nothing may lie in it.
        source: Folder with the npm packages as archives or unpacked; fetched with the npm client when left out.
        progress: Called with the number of drawings done and their total.

    Raises:
        KeMetricError: resvg_py or npm is missing, or the disk is full (ENVIRONMENT); a package is missing or broken,
            or something lies in the target (DATA).
    """
    renderer = _renderer()
    refuse_occupied(target)
    icon_sets = _icon_sets(source)
    joined = {key: names for key, names in join_styles(icon_sets).items() if len(names) >= MIN_STYLES}
    pictures, left_out = _render_all(icon_sets, joined, progress)
    shared = _shared(pictures)
    rows = _drawn_often([row for row in pictures if row not in shared])
    if not rows:
        raise KeMetricError(f"the packages have no emoji that {MIN_STYLES} styles draw", ExitCode.DATA)
    with new_folder(target) as folder:
        _write_pictures(rows, pictures, folder)
        _write_licences(icon_sets, rows, renderer, folder)
    return PreparedEmoji(len({row.code_points for row in rows}), len(rows), (*left_out, *shared.values()))


def _renderer() -> str:
    try:
        import resvg_py
    except ImportError:
        raise KeMetricError(
            "rendering the emojis needs the package resvg-py; install ke_metric[emoji]", ExitCode.ENVIRONMENT
        ) from None
    return f"resvg {resvg_py.__resvg_version__} (resvg-py {resvg_py.__version__})"


def _icon_sets(source: Path | None) -> list[IconSet]:
    if source is not None:
        return [read_icon_set(style, source) for style in STYLES]
    with tempfile.TemporaryDirectory(prefix="ke-metric-emoji-") as folder:
        fetch_packages(Path(folder))
        return [read_icon_set(style, Path(folder)) for style in STYLES]


def _render_all(
    icon_sets: Sequence[IconSet], joined: Mapping[str, Mapping[str, str]], progress: Progress | None
) -> tuple[dict[EmojiRow, Image.Image], list[str]]:
    """Draw every emoji in every style that has it; what gives no picture is named in the second value."""
    by_style = {icon_set.style.name: icon_set for icon_set in icon_sets}
    total = sum(len(names) for names in joined.values())
    pictures: dict[EmojiRow, Image.Image] = {}
    left_out: list[str] = []
    for code_points, names in joined.items():
        class_name = next(iter(names.values()))
        for style, name in names.items():
            row = EmojiRow(f"images/{code_points}/{style}.png", code_points, class_name, style)
            try:
                pictures[row] = render(by_style[style], name, EMOJI_SIDE)
            except DrawingError as error:
                left_out.append(f"{style}/{name}: {error}")
        if progress is not None:
            progress(len(pictures) + len(left_out), total)
    return pictures, left_out


def _shared(pictures: Mapping[EmojiRow, Image.Image]) -> dict[EmojiRow, str]:
    """Return pictures that a style uses for several emojis: nobody can tell which of them is meant."""
    alike: dict[tuple[str, bytes], list[EmojiRow]] = {}
    for row, picture in pictures.items():
        alike.setdefault((row.style, picture.tobytes()), []).append(row)
    return {
        row: f"{row.style}/{row.name}: the same picture for {', '.join(other.name for other in rows)}"
        for rows in alike.values()
        if len(rows) > 1
        for row in rows
    }


def _drawn_often(rows: Collection[EmojiRow]) -> list[EmojiRow]:
    styles = Counter(row.code_points for row in rows)
    return [row for row in rows if styles[row.code_points] >= MIN_STYLES]


def _write_pictures(rows: Sequence[EmojiRow], pictures: Mapping[EmojiRow, Image.Image], folder: Path) -> None:
    for row in rows:
        path = folder / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[row].save(path)
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(EMOJI_COLUMNS)
        writer.writerows(rows)


def _write_licences(icon_sets: Sequence[IconSet], rows: Sequence[EmojiRow], renderer: str, folder: Path) -> None:
    styles = [
        {
            "style": icon_set.style.name,
            "package": icon_set.style.package,
            "version": icon_set.version,
            "author": icon_set.author,
            "licence": icon_set.licence,
            "images": sum(row.style == icon_set.style.name for row in rows),
        }
        for icon_set in icon_sets
    ]
    document = {"renderer": renderer, "images": len(rows), "styles": styles}
    (folder / "licences.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
