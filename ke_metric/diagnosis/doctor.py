"""All that is looked at, in order: packages, imports, devices, neighbours, fonts, places."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement

from ke_metric.diagnosis.checkout import stale_metadata
from ke_metric.diagnosis.distributions import installed_distributions
from ke_metric.diagnosis.packages import (
    INSTALL_US,
    Finding,
    installed_version,
    our_requirements,
    package_findings,
    torch_pair,
)
from ke_metric.diagnosis.places import place_findings
from ke_metric.diagnosis.probes import ENDED, ProbeResult, run_probe
from ke_metric.environment import describe_processor

MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Distributions whose module has another name."""
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
NEEDED_BY_ALL = ("numpy", "torch", "torchvision")


def diagnose(lineages: Path = Path("lineages")) -> list[Finding]:
    """Look at the environment; takes some seconds, and raises nothing whatever is broken.

    Args:
        lineages: Where lineages lie, or will.
    """
    requirements = our_requirements()
    modules = _modules(requirements or ())
    imported = run_probe("imports", list(modules))
    failed = {name: reason for name, reason in imported.facts.items() if reason is not None}
    can_search = "faiss" in modules and "faiss" not in failed
    names = [] if set(NEEDED_BY_ALL) & set(failed) else ["devices", "fonts", *["neighbors"] * can_search]
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        probed = dict(zip(names, pool.map(run_probe, names), strict=True))
    return [
        *stale_metadata(requirements),
        *package_findings(requirements),
        *torch_pair(),
        *_imports(imported, failed, modules),
        *_devices(probed.get("devices")),
        *_neighbors(probed.get("neighbors")),
        *_fonts(probed.get("fonts")),
        *place_findings(lineages),
    ]


def _modules(requirements: Sequence[Requirement]) -> dict[str, str]:
    """Return the modules that are imported, torch first, and the distribution of each."""
    base = [each.name for each in requirements if each.marker is None]
    names = [name for name in (*NEEDED_BY_ALL, *base) if installed_version(name) is not None]
    modules = {MODULES.get(name.lower(), name.replace("-", "_")): name for name in dict.fromkeys(names)}
    # FAISS that is installed twice must not be imported at all.
    faiss = installed_distributions()
    return modules | ({"faiss": faiss[0]} if len(faiss) == 1 else {})


def _imports(imported: ProbeResult, failed: Mapping[str, str], modules: Mapping[str, str]) -> Iterator[Finding]:
    # A library that needs a broken one fails for the same reason, and is mended with it.
    first: dict[str, str] = {}
    for module, reason in failed.items():
        first.setdefault(reason, module)
    for reason, module in first.items():
        ended = f" ({imported.failure})" if imported.failure and reason == ENDED else ""
        name = modules.get(module, module)
        cure = f"pip install --force-reinstall {name}"
        if module in ("torch", "torchvision"):
            cure = "pip install --force-reinstall torch torchvision"
        elif module == "faiss":
            cure = f"pip install --force-reinstall --no-deps {name}"
        yield Finding(name, "broken", f"cannot be imported: {reason}{ended}", cure)
    if imported.failure and not failed:
        yield Finding("imports", "broken", f"could not be tried: {imported.failure}", INSTALL_US)
    elif not failed:
        yield Finding("imports", "ok", f"{len(imported.facts)} libraries can be imported")


def _devices(probed: ProbeResult | None) -> Iterator[Finding]:
    if probed is None:
        return
    facts = probed.facts
    if probed.failure:
        told = f"torch and torchvision do not work together: {probed.failure}"
        yield Finding("devices", "broken", told, "pip install --force-reinstall torch torchvision")
        return
    has_gpu = shutil.which("nvidia-smi") is not None
    if facts["cuda"]:
        yield Finding("GPU", "ok", ", ".join(facts["cuda"]))
    elif has_gpu:
        built = f"torch {facts['torch']} is built {'for' if facts['cuda_build'] else 'without'} CUDA"
        cure = "nvidia-smi" if facts["cuda_build"] else "pip install --force-reinstall torch torchvision"
        yield Finding("GPU", "advice", f"nvidia-smi is there, and {built}: no GPU can be used", cure)
    else:
        yield Finding("GPU", "ok", "MPS" if facts["mps"] else "none; everything runs on the processor")
    processor = describe_processor()
    instructions = sorted(BF16 & set(processor["instructions"]))
    bf16 = f"bf16 instructions: {', '.join(instructions) or 'none'}"
    name = processor["processor"] or processor["architecture"]
    told = f"{name}, {facts['threads']} threads of {os.cpu_count()} cores, {bf16}"
    yield Finding("processor", "ok", told)
    yield Finding("training", "ok", f"on {facts['device']} in {facts['precision']} where a recipe says nothing else")


def _neighbors(probed: ProbeResult | None) -> Iterator[Finding]:
    if probed is None:
        return
    names = installed_distributions()
    cure = f"pip install --force-reinstall --no-deps {names[0] if names else 'faiss-cpu'}"
    if probed.failure:
        yield Finding("neighbours", "broken", f"FAISS cannot search: {probed.failure}", cure)
    elif probed.facts["wrong"]:
        told = f"{', '.join(probed.facts['wrong'])} {probed.facts['version']} finds other neighbours than torch"
        yield Finding("neighbours", "broken", told, cure)
    else:
        told = f"FAISS {probed.facts['version']} ({', '.join(probed.facts['tried'])}) finds those that torch finds"
        yield Finding("neighbours", "ok", told)


def _fonts(probed: ProbeResult | None) -> Iterator[Finding]:
    if probed is None:
        return
    cure = "pip install --force-reinstall --no-deps matplotlib"
    if probed.failure:
        yield Finding("fonts", "broken", f"the demo cannot draw: {probed.failure}", cure)
    elif probed.facts["missing"]:
        yield Finding("fonts", "broken", f"faces without a letter A: {', '.join(probed.facts['missing'])}", cure)
    else:
        yield Finding("fonts", "ok", f"the demo's {probed.facts['faces']} faces can be drawn")
