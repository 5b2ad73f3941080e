"""The DDIM update of a tile in one pass: look for NaN and Inf, clip, step, round to the state's type or to pixels."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from teramind.errors import InputError
from teramind.kernels import launch
from teramind.kernels.dispatch import FLOATS, Implementation, Verdict, use_triton
from teramind.kernels.language import jit, tl, voxel_of
from teramind.kernels.launch import channel_rows, next_power_of_2

Quantise = Literal["round", "truncate"]

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def ddim_update_reference(
    x: Tensor,
    eps: Tensor,
    alpha_cumprod: float,
    alpha_cumprod_next: float,
    *,
    state_dtype: torch.dtype,
    quantise: Quantise | None = None,
) -> tuple[Tensor, Tensor]:
    """``ddim_update`` in plain torch."""
    finite = torch.isfinite(eps).flatten(1).all(dim=1)
    after = ddim_step(x.float(), eps.float(), alpha_cumprod, alpha_cumprod_next).to(state_dtype)
    return after if quantise is None else to_pixels(after.float(), quantise), finite


def ddim_step(x: Tensor, eps: Tensor, alpha_cumprod: float, alpha_cumprod_next: float) -> Tensor:
    """The state after a step from the state before it and the predicted noise, of any shape; see ``ddim_update``."""
    factor = _Factors.between(alpha_cumprod, alpha_cumprod_next)
    image = (x * factor.from_state - eps * factor.from_noise).clamp(-1, 1)
    if alpha_cumprod_next == 1:
        return image
    noise = (x - image * factor.signal) * factor.from_residual
    return image * factor.next_signal + noise * factor.next_noise


def to_pixels(image: Tensor, quantise: Quantise) -> Tensor:
    """-1..1 -> 0..255."""
    scaled = (image + 1) * 127.5
    return (scaled.round() if quantise == "round" else scaled.trunc()).clamp(0, 255).to(torch.uint8)


class _Factors(NamedTuple):
    """Factors of one step, float64."""

    from_state: float  # image = from_state * state - from_noise * eps
    from_noise: float
    signal: float  # state = signal * image + noise / from_residual
    from_residual: float
    next_signal: float  # next state = next_signal * image + next_noise * noise
    next_noise: float

    @classmethod
    def between(cls, alpha: float, alpha_next: float) -> _Factors:
        """The factors from abar of a step and of the next."""
        return cls(
            from_state=1 / math.sqrt(alpha),
            from_noise=math.sqrt(1 / alpha - 1),
            signal=math.sqrt(alpha),
            from_residual=1 / math.sqrt(1 - alpha),
            next_signal=math.sqrt(alpha_next),
            next_noise=math.sqrt(1 - alpha_next),
        )


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _ddim_update_kernel(
    out_ptr,
    finite_ptr,
    x_ptr,
    eps_ptr,
    x_strides,
    eps_strides,
    slices,
    height,
    width,
    planes,
    from_state,
    from_noise,
    signal,
    from_residual,
    next_signal,
    next_noise,
    STATE: tl.constexpr,
    LAST: tl.constexpr,
    QUANTISE: tl.constexpr,
    ROUND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """ROWS x COLUMNS pixels of one tile; every product and sum is rounded as the reference rounds it."""
    column_blocks = (width + COLUMNS - 1) // COLUMNS
    blocks = (planes * height + ROWS - 1) // ROWS * column_blocks
    tile = tl.cast(tl.program_id(0) // blocks, tl.int64)
    block = tl.program_id(0) % blocks
    row = block // column_blocks * ROWS + tl.arange(0, ROWS)
    column = tl.cast(block % column_blocks, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    live = (row < planes * height)[:, None] & (column < width)[None, :]
    stain, z, y = voxel_of(row, slices, height)
    stain = stain.to(tl.int64)
    x_rows = tile * x_strides[0] + stain * x_strides[1] + z.to(tl.int64) * x_strides[2] + y.to(tl.int64) * x_strides[3]
    eps_rows = tile * eps_strides[0] + stain * eps_strides[1] + z.to(tl.int64) * eps_strides[2]
    eps_rows += y.to(tl.int64) * eps_strides[3]
    x = tl.load(x_ptr + x_rows[:, None] + column[None, :], mask=live, other=0.0).to(tl.float32)
    eps = tl.load(eps_ptr + eps_rows[:, None] + column[None, :], mask=live, other=0.0).to(tl.float32)

    # Looked for before the clip, which would hide it. A NaN compares false, too.
    infinite = tl.where(tl.abs(eps) < float("inf"), 0, 1)
    tl.store(finite_ptr + tile, 0, mask=tl.max(tl.max(infinite, axis=1), axis=0) > 0)

    image = x * from_state - eps * from_noise
    image = tl.where(image > 1.0, 1.0, tl.where(image < -1.0, -1.0, image))  # a NaN stays one
    if not LAST:
        image = image * next_signal + (x - image * signal) * from_residual * next_noise
    image = image.to(STATE)
    out = out_ptr + ((tile * planes * height + row) * width)[:, None] + column[None, :]
    if QUANTISE:
        scaled = (image.to(tl.float32) + 1.0) * 127.5
        # 1.5 * 2^23 has no binary places: adding it rounds to the nearest integer, halves to the even one.
        scaled = (scaled + 12582912.0) - 12582912.0 if ROUND else tl.floor(scaled)
        tl.store(out, scaled.to(tl.uint8), mask=live)
    else:
        tl.store(out, image, mask=live)


# ---- host function ---------------------------------------------------------------------------------------------------


def _ddim_update_triton(
    x: Tensor,
    eps: Tensor,
    alpha_cumprod: float,
    alpha_cumprod_next: float,
    state_dtype: torch.dtype,
    quantise: Quantise | None,
) -> tuple[Tensor, Tensor]:
    x, eps = channel_rows(x), channel_rows(eps)
    out = torch.empty(x.shape, dtype=state_dtype if quantise is None else torch.uint8, device=x.device)
    finite = torch.ones(len(x), dtype=torch.uint8, device=x.device)
    if out.numel() == 0:
        return out, finite.bool()
    tiles, stains, slices, height, width = x.shape
    plan = launch.constants("ddim_update", x)
    columns = min(plan.elements, next_power_of_2(width))
    rows = plan.elements // columns
    row_blocks = -(-stains * slices * height // rows)
    launch.start(
        _ddim_update_kernel,
        (tiles * row_blocks * -(-width // columns),),
        plan,
        out_ptr=out,
        finite_ptr=finite,
        x_ptr=x,
        eps_ptr=eps,
        x_strides=x.stride()[:4],
        eps_strides=eps.stride()[:4],
        slices=slices,
        height=height,
        width=width,
        planes=stains * slices,
        **_Factors.between(alpha_cumprod, alpha_cumprod_next)._asdict(),
        STATE=tl.float16 if state_dtype == torch.float16 else tl.float32,
        LAST=alpha_cumprod_next == 1,
        QUANTISE=quantise is not None,
        ROUND=quantise == "round",
        ROWS=rows,
        COLUMNS=columns,
    )
    return out, finite.view(torch.bool)


# ---- dispatch --------------------------------------------------------------------------------------------------------


def ddim_update(
    x: Tensor,
    eps: Tensor,
    alpha_cumprod: float,
    alpha_cumprod_next: float,
    *,
    state_dtype: torch.dtype,
    quantise: Quantise | None = None,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor]:
    """One deterministic DDIM step (eta 0) of several tiles, bit for bit as in float32 arithmetic on a CPU.

    Args:
        x: (B, S, Z, H, W) states, any strides: the inside of a tile with its rim is read as it is.
        eps: (B, S, Z, H, W) predicted noise, any strides.
        alpha_cumprod: abar of this step, below 1.
        alpha_cumprod_next: abar of the next; 1 at the last step, whose state is the image.
        state_dtype: torch.float16 or torch.float32, which the state is rounded to.
        quantise: None for the state, or, at the last step, how its -1..1 becomes 0..255: "round" to the nearest grey
            level, or "truncate".
        implementation: see ``dispatch``.

    Returns:
        (B, S, Z, H, W) states or uint8 pixels, contiguous, and for each tile whether all of ``eps`` was finite; what
        comes out of a tile where it was not is of no use.

    Raises:
        InputError: arguments that do not fit together, or kernels asked for by name that cannot run.
    """
    if x.ndim != 5 or eps.shape != x.shape:
        raise InputError(f"the state is {tuple(x.shape)} and eps {tuple(eps.shape)}; both have to be (B, S, Z, H, W)")
    if not 0 < alpha_cumprod < 1 or not alpha_cumprod < alpha_cumprod_next <= 1:
        raise InputError(f"abar goes from {alpha_cumprod} to {alpha_cumprod_next}; it has to rise within 0..1")
    if state_dtype not in (torch.float16, torch.float32) or quantise not in (None, "round", "truncate"):
        raise InputError(
            f"state_dtype is {state_dtype} and quantise {quantise!r}; they have to be float16 or float32, and round, "
            "truncate or None"
        )
    limits = Verdict(x.dtype in FLOATS and eps.dtype in FLOATS, f"state and eps are {x.dtype} and {eps.dtype}")
    if use_triton("ddim_update", implementation, (x, eps), limits):
        return _ddim_update_triton(x, eps, alpha_cumprod, alpha_cumprod_next, state_dtype, quantise)
    return ddim_update_reference(x, eps, alpha_cumprod, alpha_cumprod_next, state_dtype=state_dtype, quantise=quantise)
