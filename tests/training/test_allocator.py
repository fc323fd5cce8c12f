"""What a training's process keeps of the memory that it frees: counted in pages that the system had to clear."""

import os
import subprocess
import sys

import pytest

from ke_metric.training.allocator import CHOSEN_BY

PROGRAM = """
import ctypes, resource, sys
import torch
from ke_metric.training.allocator import keep_freed_memory

# With huge pages, which some systems always use, too few pages would be cleared to tell the two apart.
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
# glibc begins like this, and then goes by the sizes of what is freed, whose outcome is another in every process.
ctypes.CDLL(None).mallopt(-3, 128 * 1024)
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
steps = lambda: [torch.ones(numbers) for numbers in (60_000, 3_000_000, *4 * [7_000_000])]
for _ in range(8):
    steps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    steps()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
# 4 x 31 million numbers in pages of 4 KiB.
PAGES = 4 * 31_060_000 * 4 // 4096

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")


def said(way: str, **environment: str) -> list[str]:
    """Return what the program prints: what the function returned, and the pages cleared in four steps."""
    of_mine = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, env=of_mine | environment, check=True
    )
    return result.stdout.split()


def test_what_is_freed_is_kept_for_the_next_step():
    _, without = said("left")
    kept, pages = said("kept")
    assert kept == "True"
    assert int(without) > PAGES / 2
    assert int(pages) < PAGES / 100


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_chose_of_the_allocator_stays(name):
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    kept, pages = said("kept", **{name: value})
    assert kept == "False"
    assert int(pages) > PAGES / 2
