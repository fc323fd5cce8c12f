"""NMI and AMI: how well clusters agree with classes.

Shapes: N items, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import entr, gammaln

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.evaluation.backend import Backend
from ke_metric.evaluation.kmeans import assign_clusters, nearness_seconds

LONG_SECONDS = 30
"""How long clustering may take without a word beforehand."""
PASSES = 4
"""Comparisons of all items with all centroids that a k-means amounts to: one for its start, and two or three of Lloyd
iterations; more where classes are few and large, which takes no time."""


@dataclass(frozen=True)
class ClusterScores:
    """NMI and AMI of one k-means per seed.

    Attributes:
        nmi: Normalised mutual information per seed, in [0, 1].
        ami: Mutual information adjusted for chance per seed, at most 1 and about 0 (a little below, too) for clusters
            that know nothing of the classes.
    """

    nmi: tuple[float, ...]
    ami: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """Return the means as `nmi` and `ami`, and with two or more seeds the sample deviations as `*_std`."""
        scores = {"nmi": float(np.mean(self.nmi)), "ami": float(np.mean(self.ami))}
        if len(self.nmi) > 1:
            scores["nmi_std"] = float(np.std(self.nmi, ddof=1))
            scores["ami_std"] = float(np.std(self.ami, ddof=1))
        return scores


def score_clusters(
    vectors: FloatArray,
    labels: IntArray,
    seeds: Sequence[int],
    *,
    backend: Backend,
    tell: Callable[[str], object] | None = None,
) -> ClusterScores | None:
    """Cluster with k-means, once per seed, into as many clusters as there are classes, and compare the two.

    Args:
        vectors: [N, D] float32, L2-normalised.
        labels: [N] int64.
        seeds: One k-means for each; equal seeds give equal scores.
        backend: What clusters.
        tell: Called with a line before a clustering that will take long.

    Returns:
        The scores, or None when there are no seeds or nothing to compare: one class only, or a class per item.

    Raises:
        KeMetricError: As `assign_clusters`.
    """
    classes = len(np.unique(labels))
    if not seeds or classes < 2 or classes == len(labels):
        return None
    if tell is not None:
        seconds = PASSES * len(seeds) * nearness_seconds(vectors, classes, backend=backend)
        if seconds > LONG_SECONDS:
            runs = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
            tell(f"k-means: {runs} x {len(vectors):,} items in {classes:,} clusters, about {seconds:,.0f} s")
    found = [compare_clusters(labels, assign_clusters(vectors, classes, seed, backend=backend)) for seed in seeds]
    nmi, ami = zip(*found, strict=True)
    return ClusterScores(nmi, ami)


def compare_clusters(labels: IntArray, clusters: IntArray) -> tuple[float, float]:
    """Return NMI and AMI of classes and clusters, both [N].

    Formulas, with mutual information I and entropy H of clusters U and classes V, and M = (H(U) + H(V)) / 2:
    NMI = I(U, V) / M (scikit-learn's default since 0.22; some older papers divide by the geometric mean) and
    AMI = (I - E[I]) / (M - E[I]), E[I] being the mean over random clusters of these sizes (Vinh, Epps, Bailey, JMLR
    2010). As in scikit-learn both are 1 for a single class in a single cluster, and 0 where only one of the two is
    single. They are 1 where all classes and clusters have one item, too: AMI is 0/0 there, and scikit-learn's is
    whatever rounding makes of that.
    """
    # scikit-learn takes a second to import.
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, clusters, sparse=True, dtype=np.int64)
    if table.shape in ((1, 1), (len(labels), len(labels))):
        return 1.0, 1.0
    if 1 in table.shape:
        return 0.0, 0.0
    mutual = mutual_info_score(None, None, contingency=table)
    sizes = [np.asarray(table.sum(axis=axis)).ravel() for axis in (0, 1)]
    mean = sum(float(entr(each / len(labels)).sum()) for each in sizes) / 2
    chance = expected_mutual_information(*sizes)
    return float(mutual / mean), float((mutual - chance) / (mean - chance))


def expected_mutual_information(sizes: IntArray, others: IntArray) -> float:
    r"""Return E[I] in nats over all ways to fill classes and clusters of these sizes, each adding up to N.

    Formula, with a and b running over the sizes of classes and clusters:
    $\sum_{a, b} \sum_{n} \frac{n}{N} \ln\frac{N n}{a b} \, \binom{a}{n} \binom{N - a}{b - n} / \binom{N}{b}$.
    Source: Vinh, Epps, Bailey, JMLR 2010, theorem 2. Sizes repeat: a term is computed once for each pair of
    *different* sizes, of which there are at most 2 N, and counted as often as the pair occurs.
    """
    count = int(sizes.sum())
    assert count == others.sum(), (count, others.sum())
    (rows, row_counts), (columns, column_counts) = (np.unique(each, return_counts=True) for each in (sizes, others))
    log_factorial = gammaln(np.arange(count + 1) + 1.0)
    total = 0.0
    for a, times in zip(rows.tolist(), row_counts.tolist(), strict=True):
        fewest = np.maximum(1, a + columns - count)
        terms = np.minimum(a, columns) - fewest + 1
        first = np.cumsum(terms) - terms
        # All n of all b in one row.
        n = np.arange(terms.sum()) + np.repeat(fewest - first, terms)
        b = np.repeat(columns, terms)
        log_chance = log_factorial[a] + log_factorial[b] + log_factorial[count - a] + log_factorial[count - b]
        log_chance -= log_factorial[count] + log_factorial[n] + log_factorial[a - n] + log_factorial[b - n]
        log_chance -= log_factorial[count - a - b + n]
        means = n / count * np.log(count * n / (a * b)) * np.exp(log_chance)
        total += times * float(np.repeat(column_counts, terms) @ means)
    return total
