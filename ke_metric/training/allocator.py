"""The C library's allocator of memory, told to keep what a training on a CPU frees.

Every step asks for the same large tensors anew. glibc gives large blocks, and what is free at the end of its heap,
back to the system, which clears each of their pages again in the next step (mallopt(3)): up to 8 % of a step's
processor time (eval/speed/results/freed_memory.md). torch keeps memory itself on GPUs alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Numbers of mallopt's parameters in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Tensors of up to a gigabyte come from the heap, which is never made smaller; of up to 32 MB where mallopt does not
# take more, which is the limit that its manual gives.
LARGEST, NEVER = (2**30, 2**25), -1

# By these a user has chosen how memory is kept, or another allocator.
CHOSEN_BY = (
    "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)  # fmt: skip


def keep_freed_memory() -> bool:
    """Have this process keep what it frees for its next steps: from then on it has the most memory that it ever had.

    Returns:
        Whether it does: not where the environment says something of the allocator (`CHOSEN_BY`), and not with another
        C library than glibc.
    """
    if any(os.environ.get(name) for name in CHOSEN_BY):
        return False
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    taken = any(library.mallopt(MMAP_THRESHOLD, size) for size in LARGEST)
    return bool(library.mallopt(TRIM_THRESHOLD, NEVER)) and taken
