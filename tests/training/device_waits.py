"""Counts the operations that make the host wait for a device, on the CPU, where they are called all the same."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What gives the host a number, or a tensor whose shape depends on values.
WAITING = frozenset(
    {
        "_local_scalar_dense", "_unique", "_unique2", "equal", "is_nonzero", "masked_select", "nonzero",
        "nonzero_numpy", "unique_consecutive", "unique_dim",
    }
)  # fmt: skip


class DeviceWaits(TorchDispatchMode):
    """Counts, inside its block, operations by name that would wait for a GPU.

    A mask as an index counts: it is turned into positions, whose number the host needs. Copies between devices have
    none to go between on the CPU and are not seen.
    """

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        lengths = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or masks or lengths:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))
