"""Embeddings cut to their first numbers: the last linear layer gives no more than these, and all else stays.

What comes out is an embedding network of that size like any other: bundles, digests, indexes and exports know it by
its architecture, and vectors of two sizes are refused to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.bundle_config import Architecture, EmbeddingArchitecture, NetworkCard
from ke_metric.networks.dense import EmbeddingNetwork
from ke_metric.schema import SMALLEST_SIZE


def cut_to_size(
    network: nn.Module,
    architecture: Architecture,
    card: NetworkCard,
    *,
    size: int | None,
    trained: Sequence[int] | None = None,
    what: str,
) -> tuple[nn.Module, Architecture, NetworkCard, str]:
    """Return a network whose embeddings are the first numbers of another's, L2-normalised, and what is said of it.

    Args:
        network: An embedding network, dense or slim; its last layer is changed in place.
        architecture: How its dense network is built.
        card: What a bundle says of it.
        size: How many numbers, from 2 to all of them; None: the network as it is.
        trained: The sizes that the loss has seen; None: nobody knows.
        what: What an error calls the network.

    Returns:
        Network, architecture, card, and the size in words, to be added to a description; empty where nothing is cut.

    Raises:
        KeMetricError: USAGE: it is no embedding network of a recipe, or has not so many numbers.
    """
    if size is None:
        return network, architecture, card, ""
    if not (isinstance(architecture, EmbeddingArchitecture) and isinstance(network, EmbeddingNetwork)):
        raise KeMetricError(
            f"size = {size}: {what} is a classifier, whose features have no order; what can be cut to its first "
            "numbers is the embedding of a recipe of task = 'retrieval'",
            ExitCode.USAGE,
        )
    most = architecture.embedding_size
    if not SMALLEST_SIZE <= size <= most:
        raise KeMetricError(
            f"size = {size}: {what} gives embeddings of {most} numbers, must be from {SMALLEST_SIZE} to {most}",
            ExitCode.USAGE,
        )
    if size == most:
        return network, architecture, card, ""
    head = network.head
    for name in ("weight", "bias"):
        whole = getattr(head, name)
        setattr(head, name, nn.Parameter(whole.detach()[:size].clone(), requires_grad=whole.requires_grad))
    head.out_features = size
    own = architecture.network.model_copy(update={"embedding_size": size})
    words = _told(size, most, trained)
    origin = card.origin and card.origin + words
    return (
        network,
        architecture.model_copy(update={"network": own}),
        card.model_copy(update={"origin": origin}),
        words,
    )


def _told(size: int, most: int, trained: Sequence[int] | None) -> str:
    """Return how much of an embedding is used, and whether its loss has seen it so."""
    seen = ""
    if trained is not None and size not in trained:
        known = ", ".join(map(str, (*trained, most)))
        seen = f", a size that was not trained (network.nested_sizes and embedding_size: {known})"
    return f", its first {size} of {most} numbers{seen}"
