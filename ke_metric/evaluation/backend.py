"""FAISS, which may be missing, doubled or broken: the only module that imports it.

The distributions faiss-cpu and faiss-gpu write into the same `faiss/` folder. With both installed the import
still succeeds, on a mixture of files, and GPU search breaks later (facebookresearch/faiss#2892). That is checked
here, before the import.

Where nearest neighbours are searched: FAISS on the processor, FAISS on a GPU, or torch on any device.

All three are exact and give the same neighbours, ties aside.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ke_metric.errors import ExitCode, KeMetricError, closest

# FAISS built for CUDA 12 and imported before torch built for CUDA 13 ended in a segmentation fault
# (torchgeo/torchgeo-bench#152), so torch always comes first.


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


BACKENDS = ("faiss-cpu", "faiss-gpu", "torch")


@dataclass(frozen=True)
class Backend:
    """A resolved choice of library and device.

    Attributes:
        name: One of `BACKENDS`.
        device: Where torch computes ("cpu", "cuda:1"), or which GPU FAISS uses; faiss-cpu always uses the processor.
        chunk: Queries (or items to be clustered) handled at a time, at least 1; bounds the memory, not the result.
    """

    name: str
    device: str = "cpu"
    chunk: int = 1024

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            raise KeMetricError(
                f"backend = {self.name!r}, must be one of auto, {', '.join(BACKENDS)}"
                f"{closest(self.name, ('auto', *BACKENDS))}",
                ExitCode.RECIPE,
            )
        assert self.chunk >= 1, self.chunk


def choose_backend(name: str = "auto", device: str | torch.device | None = None) -> Backend:
    """Resolve the name of a backend and make sure that it can be used; nothing falls back silently.

    "auto" is torch when `device` is a GPU, else faiss-cpu when FAISS is installed, else torch. Every other name is
    taken at its word. The result says what was chosen.

    Args:
        name: "auto", "faiss-cpu", "faiss-gpu" or "torch".
        device: A torch device; the processor when left out, or the first GPU for faiss-gpu.

    Raises:
        KeMetricError: RECIPE for an unknown name; ENVIRONMENT when FAISS is missing, broken or doubled, when
            faiss-gpu sees no GPU, or when the device is not there.
    """
    place = str(device or ("cuda" if name == "faiss-gpu" else "cpu"))
    if name == "auto":
        name = "faiss-cpu" if place.partition(":")[0] == "cpu" and is_installed() else "torch"
    backend = Backend(name, "cpu" if name == "faiss-cpu" else place)
    if name != "torch":
        _require_faiss(backend)
    _require_device(backend.device)
    return backend


@contextmanager
def exact_products(device: str) -> Iterator[None]:
    """Compute matrix products in full float32 inside the block, whatever training has switched on.

    TF32 and bfloat16 keep 10 and 7 bits of a fraction, too few to tell close neighbours apart.

    Args:
        device: The device that computes.
    """
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.mkldnn.matmul)
    # One by one and not by torch.set_float32_matmul_precision, whose getter raises where a user has set these.
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _require_faiss(backend: Backend) -> None:
    library = describe_faiss()
    if backend.name == "faiss-gpu" and library.gpus == 0:
        raise KeMetricError(
            f"backend = 'faiss-gpu', but {library.distribution} {library.version} sees no GPU; "
            "use 'torch' or 'faiss-cpu', or install faiss-gpu in place of faiss-cpu on a machine with an NVIDIA GPU",
            ExitCode.ENVIRONMENT,
        )


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch built without CUDA answers a request for it with an AssertionError.
        raise KeMetricError(
            f"device = {device!r} cannot be used: {str(error).splitlines()[0]}", ExitCode.ENVIRONMENT
        ) from error
