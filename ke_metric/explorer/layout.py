"""Where pictures lie on the map: the first two principal components of their embeddings, turned to fit together.

Signs and order of principal components are arbitrary, so that the maps of two generations would be turned and
mirrored against each other; each is turned onto the one beside it (orthogonal Procrustes), and a picture moves no
farther than its embedding makes it.

Shapes: N pictures, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from ke_metric.arrays import FloatArray

MOST_COMPONENTS = 1024
"""Up to so many numbers of an embedding the components are exact; beyond, a covariance would take longer than all."""


@dataclass(frozen=True, eq=False)
class PlanarMap:
    """Pictures in a plane.

    Attributes:
        positions: [N, 2] float32 within the unit circle.
        share: Of the variance of the embeddings that the plane shows, in [0, 1].
    """

    positions: FloatArray
    share: float


def map_of(vectors: FloatArray) -> PlanarMap:
    """Return the map of embeddings [N, D] by their first two principal components; one picture lies in the middle."""
    if min(vectors.shape) < 2:
        return PlanarMap(np.zeros((len(vectors), 2), np.float32), 0.0)
    solver = "covariance_eigh" if vectors.shape[1] <= MOST_COMPONENTS else "randomized"
    components = PCA(2, svd_solver=solver, random_state=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # of equal vectors no variance is shown
        placed = components.fit_transform(vectors)
        share = float(np.nan_to_num(components.explained_variance_ratio_.sum()))
    radius = float(np.linalg.norm(placed, axis=1).max())
    return PlanarMap((placed / (radius or 1.0)).astype(np.float32), share)


def turned_onto(turned: PlanarMap, fixed: PlanarMap) -> PlanarMap:
    """Return a map, turned and mirrored about its middle so that its pictures lie nearest to where `fixed` has them.

    Args:
        turned: The map.
        fixed: A map of the same pictures in the same order.
    """
    left, _, right = np.linalg.svd(turned.positions.T.astype(np.float64) @ fixed.positions)
    return PlanarMap((turned.positions @ (left @ right)).astype(np.float32), turned.share)
