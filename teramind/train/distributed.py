"""The processes of a training: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from teramind.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        device: of this one.
        rank: its number.
        count: how many there are.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one logs and saves."""
        return self.rank == 0

    def shared(self, objective: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes."""
        if self.count == 1:
            return objective
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            objective, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def keep_gradients(self, objective: nn.Module) -> AbstractContextManager[None]:
        """Backward passes within do not exchange gradients: others follow before the step."""
        return objective.no_sync() if isinstance(objective, DistributedDataParallel) else nullcontext()

    def largest(self, *values: float) -> list[float]:
        """Of each value, the largest of all processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return list(tensor.tolist())

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started: over gloo on CPUs, NCCL on GPUs. Without it, this one is alone.

    Raises:
        InputError: for a device that is not there.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if count == 1:
        yield Processes(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(chosen, rank, count)
        dist.barrier()  # one that leaves while another still reads from it would keep that one waiting
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"training runs on cpu or cuda, not on {name!r}")
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= gpus:
            raise InputError(f"{device} was asked for, and there are {gpus} GPUs")
    return device
