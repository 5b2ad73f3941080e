"""Copies between the host and a device, beside what the device computes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Staged(NamedTuple):
    """Tensors on a device, and the event after which they hold their values; None where they do already."""

    tensors: tuple[Tensor, ...]
    ready: torch.cuda.Event | None


class Transfers:
    """The ways to and from one device, each for one thread beside the one that computes.

    On a GPU they lead through pinned memory and have streams of their own, so that copies overlap with kernels. torch
    keeps pinned buffers and hands one out again when its copy has ended: as a worker holds few units at a time, they
    come to about two each way. On a CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(2)] if device.type == "cuda" else []

    def send(self, *arrays: NDArray[Any]) -> Staged:
        """Start copying arrays to the device; they must not change afterwards."""
        tensors = tuple(torch.from_numpy(array) for array in arrays)
        if not self._streams:
            return Staged(tensors, None)
        stream = self._streams[0]
        with torch.cuda.stream(stream):
            sent = tuple(tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors)
            return Staged(sent, stream.record_event())

    def arrived(self, staged: Staged) -> tuple[Tensor, ...]:
        """What was sent, for kernels of the calling thread's stream."""
        if staged.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(staged.ready)
            for tensor in staged.tensors:
                tensor.record_stream(stream)  # it was allocated for another one, which might use it again too early
        return staged.tensors

    def computed(self, tensor: Tensor) -> Staged:
        """Mark a result of the calling thread's stream."""
        ready = torch.cuda.current_stream(self.device).record_event() if self._streams else None
        return Staged((tensor,), ready)

    def fetch(self, staged: Staged) -> NDArray[Any]:
        """Copy a result to the host."""
        (tensor,) = staged.tensors
        if staged.ready is None:
            return np.asarray(tensor.numpy())
        stream = self._streams[1]
        with torch.cuda.stream(stream):
            stream.wait_event(staged.ready)
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        stream.synchronize()  # afterwards the tensor is nobody's: it can be freed by whoever drops it
        return host.numpy().copy()  # what is kept for long must not be pinned
