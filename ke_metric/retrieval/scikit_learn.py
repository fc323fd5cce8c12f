"""The embedder as a scikit-learn transformer: pictures in, embeddings out, at home in a Pipeline.

Shapes: N pictures, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from ke_metric.arrays import FloatArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Picture
from ke_metric.retrieval.embedder import Embedder


class EmbeddingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns pictures into embeddings inside scikit-learn.

    `fit` learns nothing, it loads the network. A pickle holds the parameters and the network's digest, not the
    network, which is loaded again from `source` when it is needed; another network found there is refused.
    scikit-learn's `check_estimator` does not apply: it feeds tables of numbers, and pictures are paths, PIL images or
    arrays of three axes.

    Args:
        source: As the following four, of `Embedder.load`.
        generation: Number of a generation, `last` or `best`; None: the best one whose weights were kept.
        network: `slim` or `dense`; None: the one with the better score.
        rate: Split rate of the slim network; None: `split.rate`.
        device: Where the network runs.
        batch_size: Pictures per forward pass; the embedder's own when None.

    Attributes:
        embedder_: The embedder, once fitted.
        digest_: Its digest.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        generation: int | str | None = None,
        network: str | None = None,
        rate: float | None = None,
        device: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.source = source
        self.generation = generation
        self.network = network
        self.rate = rate
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Load the network; the arguments are not looked at."""
        self.embedder_ = self._load()
        self.digest_ = self.embedder_.digest
        return self

    def transform(self, X: Picture | Iterable[Picture]) -> FloatArray:
        """Return the embeddings of N pictures, in order, float32 [N, D], L2-normalised.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used, or the network that is at `source` now
                is another one than when this was fitted.
        """
        check_is_fitted(self, "digest_")
        parts = [batch.vectors for batch in self._loaded().stream(X, batch_size=self.batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, self._n_features_out), np.float32)

    def _load(self) -> Embedder:
        return Embedder.load(self.source, self.generation, self.network, rate=self.rate, device=self.device)

    def _loaded(self) -> Embedder:
        if not hasattr(self, "embedder_"):
            embedder = self._load()
            if embedder.digest != self.digest_:
                raise KeMetricError(
                    f"{self.source}: holds another network than when this transformer was fitted (digest "
                    f"{embedder.digest[:12]}, it was {self.digest_[:12]}); fit it again",
                    ExitCode.DATA,
                )
            self.embedder_ = embedder
        return self.embedder_

    @property
    def _n_features_out(self) -> int:
        """Number of features, by the name under which scikit-learn looks for it."""
        return self._loaded().dimension

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "embedder_"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags
