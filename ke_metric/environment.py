"""What a result depends on besides its recipe: versions, hardware, commit. No paths, no host names."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "ke_metric",
    "torch",
    "torchvision",
    "pytorch-metric-learning",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "scikit-learn",
    "pillow",
    "accelerate",
    "timm",
)


def describe_environment() -> dict[str, Any]:
    """Return versions of the packages installed, the processor, its cores, and the commit of our source if any."""
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": versions,
    }
    return facts | _commit()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> dict[str, Any]:
    """Return the git commit of our source and whether it was changed since; nothing for an installed package."""
    source = Path(__file__).parent
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit, "commit_changed": bool(_git(source, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
