"""Installed packages against what ours asks for: lower bounds, extras, FAISS twice, torch beside torchvision.

All of it is read from what pip has written down; no package is imported.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ke_metric.diagnosis.distributions import installed_distributions, repair_command

PACKAGE = "ke_metric"
INSTALL_US = "pip install -e '.[cpu]'"
FAISS_EXTRAS = ("cpu", "gpu")
EXTRA = re.compile(r"""extra == ['"]([^'"]+)""")
NOT_FOR_USERS = frozenset({"compare", "docs", "test"})
"""Extras of those who develop us."""

Level = Literal["ok", "advice", "broken"]
VersionOf = Callable[[str], str | None]
"""Name of a distribution to the version that is installed; None where it is not."""


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        topic: What was looked at.
        level: `ok`; `advice`: it works without; `broken`: something will fail.
        told: What was found.
        cure: The command that mends it; empty where there is nothing to mend.
    """

    topic: str
    level: Level
    told: str
    cure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        cure = {"cure": self.cure} if self.cure else {}
        return {"topic": self.topic, "level": self.level, "found": self.told, **cure}


def installed_version(name: str) -> str | None:
    """Return the version of a distribution that is installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def our_requirements() -> list[Requirement] | None:
    """Return what our installed metadata asks for; None where pip has not installed us."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    except importlib.metadata.PackageNotFoundError:
        return None


def package_findings(
    requirements: Sequence[Requirement] | None, version_of: VersionOf = installed_version
) -> Iterator[Finding]:
    """Yield what is to be said of Python and of packages.

    Args:
        requirements: What we ask for, extras included; None where nobody knows.
        version_of: Tells what is installed.
    """
    yield _python()
    if requirements is None:
        told = f"pip does not know {PACKAGE}: bounds and extras cannot be read"
        yield Finding("packages", "advice", told, INSTALL_US)
        return
    by_extra: dict[str, list[Requirement]] = defaultdict(list)
    for requirement in requirements:
        by_extra[extra_of(requirement)].append(requirement)
    yield from _required(by_extra.pop("", []), version_of)
    yield from _faiss(by_extra, version_of)
    for extra in sorted(by_extra.keys() - NOT_FOR_USERS - set(FAISS_EXTRAS)):
        yield _optional(extra, by_extra[extra], version_of)


def _python() -> Finding:
    version = platform.python_version()
    try:
        [allowed] = importlib.metadata.metadata(PACKAGE).get_all("Requires-Python") or [""]
    except importlib.metadata.PackageNotFoundError:
        allowed = ""
    if SpecifierSet(allowed).contains(version, prereleases=True):
        return Finding("Python", "ok", version)
    cure = f"python{allowed.lstrip('>=')} -m venv .venv && .venv/bin/{INSTALL_US}"
    return Finding("Python", "broken", f"{version}, needed is {allowed}", cure)


def extra_of(requirement: Requirement) -> str:
    """Return the extra that brings a requirement; an empty string where it always comes."""
    found = EXTRA.search(str(requirement.marker or ""))
    return found[1] if found else ""


def _is_for_here(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _fault(requirement: Requirement, version_of: VersionOf) -> str | None:
    """Return what is wrong with a package; None where it is there and new enough."""
    version = version_of(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is installed, needed is {requirement.specifier}"
    return None


def _install(requirements: Sequence[Requirement]) -> str:
    return shlex.join(["pip", "install", "--upgrade", *(f"{each.name}{each.specifier}" for each in requirements)])


def _required(requirements: Sequence[Requirement], version_of: VersionOf) -> Iterator[Finding]:
    here = [each for each in requirements if _is_for_here(each, "")]
    faults = {each: fault for each in here if (fault := _fault(each, version_of)) is not None}
    for each, fault in faults.items():
        yield Finding(each.name, "broken", fault, _install([each]))
    if not faults:
        told = ", ".join(f"{each.name} {version_of(each.name)}" for each in here if each.name.startswith("torch"))
        yield Finding("packages", "ok", f"all {len(here)} that are needed, {told or 'each new enough'}")


def _faiss(by_extra: Mapping[str, Sequence[Requirement]], version_of: VersionOf) -> Iterator[Finding]:
    present = installed_distributions()
    if len(present) > 1:
        told = f"{' and '.join(present)} are installed together: they share one folder and break each other"
        yield Finding("FAISS", "broken", told, repair_command(present))
        return
    if not present:
        told = "not installed; torch finds the same neighbours, and an index of the kind faiss cannot be made"
        yield Finding("FAISS", "advice", told, f"pip install '{PACKAGE}[cpu]'")
        return
    asked = [each for extra in FAISS_EXTRAS for each in by_extra.get(extra, ()) if each.name in present]
    for each in asked:
        fault = _fault(each, version_of)
        if fault is None:
            yield Finding("FAISS", "ok", f"{each.name} {version_of(each.name)}")
        else:
            yield Finding("FAISS", "broken", fault, _install([each]))
    if not asked:
        yield Finding("FAISS", "ok", f"{present[0]} {version_of(present[0])}")


def _optional(extra: str, requirements: Sequence[Requirement], version_of: VersionOf) -> Finding:
    here = [each for each in requirements if _is_for_here(each, extra)]
    missing = [each.name for each in here if version_of(each.name) is None]
    old = [each for each in here if each.name not in missing and _fault(each, version_of) is not None]
    topic = f"extra {extra}"
    if old and not missing:
        return Finding(topic, "broken", "; ".join(_fault(each, version_of) or "" for each in old), _install(old))
    if missing:
        # FAISS would come a second time beside faiss-gpu.
        also_cpu = extra == "milvus" and "faiss-gpu" in installed_distributions()
        cure = (
            "pip install --upgrade pymilvus pyarrow grpcio && pip install --upgrade --no-deps milvus-lite"
            if also_cpu
            else f"pip install '{PACKAGE}[{extra}]'"
        )
        told = [f"not installed: {', '.join(missing)}", *(_fault(each, version_of) or "" for each in old)]
        return Finding(topic, "advice", "; ".join(told), cure)
    return Finding(topic, "ok", ", ".join(f"{each.name} {version_of(each.name)}" for each in here))


def torch_pair(version_of: VersionOf = installed_version, needed: Sequence[str] | None = None) -> Iterator[Finding]:
    """Yield a finding where torchvision is installed for another torch.

    Args:
        version_of: Tells what is installed.
        needed: What torchvision's metadata asks for; read from them when None.
    """
    torch, torchvision = version_of("torch"), version_of("torchvision")
    if torch is None or torchvision is None:
        return
    if needed is None:
        needed = importlib.metadata.requires("torchvision") or ()
    for requirement in map(Requirement, needed):
        if requirement.name == "torch" and not requirement.specifier.contains(torch, prereleases=True):
            told = f"torchvision {torchvision} is built for torch{requirement.specifier}, installed is torch {torch}"
            cure = f"pip install 'torch{requirement.specifier}' torchvision=={torchvision.partition('+')[0]}"
            yield Finding("torchvision", "broken", told, cure)
