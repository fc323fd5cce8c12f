"""Random numbers: one independent stream for every (seed, generation, purpose).

Nothing in the library seeds globally. A stream is derived by hashing, so that it does not depend on what was
drawn before it: an epoch that is repeated after an interruption draws what it would have drawn, and no two
generations redraw the same values (fixing them is known to be much worse: Zhou et al., ICLR 2022).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, generation: int, purpose: str) -> int:
    """Return a 63-bit seed that depends on all three arguments and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{generation}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, generation: int, purpose: str) -> torch.Generator:
    """Return a CPU generator for one purpose of one generation."""
    return torch.Generator().manual_seed(derive_seed(seed, generation, purpose))


def numpy_generator(seed: int, generation: int, purpose: str) -> np.random.Generator:
    """Return a NumPy generator for one purpose of one generation."""
    return np.random.default_rng(derive_seed(seed, generation, purpose))


@contextmanager
def default_streams(seed: int, generation: int, purpose: str) -> Iterator[None]:
    """Give torch's default generators (CPU and the current CUDA device) a seed inside the block, and put them back.

    For code that takes no generator: the weight initialisation of torchvision and timm, dropout, the parameters
    of a loss.
    """
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # untyped in torch
    devices = [torch.cuda.current_device()] if initialized else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would seed the other processes' devices too.
        torch.default_generator.manual_seed(derive_seed(seed, generation, purpose))
        if devices:
            torch.cuda.manual_seed(derive_seed(seed, generation, purpose))
        yield
