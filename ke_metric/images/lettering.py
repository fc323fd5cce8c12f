"""Letters below pictures: names broken into lines that fit, in a font that has their characters."""

from __future__ import annotations

import textwrap
from functools import cache, partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.ft2font import FT2Font

SMALL = 11
# Of a label: lines, and letters in one, which are all equally wide.
LINES, LETTERS = 3, 18
FONT = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")


def shortened(text: str, letters: int = LETTERS, lines: int = LINES) -> list[str]:
    """Break a text into lines of so many letters; what does not fit is left out of its middle.

    Characters that the font has not are shown by their number, as `U+9E1F`.
    """
    broken = partial(textwrap.wrap, width=letters, break_on_hyphens=False)
    text = " ".join(text.split())
    text = "".join(letter if ord(letter) in _characters() else f"U+{ord(letter):04X}" for letter in text)
    whole = broken(text)
    for kept in range(len(text) - 1, 0, -1):
        if len(whole) <= lines:
            break
        # The end often tells what the beginning does not: LATIN CAPITAL LETTER A.
        whole = broken(f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}")
    return whole[:lines]


@cache
def _characters() -> frozenset[int]:
    return frozenset(FT2Font(str(FONT)).get_charmap())
