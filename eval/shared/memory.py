"""How much memory a call takes at its worst moment, on the processor, and how much of it this process may have."""

import ctypes
import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

PROCESS = Path("/proc/self")


@contextmanager
def within_free_memory() -> Iterator[None]:
    """While this lasts, allocating more than is free on the CPU fails; Linux would grant it, and end the process."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(free_memory())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def limit_memory(extra: int | None) -> None:
    """Let this process allocate so many bytes more and no others; does nothing where it is not known what it has."""
    used = _status("VmData")
    if extra is not None and used is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = used + extra
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def free_memory() -> int | None:
    """Return how many bytes can still be allocated without swapping; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    free = _kilobytes(meminfo.read_text(encoding="utf-8"), "MemAvailable")
    group = Path("/sys/fs/cgroup")
    limit, current = (group / "memory.max", group / "memory.current")
    if free is None or not limit.exists() or (text := limit.read_text(encoding="utf-8").strip()) == "max":
        return free
    return max(0, min(free, int(text) - int(current.read_text(encoding="utf-8"))))


def _status(field: str) -> int | None:
    status = PROCESS / "status"
    return _kilobytes(status.read_text(encoding="utf-8"), field) if status.exists() else None


def _kilobytes(text: str, field: str) -> int | None:
    values = [line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 if values else None


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Return how much more memory tensors on the CPU hold at the worst moment of a call than before it, in bytes."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def peak_of_process(work: Callable[[], object]) -> int | None:
    """Return by how much the memory of this process grows at the worst moment of a call, in bytes; None: not known.

    To be called in a fresh process: what was freed before, but not given back to the system, would hide growth.
    """
    if not (PROCESS / "clear_refs").exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    result = work()
    peak = _status("VmHWM")
    del result
    return None if peak is None or before is None else peak - before
