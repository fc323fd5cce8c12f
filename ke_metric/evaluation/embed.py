"""Embedding: a network over batches of images, to one array of vectors.

Shapes: B batch, N items, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def embed(network: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> npt.NDArray[np.float32]:
    """Return the embeddings [N, D] of the images of all batches [B, 3, H, W], in order; no gradient is kept.

    The network is called as it is: put it into eval mode before. Only the vectors stay in memory, 4 x N x D bytes.
    """
    # Not inference_mode: what a network keeps from one call to the next could then never be trained with.
    with torch.no_grad():
        vectors = [network(batch).float().cpu().numpy() for batch in batches]
    return np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
