"""How inference goes about its work on each kind of device: choices that speed depends on and results do not."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The choices for a kind of device.

    Attributes:
        batch_bytes: size of the widest activation of the patches that go through encoder or decoder together.
        streams_rows: whether a region goes through a row of patches at a time, so that what the decoder reads is still
            in the caches. Else its encoder features are all kept, and gathered from.
        pairs_slices: whether three convolutions of pairs of slices beat a folded one of twice the channels.
        fills_channels: whether a convolution's input is filled up with zero channels to a multiple of 8, for which
            matrix units read half precision in whole 16 bytes: the 741 channels that 229 genes make keep them idle.
    """

    batch_bytes: int
    streams_rows: bool
    pairs_slices: bool
    fills_channels: bool


# On a CPU, 3 or 4 patches of the published size together are fastest (one patch: 1.3x slower, 8: 1.05x; measured on a
# 32 MB cache), and networks of 8 to 16 channels like 8; pairs of slices are 1.3x as fast from 64 channels on (Zen 5
# core, AVX-512). A GPU wants enough work to fill it; nothing of its column has been measured.
POLICIES = {
    "cpu": Policy(batch_bytes=16 << 20, streams_rows=True, pairs_slices=True, fills_channels=False),
    "cuda": Policy(batch_bytes=2 << 30, streams_rows=False, pairs_slices=False, fills_channels=True),
}


def policy_for(device: torch.device) -> Policy:
    """The choices for a device; for one of a kind that is not in the table, those for a GPU."""
    return POLICIES.get(device.type, POLICIES["cuda"])


def computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has instructions for a type; one that has none takes several times as long as in float32."""
    if device.type != "cpu" or dtype == torch.float32:
        return True
    supported = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }.get(dtype, "")
    return torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, supported, bool)())


def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Say that another type would be faster on a device."""
    if not computes_in(dtype, device):
        name = str(dtype).removeprefix("torch.")
        logger.warning("this CPU has no instructions for %s: float32 is several times as fast here", name)
