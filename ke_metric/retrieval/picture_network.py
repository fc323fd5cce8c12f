"""Which network of a lineage is used: the one that was named, or the best one that is there; and in which words.

Both of a generation's networks, dense and slim, are an answer; which one was taken, and what the other one scores, is
said wherever it is used.

A stored network and what it gives for pictures, prepared exactly as when its generation was scored.

Shapes: N pictures, B batch, D numbers for a picture, S image size in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import nn

from ke_metric.arrays import FloatArray, IntArray, PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import embed
from ke_metric.generation import Generation, Scorecard, weights_digest
from ke_metric.images.decoding import MAX_PIXELS, in_order
from ke_metric.images.preparation import Picture, Preparation, as_image, name_of, pictures_of
from ke_metric.lineage.store import Lineage, holds_lineage
from ke_metric.networks.architecture import Architecture
from ke_metric.networks.bundle import load_network, save_network
from ke_metric.networks.bundle_config import NetworkCard, StoredSplit, read_description
from ke_metric.networks.heads import PictureModule
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import PREPARATION_FIELDS, without_values_before
from ke_metric.split.slim import extract_slim
from ke_metric.stores.contract import check_count

NETWORKS = ("dense", "slim")


@dataclass(frozen=True)
class NetworkChoice:
    """One network of a lineage.

    Attributes:
        lineage: Whose it is.
        number: Of its generation.
        network: `dense` or `slim`.
        scores: What both networks of the generation score, in words; empty where nothing was scored.
        reason: Why it was taken, in words; empty where it was named.
    """

    lineage: Lineage
    number: int
    network: str
    scores: str
    reason: str

    @property
    def has_slim(self) -> bool:
        """Whether its generation has a slim network, scored or not."""
        return not _why_no_slim(self.lineage.recipe)

    @property
    def words(self) -> str:
        """Which one it is, without the place of the lineage."""
        return f"generation {self.number}, {self.network}{f' ({self.scores})' if self.scores else ''}"


def choose_network(
    lineage: Lineage, generation: int | str | None = None, network: str | None = None
) -> NetworkChoice:
    """Choose a network of a lineage.

    Args:
        lineage: Whose.
        generation: Number of a generation, `last` or `best`; None: the best one whose weights were kept.
        network: `dense` or `slim`; None: the one with the better score, the slim one of equals.

    Raises:
        KeMetricError: There is no such generation, it has no slim network, or `network` is neither.
    """
    if network not in (*NETWORKS, None):
        raise KeMetricError(f"network = {network!r}, must be 'dense' or 'slim'", ExitCode.USAGE)
    number = lineage.best_kept if generation is None else lineage.number_of(generation)
    missing = _why_no_slim(lineage.recipe)
    if network == "slim" and missing:
        raise KeMetricError(
            f"{lineage.folder}: there is no slim network: {missing}; take the dense one", ExitCode.LINEAGE
        )
    name, shares = _decisive_shares(lineage.scorecard(number), lineage.decisive_score)
    slim_is_better = not missing and "slim" in shares and shares["slim"] >= shares["dense"]
    taken = network or ("slim" if slim_is_better else "dense")
    reasons = []
    if generation is None and len(lineage.numbers) > 1:
        reasons.append("the best generation kept")
    if network is None and len(shares) > 1:
        reasons.append("the better one of its networks")
    return NetworkChoice(lineage, number, taken, _told(name, shares, taken), ", ".join(reasons))


def _why_no_slim(recipe: Recipe) -> str:
    """Return why the generations of a recipe have no slim network; empty where they have one, scored or not."""
    if recipe.split.kind != "kels":
        return (
            f"split.kind = {recipe.split.kind!r} keeps single weights of every channel ('kels' keeps whole channels, "
            "which can be cut out)"
        )
    if recipe.method.name == "slim_alone":
        return "method.name = 'slim_alone' trains the slim architecture itself, and nothing is left to be cut out"
    return ""


def _decisive_shares(card: Scorecard, name: str) -> tuple[str, dict[str, float]]:
    """Return the score that decides, that of the validation part where there is one, and its value by network."""
    both = {"dense": card.dense, "slim": card.slim or {}}
    decisive = f"validation_{name}" if f"validation_{name}" in card.dense else name
    return decisive, {network: scores[decisive] for network, scores in both.items() if decisive in scores}


def _told(name: str, shares: dict[str, float], taken: str) -> str:
    """Return `Recall@1 92.3 %, slim 81.7 %`, the network that was taken first."""
    score = name.replace("recall", "Recall").replace("validation_", "validation ").replace("top", "top-")
    return ", ".join(
        f"{score if network == taken else network} {100 * share:.1f} %"
        for network, share in sorted(shares.items(), key=lambda pair: pair[0] != taken)
    )


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
class ComputedBatch:
    """What became of a stretch of the pictures.

    Attributes:
        positions: [B] numbers among the pictures given, from 0, of those that were computed.
        outputs: [B, D] float32.
        bad: Those that were left out.
    """

    positions: IntArray
    outputs: FloatArray
    bad: tuple[BadPicture, ...]


class PictureNetwork:
    """What `Embedder` and `Predictor` have in common: a network from the disk, and pictures.

    The network runs in eval mode and fp32, whatever it was trained in.

    Args:
        network: The network as it is stored, in eval mode and on its device.
        runs: What is called: float32 [B, 3, S, S] to [B, D].
        dimension: D.
        architecture: How its dense network is built.
        card: Its split, its classes, and what becomes of a picture before the network sees it.
        batch_size: Pictures per forward pass.
        description: Where it came from, in words.

    Attributes:
        network: What is called.
        dimension: D.
        digest: SHA-256 of what the numbers depend on: architecture, weights, and the preparation of pictures. Vectors
            of one digest can be compared with each other, others cannot.
        description: Where it came from, in words.
        reason: Why it was taken from its lineage, in words; empty where it was named.
    """

    reason = ""

    def __init__(
        self,
        network: nn.Module,
        *,
        runs: nn.Module,
        dimension: int,
        architecture: Architecture,
        card: NetworkCard,
        batch_size: int = BATCH_SIZE,
        description: str = "a network",
    ) -> None:
        if card.normalization is None:
            raise KeMetricError(
                f"{description}: its config.json does not say how pictures are prepared (normalization); save it "
                "again with NetworkCard(normalization=...)",
                ExitCode.DATA,
            )
        self._stored, self.network = network.eval(), runs.eval()
        self.dimension = dimension
        self.description = description
        self.batch_size = batch_size
        self._architecture, self._card = architecture, card
        self._normalization = card.normalization
        self.digest = _digest(network, architecture, self._normalization)

    @classmethod
    def _of(
        cls, network: nn.Module, *, architecture: Architecture, card: NetworkCard, batch_size: int, description: str
    ) -> Self:
        raise NotImplementedError

    @classmethod
    def load(
        cls,
        source: Path | str,
        generation: int | str | None = None,
        network: str | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load the network of a lineage's generation, or of a bundle (`save`, `ke-metric slim`, `save_network`).

        Args:
            source: The folder of a lineage or of a bundle.
            generation: Number of a generation, `last` or `best`; None: the best one whose weights were kept. Of no
                meaning for a bundle, which is one network.
            network: `slim` or `dense`; None: the one with the better score. Of no meaning for a bundle.
            device: Where the network runs; the accelerator where there is one when None, else the processor.

        Raises:
            KeMetricError: There is neither at `source`, no such generation, its weights were not kept, it has no slim
                network, or it is a network of another task.
        """
        place = _find_device(device)
        if holds_lineage(source):
            return cls._of_lineage(choose_network(Lineage(source), generation, network), place)
        return cls._of_bundle(Path(source), place)

    @classmethod
    def _of_bundle(cls, folder: Path, device: torch.device) -> Self:
        network, found = load_network(folder, device=device), read_description(folder)
        # What a bundle of before its origin was recorded tells of it.
        cut = f"slim, split rate {found.split.rate:g}" if found.split else ""
        origin = found.origin or cut
        return cls._of(
            network,
            architecture=found.architecture,
            card=found.card,
            batch_size=BATCH_SIZE,
            description=f"{folder} ({origin})" if origin else str(folder),
        )

    @classmethod
    def _of_lineage(cls, choice: NetworkChoice, device: torch.device) -> Self:
        recipe, generation = choice.lineage.recipe, choice.lineage.load(choice.number)
        class_names = generation.provenance.class_names
        built, plan = LineageNetworks(recipe, len(class_names)).restore(generation, device=device)
        # All of it is kept, as in a last generation that is slim already: the same network.
        slim = choice.network == "slim" and plan.reset_count > 0
        loaded = cls._of(
            extract_slim(built, plan) if slim else built,
            architecture=Architecture.of_recipe(recipe, classes=len(class_names) if class_names else None),
            card=card_of(choice, generation, slim=slim),
            batch_size=recipe.evaluation.batch_size,
            description=f"{choice.lineage.folder}, {choice.words}",
        )
        loaded.reason = choice.reason
        return loaded

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

    def compute(self, pixels: PixelArray) -> FloatArray:
        """Return what the network gives for prepared pictures uint8 [B, S, S, 3], float32 [B, D], in one pass."""
        batch = self._normalization.tensor(pixels, device=self.device, channels_last=self._channels_last)
        return embed(self.network, [batch])

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

    def compute_all(
        self,
        images: Picture | Iterable[Picture],
        compute: Callable[[PixelArray], FloatArray],
        *,
        skip_bad: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[ComputedBatch]:
        """Prepare pictures and compute something for them, batch by batch.

        Decoding runs ahead in threads, and only a few pictures are held at once.

        Args:
            images: One picture or any number of them, see `Picture`; an iterator is read as far as is needed. PIL
                images are decoded when they are read from it, not in the threads: they may be the frames of one file,
                or one picture twice.
            compute: Prepared pictures uint8 [B, S, S, 3] to [B, D].
            skip_bad: Leave pictures out that cannot be used and report them; False: the first one is an error.
            batch_size: Pictures per forward pass; the network's own when None. Another one may change the last bits.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used. USAGE: the batch size is below 1.
        """
        size = self.batch_size if batch_size is None else batch_size
        check_count("batch_size", size)
        numbered = map(partial(_taken, how=self._normalization), enumerate(pictures_of(images)))
        prepared = in_order(partial(self._prepare, skip_bad=skip_bad), numbered)
        while batch := list(islice(prepared, size)):
            good = [(position, pixels) for position, pixels in batch if not isinstance(pixels, BadPicture)]
            bad = tuple(pixels for _, pixels in batch if isinstance(pixels, BadPicture))
            outputs = np.empty((0, self.dimension), np.float32)
            if good:
                outputs = compute(np.stack([pixels for _, pixels in good]))
            yield ComputedBatch(np.array([position for position, _ in good], np.int64), outputs, bad)

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


def _taken(numbered: tuple[int, Picture], how: Preparation) -> tuple[int, Picture | KeMetricError]:
    """Return a picture as it is now: a PIL image decoded, since it may become another one, or is not thread-safe."""
    position, picture = numbered
    if not isinstance(picture, Image.Image):
        return numbered
    try:
        return position, as_image(picture, name_of(position, picture), how.decoding)
    except KeMetricError as error:
        return position, error


def card_of(choice: NetworkChoice, generation: Generation, *, slim: bool) -> NetworkCard:
    """Return what a bundle says of a network of a lineage.

    Args:
        choice: Which one it is.
        generation: Its generation.
        slim: Whether it was cut out.
    """
    recipe = choice.lineage.recipe
    return NetworkCard(
        split=StoredSplit(kind=recipe.split.kind, rate=recipe.split.rate) if slim else None,
        normalization=Preparation.of_recipe(recipe),
        class_names=tuple(generation.provenance.class_names) or None,
        logit_scale=_logit_scale(recipe, generation),
        origin=f"{choice.lineage.folder.absolute().name}, {choice.words}",
    )


def _logit_scale(recipe: Recipe, generation: Generation) -> float | None:
    """Return what the loss multiplied the cosines of a classifier by; None where its logits are no cosines."""
    cosines = recipe.task == "classification" and recipe.network.head == "cosine"
    return float(generation.loss_weights["scale"]) if cosines and "scale" in generation.loss_weights else None


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


def _digest(network: nn.Module, architecture: Architecture, normalization: Preparation) -> str:
    """Return the SHA-256 of what vectors depend on."""
    facts = {
        "architecture": architecture.model_dump(mode="json"),
        "normalization": without_values_before(normalization.model_dump(mode="json"), PREPARATION_FIELDS),
        "weights": weights_digest({name: value.cpu() for name, value in network.state_dict().items()}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
