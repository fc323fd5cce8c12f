"""The engine: device, precision and processes of a training.

Accelerate finds the process group (under `torchrun` or `accelerate launch`) and the device; autocast and the fp16
loss scaler are torch's own. Accelerate's checkpoints are not used: they unpickle.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ke_metric.errors import ExitCode, KeMetricError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# How long a process waits for the others to start, and for their part of a step. Whatever takes longer than that has
# hung, or its machine has.
STEP_TIMEOUT = timedelta(minutes=10)
# How long it waits where one process works alone: the scores of a large benchmark take hours.
ALONE_TIMEOUT = timedelta(days=7)

# What gloo says when another process has gone, or has not answered for as long as that.
LOST = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Timed out waiting",
)  # fmt: skip

Record = TypeVar("Record")


class Engine:
    """Where and how a network is trained and run: `device`, `precision` (never auto), `processes` and own `rank`.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`; auto is bf16 where the device computes in it, else fp32.
        device: A torch device such as `cpu` or `cuda:1`; the process's own device when None.

    Raises:
        KeMetricError: The device is not there, or does not compute in the precision.
    """

    def __init__(self, precision: str = "auto", device: str | None = None) -> None:
        wanted = None if device is None else _find_device(device)
        # Accelerate finds the other processes on a CPU only if it is told that there is no other device to use.
        state = _join(cpu=not torch.accelerator.is_available() if wanted is None else wanted.type == "cpu")
        self.processes = int(state.num_processes)
        self.rank = int(state.process_index)
        # Beside the group of the device, whose waits are watched by a short clock, and fill the device's queue. It
        # comes before whatever may be wrong for one process alone, for which the others would wait here for days.
        self._on_cpu: distributed.ProcessGroup | None = None
        if self.processes > 1:
            self._on_cpu = distributed.new_group(backend="gloo", timeout=ALONE_TIMEOUT)  # type: ignore[assignment]
        self.device = _numbered(wanted, torch.device(state.device), self.processes)
        if self.device.type == "cuda":
            # Default random streams are those of the current device.
            torch.cuda.set_device(self.device)
        self.precision = _choose_precision(precision, self.device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass in the engine's precision."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")

    def new_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler for one generation; it does nothing but in fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def place(self, module: nn.Module, *, channels_last: bool = False) -> nn.Module:
        """Move a module to the device, its 4-d weights to NHWC when asked, in place."""
        module.to(self.device)
        return module.to(memory_format=torch.channels_last) if channels_last else module

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wrap a placed network so that its gradients are averaged over the processes.

        Batch norm goes by the images of one process: with it, P processes are not exactly one with P*B images.
        """
        return network if self.processes == 1 else DistributedDataParallel(network)

    def gather(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings [N, D] and labels [N] of all P processes, gradients flowing back to each.

        Each has B of them, which may differ. Every process computes the loss of the whole batch.
        DistributedDataParallel divides its gradient by P, so it is multiplied by P before: P processes with N images
        in all give the gradient of one with N images.
        """
        if self.processes == 1:
            return embeddings, labels
        lengths = self.lengths(len(labels))
        parts, all_labels = self._gather(embeddings.detach(), lengths), self._gather(labels, lengths)
        if embeddings.requires_grad:
            embeddings.register_hook(lambda gradient: gradient * self.processes)  # type: ignore[no-untyped-call]
        parts[self.rank] = embeddings
        return torch.cat(parts), torch.cat(all_labels)

    def _gather(self, share: Tensor, lengths: list[int]) -> list[Tensor]:
        """Return the tensors of all processes, which differ in length alone."""
        missing = max(lengths) - len(share)
        # What is gathered must have one shape everywhere.
        filled = torch.cat([share, share.new_zeros(missing, *share.shape[1:])]) if missing else share.contiguous()
        parts = [torch.empty_like(filled, memory_format=torch.contiguous_format) for _ in lengths]
        distributed.all_gather(parts, filled)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]

    def lengths(self, own: int) -> list[int]:
        """Return how many each process has, where this one has `own`; the device is not waited for."""
        if self.processes == 1:
            return [own]
        found = [torch.zeros(1, dtype=torch.int64) for _ in range(self.processes)]
        distributed.all_gather(found, torch.tensor([own]), group=self._on_cpu)
        return [int(length) for length in found]

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module that is not wrapped: a loss, whose batch every process has whole.

        Its gradients differ by rounding alone, but their sum over many steps would let its parameters drift apart.
        """
        for parameter in module.parameters() if self.processes > 1 else ():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.processes

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers of the first one: each has the norm statistics of its own last batch."""
        for buffer in module.buffers() if self.processes > 1 else ():
            distributed.broadcast(buffer, src=0)

    def gather_records(self, records: list[Record]) -> list[Record]:
        """Return the records of all processes, in order of rank, on every process; wait for days if need be."""
        if self.processes == 1:
            return records
        parts: list[list[Record]] = [[] for _ in range(self.processes)]
        distributed.all_gather_object(parts, records, group=self._on_cpu)
        return [record for part in parts for record in part]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process, the same answer in all of them."""
        if self.processes == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self._on_cpu)
        return bool(flags)

    def wait(self) -> None:
        """Wait until every process is here, for days if need be."""
        if self.processes > 1:
            distributed.barrier(group=self._on_cpu)

    def describe(self) -> dict[str, Any]:
        """Return what a provenance record says of the engine."""
        is_cuda = self.device.type == "cuda"
        return {
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if is_cuda else self.device.type,
            "precision": self.precision,
            "processes": self.processes,
            "threads": torch.get_num_threads(),
        }


def lost_process(error: BaseException) -> str | None:
    """Return in what words an error says that another process does not answer any more; None where it does not.

    gloo raises a plain RuntimeError with the operating system's words, NCCL and torch's store errors of their own.
    """
    told = next((words for words in LOST if words in str(error)), None)
    return told or (type(error).__name__ if isinstance(error, distributed.DistError) else None)


def _join(*, cpu: bool) -> PartialState:
    """Return the process group that the environment tells of, joined; the one process where it tells of none.

    Raises:
        KeMetricError: The other processes have not come (ENVIRONMENT).
    """
    try:
        return PartialState(cpu=cpu, timeout=STEP_TIMEOUT)
    except (RuntimeError, ConnectionError) as error:
        told = lost_process(error)
        if told is None:
            raise
        where = ", ".join(f"{name}={os.environ.get(name)}" for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"))
        raise KeMetricError(
            f"the other processes did not come within {STEP_TIMEOUT.seconds // 60} minutes, or have gone again "
            f"({told}): {where}. All of them must be started, with one and the same MASTER_ADDR and MASTER_PORT",
            ExitCode.ENVIRONMENT,
        ) from error


def _numbered(wanted: torch.device | None, own: torch.device, processes: int) -> torch.device:
    """Return the device to use, with its number: CUDA takes no other for the current one.

    Args:
        wanted: What was asked for; the process's own when None.
        own: The process's own.
        processes: How many there are.

    Raises:
        KeMetricError: All processes were asked to use one and the same GPU (ENVIRONMENT).
    """
    if wanted is not None and wanted.type == "cuda" and wanted.index is not None and processes > 1:
        raise KeMetricError(
            f"device '{wanted}': {processes} processes cannot share one GPU; allowed is 'cuda', which gives each its "
            "own, or to leave the device out",
            ExitCode.ENVIRONMENT,
        )
    device = own if wanted is None or (wanted.type == own.type and wanted.index is None) else wanted
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        raise KeMetricError(
            f"device {name!r} cannot be used ({reason}); found: {', '.join(found)}", ExitCode.ENVIRONMENT
        ) from error
    return device


def _choose_precision(precision: str, device: torch.device) -> str:
    if precision == "auto":
        return "bf16" if _computes_in_bf16(device) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise KeMetricError(
            "training.precision = 'fp16' needs a GPU; use 'bf16', 'fp32' or 'auto' on the CPU", ExitCode.ENVIRONMENT
        )
    return precision


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Emulated bf16 is slower than fp32. Older torch versions cannot tell: fp32 there.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
