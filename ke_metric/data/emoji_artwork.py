"""Emoji artwork: which drawings of which icon sets are the same emoji, and how a drawing becomes a picture."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from ke_metric.data.emoji_packages import IconSet

SKIN_TONES = range(0x1F3FB, 0x1F400)
PRIVATE_USE = range(0xE000, 0xF900)
# An alias leads to its parent, which may be an alias itself; the sets have chains of 1.
MAX_ALIAS_DEPTH = 10

OUTSIDE = re.compile(r"""href\s*=\s*["'](?!#)|<!|<\?""")


class DrawingError(Exception):
    """A drawing that gives no picture; the message says why."""


def join_styles(icon_sets: Sequence[IconSet]) -> dict[str, dict[str, str]]:
    """Find the drawings of the same emoji in all sets.

    Sets that list code points are joined by these. The others are joined by name: the name of each drawing is looked
    up in the sets that list code points, first in the one the style declares. A present name counts more than an
    alias (mostly a former name), and a drawing joins one emoji only. Left out are skin-tone variants, code points of
    the private use area, which mean something else in every set, and names that a set gives to several code points.

    Args:
        icon_sets: The sets, at least one of which lists code points.

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
    """Draw one emoji on white, whole and centred.

    Args:
        icon_set: The set.
        name: Name of an icon or alias of it.
        size: Height and width in pixels.

    Returns:
        RGB picture of size x size.

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
    """Code points and names of a set's emojis, without skin tones and private code points."""
    # Openmoji calls both U+1F4DC and an icon of its own `scroll`, and has one drawing of that name: the icon.
    uses = Counter(icon_set.characters.values())
    for code_points, name in icon_set.characters.items():
        left_out = any(number in SKIN_TONES or number in PRIVATE_USE for number in _numbers(code_points))
        if uses[name] == 1 and not left_out:
            yield code_points, name


def _by_name(icon_set: IconSet, sources: Sequence[IconSet]) -> Iterator[tuple[str, str]]:
    """Code points and names of a set's emojis, the code points looked up by name in other sets, best match first."""
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
    """The drawing that a name stands for, unless it is changed on the way: a turned arrow is another emoji."""
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
