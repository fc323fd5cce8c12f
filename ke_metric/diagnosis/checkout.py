"""Whether what pip wrote down of a checkout is what its setup.py asks for by now.

An editable installation runs the code of today with the list of packages of the day it was installed.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from ke_metric.diagnosis.packages import NOT_FOR_USERS, Finding, extra_of

CHECKOUT = Path(__file__).parents[2]


def stale_metadata(requirements: Sequence[Requirement] | None, checkout: Path = CHECKOUT) -> Iterator[Finding]:
    """Yield a finding where setup.py asks for something that the installed metadata do not.

    Args:
        requirements: What the metadata ask for, extras included; None where there are none.
        checkout: The folder with setup.py; nothing is found where it has none of ours.
    """
    asked = _asked(checkout / "setup.py")
    if requirements is None or not asked:
        return
    known: dict[str, set[str]] = {}
    for each in requirements:
        known.setdefault(extra_of(each), set()).add(_bound(each))
    stale = {
        extra: wanted
        for extra, texts in asked.items()
        if extra not in NOT_FOR_USERS and (wanted := _bounds(texts) - known.get(extra, set()))
    }
    if not stale:
        return
    told = "; ".join(
        f"{f'extra {extra}' if extra else 'always'}: {', '.join(sorted(wanted))}" for extra, wanted in stale.items()
    )
    extras = ",".join(sorted(filter(None, stale)))
    place = shlex.quote(f"{checkout}[{extras}]" if extras else str(checkout))
    yield Finding(
        "metadata",
        "advice",
        f"installed from this checkout before setup.py asked for what it asks for now ({told})",
        f"pip install -e {place}",
    )


def _asked(path: Path) -> Mapping[str, Sequence[str]]:
    """Return extra to what a setup.py asks for there, an empty string for what always comes; it is not run."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup":
            values = {each.arg: each.value for each in node.keywords}
            try:
                always = ast.literal_eval(values["install_requires"])
                return {"": always, **ast.literal_eval(values["extras_require"])}
            except (KeyError, TypeError, ValueError):
                return {}
    return {}


def _bounds(texts: Sequence[str]) -> set[str]:
    found = set()
    for text in texts:
        try:
            found.add(_bound(Requirement(text)))
        except InvalidRequirement:
            continue
    return found


def _bound(requirement: Requirement) -> str:
    """Return a package with its bounds, written as everybody writes it; for which systems, is left out."""
    return f"{requirement.name.lower().replace('_', '-')}{requirement.specifier}"
