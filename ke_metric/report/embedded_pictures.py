"""Pictures of a benchmark inside the page: small, as data URIs, each encoded once."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from ke_metric.report.outcomes import Outcomes
from ke_metric.report.page_parts import ShownAnswer, ShownPicture, score_text
from ke_metric.report.vectors import LineageVectors

SIDE = 96
"""Longest side in pixels, of what is shown at half of that or a little more."""
QUALITY = 78
NEIGHBORS = 5


class EmbeddedPictures:
    """The pictures of a lineage's test part, and what its networks answered, as the page shows them."""

    def __init__(self, vectors: LineageVectors) -> None:
        self._vectors = vectors
        self._sources: dict[tuple[str, int], str] = {}

    @property
    def _classifies(self) -> bool:
        return self._vectors.benchmark.task == "classification"

    def query(self, position: int) -> ShownPicture:
        """Return a query."""
        return self._shown("query", position)

    def answer(self, outcomes: Outcomes, position: int, network: str) -> ShownAnswer:
        """Return what a network answered to a query.

        Args:
            outcomes: Of the network.
            position: Of the query.
            network: What the page calls the network.
        """
        names = self._vectors.benchmark.query.class_names
        label = int(outcomes.predicted[position])
        right = label == int(self._vectors.benchmark.query.labels[position])
        taken = names[label] if label >= 0 else "nothing"
        if self._classifies:
            return ShownAnswer(network, f"taken for {taken}", right)
        return ShownAnswer(network, _verdict(outcomes, position), right, self._neighbors(outcomes, position))

    def _neighbors(self, outcomes: Outcomes, position: int) -> Sequence[ShownPicture]:
        found = outcomes.neighbors[position][:NEIGHBORS]
        return [
            self._shown(
                "gallery",
                int(item),
                bool(outcomes.right[position][rank]),
                float(outcomes.similarities[position][rank]),
            )
            for rank, item in enumerate(found)
            if item >= 0
        ]

    def _shown(
        self,
        part: Literal["query", "gallery"],
        position: int,
        right: bool | None = None,
        similarity: float | None = None,
    ) -> ShownPicture:
        images = getattr(self._vectors.benchmark, part)
        label = images.class_names[int(images.labels[position])]
        return ShownPicture(self._source(part, position), images.keys[position], label, right, similarity)

    def _source(self, part: Literal["query", "gallery"], position: int) -> str:
        stored = "query" if self._vectors.benchmark.leave_one_out else part
        if (stored, position) not in self._sources:
            self._sources[stored, position] = data_uri(self._vectors.picture(part, position))
        return self._sources[stored, position]


def _verdict(outcomes: Outcomes, position: int) -> str:
    ranks = [rank for rank, right in enumerate(outcomes.right[position], start=1) if right]
    found = f"first right at rank {ranks[0]}" if ranks else f"none right in {outcomes.right.shape[1]}"
    precision = outcomes.scores["map@r"][position] if "map@r" in outcomes.scores else math.nan
    return found if math.isnan(precision) else f"{found}, MAP@R\u00a0{score_text('map@r', precision)}\u00a0%"


def data_uri(picture: Image.Image) -> str:
    """Return a picture, made smaller where it is large, as the data URI of a WebP."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
