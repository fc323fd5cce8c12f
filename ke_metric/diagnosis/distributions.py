"""Under which names pip has installed FAISS; imports nothing, since what is installed twice must not be imported.

`evaluation.backend` says the same to whoever searches, and has loaded torch by then, which a diagnosis must not.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
"""Names under which pip installs FAISS; all of them write into the same folder."""


def installed_distributions() -> tuple[str, ...]:
    """Return the FAISS distributions that are installed, without importing any of them."""
    return tuple(name for name in DISTRIBUTIONS if _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def repair_command(present: Sequence[str]) -> str:
    """Return the command that leaves one intact distribution: the last, since faiss-gpu holds all of faiss-cpu."""
    names = present or ("faiss-cpu",)
    return f"pip uninstall -y {' '.join(names)} && pip install --force-reinstall --no-deps {names[-1]}"
