"""NMI and AMI of clusters, found by a k-means that gives the same ones for the same seed.

There are as many clusters as classes. NMI depends on the k-means by about a point, so ours is written down here.

Shapes: N items, D embedding, C classes, and clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import Backend, exact_products, load_faiss
from ke_metric.evaluation.embeddings import row_chunks

ITERATIONS = 25
"""Lloyd iterations of one k-means, the default of FAISS."""


def assign_clusters(vectors: FloatArray, clusters: int, seed: int, *, backend: Backend) -> IntArray:
    """Run k-means with Euclidean distances and return the cluster of each item.

    The start is k-means++ (Arthur, Vassilvitskii, SODA 2007), the same for every backend. 25 Lloyd iterations follow:
    in FAISS on the processor for the FAISS backends, whose GPU assignments depend on the batch
    (facebookresearch/faiss#3818); in torch on the backend's device for torch.

    Args:
        vectors: [N, D] float32, L2-normalised.
        clusters: Number of clusters C, at least 2 and below N.
        seed: Seed of the start, at least 0.
        backend: What clusters. Memory beside the inputs: O(N x D) for FAISS, O(N x D + chunk x C) for torch.

    Returns:
        [N] int64 in 0 .. C - 1.

    Raises:
        KeMetricError: RECIPE for a negative seed; ENVIRONMENT for FAISS missing or broken.
    """
    assert 2 <= clusters < len(vectors), (clusters, len(vectors))
    if seed < 0:
        raise KeMetricError(f"k-means seed = {seed}, must be at least 0", ExitCode.RECIPE)
    start = vectors[draw_start(vectors, clusters, seed, device="cpu" if backend.name != "torch" else backend.device)]
    return _torch_clusters(vectors, start, backend) if backend.name == "torch" else _faiss_clusters(vectors, start)


def draw_start(vectors: FloatArray, clusters: int, seed: int, *, device: str) -> IntArray:
    """Draw the [C] items k-means++ starts from: each with probability in proportion to its squared distance from the
    nearest one drawn before. Distances are computed on `device`.
    """
    generator = np.random.default_rng(seed)
    drawn = [int(generator.integers(len(vectors)))]
    with exact_products(device):
        resident = torch.from_numpy(vectors).to(device)
        nearest = torch.full((len(vectors),), torch.inf, device=device)
        for share in generator.random(clusters - 1):
            # |a - b|² = 2 - 2 a·b on the unit sphere; rounding may take it below 0.
            squared = (2 - 2 * (resident @ resident[drawn[-1]])).clamp(min=0)
            nearest = torch.minimum(nearest, squared)
            # Summed on the processor: GPUs add up in a different order each time.
            reached = np.cumsum(nearest.cpu().numpy(), dtype=np.float64)
            drawn.append(min(int(np.searchsorted(reached, share * reached[-1], side="right")), len(vectors) - 1))
    return np.array(drawn, dtype=np.int64)


def _faiss_clusters(vectors: FloatArray, start: FloatArray) -> IntArray:
    kmeans = load_faiss().Kmeans(
        vectors.shape[1],
        len(start),
        niter=ITERATIONS,
        spherical=False,
        # All items count, in classes of any size; FAISS would sample above 256 per cluster and warn below 39.
        max_points_per_centroid=len(vectors),
        min_points_per_centroid=1,
    )
    kmeans.train(vectors, init_centroids=start)
    _, found = kmeans.assign(vectors)
    clusters: IntArray = found
    return clusters


def _torch_clusters(vectors: FloatArray, start: FloatArray, backend: Backend) -> IntArray:
    centroids = start
    clusters = _nearest(vectors, centroids, backend)
    for _ in range(ITERATIONS):
        centroids = _means(vectors, clusters, centroids)
        previous, clusters = clusters, _nearest(vectors, centroids, backend)
        if np.array_equal(previous, clusters):
            break
    return clusters


def _nearest(vectors: FloatArray, centroids: FloatArray, backend: Backend) -> IntArray:
    """Return the nearest centroid of each item: smallest |v - c|², that is largest v·c - |c|²/2."""
    nearest = np.empty(len(vectors), dtype=np.int64)
    with exact_products(backend.device):
        places = torch.from_numpy(centroids).to(backend.device)  # [C, D]
        half_squares = places.square().sum(dim=1) / 2
        for rows in row_chunks(len(vectors), backend.chunk):
            products = torch.from_numpy(vectors[rows]).to(backend.device) @ places.T  # [chunk, C]
            nearest[rows] = (products - half_squares).argmax(dim=1).cpu().numpy()
    return nearest


def _means(vectors: FloatArray, clusters: IntArray, previous: FloatArray) -> FloatArray:
    """Return the mean of each cluster; an empty one keeps its centroid.

    Sums are taken on the processor in item order: on a GPU they would be added up in a different order each time.
    """
    by_cluster = np.argsort(clusters, kind="stable")
    present, first, sizes = np.unique(clusters[by_cluster], return_index=True, return_counts=True)
    sums: FloatArray = np.add.reduceat(vectors[by_cluster], first, axis=0)
    means = previous.copy()
    means[present] = sums / sizes[:, None].astype(np.float32)
    return means


@dataclass(frozen=True)
class ClusterScores:
    """NMI and AMI of one k-means per seed.

    Attributes:
        nmi: Normalised mutual information per seed, in [0, 1].
        ami: Mutual information adjusted for chance per seed, at most 1 and about 0 (a little below, too) for clusters
            that know nothing of the classes.
        library: What ran the Lloyd iterations: "faiss" or "torch".
    """

    nmi: tuple[float, ...]
    ami: tuple[float, ...]
    library: str

    def summary(self) -> dict[str, float]:
        """Return the means as `nmi` and `ami`, and with two or more seeds the sample deviations as `*_std`."""
        scores = {"nmi": float(np.mean(self.nmi)), "ami": float(np.mean(self.ami))}
        if len(self.nmi) > 1:
            scores["nmi_std"] = float(np.std(self.nmi, ddof=1))
            scores["ami_std"] = float(np.std(self.ami, ddof=1))
        return scores


def score_clusters(
    vectors: FloatArray, labels: IntArray, seeds: Sequence[int], *, backend: Backend
) -> ClusterScores | None:
    """Cluster with k-means, once per seed, and compare the clusters with the classes.

    Formulas, with mutual information I and entropy H of clusters U and classes V, and M = (H(U) + H(V)) / 2:
    NMI = I(U, V) / M (scikit-learn's default since 0.22; some older papers divide by the geometric mean) and
    AMI = (I - E[I]) / (M - E[I]), E[I] being the mean over random clusters of these sizes (Vinh, Epps, Bailey, JMLR
    2010).

    Args:
        vectors: [N, D] float32, L2-normalised.
        labels: [N] int64.
        seeds: One k-means for each; equal seeds give equal scores.
        backend: What clusters.

    Returns:
        The scores, or None when there are no seeds or nothing to compare: one class only, or a class per item.

    Raises:
        KeMetricError: As `assign_clusters`.
    """
    classes = len(np.unique(labels))
    if not seeds or classes < 2 or classes == len(labels):
        return None
    found = [assign_clusters(vectors, classes, seed, backend=backend) for seed in seeds]
    # scikit-learn takes a second to import.
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    return ClusterScores(
        nmi=tuple(float(normalized_mutual_info_score(labels, clusters)) for clusters in found),
        ami=tuple(float(adjusted_mutual_info_score(labels, clusters)) for clusters in found),
        library="torch" if backend.name == "torch" else "faiss",
    )
