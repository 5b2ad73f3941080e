"""Start noise that depends on seed, stain, slice, y and x alone, on a device: that of ``teramind.diffusion.noise``.

The random words equal those of the CPU bit for bit. The normals are computed in float32, with every operation rounded
as written, and lie within 1e-6 of the CPU's, which are computed in float64; nothing here is a fast approximation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from teramind.checks import integer_between
from teramind.errors import InputError
from teramind.kernels import launch
from teramind.kernels.dispatch import Implementation, Verdict, use_triton
from teramind.kernels.language import jit, tl

GROUP = 4  # pixels of one Philox output
AXIS = 2**32  # positions along an axis: one word of the counter
ROUND_FACTORS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

Shape = tuple[int, int, int, int]

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def philox_words_reference(seed: int, z0: int, y0: int, x0: int, shape: Shape, device: torch.device) -> Tensor:
    """``philox_words`` in plain torch."""
    words, offset = _words(seed, z0, y0, x0, shape, device)
    return words.flatten(-2)[..., offset : offset + shape[3]].to(torch.uint32)


def noise_field_reference(
    seed: int, z0: int, y0: int, x0: int, shape: Shape, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``noise_field`` in plain torch, normals in float64 and rounded once."""
    words, offset = _words(seed, z0, y0, x0, shape, device)
    a, b = words.unflatten(-1, (2, 2)).unbind(-1)  # (S, Z, H, groups, 2) each: words 0 and 2, words 1 and 3
    radius = torch.sqrt(-2 * torch.log(((a >> 9).double() + 0.5) * 2.0**-23))
    angle = (b >> 9).double() * (2 * math.pi * 2.0**-23)
    normals = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)  # (S, Z, H, groups, 2, 2)
    return normals.flatten(-3)[..., offset : offset + shape[3]].to(torch.float32).to(dtype)


def _words(seed: int, z0: int, y0: int, x0: int, shape: Shape, device: torch.device) -> tuple[Tensor, int]:
    """Philox4x32-10 of every group of 4 px that the box touches: int64 (S, Z, H, groups, 4), and the box's offset."""
    first, offset = divmod(x0, GROUP)
    extents = (*shape[:3], -(-(offset + shape[3]) // GROUP))
    axes = [
        torch.arange(start, start + extent, device=device).reshape([-1 if axis == i else 1 for i in range(4)])
        for axis, (start, extent) in enumerate(zip((0, z0, y0, first), extents, strict=True))
    ]
    c3, c2, c1, c0 = (axis.expand(extents) for axis in axes)
    k0, k1 = seed % AXIS, seed >> 32
    for _ in range(10):
        # A product of two words needs all 64 bits; int64 holds them, and the mask takes the sign off its upper half.
        p0, p1 = c0 * ROUND_FACTORS[0], c2 * ROUND_FACTORS[1]
        c0, c2 = (p1 >> 32) % AXIS ^ c1 ^ k0, (p0 >> 32) % AXIS ^ c3 ^ k1
        c1, c3 = p1 % AXIS, p0 % AXIS
        k0, k1 = (k0 + KEY_STEPS[0]) % AXIS, (k1 + KEY_STEPS[1]) % AXIS
    return torch.stack((c0, c1, c2, c3), dim=-1), offset


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _philox_row(row, z0, y0, first_group, seed_low, seed_high, slices, height, GROUPS: tl.constexpr):
    """The four words of GROUPS groups of a row of the box; the block of the row is program axis 1."""
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    stain = row // (slices * height)
    z = row // height % slices
    y = row % height
    return tl.philox_impl(
        group.to(tl.uint32) + tl.cast(first_group, tl.uint32),
        tl.cast(y, tl.uint32) + tl.cast(y0, tl.uint32),
        tl.cast(z, tl.uint32) + tl.cast(z0, tl.uint32),
        tl.cast(stain, tl.uint32),
        tl.cast(seed_low, tl.uint32),
        tl.cast(seed_high, tl.uint32),
    )


@jit
def _store_groups(out_ptr, row, width, offset, v0, v1, v2, v3, GROUPS: tl.constexpr):
    """Store four values a group at consecutive pixels; ``offset`` pixels of the first group lie before the box."""
    values = tl.interleave(tl.interleave(v0, v2), tl.interleave(v1, v3))
    column = tl.program_id(1) * (4 * GROUPS) + tl.arange(0, 4 * GROUPS) - offset
    target = tl.cast(row, tl.int64) * width + column
    tl.store(out_ptr + target, values.to(out_ptr.dtype.element_ty), mask=(column >= 0) & (column < width))


@jit
def _radius(a):
    """sqrt(-2 ln u), u = ((a >> 9) + 1/2) 2^-23, as an unevaluated sum of two float32."""
    odd = ((a >> 9) * 2 + 1).to(tl.float32)  # u = odd * 2^-24, exactly
    # odd = 2^exponent m with m in [sqrt(1/2), sqrt(2)): -2 ln u = (24 - exponent) 2 ln 2 - 2 ln m, and nothing cancels.
    bits = odd.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    missing = (24 - exponent).to(tl.float32)
    # ln m = 2 atanh(s); s^2 is at most 0.0295, so the first term left out is below 6e-11 of the sum.
    s = tl.div_rn(m - 1.0, m + 1.0)
    square = s * s
    series = square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square * (1 / 11)))))
    # 2 ln 2 in two parts, the first of 17 bits: its product with at most 24 is exact.
    exact = missing * 1.3862915039062500
    rest = missing * 2.8572136406e-06 - (4.0 * s + 4.0 * s * series)
    total = exact + rest
    lost = rest - (total - exact)
    root = tl.sqrt_rn(total)
    return root, tl.div_rn(tl.fma(-root, root, total) + lost, 2.0 * root)


@jit
def _direction(b):
    """Cosine and sine of ((b >> 9) 2^-23) turns, by the nearest quarter turn and a rest of at most an eighth."""
    shifted = (b >> 9) + 1048576
    quarters = shifted // 2097152
    rest = (shifted % 2097152).to(tl.int32) - 1048576
    t = rest.to(tl.float32) * 9.5367431640625e-07  # 2^-20: in -1..1, exactly; the angle is t pi/4
    square = t * t
    # Taylor's series of sin(t pi/4) and cos(t pi/4); the first terms left out are below 2e-9 and 2e-10. The leading
    # pi/4 is in two parts, so that its rounding does not show.
    sine = -3.6576204182e-05 + square * 3.1336162267e-07
    sine = -8.0745512188e-02 + square * (2.4903945702e-03 + square * sine)
    sine = t * 7.8539818525e-01 + t * (square * sine - 2.1855695e-08)
    cosine = 3.5908604459e-06 - square * 2.4611369501e-08
    cosine = 1.5854344244e-02 + square * (-3.2599188693e-04 + square * cosine)
    cosine = 1.0 + square * (-3.0842513753e-01 + square * cosine)
    odd = (quarters & 1) == 1
    turned_cosine = tl.where(odd, sine, cosine)
    turned_sine = tl.where(odd, cosine, sine)
    return (
        tl.where(((quarters + 1) & 2) == 2, -turned_cosine, turned_cosine),
        tl.where((quarters & 2) == 2, -turned_sine, turned_sine),
    )


@jit
def _box_muller(a, b):
    """Two normals from two words."""
    radius, radius_rest = _radius(a)
    cosine, sine = _direction(b)
    return radius * cosine + radius_rest * cosine, radius * sine + radius_rest * sine


@jit(do_not_specialize=["z0", "y0", "first_group", "offset", "seed_low", "seed_high"])
def _philox_words_kernel(
    out_ptr,
    z0,
    y0,
    first_group,
    offset,
    seed_low,
    seed_high,
    slices,
    height,
    width,
    GROUPS: tl.constexpr,
):
    """The words of GROUPS groups of one row."""
    row = tl.program_id(0)
    w0, w1, w2, w3 = _philox_row(row, z0, y0, first_group, seed_low, seed_high, slices, height, GROUPS)
    _store_groups(out_ptr, row, width, offset, w0, w1, w2, w3, GROUPS)


@jit(do_not_specialize=["z0", "y0", "first_group", "offset", "seed_low", "seed_high"])
def _noise_field_kernel(
    out_ptr,
    z0,
    y0,
    first_group,
    offset,
    seed_low,
    seed_high,
    slices,
    height,
    width,
    GROUPS: tl.constexpr,
):
    """The normals of GROUPS groups of one row."""
    row = tl.program_id(0)
    w0, w1, w2, w3 = _philox_row(row, z0, y0, first_group, seed_low, seed_high, slices, height, GROUPS)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    _store_groups(out_ptr, row, width, offset, n0, n1, n2, n3, GROUPS)


# ---- host function ---------------------------------------------------------------------------------------------------


def _fill(operation: str, kernel: object, seed: int, z0: int, y0: int, x0: int, out: Tensor) -> Tensor:
    """Run one of the two kernels over a box."""
    if out.numel() == 0:
        return out
    stains, slices, height, width = out.shape
    first_group, offset = divmod(x0, GROUP)
    plan = launch.constants(operation, out)
    groups = plan.elements // GROUP
    launch.start(
        kernel,
        (stains * slices * height, -(-(offset + width) // (GROUP * groups))),
        plan,
        out_ptr=out,
        z0=_signed(z0),
        y0=_signed(y0),
        first_group=first_group,
        offset=offset,
        seed_low=_signed(seed % AXIS),
        seed_high=_signed(seed >> 32),
        slices=slices,
        height=height,
        width=width,
        GROUPS=groups,
    )
    return out


def _signed(word: int) -> int:
    """The int32 with the bits of a word: one type of argument, so that nothing is compiled twice."""
    return word - AXIS if word >= AXIS // 2 else word


# ---- dispatch --------------------------------------------------------------------------------------------------------


def philox_words(
    seed: int,
    z0: int,
    y0: int,
    x0: int,
    shape: Shape,
    *,
    device: torch.device | str,
    implementation: Implementation | None = None,
) -> Tensor:
    """The random words under ``noise_field``, one a voxel.

    Arguments and errors are those of ``noise_field``.

    Returns:
        uint32 (stains, slices, height, width) on ``device``.
    """
    _check(seed, z0, y0, x0, shape)
    out = torch.empty(shape, dtype=torch.uint32, device=device)
    if use_triton("philox_words", implementation, (out,), Verdict(True)):
        return _fill("philox_words", _philox_words_kernel, seed, z0, y0, x0, out)
    return philox_words_reference(seed, z0, y0, x0, shape, out.device)


def noise_field(
    seed: int,
    z0: int,
    y0: int,
    x0: int,
    shape: Shape,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    implementation: Implementation | None = None,
) -> Tensor:
    """A box of the field of standard normals that belongs to ``seed``, made on a device.

    Args:
        seed: 0 .. 2^64 - 1.
        z0: first slice of the atlas.
        y0: first row, atlas px.
        x0: first column, atlas px.
        shape: (stains, slices, height, width); stains start at 0.
        device: where it is made.
        dtype: of the result, rounded from float32.
        implementation: see ``dispatch``.

    Returns:
        (stains, slices, height, width) on ``device``.

    Raises:
        InputError: the seed or a position is out of range, or kernels asked for by name cannot run.
    """
    _check(seed, z0, y0, x0, shape)
    out = torch.empty(shape, dtype=dtype, device=device)
    if use_triton("noise_field", implementation, (out,), Verdict(True)):
        return _fill("noise_field", _noise_field_kernel, seed, z0, y0, x0, out)
    return noise_field_reference(seed, z0, y0, x0, shape, dtype, out.device)


def _check(seed: int, z0: int, y0: int, x0: int, shape: Shape) -> None:
    integer_between("seed", seed, 0, 2**64 - 1)
    if len(shape) != 4:
        raise InputError(f"shape is {shape!r}; it has to be (stains, slices, height, width)")
    for name, start, size in zip(("stain", "z0", "y0", "x0"), (0, z0, y0, x0), shape, strict=True):
        integer_between(name, start, 0, AXIS - 1)
        integer_between(f"the extent from {name}", size, 0, AXIS - start)
