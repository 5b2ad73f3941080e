"""How kernels are launched: one table of constants, and one function that starts a kernel.

Every constant has its reason; none was measured on a device yet where it does not say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from teramind.kernels.dispatch import capability_of


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Constants of a kernel's launch.

    Attributes:
        elements: size of the block that a program keeps in registers, a power of two.
        num_warps: warps a program.
        num_stages: depth of the software pipeline of its loop.
        chunk: channels a pass of its loop, where it goes over channels in chunks; a power of two.
        fuse_multiply_add: whether a*b + c may be rounded once. Where bits matter it may not, so that the results are
            those of the reference and of Triton's interpreter.
    """

    elements: int
    num_warps: int
    num_stages: int = 1
    chunk: int = 0
    fuse_multiply_add: bool = True


AMPERE, HOPPER = 80, 90
SMALLEST_DOT = 16  # of a block that matrix units take, along every axis

# Memory-bound kernels hold about 32 float32 values of every input in a thread's registers: enough loads in flight for
# the memory's latency, few enough that two or more blocks fit a multiprocessor. Hopper, with 2.4 times the bandwidth of
# an A100 over 1.2 times as many multiprocessors, is given twice the warps and the same elements a thread.
_STREAM = {
    AMPERE: Launch(elements=4096, num_warps=4),
    HOPPER: Launch(elements=8192, num_warps=8),
}
# Softmax weights are the largest thing in registers: 4096 (128 queries x 32 keys) is 32 a thread with 4 warps. Chunks
# of 64 channels in half precision are 128-byte rows, the widest swizzle of shared memory; as compiled it is
# 28 KB of shared memory and 126 registers a thread, so that four programs fit a multiprocessor.
_ATTENTION = {
    AMPERE: Launch(elements=4096, num_warps=4, num_stages=2, chunk=64),
    HOPPER: Launch(elements=4096, num_warps=4, num_stages=2, chunk=64),
}
# Up to 512 genes are keys of every query: 16 queries of them are 8192 weights, 32 a thread with 8 warps. Chunks of 32
# features keep a pass of 512 keys at 32 KB: as compiled 50 KB, two programs and more a multiprocessor.
_GENES = {
    AMPERE: Launch(elements=8192, num_warps=8, num_stages=2, chunk=32),
    HOPPER: Launch(elements=8192, num_warps=8, num_stages=2, chunk=32),
}
# No matrix unit computes float32 (TF32 is not float32): the products are multiply-adds on operands in registers. Chunks
# of 16 and no second stage keep a thread at 80 to 182 registers; 32 channels or a second stage make it spill.
_FLOAT32 = {
    AMPERE: Launch(elements=4096, num_warps=8, chunk=16),
    HOPPER: Launch(elements=4096, num_warps=8, chunk=16),
}
# One Philox output, four normals, a thread: as compiled 24 to 28 registers, so that multiprocessors are full of warps.
_NOISE = {
    AMPERE: Launch(elements=512, num_warps=4, fuse_multiply_add=False),
    HOPPER: Launch(elements=512, num_warps=4, fuse_multiply_add=False),
}
# 8 elements of each input a thread: half-precision loads of 16 bytes.
_DDIM = {
    AMPERE: Launch(elements=1024, num_warps=4, fuse_multiply_add=False),
    HOPPER: Launch(elements=1024, num_warps=4, fuse_multiply_add=False),
}
# Scattered stores have nothing to gain from larger blocks; 4 entries a thread hide the latency of their loads.
_SCATTER = {
    AMPERE: Launch(elements=512, num_warps=4),
    HOPPER: Launch(elements=512, num_warps=4),
}

TABLE: dict[str, dict[int, Launch]] = {
    "gather_norm_silu": _STREAM,
    "modulated_silu": _STREAM,
    "adaptive_norm": _STREAM,
    "gene_morph_attention": _ATTENTION,
    "gene_gene_attention": _GENES,
    "gene_attention_rows": _GENES,
    "ddim_update": _DDIM,
    "philox_words": _NOISE,
    "noise_field": _NOISE,
    "dense_counts": _SCATTER,
}


# Operations whose constants are others in float32.
TABLE_FLOAT32: dict[str, dict[int, Launch]] = {
    "gene_morph_attention": _FLOAT32,
    "gene_gene_attention": _FLOAT32,
    "gene_attention_rows": _FLOAT32,
}


def constants(operation: str, tensor: Tensor) -> Launch:
    """The row for an operation that computes in the type of ``tensor``, on its device."""
    table = TABLE_FLOAT32 if tensor.dtype == torch.float32 and operation in TABLE_FLOAT32 else TABLE
    return table[operation][architecture_of(tensor.device)]


def architecture_of(device: torch.device) -> int:
    """The column of the tables for a device; in the interpreter, where there is none, that of Hopper."""
    return AMPERE if device.type == "cuda" and capability_of(device) < (9, 0) else HOPPER


def start(kernel: Any, grid: tuple[int, ...], launch: Launch, **arguments: Any) -> None:
    """Start a kernel on the device of its tensors, every argument by its name."""
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    with torch.cuda.device(device if device.type == "cuda" else -1):  # -1: leave the current device alone
        kernel[grid](
            **arguments,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            enable_fp_fusion=launch.fuse_multiply_add,
        )


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is no less than ``value`` >= 1."""
    return 1 << (value - 1).bit_length()


def fitting_rows(elements: int, row: int) -> int:
    """How many rows, a power of two, a block of so many elements holds; at least one."""
    return 1 << max(1, elements // row).bit_length() - 1


def channel_chunk(launch: Launch, channels: int) -> int:
    """Channels a pass. Rows that are not made of 16 bytes are read element by element, each with its address."""
    aligned = launch.chunk if channels % 8 == 0 else SMALLEST_DOT
    return min(aligned, max(SMALLEST_DOT, next_power_of_2(channels)))


def channel_rows(x: Tensor) -> Tensor:
    """``x`` with its channels next to each other: itself, or a copy where they are not."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def channel_vector(weight: Tensor) -> Tensor:
    """The weights of a norm, stored in any shape, next to each other."""
    return weight.flatten().contiguous()
