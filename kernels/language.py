"""Triton where it is installed, and the device functions that several kernels share.

Prefix-free names, one meaning each: ``*_ptr`` points to the first element of a tensor, ``*_rows`` are int64 offsets of
channel rows, ``*_strides`` a tuple of element strides. Offsets of rows are int64, since a tensor may have more than
2^31 elements; offsets within a row are int32.
"""

from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # the references beside the kernels need neither
    tl = None

    def jit(function: Any = None, **options: Any) -> Any:
        """Leave a kernel as it is: without Triton nothing launches it."""
        del options
        return function or (lambda wrapped: wrapped)


@jit
def inverse_rms(squares, channels, epsilon):
    """1 / root mean square, from the sum of squares over the channels."""
    return tl.rsqrt(squares / channels + epsilon)


@jit
def silu(x):
    """``x * sigmoid(x)``."""
    return x / (1 + tl.exp(-x))


@jit
def load_rows(base_ptr, rows, live, channel, channels):
    """A block of rows by channels as float32, zero outside ``live`` rows and beyond ``channels``."""
    mask = live[:, None] & (channel < channels)[None, :]
    return tl.load(base_ptr + rows[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@jit
def load_channels(base_ptr, channel, channels):
    """A vector over channels as float32, zero beyond ``channels``."""
    return tl.load(base_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)


@jit
def store_rows(base_ptr, rows, live, channel, channels, values):
    """Store a block of rows by channels in the type of the tensor."""
    mask = live[:, None] & (channel < channels)[None, :]
    pointers = base_ptr + rows[:, None] + channel[None, :]
    tl.store(pointers, values.to(base_ptr.dtype.element_ty), mask=mask)


@jit
def voxel_of(index, WIDTH: tl.constexpr, SLICES: tl.constexpr):
    """Index within a (height, WIDTH, SLICES) grid -> (y, x, z)."""
    return index // (WIDTH * SLICES), index // SLICES % WIDTH, index % SLICES


@jit
def row_offsets(patch, y, x, z, strides):
    """Offsets of the channel rows of voxels; ``strides`` belong to (patch, y, x, z)."""
    at_patch = tl.cast(patch, tl.int64) * strides[0]
    return at_patch + y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2] + z.to(tl.int64) * strides[3]
