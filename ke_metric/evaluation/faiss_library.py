"""FAISS, which may be missing, doubled or broken: the only module that imports it.

The distributions faiss-cpu and faiss-gpu write into the same `faiss/` folder. With both installed the import
still succeeds, on a mixture of files, and GPU search breaks later (facebookresearch/faiss#2892). That is checked
here, before the import.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType

# FAISS built for CUDA 12 and imported before torch built for CUDA 13 ended in a segmentation fault
# (torchgeo/torchgeo-bench#152), so torch always comes first.
import torch  # noqa: F401

from ke_metric.errors import ExitCode, KeMetricError

DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
"""Names under which pip installs FAISS."""


@dataclass(frozen=True)
class FaissLibrary:
    """Which FAISS is installed.

    Attributes:
        distribution: One of `DISTRIBUTIONS`, or "unknown" where pip did not install it.
        version: As FAISS itself reports it.
        gpus: Number of GPUs FAISS can use; 0 for faiss-cpu.
    """

    distribution: str
    version: str
    gpus: int


def installed_distributions() -> tuple[str, ...]:
    """Return the FAISS distributions that are installed, without importing any of them."""
    return tuple(name for name in DISTRIBUTIONS if _is_installed(name))


def is_installed() -> bool:
    """Return whether there is a `faiss` package to import; it may still turn out to be broken."""
    return importlib.util.find_spec("faiss") is not None


def load_faiss() -> ModuleType:
    """Import FAISS, after torch, and return the module.

    Raises:
        KeMetricError: ENVIRONMENT, with the command that mends it, when FAISS is missing, when two distributions
            share its folder, or when its import fails.
    """
    _refuse_two(installed_distributions())
    if not is_installed():
        raise KeMetricError(
            "FAISS is not installed: `pip install faiss-cpu`, or on Linux with an NVIDIA GPU "
            "`pip install faiss-gpu` (never both); or use the backend 'torch', which needs neither",
            ExitCode.ENVIRONMENT,
        )
    try:
        import faiss
    except (ImportError, OSError, RuntimeError) as error:
        # RuntimeError is how faiss-gpu reports a missing CUDA library.
        raise KeMetricError(
            f"FAISS is installed but cannot be imported ({error}): {_repair(installed_distributions())}, "
            "or use the backend 'torch'",
            ExitCode.ENVIRONMENT,
        ) from error
    module: ModuleType = faiss
    return module


def describe_faiss() -> FaissLibrary:
    """Return distribution, version and number of GPUs of the installed FAISS.

    Raises:
        KeMetricError: ENVIRONMENT, as `load_faiss`.
    """
    faiss = load_faiss()
    names = installed_distributions()
    return FaissLibrary(names[0] if names else "unknown", str(faiss.__version__), int(faiss.get_num_gpus()))


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _refuse_two(names: tuple[str, ...]) -> None:
    if len(names) > 1:
        raise KeMetricError(
            f"{' and '.join(names)} are installed together; they share the folder faiss/ and break each other. "
            f"Keep one: {_repair(names)}",
            ExitCode.ENVIRONMENT,
        )


def _repair(present: tuple[str, ...]) -> str:
    """Return the command that leaves one intact distribution: the last, since faiss-gpu holds all of faiss-cpu."""
    names = present or ("faiss-cpu",)
    return f"`pip uninstall -y {' '.join(names)} && pip install --force-reinstall --no-deps {names[-1]}`"
