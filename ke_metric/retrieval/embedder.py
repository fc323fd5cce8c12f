"""Pictures to embeddings: a stored network, and pictures prepared exactly as when its generation was scored.

One picture, one chain: `prepare` decodes it and cuts out what the network sees, `compute` is the forward pass, and
`stream` does both for any number of pictures. `PictureNetwork` is what an `Embedder` and a `Predictor` share.

Shapes: N pictures, B batch, D numbers for a picture, S image size in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import nn

from ke_metric.arrays import FloatArray, IntArray, PixelArray, weights_digest
from ke_metric.errors import ExitCode, KeMetricError, either
from ke_metric.images.decoding import MAX_PIXELS, in_order
from ke_metric.images.preparation import MOVES, Picture, Preparation, as_image, name_of, pictures_of
from ke_metric.networks.bundle import load_network, save_network
from ke_metric.networks.bundle_config import CONFIG, Architecture, NetworkCard, read_description
from ke_metric.networks.dense import Classifier, ClassifierFeatures, PictureModule
from ke_metric.schema import ARCHITECTURE_FIELDS, PREPARATION_FIELDS, without_values_before
from ke_metric.stores.contract import check_count

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
class PictureBatch:
    """What became of a stretch of the pictures.

    Attributes:
        positions: [B] numbers among the pictures given, from 0, of those that could be used.
        outputs: [B, D] float32, what the network gives for them.
        bad: Those that were left out.
    """

    positions: IntArray
    outputs: FloatArray
    bad: tuple[BadPicture, ...]

    @property
    def vectors(self) -> FloatArray:
        """What an embedder gives: embeddings [B, D], L2-normalised."""
        return self.outputs

    @property
    def logits(self) -> FloatArray:
        """What a predictor gives: logits [B, C]."""
        return self.outputs


class PictureNetwork:
    """A network from the disk, and pictures. It runs in eval mode and fp32, whatever it was trained in.

    Args:
        network: float32 [B, 3, S, S] to [B, D], on its device.
        architecture: How its dense network is built.
        card: Its split, its classes, and what becomes of a picture before the network sees it.
        batch_size: Pictures per forward pass.
        description: Where it came from, in words.

    Attributes:
        network: What is called; it averages over the views of a picture where its preparation says so.
        dimension: D.
        digest: SHA-256 of what the numbers depend on: architecture, weights, and the preparation of pictures. Vectors
            of one digest can be compared with each other, others cannot.
        description: Where it came from, in words.
        reason: Why it was taken from its lineage, in words; empty where it was named.
    """

    reason = ""
    _unit_length = True

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: Architecture,
        card: NetworkCard,
        batch_size: int = BATCH_SIZE,
        description: str = "a network",
    ) -> None:
        self._stored, self._architecture, self._card = network.eval(), architecture, card
        self.batch_size, self.description = batch_size, description
        called, dimension = self._called()
        if card.normalization is None:
            raise KeMetricError(
                f"{description}: its config.json does not say how pictures are prepared (normalization); save it "
                "again with NetworkCard(normalization=...)",
                ExitCode.DATA,
            )
        self._normalization = card.normalization
        self.network = card.normalization.in_views(called, unit_length=self._unit_length).eval()
        size = self._normalization.image_size
        self.dimension = dimension or self.compute(np.zeros((1, size, size, 3), np.uint8)).shape[1]
        self.digest = self._digest()

    @property
    def preparation(self) -> Preparation:
        """What becomes of a picture before the network sees it."""
        return self._normalization

    def _called(self) -> tuple[nn.Module, int]:
        """Return what is called in place of the stored network, and D; 0: the network itself tells."""
        raise NotImplementedError

    @classmethod
    def load(
        cls,
        source: Path | str,
        generation: int | str | None = None,
        network: str | None = None,
        *,
        rate: float | None = None,
        size: int | None = None,
        device: torch.device | str | None = None,
        views: int | None = None,
    ) -> Self:
        """Load the network of a lineage's generation, or of a bundle (`save`, `ke-metric slim`, `save_network`).

        Args:
            source: The folder of a lineage or of a bundle.
            generation: Number of a generation, `last` or `best`; None: the best one whose weights were kept. Of no
                meaning for a bundle, which is one network.
            network: `slim` or `dense`; None: the one with the better score. Of no meaning for a bundle.
            rate: Split rate of the slim network, which it names without `network` too: `split.rate` (None) or one of
                `split.rates`. Of no meaning for a bundle.
            size: Use so many of the first numbers of an embedding, from 2 on; all when None. Any can be used; those
                of the recipe's `network.nested_sizes` were trained for it.
            device: Where the network runs; the accelerator where there is one when None, else the processor.
            views: How many views of a picture its outputs are averaged over, 1, 2 or 5, in place of what the recipe
                or the bundle says; another number is another digest.

        Raises:
            KeMetricError: There is neither at `source`, no such generation, its weights were not kept, it has no slim
                network or none of this rate, it is a network of another task, or it has no embeddings of such a size.
                USAGE: there is no such number of views.
        """
        if views is not None and (type(views) is not int or views not in MOVES):
            raise KeMetricError(f"views = {views!r}, must be {either(list(map(str, MOVES)))}", ExitCode.USAGE)
        place, folder = _find_device(device), Path(source)
        if not (folder / CONFIG).is_file():
            # Imported where it is needed: a bundle, and so an index, is used without a lineage's code.
            from ke_metric.lineage.store import Lineage, holds_lineage
            from ke_metric.retrieval.network_choice import choose_network

            if holds_lineage(folder):
                choice = choose_network(Lineage(source), generation, network, rate)
                recipe = choice.lineage.recipe
                stored, architecture, card, told = _cut(
                    *choice.load(place), size=size, trained=recipe.network.nested_sizes, what=str(folder)
                )
                loaded = cls(
                    stored,
                    architecture=architecture,
                    card=_seen_in(views, card),
                    batch_size=recipe.evaluation.batch_size,
                    description=f"{choice.lineage.folder}, {choice.words}{told}",
                )
                loaded.reason = choice.reason
                return loaded
        stored, found = load_network(folder, device=place), read_description(folder)
        # What a bundle of before its origin was recorded tells of it.
        origin = found.origin or (f"slim, split rate {found.split.rate:g}" if found.split else "")
        stored, architecture, card, told = _cut(stored, found.architecture, found.card, size=size, what=str(folder))
        description = f"{folder} ({origin}){told}" if origin else f"{folder}{told}"
        return cls(stored, architecture=architecture, card=_seen_in(views, card), description=description)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.network.parameters()).device

    @property
    def normalization(self) -> Preparation:
        """What becomes of a picture before the network sees it."""
        return self._normalization

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Store the network as a bundle, config.json and model.safetensors, that `load` gives back with its digest.

        Raises:
            KeMetricError: The folder is taken, or the disk is full.
        """
        save_network(self._stored, path, architecture=self._architecture, card=self._card, overwrite=overwrite)

    def as_module(self) -> PictureModule:
        """Return a plain module, images float [B, 3, S, S] in [0, 1] to what the network gives for them, [B, D].

        It standardises the images itself, and holds the network itself, not a copy.
        """
        return PictureModule(self.network, mean=self._normalization.mean, std=self._normalization.std)

    def prepare(self, picture: Picture, name: str = "picture", max_pixels: int = MAX_PIXELS) -> PixelArray:
        """Return what the network sees of one picture before standardisation, uint8 [S, S, 3]. Thread-safe.

        Args:
            picture: See `Picture`.
            name: What an error calls a picture that has no path.
            max_pixels: That a strip may have when it is enlarged.

        Raises:
            KeMetricError: DATA, naming the picture: it cannot be used.
        """
        return self._normalization.pixels(picture, name, max_pixels)

    def compute(self, pixels: PixelArray) -> FloatArray:
        """Return what the network gives for prepared pictures uint8 [B, S, S, 3], float32 [B, D], in one pass."""
        batch = self._normalization.tensor(pixels, device=self.device, channels_last=self._channels_last)
        # Not inference_mode: what a network keeps from one call to the next could then never be trained with.
        with torch.no_grad():
            return self.network(batch).float().cpu().numpy()  # type: ignore[no-any-return]

    def stream(
        self, images: Picture | Iterable[Picture], *, skip_bad: bool = False, batch_size: int | None = None
    ) -> Iterator[PictureBatch]:
        """Prepare and compute pictures batch by batch.

        Decoding runs ahead in threads, and only a few pictures are held at once.

        Args:
            images: One picture or any number of them, see `Picture`; an iterator is read as far as is needed. PIL
                images are decoded when they are read from it, not in the threads: they may be the frames of one file,
                or one picture twice.
            skip_bad: Leave pictures out that cannot be used and report them; False: the first one is an error.
            batch_size: Pictures per forward pass; the network's own when None. Another one may change the last bits.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used. USAGE: the batch size is below 1.
        """
        size = self.batch_size if batch_size is None else batch_size
        check_count("batch_size", size)
        numbered = enumerate(map(self._as_it_is_now, count(), pictures_of(images)))
        prepared = in_order(partial(self._prepare, skip_bad=skip_bad), numbered)
        while batch := list(islice(prepared, size)):
            good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, BadPicture)]
            bad = tuple(pixels for _, pixels in batch if isinstance(pixels, BadPicture))
            outputs = np.empty((0, self.dimension), np.float32)
            if good:
                outputs = self.compute(np.stack([pixels for _, pixels in good]))
            yield PictureBatch(np.array([position for position, _ in good], np.int64), outputs, bad)

    def _stream_telling(
        self, images: Picture | Iterable[Picture], on_bad: Callable[[BadPicture], Any] | None
    ) -> Iterator[PictureBatch]:
        for batch in self.stream(images, skip_bad=on_bad is not None):
            yield batch
            if on_bad is not None:
                for bad in batch.bad:
                    on_bad(bad)

    def _as_it_is_now(self, position: int, picture: Picture) -> Picture | KeMetricError:
        """Return a PIL image decoded, since it may become another one, or is not thread-safe; others as they are."""
        if not isinstance(picture, Image.Image):
            return picture
        try:
            return as_image(picture, name_of(position, picture), self._normalization.decoding)
        except KeMetricError as error:
            return error

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

    @property
    def _channels_last(self) -> bool:
        """Whether the network lies in NHWC, as its pictures then should."""
        weights = [parameter for parameter in self.network.parameters() if parameter.ndim == 4]
        return any(
            weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
            for weight in weights
        )

    def _digest(self) -> str:
        preparation = self._normalization.model_dump(mode="json")
        architecture = self._architecture.model_dump(mode="json")
        facts = {
            "architecture": without_values_before(architecture, ARCHITECTURE_FIELDS),
            "normalization": without_values_before(preparation, PREPARATION_FIELDS),
            "weights": weights_digest({name: value.cpu() for name, value in self._stored.state_dict().items()}),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Embedder(PictureNetwork):
    """Turns pictures into the embeddings that a stored network gives them. Made by `load`.

    Of a classifier the embedding of a picture is its feature, what the head sees, L2-normalised: D is then F.
    """

    def _called(self) -> tuple[nn.Module, int]:
        size = self._architecture.embedding_size
        if size is not None:
            return self._stored, size
        if not isinstance(self._stored, Classifier):
            raise KeMetricError(
                f"{self.description}: a classifier of a library has logits, and does not say which layer gives "
                "features; an embedder needs a network that a recipe of ke_metric describes",
                ExitCode.DATA,
            )
        return ClassifierFeatures(self._stored), self._stored.head.weight.shape[1]

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
        parts = [batch.vectors for batch in self._stream_telling(images, on_bad)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def embed_pixels(self, pixels: PixelArray) -> FloatArray:
        """Return the embeddings float32 [B, D] of prepared pictures uint8 [B, S, S, 3], in one forward pass."""
        return self.compute(pixels)


def _seen_in(views: int | None, card: NetworkCard) -> NetworkCard:
    """Return the card of a network whose outputs are averaged over so many views; as it is where None is given."""
    if views is None or card.normalization is None:
        return card
    return card.model_copy(update={"normalization": card.normalization.model_copy(update={"views": views})})


def _cut(
    network: nn.Module,
    architecture: Architecture,
    card: NetworkCard,
    *,
    size: int | None,
    trained: Sequence[int] | None = None,
    what: str,
) -> tuple[nn.Module, Architecture, NetworkCard, str]:
    """Return a network with embeddings of `size` numbers, see `cut_to_size`; as it is where none is named."""
    if size is None:
        return network, architecture, card, ""
    # Imported where it is needed: most embeddings are used whole.
    from ke_metric.networks.sizes import cut_to_size

    return cut_to_size(network, architecture, card, size=size, trained=trained, what=what)


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
