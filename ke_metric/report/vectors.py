"""The vectors that every network of a lineage gives its queries and its gallery, computed once.

They come from the code that scores, so that what is shown of them has the scores of the scorecards. A training keeps
them where its recipe says so (`evaluation.keep_vectors`); else they are computed from weights that were kept, and
stored in the lineage's folder `vectors/` under a digest of all that they depend on: nothing there is ever out of
date, and it may be deleted.

Shapes: Q queries, G gallery items, N items, D embedding, C classes.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, Self

from PIL import Image

from ke_metric.arrays import FloatArray, weights_digest
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.disk import disk_error, write_bytes
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import choose_backend
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.generation import rate_text, slim_name
from ke_metric.images.decoding import Progress
from ke_metric.images.image_set import Benchmark, without_training
from ke_metric.images.kept_stores import KeptStores
from ke_metric.images.pixel_store import Pictures, fingerprint
from ke_metric.lineage.files import read_vectors, vectors_content
from ke_metric.lineage.folder import VECTORS
from ke_metric.lineage.identity import GenerationIdentities
from ke_metric.lineage.store import Lineage
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.report.outcomes import Outcomes, classification_outcomes, retrieval_outcomes
from ke_metric.retrieval.network_choice import further_rates
from ke_metric.scoring import Scorer
from ke_metric.training.engine import Engine


class LineageVectors:
    """The vectors of a lineage's networks, and the pictures that they are of. Made by `open`.

    Attributes:
        lineage: Whose.
        pictures: What is scored, decoded; without the training part.
        changes: What has changed in the data since the lineage was begun, a sentence each.
        unwritten: Why vectors that were computed could not be stored; None where they could.
    """

    def __init__(
        self, lineage: Lineage, pictures: Pictures, changes: list[str], *, device: str | None = None
    ) -> None:
        self.lineage, self.pictures, self.changes = lineage, pictures, changes
        self.unwritten: str | None = None
        self._recipe, self._device = lineage.recipe, device
        self._identities = GenerationIdentities(lineage)
        self._digests: dict[int, str] = {}
        self._vectors: dict[tuple[int, str], tuple[FloatArray, FloatArray]] = {}
        self._outcomes: dict[tuple[int, str], Outcomes] = {}

    @classmethod
    def open(cls, lineage: Lineage, *, device: str | None = None, progress: Progress | None = None) -> Self:
        """Read and decode the pictures that a lineage is scored on.

        Args:
            lineage: Whose vectors are asked for.
            device: A torch device, where vectors have to be computed.
            progress: Called with the pictures decoded and all of them.

        Raises:
            KeMetricError: The data are missing or cannot be read, or a classifier's classes are not those that it was
                trained on.
        """
        data, task = lineage.recipe.data, lineage.recipe.task
        complete = load_benchmark(data, task)
        lineage.require_classes(fingerprint(complete))
        pictures = Pictures.decode(
            without_training(complete),
            data.store_size,
            store_shape=data.store_shape,
            progress=progress,
            # A training has kept them, or they are soon decoded.
            build=KeptStores.of_environment(keeps=False).store,
        )
        now, before = fingerprint(complete, pictures.contents), lineage.data
        changes = lineage.data_contradictions(now) if before is None else before.tested.changes(now.tested)
        return cls(lineage, pictures, changes, device=device)

    @property
    def benchmark(self) -> Benchmark:
        """Keys, labels and class names of queries and gallery."""
        return self.pictures.benchmark

    @cached_property
    def networks(self) -> list[tuple[int, str]]:
        """Generation and name, `dense`, `slim` or `slim 0.25`, of every network whose vectors can be had."""
        found = []
        for number in self.lineage.numbers:
            if self.lineage.has_weights(number) or (self.lineage.has_vectors(number) and not self.changes):
                found += [(number, name) for name in self.lineage.scorecard(number).networks]
        return found

    def vectors(self, number: int, name: str) -> tuple[FloatArray, FloatArray]:
        """Return the embeddings of the queries [Q, D] and of the gallery [G, D], one array where they are one set.

        Of a classification these are the logits [N, C], twice.

        Args:
            number: Of a generation.
            name: Of its network, as in `networks`.

        Raises:
            KeMetricError: It is none of `networks`, a file of vectors is damaged, or the lineage was trained anew.
        """
        self._require(number, name)
        key = number, name
        if key not in self._vectors:
            found = self._kept(number, name) or self._computed(number, name)
            self.require_same(number)
            self._vectors[key] = found
        return self._vectors[key]

    def require_same(self, number: int) -> None:
        """Check that what was read of a generation just now is what was there when this was opened.

        Raises:
            KeMetricError: The lineage was trained anew: vectors of the two trainings must not meet.
        """
        self._identities.require_same(number)

    def outcomes(self, number: int, name: str) -> Outcomes:
        """Return what became of every query with a network; see `vectors`."""
        key = number, name
        if key not in self._outcomes:
            query, gallery = self.vectors(number, name)
            self._outcomes[key] = self._outcomes_of(query, gallery)
        return self._outcomes[key]

    def picture(self, part: str, position: int) -> Image.Image:
        """Return a picture of a part, `query` or `gallery`, as it is decoded for scoring (`data.store_size`)."""
        store = {"query": self.pictures.query, "gallery": self.pictures.gallery}[part]
        return Image.fromarray(store.picture(position))

    def digest(self, number: int, name: str) -> str:
        """Return the SHA-256 of all that a network's vectors depend on: its weights, the recipe, the pictures."""
        self._require(number, name)
        if number not in self._digests:
            self._digests[number] = self._digest_of(number)
        return hashlib.sha256(f"{self._digests[number]} {name}".encode()).hexdigest()

    def _outcomes_of(self, query: FloatArray, gallery: FloatArray) -> Outcomes:
        parts, recipe = self.benchmark, self._recipe
        if recipe.task == "classification":
            return classification_outcomes(query, parts.query.labels)
        queries = Embeddings(query, parts.query.labels, parts.query.keys)
        searched = None if parts.leave_one_out else Embeddings(gallery, parts.gallery.labels, parts.gallery.keys)
        backend = choose_backend(recipe.evaluation.backend, self._scorer.engine.device)
        return retrieval_outcomes(queries, searched, recipe.evaluation.recall_at, backend=backend)

    def _require(self, number: int, name: str) -> None:
        if (number, name) in self.networks:
            return
        there = ", ".join(f"generation {own} {network}" for own, network in self.networks) or "none"
        raise KeMetricError(
            f"{self.lineage.folder}: generation {number} {name}: no vectors can be had of it, of: {there}; a recipe "
            "with keep: all keeps all weights, one with evaluation.keep_vectors: true all vectors",
            ExitCode.LINEAGE,
        )

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self.pictures, self._recipe, Engine("fp32", self._device))

    def _kept(self, number: int, name: str) -> tuple[FloatArray, FloatArray] | None:
        """Return what the training kept; None where it kept none, or of other pictures."""
        return None if self.changes else self.lineage.kept_vectors(number, name)

    def _computed(self, number: int, name: str) -> tuple[FloatArray, FloatArray]:
        """Return what was stored after the training, or compute and store it."""
        path = self.lineage.folder / VECTORS / f"{self.digest(number, name)}.safetensors"
        if path.exists():
            found = read_vectors(path, name)
            assert found is not None, f"{path} holds another network's vectors"
            return found
        generation, recipe = self.lineage.load(number), self._recipe
        networks = LineageNetworks(recipe, len(generation.provenance.class_names))
        scorer = self._scorer
        network, plan = networks.restore(generation, device=scorer.engine.device)
        # All of it is kept, as in a last generation that is slim already: the same network.
        if name != "dense" and (name != "slim" or plan.reset_count):
            rates = {slim_name(rate_text(rate)): rate for rate in further_rates(recipe, number)}
            network = networks.slim(network, generation, rates.get(name))
        found = scorer.vectors(network)
        self.require_same(number)
        try:
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, vectors_content({name: found}))
        except OSError as error:
            self.unwritten = str(disk_error(path, error))
        except KeMetricError as error:
            self.unwritten = str(error)
        return found

    def _digest_of(self, number: int) -> str:
        generation = self.lineage.load(number)
        facts: dict[str, Any] = {
            "recipe": self._recipe.digest,
            "weights": weights_digest(generation.weights),
            "repairs": {rate: weights_digest(each.tensors) for rate, each in sorted(generation.repairs.items())},
            "data": fingerprint(self.benchmark, self.pictures.contents).tested.describe(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
