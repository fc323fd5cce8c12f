"""The embedder: pictures to embeddings, computed exactly as when the generation was scored.

Shapes: N pictures, B batch, D embedding, S image size in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ke_metric.added_fields import PREPARATION_FIELDS, without_values_before
from ke_metric.blueprint import Blueprint
from ke_metric.data.decoding import MAX_PIXELS
from ke_metric.data.pixels import PixelArray, in_order, normalize
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embed import embed
from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.generation import weights_digest
from ke_metric.lineage import Lineage, holds_lineage
from ke_metric.networks.architecture import Architecture
from ke_metric.networks.description import NetworkCard, Normalization, StoredSplit, read_description
from ke_metric.networks.storage import load_network, save_network
from ke_metric.retrieval.module import EmbedderModule
from ke_metric.retrieval.preparation import Picture, name_of, pictures_of, prepare, taken
from ke_metric.split.slim import extract_slim

BATCH_SIZE = 256
"""Pictures per forward pass of a bundle; for a lineage it is `evaluation.batch_size`, as when it was scored."""


@dataclass(frozen=True)
class BadPicture:
    """A picture that was left out.

    Attributes:
        position: Its number among the pictures given, from 0.
        name: Its path, or `picture N`.
        reason: Why, in words that name it.
    """

    position: int
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class EmbeddedBatch:
    """What became of a stretch of the pictures.

    Attributes:
        positions: [B] numbers among the pictures given, from 0, of those that were embedded.
        vectors: [B, D] float32, L2-normalised.
        bad: Those that were left out.
    """

    positions: IntArray
    vectors: FloatArray
    bad: tuple[BadPicture, ...]


class Embedder:
    """Turns pictures into the embeddings that a stored network gives them.

    Made by `load`. The network runs in eval mode and fp32, whatever it was trained in.

    Args:
        network: float32 [B, 3, S, S] to L2-normalised [B, D], in eval mode and on its device.
        architecture: How its dense network is built.
        card: Its split, and what becomes of a picture before the network sees it.
        batch_size: Pictures per forward pass.

    Attributes:
        network: The network.
        dimension: D.
        digest: SHA-256 of what the vectors depend on: architecture, weights, and the preparation of pictures. Vectors
            of one digest can be compared with each other, others cannot.
        description: Where it came from, in words.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: Architecture,
        card: NetworkCard,
        batch_size: int = BATCH_SIZE,
        description: str = "a network",
    ) -> None:
        size = architecture.embedding_size
        if size is None:
            raise KeMetricError(
                f"{description}: a classifier has logits, no embeddings; an embedder needs a network of task = "
                "'retrieval'",
                ExitCode.DATA,
            )
        if card.normalization is None:
            raise KeMetricError(
                f"{description}: its config.json does not say how pictures are prepared (normalization); save it "
                "again with NetworkCard(normalization=...)",
                ExitCode.DATA,
            )
        self.network = network.eval()
        self.dimension = size
        self.description = description
        self.batch_size = batch_size
        self._architecture, self._card = architecture, card
        self._normalization = card.normalization
        self.digest = _digest(network, architecture, self._normalization)

    @classmethod
    def load(
        cls,
        source: Path | str,
        generation: int | str = "last",
        network: str = "slim",
        *,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load the network of a lineage's generation, or of a bundle (`save`, `ke-metric slim`, `save_network`).

        Args:
            source: The folder of a lineage or of a bundle.
            generation: Number of a generation, `last` or `best`; of no meaning for a bundle, which is one network.
            network: `slim` or `dense`; of no meaning for a bundle.
            device: Where the network runs; the accelerator where there is one when None, else the processor.

        Raises:
            KeMetricError: There is neither at `source`, no such generation, its weights were not kept, it has no slim
                network, or the network is a classifier.
        """
        place = _find_device(device)
        if holds_lineage(source):
            return cls._of_lineage(Lineage(source), generation, network=network, device=place)
        return cls._of_bundle(Path(source), place)

    @classmethod
    def _of_bundle(cls, folder: Path, device: torch.device) -> Self:
        network = load_network(folder, device=device)
        description = read_description(folder)
        card = NetworkCard(split=description.split, normalization=description.normalization)
        return cls(network, architecture=description.architecture, card=card, description=str(folder))

    @classmethod
    def _of_lineage(cls, lineage: Lineage, which: int | str, *, network: str, device: torch.device) -> Self:
        recipe = lineage.recipe
        number = lineage.number_of(which)
        description = f"{lineage.folder}, generation {number}, {network}"
        if network not in ("dense", "slim"):
            raise KeMetricError(f"network = {network!r}, must be 'dense' or 'slim'", ExitCode.USAGE)
        if recipe.task != "retrieval":
            raise KeMetricError(
                f"{description}: a classifier has logits, no embeddings; an embedder needs a lineage of task = "
                "'retrieval'",
                ExitCode.LINEAGE,
            )
        if network == "slim" and not recipe.has_slim:
            raise KeMetricError(
                f"{description}: there is no slim network (split.kind = {recipe.split.kind!r}, method.name = "
                f"{recipe.method.name!r}); take the dense one",
                ExitCode.LINEAGE,
            )
        built, plan = Blueprint(recipe, 0).restore(lineage.load(number), device=device)
        # All of it is kept, as in a last generation that is slim already: the same network.
        slim = network == "slim" and plan.reset_count > 0
        return cls(
            extract_slim(built, plan) if slim else built,
            architecture=Architecture.of_recipe(recipe),
            card=NetworkCard(
                split=StoredSplit(kind=recipe.split.kind, rate=recipe.split.rate) if slim else None,
                normalization=Normalization.of_recipe(recipe),
            ),
            batch_size=recipe.evaluation.batch_size,
            description=description,
        )

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.network.parameters()).device

    @property
    def normalization(self) -> Normalization:
        """What becomes of a picture before the network sees it."""
        return self._normalization

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Store the network as a bundle, config.json and model.safetensors, that `load` gives back with its digest.

        Raises:
            KeMetricError: The folder is taken, or the disk is full.
        """
        save_network(self.network, path, architecture=self._architecture, card=self._card, overwrite=overwrite)

    def as_module(self) -> EmbedderModule:
        """Return a plain module, images float [B, 3, S, S] in [0, 1] to embeddings [B, D].

        It standardises the images itself, and holds the embedder's own network, not a copy.
        """
        return EmbedderModule(self.network, mean=self._normalization.mean, std=self._normalization.std)

    def __call__(
        self, images: Picture | Iterable[Picture], *, on_bad: Callable[[BadPicture], Any] | None = None
    ) -> FloatArray:
        """Return the embeddings of pictures, in order.

        Args:
            images: One picture or any number of them: paths, PIL images, arrays or tensors, see `Picture`; a batch
                array [N, H, W, 3] or tensor [N, 3, H, W] is N of them, and so is an array [N] of paths.
            on_bad: Called for every picture that cannot be used, which is then left out; None: the first one is an
                error.

        Returns:
            float32 [N, D], L2-normalised; N less the bad ones.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used.
        """
        parts: list[FloatArray] = []
        for batch in self.stream(images, skip_bad=on_bad is not None):
            parts.append(batch.vectors)
            if on_bad is not None:
                for bad in batch.bad:
                    on_bad(bad)
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def stream(
        self, images: Picture | Iterable[Picture], *, skip_bad: bool = False, batch_size: int | None = None
    ) -> Iterator[EmbeddedBatch]:
        """Embed pictures batch by batch; decoding runs ahead in threads, and only a few pictures are held at once.

        Args:
            images: As in `__call__`; an iterator is read as far as is needed. PIL images are decoded when they are
                read from it, not in the threads: they may be the frames of one file, or one picture twice.
            skip_bad: Leave pictures out that cannot be used and report them; False: the first one is an error.
            batch_size: Pictures per forward pass; the embedder's own when None. Another one may change the last bits.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used. USAGE: the batch size is below 1.
        """
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise KeMetricError(f"batch_size = {size}, must be at least 1", ExitCode.USAGE)
        numbered = map(partial(taken, how=self._normalization), enumerate(pictures_of(images)))
        prepared = in_order(partial(self._prepare, skip_bad=skip_bad), numbered)
        while batch := list(islice(prepared, size)):
            good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, BadPicture)]
            bad = tuple(pixels for _, pixels in batch if isinstance(pixels, BadPicture))
            vectors = np.empty((0, self.dimension), np.float32)
            if good:
                vectors = self.embed_pixels(np.stack([pixels for _, pixels in good]))
            yield EmbeddedBatch(np.array([position for position, _ in good], np.int64), vectors, bad)

    def _prepare(
        self, numbered: tuple[int, Picture | KeMetricError], *, skip_bad: bool
    ) -> tuple[int, PixelArray | BadPicture]:
        position, picture = numbered
        name = name_of(position, picture)
        try:
            if isinstance(picture, KeMetricError):
                raise picture
            return position, self.prepare(picture, name)
        except KeMetricError as error:
            if not skip_bad:
                raise
            return position, BadPicture(position, name, str(error))

    def prepare(self, picture: Picture, name: str = "picture", max_pixels: int = MAX_PIXELS) -> PixelArray:
        """Return what the network sees of one picture before standardisation, uint8 [S, S, 3]. Thread-safe.

        Args:
            picture: See `Picture`.
            name: What an error calls a picture that has no path.
            max_pixels: That a strip may have when it is enlarged.

        Raises:
            KeMetricError: DATA, naming the picture: it cannot be used.
        """
        return prepare(picture, name, self._normalization, max_pixels)

    def embed_pixels(self, pixels: PixelArray) -> FloatArray:
        """Return the embeddings float32 [B, D] of prepared pictures uint8 [B, S, S, 3], in one forward pass."""
        batch = normalize(
            torch.from_numpy(pixels),
            mean=self._normalization.mean,
            std=self._normalization.std,
            device=self.device,
            channels_last=self._channels_last,
        )
        return embed(self.network, [batch])

    @property
    def _channels_last(self) -> bool:
        """Whether the network lies in NHWC, as its pictures then should."""
        weights = [parameter for parameter in self.network.parameters() if parameter.ndim == 4]
        return any(
            weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
            for weight in weights
        )


def _find_device(device: torch.device | str | None) -> torch.device:
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        place = torch.device(device)
        # Read back: on the device `meta` there is nothing to read.
        torch.empty(0, device=place).cpu()
    except (AssertionError, ImportError, RuntimeError) as error:
        # torch built without CUDA answers a request for it with an AssertionError, for others with an ImportError.
        reason = str(error).splitlines()[0]
        raise KeMetricError(f"device = {str(device)!r} cannot be used: {reason}", ExitCode.ENVIRONMENT) from error
    return place


def _digest(network: nn.Module, architecture: Architecture, normalization: Normalization) -> str:
    """Return the SHA-256 of what vectors depend on."""
    facts = {
        "architecture": architecture.model_dump(mode="json"),
        "normalization": without_values_before(normalization.model_dump(mode="json"), PREPARATION_FIELDS),
        "weights": weights_digest({name: value.cpu() for name, value in network.state_dict().items()}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
