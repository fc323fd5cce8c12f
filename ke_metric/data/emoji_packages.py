"""Icon sets of emoji artwork as npm packages carry them: found or fetched, and read without unpacking."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ke_metric.data.archive_members import LARGEST_READ, archive_members
from ke_metric.errors import ExitCode, KeMetricError

MEMBERS = ("package.json", "info.json", "icons.json", "chars.json")
# The largest of the eight packages unpacks to 110 MB.
MAX_PACKAGE_BYTES = 400_000_000
FETCH_SECONDS = 300

# Asks for the coloured form of a character that also has a plain one; some sets write it, some do not.
VARIATION_SELECTOR = "fe0f"
# The icon format's own defaults.
DEFAULT_BOX = {"left": 0.0, "top": 0.0, "width": 16.0, "height": 16.0}


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

    Args:
        style: Which style.
        folder: Holds `iconify-json-<name>-<version>.tgz` (as `npm pack` writes it; only the JSON files are read, and
            nothing is unpacked), or a folder `<name>` or `@iconify-json/<name>` with the package's files.

    Returns:
        The icon set.

    Raises:
        KeMetricError: The package is not there, is there twice, cannot be read or is not laid out as expected (DATA).
    """
    path = _find(style, folder)
    texts = _read_folder(path) if path.is_dir() else _read_archive(path)
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
    """Fetch the packages with the npm client of this machine, as archives.

    Args:
        folder: Existing folder that receives them.
        styles: Which ones, each in its fixed version.

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
        _fetch(npm, style, folder)


def _fetch(npm: str, style: Style, folder: Path) -> None:
    command = [npm, "pack", f"{style.package}@{style.version}", "--pack-destination", str(folder), "--silent"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS, cwd=folder)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or "").strip() or str(error)
        raise KeMetricError(
            f"npm could not fetch {style.package}@{style.version}: {said}; check the network, or fetch the packages "
            "elsewhere (npm pack NAME) and name their folder as source",
            ExitCode.DATA,
        ) from error


def _find(style: Style, folder: Path) -> Path:
    unpacked = [folder / style.name, folder / "@iconify-json" / style.name]
    archives = [path for path in sorted(folder.glob("*.tgz")) if _archive_style(path.name) == style.name]
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


def _archive_style(file_name: str) -> str:
    return file_name.removesuffix(".tgz").removeprefix("iconify-json-").rpartition("-")[0]


def _read_folder(path: Path) -> dict[str, bytes]:
    return {member: (path / member).read_bytes() for member in MEMBERS if (path / member).is_file()}


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
