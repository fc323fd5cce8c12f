"""Texts without the places of this machine: a page travels, and whose folders it was made in is nobody's business.

Errors name files by their whole paths, so that one can go and look; of these a page keeps the last name. A path that
is not known beforehand, not quoted, not at the beginning of a sentence and has spaces in it cannot be told from the
words around it: what follows its first space stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ke_metric.lineage.store import Lineage

_START = r"(?:~|[A-Za-z]:)?[/\\]{1,2}"
_NAME = r"[^\s/\\:;,'\"()<>]+"
_ADDRESS = re.compile(rf"file:/{{1,3}}(?:{_NAME}[/:\\])*{_NAME}", re.IGNORECASE)
_QUOTED = re.compile(rf"(['\"`])({_START}[^'\"`\n]*?)\1")
# Our errors begin with the file that they are about, and a colon.
_LEADING = re.compile(rf"\A{_START}(?:(?!\s[/\\~])[^:\n,'\"])*(?=: )")
_PLACE = re.compile(rf"(?<![\w.:/\\~-]){_START}{_NAME}(?:[/\\]{_NAME})*")


def without_places(text: str, *roots: Path | str) -> str:
    """Return a text in which of every absolute path that can be told from it only the last name is left.

    Args:
        text: A sentence, or any other text.
        roots: Folders and files that it may be about, whatever their names hold; those of the user and of the
            process are known.
    """
    text = _ADDRESS.sub(lambda found: _last(found[0]), text)
    for root in _known(roots):
        # What lies in it loses the root here, and what else there is of its path below.
        text = re.sub(rf"{re.escape(root)}(?=[/\\])", "~", text)
        text = re.sub(rf"{re.escape(root)}(?![\w-]|\.\w)", lambda _, own=root: _last(own), text)  # type: ignore[misc]
    text = _QUOTED.sub(lambda found: f"{found[1]}{_last(found[2])}{found[1]}", text)
    text = _LEADING.sub(lambda found: _last(found[0]), text)
    return _PLACE.sub(lambda found: _last(found[0]), text)


def places_of(lineage: Lineage) -> list[str]:
    """Return where a lineage and its pictures lie."""
    recipe = lineage.recipe
    return [str(lineage.folder), *(place for place in (recipe.data.root, recipe.network.weights) if place)]


def _known(roots: tuple[Path | str, ...]) -> list[str]:
    """Return absolute places, those within others first."""
    found = {place for root in (*roots, Path.home(), Path.cwd()) for place in _forms(Path(root))}
    return sorted(found, key=len, reverse=True)


def _forms(path: Path) -> Iterator[str]:
    """Yield how a place may be written; nothing of the root of all, which is in every path."""
    expanded = path.expanduser()
    for each in (expanded, expanded.absolute(), expanded.resolve()):
        if each.is_absolute() and each.name:
            yield str(each)


def _last(path: str) -> str:
    name = Path(path.replace("\\", "/")).name
    # The folder of a user is called as the user is.
    return "~" if Path(path) == Path.home() else name
