"""Exact nearest neighbours, searched by FAISS on the processor, FAISS on a GPU, or torch on any device.

All three find the same, ties aside. This is the only module that imports FAISS, which may be missing, doubled or
broken. The distributions faiss-cpu and faiss-gpu write into the same `faiss/` folder: with both installed the import
still succeeds, on a mixture of files, and GPU search breaks later (facebookresearch/faiss#2892). So that is checked
before.

Shapes: Q queries, G gallery items, D embedding, K neighbours.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

# FAISS built for CUDA 12 and imported before torch built for CUDA 13 ended in a segmentation fault
# (torchgeo/torchgeo-bench#152), so torch always comes first.
import torch

from ke_metric.arrays import FloatArray, IntArray, ItemIds, row_chunks
from ke_metric.errors import ExitCode, KeMetricError, closest

DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
"""Names under which pip installs FAISS."""
BACKENDS = ("faiss-cpu", "faiss-gpu", "torch")
FAISS_GPU_MAX_NEIGHBORS = 2048
"""Most neighbours per query that GPU FAISS returns (facebookresearch/faiss#2103)."""
Lookup = Callable[[FloatArray, int], tuple[FloatArray, IntArray]]
"""Queries [Q, D] and a depth to (similarities, indices), both [Q, depth], most similar first."""


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


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def is_installed() -> bool:
    """Return whether there is a `faiss` package to import; it may still turn out to be broken."""
    return importlib.util.find_spec("faiss") is not None


def load_faiss() -> ModuleType:
    """Import FAISS, after torch, and return the module.

    Raises:
        KeMetricError: ENVIRONMENT, with the command that mends it, when FAISS is missing, when two distributions
            share its folder, or when its import fails.
    """
    names = installed_distributions()
    if len(names) > 1:
        raise KeMetricError(
            f"{' and '.join(names)} are installed together; they share the folder faiss/ and break each other. "
            f"Keep one: `{repair_command(names)}`",
            ExitCode.ENVIRONMENT,
        )
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
            f"FAISS is installed but cannot be imported ({error}): `{repair_command(names)}`, or use the backend "
            "'torch'",
            ExitCode.ENVIRONMENT,
        ) from error
    module: ModuleType = faiss
    return module


def repair_command(present: tuple[str, ...]) -> str:
    """Return the command that leaves one intact distribution: the last, since faiss-gpu holds all of faiss-cpu."""
    names = present or ("faiss-cpu",)
    return f"pip uninstall -y {' '.join(names)} && pip install --force-reinstall --no-deps {names[-1]}"


def describe_faiss() -> FaissLibrary:
    """Return distribution, version and number of GPUs of the installed FAISS.

    Raises:
        KeMetricError: ENVIRONMENT, as `load_faiss`.
    """
    faiss = load_faiss()
    names = installed_distributions()
    return FaissLibrary(names[0] if names else "unknown", str(faiss.__version__), int(faiss.get_num_gpus()))


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
    taken at its word.

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
    try:
        torch.empty(0, device=backend.device)
    except (RuntimeError, AssertionError) as error:
        # torch built without CUDA answers a request for it with an AssertionError.
        raise KeMetricError(
            f"device = {backend.device!r} cannot be used: {str(error).splitlines()[0]}", ExitCode.ENVIRONMENT
        ) from error
    return backend


def _require_faiss(backend: Backend) -> None:
    library = describe_faiss()
    if backend.name == "faiss-gpu" and library.gpus == 0:
        raise KeMetricError(
            f"backend = 'faiss-gpu', but {library.distribution} {library.version} sees no GPU; "
            "use 'torch' or 'faiss-cpu', or install faiss-gpu in place of faiss-cpu on a machine with an NVIDIA GPU",
            ExitCode.ENVIRONMENT,
        )


@contextmanager
def exact_products(device: str) -> Iterator[None]:
    """Compute matrix products on a device in full float32 inside the block, whatever training has switched on.

    TF32 and bfloat16 keep 10 and 7 bits of a fraction, too few to tell close neighbours apart.
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


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The K most similar gallery items of each query, most similar first.

    Attributes:
        indices: [Q, K] int64 positions in the gallery; -1 where a query has fewer than K neighbours.
        similarities: [Q, K] float32 cosine similarities, never rising along a row; -inf where the index is -1.
    """

    indices: IntArray
    similarities: FloatArray

    def __post_init__(self) -> None:
        assert self.indices.dtype == np.int64, self.indices.dtype
        assert self.similarities.dtype == np.float32, self.similarities.dtype
        assert self.indices.ndim == 2, self.indices.shape
        assert self.indices.shape == self.similarities.shape, (self.indices.shape, self.similarities.shape)
        assert bool((self.similarities[:, 1:] <= self.similarities[:, :-1]).all()), "similarities rise along a row"
        assert bool(((self.indices == -1) == np.isneginf(self.similarities)).all()), "padding is not -1 with -inf"
        assert bool((self.indices >= -1).all()), "negative gallery position"


def find_self_matches(query_ids: ItemIds | None, gallery_ids: ItemIds | None) -> IntArray | None:
    """Return for each query the gallery position of the same picture: [Q] int64, -1 where there is none.

    None when neither side has ids, that is when query and gallery share no picture.

    Raises:
        KeMetricError: DATA when only one side has ids, or when one side's are str and the other's int.
    """
    if query_ids is None and gallery_ids is None:
        return None
    kinds = [None if ids is None else type(ids[0]).__name__ for ids in (query_ids, gallery_ids)]
    if query_ids is None or gallery_ids is None or kinds[0] != kinds[1]:
        raise KeMetricError(
            f"item ids of the queries: {kinds[0]}, of the gallery: {kinds[1]}; give both sides ids of the same type, "
            "or none where query and gallery share no picture",
            ExitCode.DATA,
        )
    position = {item: index for index, item in enumerate(gallery_ids)}
    return np.array([position.get(item, -1) for item in query_ids], dtype=np.int64)


def search(
    query: FloatArray, gallery: FloatArray, k: int, *, backend: Backend, self_match: IntArray | None = None
) -> Neighbors:
    """Find the k gallery items with the largest inner product with each query, exactly.

    The query's own picture is left out wherever it ranks; another picture that looks the same stays in. Which of
    several equally similar items comes first, or is the last to get in, depends on the backend.

    Memory beside the inputs and the result (12 bytes x Q x k): O(chunk x k) for FAISS, O(chunk x G) for torch, on
    whose device a copy of the gallery lies as well; `chunk` is the backend's.

    Args:
        query: [Q, D] float32, L2-normalised.
        gallery: [G, D] float32, L2-normalised.
        k: Neighbours per query, at least 1; where the gallery has fewer the rest of the row is padding.
        backend: What searches, from `choose_backend`.
        self_match: [Q] position in the gallery of the query's own picture, -1 for none (`find_self_matches`); None:
            no query is in the gallery.

    Raises:
        KeMetricError: ENVIRONMENT for faiss-gpu with more than 2048 neighbours; FAISS missing or broken.
    """
    assert query.ndim == gallery.ndim == 2, (query.shape, gallery.shape)
    assert query.shape[1] == gallery.shape[1], (query.shape, gallery.shape)
    assert query.dtype == gallery.dtype == np.float32, (query.dtype, gallery.dtype)
    assert k >= 1, k
    own = np.full(len(query), -1, dtype=np.int64) if self_match is None else self_match
    depth = min(k + bool((own >= 0).any()), len(gallery))
    width = min(k, depth)
    indices = np.full((len(query), k), -1, dtype=np.int64)
    similarities = np.full((len(query), k), -np.inf, dtype=np.float32)
    lookup = _LOOKUPS[backend.name](gallery, backend)
    for rows in row_chunks(len(query), backend.chunk):
        found = without_self(*lookup(query[rows], depth), own[rows])
        similarities[rows, :width], indices[rows, :width] = found[0][:, :width], found[1][:, :width]
    return Neighbors(indices, similarities)


def without_self(similarities: FloatArray, indices: IntArray, own: IntArray) -> tuple[FloatArray, IntArray]:
    """Move each query's own picture, where it was found, to the end of its row and turn it into padding.

    Args:
        similarities: [Q, K] float32, most similar first.
        indices: [Q, K] int64 positions in the gallery, or a store's numbers; -1 for padding.
        own: [Q] position of each query's own picture, -1 for none.
    """
    similarities, indices = similarities.copy(), indices.copy()
    rows, places = np.nonzero(indices == own[:, None])
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        for values, padding in ((similarities, -np.inf), (indices, -1)):
            values[row, place:-1] = values[row, place + 1 :]
            values[row, -1] = padding
    return similarities, indices


def _faiss_cpu_lookup(gallery: FloatArray, backend: Backend) -> Lookup:
    faiss = load_faiss()

    def lookup(query: FloatArray, depth: int) -> tuple[FloatArray, IntArray]:
        similarities, indices = faiss.knn(query, gallery, depth, faiss.METRIC_INNER_PRODUCT)
        return similarities, indices

    return lookup


def _faiss_gpu_lookup(gallery: FloatArray, backend: Backend) -> Lookup:
    faiss = load_faiss()
    place = faiss.GpuIndexFlatConfig()
    place.device = torch.device(backend.device).index or 0
    # The index uses the resources but does not own them: the closure keeps them alive.
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlatIP(resources, gallery.shape[1], place)
    index.add(gallery)

    def lookup(query: FloatArray, depth: int, resources: object = resources) -> tuple[FloatArray, IntArray]:
        if depth > FAISS_GPU_MAX_NEIGHBORS:
            raise KeMetricError(
                f"backend = 'faiss-gpu' returns at most {FAISS_GPU_MAX_NEIGHBORS} neighbours per query and "
                f"{depth} are needed (the largest class or K, and the query itself): use 'torch' or 'faiss-cpu'",
                ExitCode.ENVIRONMENT,
            )
        similarities, indices = index.search(query, depth)
        return similarities, indices

    return lookup


def _torch_lookup(gallery: FloatArray, backend: Backend) -> Lookup:
    resident = torch.from_numpy(gallery).to(backend.device)  # [G, D]

    def lookup(query: FloatArray, depth: int) -> tuple[FloatArray, IntArray]:
        with exact_products(backend.device):
            products = torch.from_numpy(query).to(backend.device) @ resident.T  # [chunk, G]
            similarities, indices = products.topk(depth, dim=1)
        return similarities.cpu().numpy(), indices.cpu().numpy()

    return lookup


_LOOKUPS: dict[str, Callable[[FloatArray, Backend], Lookup]] = {
    "faiss-cpu": _faiss_cpu_lookup,
    "faiss-gpu": _faiss_gpu_lookup,
    "torch": _torch_lookup,
}
