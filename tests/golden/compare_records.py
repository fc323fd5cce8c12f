"""Compare two records: to the last bit on a machine that calculates alike, by what cannot depend on it elsewhere.

On another machine, or with other libraries, a training has other last bits. There the numbers of the parts that
train are compared within a tolerance, digests of calculated numbers (`bits:`) and orders that hang on a last bit are
left out, and everything else, the structure of every answer included, must still be the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import zip_longest

# What comes from a training, and from the embeddings of a trained network.
CALCULATED = {"base", "stores", "bundles", "commands", "errors", "lineages", "exports"}
# A score is a mean over 40 pictures, each of which may move. Other kernels moved scores by 0.23 at most, where the
# slim part of a redrawn network is scored, which is next to random. k-means ends elsewhere when one picture moves.
SCORE = re.compile(
    r"recall|map@r|r_precision|precision|top|accuracy|mean|difference|spread|share|same_nearest|similarity|probab"
)
SCORE_TOLERANCE = 0.3
UNSTABLE = {"nmi", "ami", "nmi_std", "ami_std"}
# Training magnifies a last bit from step to step: with other kernels losses came out up to 5 % apart, and most of
# them below a thousandth.
RELATIVE, ABSOLUTE = 0.1, 0.01
# Which item is found, which generation is the best and what is taken for what can hang on a last bit; what a table
# looks like hangs on it and on the library that draws it.
LEFT_OUT = {"table", "id", "path", "label", "generation", "confusion", "accuracy", "better_than_generations"}
# How libraries lay out their words.
LAYOUT = {"help", "modules"}
CLICKS_WORDS = re.compile(r"^(?:Try 'main|Error: No such option).*")
NETWORK = re.compile(r"\b(?:dense|slim)\b")
NUMBERS = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
LONG_DIGEST = re.compile(r"\b[0-9a-f]{12,}\b")
NOTHING = "<nothing>"


def is_same_machine(recorded: dict, found: dict) -> bool:
    """Tell whether the record must be found again to the last bit."""
    return recorded["machine"] == found["machine"]


def differences(recorded: dict, found: dict, part: str) -> list[str]:
    """Return what differs in one part, as lines that say where and what."""
    if is_same_machine(recorded, found):
        judge = _differs
    elif part in CALCULATED:
        judge = _differs_in_substance
    else:
        judge = _differs_but_for_libraries
    pairs = _leaves(recorded[part], found[part], ())
    return [_line(part, path, *pair) for path, *pair in pairs if judge(path, *pair)]


def _line(part: str, path: tuple, recorded: object, found: object) -> str:
    place = " > ".join(map(str, (part, *path)))
    return f"{place}:\n    recorded {recorded!r}\n    found    {found!r}"


def _leaves(recorded: object, found: object, path: tuple) -> Iterator[tuple]:
    """Yield the path and both values of everything that is no list or object in both records."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for name in dict.fromkeys((*recorded, *found)):
            yield from _leaves(recorded.get(name, NOTHING), found.get(name, NOTHING), (*path, name))
    elif isinstance(recorded, list) and isinstance(found, list):
        for position, pair in enumerate(zip_longest(recorded, found, fillvalue=NOTHING)):
            yield from _leaves(*pair, (*path, position))
    else:
        yield path, recorded, found


def _differs(_path: tuple, recorded: object, found: object) -> bool:
    return recorded != found or type(recorded) is not type(found)


def _differs_but_for_libraries(path: tuple, recorded: object, found: object) -> bool:
    """Compare what needs no training: all but calculated digests and the layout of click's help."""
    if LAYOUT & set(path[1:3]) or _is_bits(recorded):
        return False
    if isinstance(recorded, float) and isinstance(found, float):
        return not math.isclose(recorded, found, rel_tol=1e-5)
    return _differs(path, recorded, found)


def _is_bits(value: object) -> bool:
    return isinstance(value, str) and value.startswith("bits:")


def _differs_in_substance(path: tuple, recorded: object, found: object) -> bool:
    names = [step for step in path if isinstance(step, str)]
    name = names[-1] if names else ""
    if NOTHING in (recorded, found):
        return not (LEFT_OUT & set(names))
    # Re-ranking counts common neighbours: its similarities jump where two neighbours change places.
    jumps = name == "similarity" and any("reranked" in step for step in names)
    if jumps or LEFT_OUT & set(names) or _is_bits(recorded) or name in UNSTABLE:
        return False
    if isinstance(recorded, bool) or not isinstance(recorded, int | float) or not isinstance(found, int | float):
        return _words(recorded) != _words(found)
    tolerance = SCORE_TOLERANCE if any(SCORE.search(step) for step in names[-2:]) else ABSOLUTE
    return not math.isclose(recorded, found, rel_tol=RELATIVE, abs_tol=tolerance)


def _words(value: object) -> object:
    """Return a text without its numbers, without digests of what was calculated, and without the better network."""
    if not isinstance(value, str) or value.startswith("sha256:"):
        return value
    value = CLICKS_WORDS.sub("<click>", value.replace("<here>/", ""))
    return NETWORK.sub("<network>", NUMBERS.sub("#", LONG_DIGEST.sub("<digest>", value)))
