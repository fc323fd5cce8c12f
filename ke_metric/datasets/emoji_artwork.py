"""Emoji artwork as npm packages carry it: fetched or found, joined by emoji over the icon sets, and rendered."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ke_metric.datasets.archives import LARGEST_READ, archive_members
from ke_metric.errors import ExitCode, KeMetricError

MEMBERS = ("package.json", "info.json", "icons.json", "chars.json")
# The largest of the eight packages unpacks to 110 MB.
MAX_PACKAGE_BYTES = 400_000_000
FETCH_SECONDS = 300

SKIN_TONES = range(0x1F3FB, 0x1F400)
PRIVATE_USE = range(0xE000, 0xF900)
# An alias leads to its parent, which may be an alias itself; the sets have chains of 1.
MAX_ALIAS_DEPTH = 10
OUTSIDE = re.compile(r"""href\s*=\s*["'](?!#)|<!|<\?""")

# Asks for the coloured form of a character that also has a plain one; some sets write it, some do not.
VARIATION_SELECTOR = "fe0f"
# The icon format's own defaults.
DEFAULT_BOX = {"left": 0.0, "top": 0.0, "width": 16.0, "height": 16.0}


class DrawingError(Exception):
    """A drawing that gives no picture; the message says why."""


@dataclass(frozen=True)
class Style:
    """One way of drawing all emojis.

    Attributes:
        name: As in the package's name, `@iconify-json/<name>`.
        version: Version of the package that is fetched.
        names_from: For a set that lists no code points: the set that has the same names for the same emojis.
    """

    name: str
    version: str
    names_from: str | None = None

    @property
    def package(self) -> str:
        """Name of the npm package."""
        return f"@iconify-json/{self.name}"


# Those that list code points come first: an emoji is called as in the first style that draws it.
STYLES = (
    Style("noto", "1.2.9"),
    Style("twemoji", "1.2.5"),
    Style("openmoji", "1.2.29"),
    Style("fluent-emoji-flat", "1.2.6"),
    Style("noto-v1", "1.2.5", names_from="noto"),
    Style("fluent-emoji", "1.2.7", names_from="fluent-emoji-flat"),
    Style("emojione", "1.2.3", names_from="noto"),
    Style("emojione-v1", "1.2.3", names_from="noto"),
)


@dataclass(frozen=True)
class IconSet:
    """The artwork of one style: the package's JSON files, read and checked.

    Attributes:
        style: Which style it is.
        version: Version of the package that was read.
        author: `name` and `url`, in the package's own words.
        licence: `title`, `spdx` identifier and `url`, in the package's own words.
        icons: Icon name to drawing (`body`, and what differs from `defaults`).
        aliases: Further name to its `parent` name and what differs from it (`hFlip`, `vFlip`, `rotate`, ...).
        defaults: `left`, `top`, `width`, `height` of a drawing that does not say.
        characters: Code points (`1f44b-1f3fb`, lower case, without the variation selector fe0f) to name; empty where
            the set lists none.
    """

    style: Style
    version: str
    author: Mapping[str, str]
    licence: Mapping[str, str]
    icons: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, float]
    characters: Mapping[str, str]


def read_icon_set(style: Style, folder: Path) -> IconSet:
    """Read one style's package from a folder that holds it as an archive or unpacked.

    The folder holds `iconify-json-<name>-<version>.tgz` (as `npm pack` writes it; only the JSON files are read, and
    nothing is unpacked), or a folder `<name>` or `@iconify-json/<name>` with the package's files.

    Raises:
        KeMetricError: The package is not there, is there twice, cannot be read or is not laid out as expected (DATA).
    """
    path = _find(style, folder)
    if path.is_dir():
        texts = {member: (path / member).read_bytes() for member in MEMBERS if (path / member).is_file()}
    else:
        texts = _read_archive(path)
    try:
        return _icon_set(style, {member: json.loads(text) for member, text in texts.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KeMetricError(
            f"{path}: not an icon set of the package {style.package}: {type(error).__name__}: {error}", ExitCode.DATA
        ) from error


def _icon_set(style: Style, documents: Mapping[str, Any]) -> IconSet:
    info, icons = documents["info.json"], documents["icons.json"]
    return IconSet(
        style=style,
        version=str(documents["package.json"]["version"]),
        author={key: str(info["author"][key]) for key in ("name", "url")},
        licence={key: str(info["license"][key]) for key in ("title", "spdx", "url")},
        icons=_drawings(icons["icons"], required="body"),
        aliases=_drawings(icons.get("aliases", {}), required="parent"),
        defaults={key: float(icons.get(key, default)) for key, default in DEFAULT_BOX.items()},
        characters={_code_points(listed): str(name) for listed, name in documents.get("chars.json", {}).items()},
    )


def _drawings(table: Mapping[str, Mapping[str, Any]], required: str) -> Mapping[str, Mapping[str, Any]]:
    kinds: dict[str, tuple[type, ...]] = {
        required: (str,),
        "rotate": (int,),
        **dict.fromkeys(DEFAULT_BOX, (int, float)),
    }
    for name, entry in table.items():
        for key, kind in kinds.items():
            if (key == required or key in entry) and not isinstance(entry[key], kind):
                raise TypeError(f"{name}: {key} = {entry[key]!r}")
    return table


def _code_points(listed: str) -> str:
    parts = [part for part in listed.lower().split("-") if part != VARIATION_SELECTOR]
    if not all(re.fullmatch("[0-9a-f]{2,6}", part) for part in parts) or not parts:
        raise ValueError(f"{listed!r} is no sequence of code points")
    return "-".join(parts)


def fetch_packages(folder: Path, styles: tuple[Style, ...] = STYLES) -> None:
    """Fetch the packages of styles with the npm client of this machine, as archives, into an existing folder.

    Raises:
        KeMetricError: There is no npm client (ENVIRONMENT), or a package could not be fetched (DATA).
    """
    npm = shutil.which("npm")
    if npm is None:
        names = ", ".join(style.package for style in styles)
        raise KeMetricError(
            "the emoji artwork is fetched with npm, which is not installed; install Node.js, or fetch the packages "
            f"{names} elsewhere (npm pack NAME) and name their folder as source",
            ExitCode.ENVIRONMENT,
        )
    for style in styles:
        package = f"{style.package}@{style.version}"
        command = [npm, "pack", package, "--pack-destination", str(folder), "--silent"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS, cwd=folder)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = str(error.stderr or "").strip() or str(error)
            raise KeMetricError(
                f"npm could not fetch {package}: {said}; check the network, or fetch the packages elsewhere (npm "
                "pack NAME) and name their folder as source",
                ExitCode.DATA,
            ) from error


def _find(style: Style, folder: Path) -> Path:
    unpacked = [folder / style.name, folder / "@iconify-json" / style.name]
    archives = [
        path
        for path in sorted(folder.glob("*.tgz"))
        if path.stem.removeprefix("iconify-json-").rpartition("-")[0] == style.name
    ]
    found = [path for path in unpacked if path.is_dir()] + archives
    if len(found) == 1:
        return found[0]
    if found:
        raise KeMetricError(
            f"{folder}: the package {style.package} is there {len(found)} times "
            f"({', '.join(path.name for path in found)}); leave one",
            ExitCode.DATA,
        )
    raise KeMetricError(
        f"{folder}: no package {style.package}; expected iconify-json-{style.name}-<version>.tgz "
        f"(npm pack {style.package}) or a folder {style.name}",
        ExitCode.DATA,
    )


def _read_archive(path: Path) -> dict[str, bytes]:
    texts: dict[str, bytes] = {}
    try:
        for member in archive_members(path, MAX_PACKAGE_BYTES):
            name = member.name.removeprefix("package/")
            if name in MEMBERS:
                with member.open() as content:
                    texts[name] = b"".join(iter(partial(content.read, LARGEST_READ), b""))
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise KeMetricError(f"{path}: cannot be read as a package archive: {error}", ExitCode.DATA) from error
    return texts


def join_styles(icon_sets: Sequence[IconSet]) -> dict[str, dict[str, str]]:
    """Find the drawings of the same emoji in all sets.

    Sets that list code points are joined by these. The others are joined by name: the name of each drawing is looked
    up in the sets that list code points, first in the one the style declares. A present name counts more than an
    alias (mostly a former name), and a drawing joins one emoji only. Left out are skin-tone variants, code points of
    the private use area, which mean something else in every set, and names that a set gives to several code points.

    Returns:
        Code points (`1f9d1-200d-1f680`) to the style's name to the drawing's name; ascending by code points, styles
        in the order of `icon_sets`.
    """
    with_characters = {icon_set.style.name: icon_set for icon_set in icon_sets if icon_set.characters}
    joined: dict[str, dict[str, str]] = {}
    for icon_set in icon_sets:
        first = with_characters.get(icon_set.style.names_from or "")
        others = [other for other in with_characters.values() if other is not first]
        sources = others if first is None else [first, *others]
        for code_points, name in _characters(icon_set) if icon_set.characters else _by_name(icon_set, sources):
            joined.setdefault(code_points, {}).setdefault(icon_set.style.name, name)
    return dict(sorted(joined.items(), key=lambda item: _numbers(item[0])))


def render(icon_set: IconSet, name: str, size: int) -> Image.Image:
    """Draw the icon or alias of a name on white, whole and centred, in RGB and `size` x `size` pixels.

    Raises:
        DrawingError: The drawing is missing, broken, blank, or refers to something outside itself.
    """
    import resvg_py

    drawing = _resolve(icon_set, name)
    if OUTSIDE.search(drawing["body"]):
        raise DrawingError("refers to something outside the drawing")
    box = " ".join(str(drawing[key]) for key in ("left", "top", "width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{box}">{drawing["body"]}</svg>'
    )
    try:
        # System fonts would make the picture depend on the machine.
        png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    except ValueError as error:
        raise DrawingError(str(error)) from error
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if picture.getcolors(maxcolors=1) is not None:
        raise DrawingError("blank")
    return _transform(picture, drawing)


def _transform(picture: Image.Image, drawing: Mapping[str, Any]) -> Image.Image:
    """Flip, then turn: on a square canvas the same as transforming the drawing, whatever its own box is."""
    if drawing["hFlip"]:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if drawing["vFlip"]:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    # The format counts quarter turns clockwise, Pillow the other way.
    turns = (None, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90)
    turn = turns[drawing["rotate"] % 4]
    return picture if turn is None else picture.transpose(turn)


def _resolve(icon_set: IconSet, name: str) -> dict[str, Any]:
    """Merge an alias with its parents as the icon format does: flips cancel out, turns add up, sizes override."""
    chain = list(_chain(icon_set, name))
    drawing: dict[str, Any] = dict(icon_set.defaults)
    for entry in reversed(chain):
        drawing |= {key: value for key, value in entry.items() if key not in ("hFlip", "vFlip", "rotate")}
    for flip in ("hFlip", "vFlip"):
        drawing[flip] = sum(bool(entry.get(flip)) for entry in chain) % 2 == 1
    drawing["rotate"] = sum(entry.get("rotate", 0) for entry in chain)
    return drawing


def _chain(icon_set: IconSet, name: str) -> Iterator[Mapping[str, Any]]:
    for _ in range(MAX_ALIAS_DEPTH):
        if name in icon_set.icons:
            yield icon_set.icons[name]
            return
        if name not in icon_set.aliases:
            raise DrawingError(f"there is no drawing named {name!r}")
        yield icon_set.aliases[name]
        name = icon_set.aliases[name]["parent"]
    raise DrawingError(f"more than {MAX_ALIAS_DEPTH} aliases in a row")


def _characters(icon_set: IconSet) -> Iterator[tuple[str, str]]:
    """Yield code points and names of a set's emojis, without skin tones and private code points."""
    # Openmoji calls both U+1F4DC and an icon of its own `scroll`, and has one drawing of that name: the icon.
    uses = Counter(icon_set.characters.values())
    for code_points, name in icon_set.characters.items():
        left_out = any(number in SKIN_TONES or number in PRIVATE_USE for number in _numbers(code_points))
        if uses[name] == 1 and not left_out:
            yield code_points, name


def _by_name(icon_set: IconSet, sources: Sequence[IconSet]) -> Iterator[tuple[str, str]]:
    """Yield code points and names of a set's emojis, the former looked up by name in other sets, best match first."""
    present = [{name: code_points for code_points, name in _characters(source)} for source in sources]
    former = [_alias_names(source, names) for source, names in zip(sources, present, strict=True)]
    taken: set[str] = set()
    for own_names in (icon_set.icons, icon_set.aliases):
        for tables in (present, former):
            for name in own_names:
                drawing = _plain_parent(icon_set, name)
                code_points = _look_up(name, tables)
                if code_points is not None and drawing not in taken:
                    taken.add(drawing)
                    yield code_points, name


def _alias_names(source: IconSet, present: Mapping[str, str]) -> dict[str, str]:
    parents = {alias: _plain_parent(source, alias) for alias in source.aliases}
    return {alias: present[parent] for alias, parent in parents.items() if parent in present and alias not in present}


def _plain_parent(icon_set: IconSet, name: str) -> str:
    """Return the drawing that a name stands for, unless it is changed on the way: a turned arrow is another emoji."""
    for _ in range(MAX_ALIAS_DEPTH):
        alias = icon_set.aliases.get(name, {})
        if name in icon_set.icons or set(alias) != {"parent"}:
            break
        name = alias["parent"]
    return name


def _look_up(name: str, tables: Sequence[Mapping[str, str]]) -> str | None:
    # Older sets write flag-for-flag-japan and flag-for-japan where newer ones write flag-japan.
    for spelling in (name, re.sub("^flag-for-(flag-)?", "flag-", name)):
        for table in tables:
            if spelling in table:
                return table[spelling]
    return None


def _numbers(code_points: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in code_points.split("-"))
