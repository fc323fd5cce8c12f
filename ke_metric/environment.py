"""What a result depends on besides its recipe: versions, hardware, commit. No paths, no host names."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Whatever computes weights or scores, draws pictures, or searches.
PACKAGES = (
    *("ke_metric", "torch", "torchvision", "timm", "accelerate", "pytorch-metric-learning"),
    *("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "scikit-learn", "scipy", "numpy"),
    *("pillow", "matplotlib", "resvg-py", "safetensors", "pymilvus", "milvus-lite", "psycopg"),
    *("onnx", "onnxruntime", "starlette", "uvicorn"),
)
GIT_SECONDS = 10
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""What decides how fast, and with 8-bit integers how exactly, a processor computes networks: x86, then ARM."""


def describe_environment() -> dict[str, Any]:
    """Return what is known of Python, the installed packages, the processor, and the commit of our source.

    What is not known is absent: the commit of an installed package, the processor of an unusual system.
    """
    facts = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    known = {name: value for name, value in facts.items() if value}
    return known | {"versions": package_versions(PACKAGES)} | _commit(Path(__file__))


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def describe_processor(cpu_info: Path = CPU_INFO) -> dict[str, Any]:
    """Return `processor`, its `architecture`, and those of `INSTRUCTIONS` it has; empty where that is not known."""
    told = _told_of_processor(cpu_info)
    flags = {flag for name, value in told if name in ("flags", "Features") for flag in value.split()}
    return {
        "processor": _processor(cpu_info),
        "architecture": platform.machine(),
        "instructions": tuple(name for name in INSTRUCTIONS if name in flags),
    }


def _processor(cpu_info: Path = CPU_INFO) -> str:
    """Return the processor's name; empty where the system does not tell."""
    return next((value for name, value in _told_of_processor(cpu_info) if name == "model name"), platform.processor())


def _told_of_processor(cpu_info: Path) -> list[tuple[str, str]]:
    if not cpu_info.exists():
        return []
    lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [line.partition(":") for line in lines]
    return [(name.strip(), value.strip()) for name, _, value in parts]


def _commit(source: Path) -> dict[str, Any]:
    """Return the commit of the folder of `source`, and whether it was changed since; nothing without a commit of it.

    An installed package may well lie inside somebody else's repository: only a file that git knows has a commit.
    """
    if not _git(source.parent, "ls-files", source.name):
        return {}
    commit = _git(source.parent, "rev-parse", "HEAD")
    changed = bool(_git(source.parent, "status", "--porcelain", "."))
    return {"commit": commit, "commit_changed": changed} if commit else {}


def _git(folder: Path, *command: str) -> str | None:
    """Return what git says in a folder; None where there is no git or no repository."""
    # A git hook sets variables that point to its own repository, whatever the folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
