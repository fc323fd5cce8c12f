"""Scores of clusters: NMI and AMI of k-means with as many clusters as there are classes.

Shapes: N items, D embedding, C classes (and clusters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ke_metric.evaluation.backend import Backend
from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.evaluation.kmeans import assign_clusters


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

    NMI depends on the k-means by about a point: see `evaluation/kmeans.py` for ours.

    Args:
        vectors: [N, D] float32, L2-normalised.
        labels: [N] int64.
        seeds: One k-means for each, at least 0; equal seeds give equal scores.
        backend: What clusters.

    Returns:
        The scores, or None when there are no seeds or nothing to compare: one class only, or a class per item.

    Raises:
        KeMetricError: RECIPE for a negative seed; ENVIRONMENT for FAISS missing or broken.
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
