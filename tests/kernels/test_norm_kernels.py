"""The three normalising kernels against their references in float64."""

import pytest
import torch

from teramind.errors import InputError
from teramind.kernels.adaln import adaptive_norm, adaptive_norm_reference
from teramind.kernels.gather import gather_norm_silu, gather_norm_silu_reference
from teramind.kernels.modulation import modulated_silu, modulated_silu_reference

# float32: twice what was measured, sums over up to 1253 channels. float16: half a unit in the last place, 2^-11, and as
# much for inputs of the activation near its zero. bfloat16: Triton's interpreter truncates, 2^-7 instead of 2^-8.
PRECISIONS = [
    pytest.param(torch.float32, 4e-6, id="float32"),
    pytest.param(torch.float16, 1e-3, id="float16"),
    pytest.param(torch.bfloat16, 8e-3, id="bfloat16"),
]
# decoder patches (rows, columns), side, slices, channels of the features, genes (0: none), which lie on the encoder's
# grid, multiple
ON_GRID = [
    ((1, 1), 4, 1, (1,), 1, (True,), 1),
    ((2, 1), 8, 3, (13, 5), 7, (False, True), 1),
    ((1, 3), 4, 2, (512,), 229, (True,), 8),  # 741 channels, filled up to 744
    ((1, 1), 4, 1, (512, 512), 229, (True, True), 1),  # 1253
    ((2, 3), 6, 2, (9, 3), 0, (False, True), 4),  # no genes: any even side
]
WITHIN = [
    (1, 8, 2, (64,), 32, 1),
    (2, 4, 1, (256,), 229, 8),  # 485 -> 488
    (3, 5, 3, (7, 11), 0, 1),  # an odd side
    (2, 2, 1, (3,), 0, 5),
]


def gather_inputs(random, dtype, patches, side, slices, channels, genes, grids=None):
    """``patches`` is their number, or the rows and columns of those that lie between encoder patches."""
    count = patches if grids is None else patches[0] * patches[1]
    leading = {False: (count,)} | ({} if grids is None else {True: (patches[0] + 1, patches[1] + 1)})
    on_grid = grids or (False,) * len(channels)
    features = [
        random(*leading[one], side, side, slices, c, dtype=dtype) for one, c in zip(on_grid, channels, strict=True)
    ]
    level = random(count, side // 2, side // 2, slices, genes, dtype=dtype) if genes else None
    return features, level, random(sum(channels) + genes, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("patches", "side", "slices", "channels", "genes", "grids", "multiple"), ON_GRID)
def test_gather_from_the_encoders_grid(
    run_triton,
    in_float64,
    assert_near,
    random,
    dtype,
    tolerance,
    patches,
    side,
    slices,
    channels,
    genes,
    grids,
    multiple,
):
    inputs = gather_inputs(random, dtype, patches, side, slices, channels, genes, grids)
    options = {"multiple": multiple, "concatenate": True}
    out, joined = run_triton(gather_norm_silu, *inputs, **options)
    expected = gather_norm_silu_reference(*in_float64(inputs), **options)
    assert out.dtype == joined.dtype == dtype
    assert out.is_contiguous()
    assert_near(out, expected[0], tolerance)
    assert torch.equal(joined.double(), expected[1])


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("patches", "side", "slices", "channels", "genes", "multiple"), WITHIN)
def test_gather_within_patches(
    run_triton, in_float64, assert_near, random, dtype, tolerance, patches, side, slices, channels, genes, multiple
):
    inputs = gather_inputs(random, dtype, patches, side, slices, channels, genes)
    out, joined = run_triton(gather_norm_silu, *inputs, multiple=multiple)
    expected, _ = gather_norm_silu_reference(*in_float64(inputs), multiple=multiple)
    assert joined is None
    assert_near(out, expected, tolerance)
    assert not out[..., sum(channels) + genes :].any()


def test_gather_reads_any_strides(run_triton, in_float64, assert_near, random):
    first = random(3, 2, 4, 4, 5).permute(0, 2, 3, 1, 4)  # slices outside the pixels
    second = random(3, 6, 4, 4, 2).permute(0, 2, 3, 4, 1)  # channels not next to each other
    genes = random(3, 2, 2, 2, 12)[..., 3:10]
    weight = random(36)[::2]
    out, _ = run_triton(gather_norm_silu, [first, second], genes, weight)
    assert_near(out, gather_norm_silu_reference(*in_float64(([first, second], genes, weight)))[0], 4e-6)


def test_gather_from_a_part_of_a_grid(run_triton, in_float64, assert_near, random):
    """Some of a region's decoder patches: their encoder patches are a view."""
    grid, other, weight = random(4, 5, 4, 4, 2, 7)[1:4, 2:4], random(2, 4, 4, 2, 3), random(10)
    out, _ = run_triton(gather_norm_silu, [other, grid], None, weight)
    assert_near(out, gather_norm_silu_reference(*in_float64(([other, grid], None, weight)))[0], 4e-6)


def test_a_grid_is_an_image_cut_half_a_patch_further(random):
    image = random(12, 16, 3, 5)
    grid = image.unflatten(1, (4, 4)).unflatten(0, (3, 4)).transpose(1, 2)  # (3, 4, 4, 4, 3, 5)
    _, moved = gather_norm_silu([grid], None, torch.ones(5), concatenate=True)
    inner = image[2:-2, 2:-2].unflatten(1, (3, 4)).unflatten(0, (2, 4)).transpose(1, 2)
    assert torch.equal(moved, inner.flatten(0, 1))


@pytest.mark.parametrize("leading", [(0,), (1, 3)])
def test_gather_of_nothing(run_triton, random, leading):
    """No patches; a grid of one row has none between its patches, and is refused."""
    features, genes = [random(*leading, 4, 4, 2, 3)], random(0, 2, 2, 2, 3)
    if len(leading) == 2:
        with pytest.raises(InputError, match="at least 2 x 2"):
            gather_norm_silu(features, genes, random(6))
        return
    out, joined = run_triton(gather_norm_silu, features, genes, random(6), concatenate=True)
    assert out.shape == joined.shape == (0, 4, 4, 2, 6)


@pytest.mark.parametrize(
    ("features", "genes", "weights", "options"),
    [
        ([(2, 4, 4, 1, 3)], None, 4, {}),
        ([(2, 4, 4, 1, 3), (3, 4, 4, 1, 3)], None, 6, {}),
        ([(2, 4, 4, 1, 3)] * 3, None, 9, {}),
        ([(2, 4, 6, 1, 3)], None, 3, {}),
        ([(4, 4, 1, 3)], None, 3, {}),
        ([(2, 4, 4, 1, 3)], (2, 4, 4, 1, 2), 5, {}),
        ([(2, 3, 5, 5, 1, 3)], None, 3, {}),
        ([(2, 4, 4, 1, 3), (2, 4, 4, 4, 1, 3)], None, 6, {}),
        ([(2, 3, 4, 4, 1, 3), (3, 2, 4, 4, 1, 3)], None, 6, {}),
        ([(2, 4, 4, 1, 3)], None, 3, {"multiple": 0}),
    ],
)
def test_gather_refuses_what_does_not_fit(features, genes, weights, options):
    with pytest.raises(InputError):
        gather_norm_silu(
            [torch.zeros(shape) for shape in features],
            None if genes is None else torch.zeros(genes),
            torch.ones(weights),
            **options,
        )


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 5, 7, 2, 11), (2, 4, 4, 1, 741), (5, 8, 8, 2, 64)])
def test_modulated_silu(run_triton, in_float64, assert_near, random, dtype, tolerance, shape):
    samples, channels = shape[0], shape[-1]
    x, weight = random(*shape, dtype=dtype), random(channels, dtype=dtype)
    scale, shift_ = random(samples, 2 * channels, dtype=dtype).chunk(2, dim=1)
    out = run_triton(modulated_silu, x, weight, scale, shift_)
    assert out.dtype == dtype
    assert_near(out, modulated_silu_reference(*in_float64((x, weight, scale, shift_))), tolerance)


def test_modulated_silu_reads_any_strides(run_triton, in_float64, assert_near, random):
    x = random(3, 6, 2, 5, 4).permute(0, 3, 4, 2, 1)
    weight = random(1, 6, 1, 1)  # as the network stores it
    scale, shift_ = (random(1, 6).expand(3, 6) for _ in range(2))  # one timestep for all
    out = run_triton(modulated_silu, x, weight, scale, shift_)
    assert_near(out, modulated_silu_reference(*in_float64((x, weight, scale, shift_))), 4e-6)


@pytest.mark.parametrize("shape", [(0, 4, 4, 2, 3), (2, 0, 4, 2, 3)])
def test_modulated_silu_of_nothing(run_triton, shape):
    rows = torch.zeros(shape[0], 3)
    assert run_triton(modulated_silu, torch.zeros(shape), torch.ones(3), rows, rows).shape == shape


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", [(1, 2, 2, 1, 1), (3, 6, 10, 3, 13), (2, 4, 4, 2, 485), (5, 8, 8, 2, 64)])
def test_adaptive_norm(run_triton, in_float64, assert_near, random, dtype, tolerance, shape):
    n, h, w, z, c = shape
    x, weight = random(*shape, dtype=dtype), random(c, dtype=dtype)
    scale, _, shift_ = random(n, h // 2, w // 2, z, 3 * c, dtype=dtype).chunk(3, dim=-1)  # as AdaLN cuts them
    out = run_triton(adaptive_norm, x, weight, scale, shift_)
    assert out.dtype == dtype
    assert_near(out, adaptive_norm_reference(*in_float64((x, weight, scale, shift_))), tolerance)


def test_adaptive_norm_reads_any_strides(run_triton, in_float64, assert_near, random):
    x = random(2, 5, 4, 6, 3).permute(0, 2, 3, 4, 1)
    scale = random(2, 5, 3, 3, 2).permute(0, 4, 2, 3, 1)
    out = run_triton(adaptive_norm, x, torch.ones(5), scale, scale)
    assert_near(out, adaptive_norm_reference(*in_float64((x, torch.ones(5), scale, scale))), 4e-6)


def test_adaptive_norm_of_nothing(run_triton):
    empty = torch.zeros(0, 4, 4, 2, 3)
    assert run_triton(adaptive_norm, empty, torch.ones(3), empty[:, :2, :2], empty[:, :2, :2]).shape == empty.shape


@pytest.mark.parametrize("sizes", [((2, 3, 4, 1, 5), (2, 1, 2, 1, 5)), ((2, 4, 4, 1, 5), (2, 4, 4, 1, 5))])
def test_adaptive_norm_refuses_what_does_not_fit(sizes):
    with pytest.raises(InputError, match="do not fit together"):
        adaptive_norm(torch.zeros(sizes[0]), torch.ones(5), torch.zeros(sizes[1]), torch.zeros(sizes[1]))
