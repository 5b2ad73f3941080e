"""One DDIM step of a tile on a device: bring it there, predict, check, update, round, bring it back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teramind import kernels
from teramind.diffusion.schedule import DDIMSchedule
from teramind.engine.transfer import Staged, Transfers
from teramind.errors import ComputationError, InputError
from teramind.kernels.ddim import Quantise
from teramind.model.config import BIN_SIZE
from teramind.model.network import TeraMind
from teramind.model.policy import warn_if_slow

logger = logging.getLogger(__name__)

StateDtype = Literal["float16", "float32"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Denoiser(Protocol):
    """What takes a tile one step further; the engine knows nothing else of a network.

    Attributes:
        steps: number of steps.
        state_dtype: numpy type of the state between steps.
    """

    steps: int
    state_dtype: np.dtype[np.floating]

    def send(self, state: NDArray[np.floating], genes: NDArray[np.int32]) -> Any:
        """Start bringing a tile to the device; called by another thread than the one that computes.

        Args:
            state: (1, S, Z, h+P, w+P), with the rim.
            genes: counts that are not 0, (3, n): flat index of the bin in (Zg, (h+P)/16, (w+P)/16), gene, count.
        """

    def __call__(self, sent: Any, step: int, name: str) -> Any:
        """Take what was sent through ``step``.

        Args:
            sent: from ``send``.
            step: 0 .. steps-1.
            name: what to call the tile in a message.
        """

    def fetch(self, result: Any) -> NDArray[np.generic]:
        """Bring a result to the host; called by a third thread.

        Returns:
            (1, S, Z, h, w) in the state's type; uint8 pixels after the last step.
        """


class NetworkDenoiser:
    """A ``Denoiser`` that runs a network on a device.

    float32 means float32: TF32 is off while it runs. Half precision casts weights and activations; the state and the
    update stay in float32.

    Args:
        net: the network; moved to the device, cast, and for prediction alone from then on.
        device: where it runs.
        dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, bfloat16 on a GPU.
        steps: DDIM steps.
        state_dtype: type of the state between steps. The reference stores float16.
        quantise: "round" to the nearest grey level, or "truncate" as the reference does.
    """

    def __init__(
        self,
        net: TeraMind,
        device: str | torch.device = "cpu",
        dtype: str = "auto",
        steps: int = 15,
        state_dtype: StateDtype = "float16",
        quantise: Quantise = "round",
    ) -> None:
        if quantise not in ("round", "truncate"):
            raise InputError(f"quantise is {quantise!r}; it has to be round or truncate")
        if state_dtype not in ("float16", "float32"):
            raise InputError(f"state_dtype is {state_dtype!r}; it has to be float16 or float32")
        self.device = torch.device(device)
        computed_in = resolve_dtype(dtype, self.device)
        warn_if_slow(computed_in, self.device)
        self.net = net.to(self.device, computed_in).eval()
        self.net.give_up_weights()
        self.schedule = DDIMSchedule(steps)
        self.steps = steps
        self.state_dtype = np.dtype(state_dtype)
        self._state_type = getattr(torch, state_dtype)
        self.quantise = quantise
        self._transfers = Transfers(self.device)

    def send(self, state: NDArray[np.floating], genes: NDArray[np.int32]) -> Staged:
        """See ``Denoiser``."""
        with self._told("while a tile was sent to it"):
            return self._transfers.send(state, genes)

    def fetch(self, result: Staged) -> NDArray[np.generic]:
        """See ``Denoiser``."""
        with self._told("while a tile was fetched from it"):
            return self._transfers.fetch(result)

    def __call__(self, sent: Staged, step: int, name: str) -> Staged:
        """See ``Denoiser``.

        Raises:
            ComputationError: for a prediction that is not finite, a device without memory, or one that fails.
        """
        while True:
            with self._told(f"at step {step} in {name}"):
                try:
                    return self._advance(sent, step, name)
                except torch.OutOfMemoryError:
                    pass  # its traceback holds on to tensors: go on when it is gone
                self._halve_batch()

    @torch.no_grad()
    def _advance(self, sent: Staged, step: int, name: str) -> Staged:
        config, margin = self.net.config, self.net.config.patch_size // 2
        is_last = step == self.steps - 1
        with on_device(self.device):
            x, entries = self._transfers.arrived(sent)  # (1, S, Z, h+P, w+P), (3, n)
            bins = (config.genes, config.gene_slices, x.shape[3] // BIN_SIZE, x.shape[4] // BIN_SIZE)
            counts = kernels.dense_counts(entries, bins, dtype=self.net.dtype)
            t = torch.full((1,), int(self.schedule.timesteps[step]), device=self.device)
            with full_float32(self.device):
                eps = self.net(x, t, counts[None])  # (1, S, Z, h, w)
            after, finite = kernels.ddim_update(
                x[..., margin:-margin, margin:-margin],
                eps,
                float(self.schedule.alphas_cumprod[step]),
                self.schedule.following(step),
                state_dtype=self._state_type,
                quantise=self.quantise if is_last else None,
            )
            self._check(finite, step, name)
            return self._transfers.computed(after)

    @contextmanager
    def _told(self, when: str) -> Iterator[None]:
        """Turn what a device that fails raises into a sentence."""
        try:
            yield
        except ComputationError:
            raise
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ComputationError(
                f"{self.device} failed {when} ({reason}); "
                "see to the device and go on with --resume, on another one if need be"
            ) from error

    def _halve_batch(self) -> None:
        """Send fewer patches through the network at a time."""
        batch = self.net.patch_batch(self.device)
        if batch == 1:
            raise ComputationError(f"{self.device} has not enough free memory for one patch of this network; free some")
        torch.cuda.empty_cache()
        self.net.limit_patch_batch(batch // 2)
        logger.warning("%s is out of memory: going on with %d patches at a time", self.device, batch // 2)

    def _check(self, finite: Tensor, step: int, name: str) -> None:
        """Stop at a NaN or Inf in the prediction; the clip of the update has hidden it from the result."""
        if not finite.all():
            raise ComputationError(
                f"the prediction is not finite at step {step} (t = {self.schedule.timesteps[step]}) in {name}; "
                "nothing of it was written: try --dtype float32, or look at the checkpoint and the counts there"
            )


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch type of a name; "auto" is float32 on a CPU and bfloat16 on a GPU."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; it has to be auto or one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the calling thread's own: kernels are launched on the current one, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _FullFloat32:
    """Which threads want TF32 off: the setting is the process's, and the workers of several GPUs share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = (False, False)

    def enter(self) -> None:
        matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
        with self._lock:
            if not self._users:
                self._before = matmul.allow_tf32, convolution.allow_tf32
                matmul.allow_tf32 = convolution.allow_tf32 = False
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


_full_float32 = _FullFloat32()


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep TF32 out of float32 on CUDA, and leave the process's setting as it was once no thread needs it off."""
    if device.type != "cuda":
        yield
        return
    _full_float32.enter()
    try:
        yield
    finally:
        _full_float32.leave()
