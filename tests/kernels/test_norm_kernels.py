"""The three normalising kernels against their references in float64."""

import pytest
import torch

from teramind.errors import InputError
from teramind.kernels.adaln import adaptive_norm, adaptive_norm_reference
from teramind.kernels.gather import gather_norm_silu, gather_norm_silu_reference
from teramind.kernels.modulation import modulated_silu, modulated_silu_reference
from teramind.model.patches import shift

# float32: twice what was measured, sums over up to 1253 channels. float16: half a unit in the last place, 2^-11, and as
# much for inputs of the activation near its zero. bfloat16: Triton's interpreter truncates, 2^-7 instead of 2^-8.
PRECISIONS = [
    pytest.param(torch.float32, 4e-6, id="float32"),
    pytest.param(torch.float16, 1e-3, id="float16"),
    pytest.param(torch.bfloat16, 8e-3, id="bfloat16"),
]
# (rows, columns), side, slices, channels of the features, genes (0: none), which features are shifted, multiple
SHIFTED = [
    ((2, 2), 4, 1, (1,), 1, (True,), 1),
    ((3, 2), 8, 3, (13, 5), 7, (False, True), 1),
    ((2, 4), 4, 2, (512,), 229, (True,), 8),  # 741 channels, filled up to 744
    ((2, 2), 4, 1, (512, 512), 229, (True, True), 1),  # 1253
    ((2, 3), 6, 2, (9, 3), 0, (False, True), 4),  # no genes: any even side
]
UNSHIFTED = [
    (1, 8, 2, (64,), 32, 1),
    (2, 4, 1, (256,), 229, 8),  # 485 -> 488
    (3, 5, 3, (7, 11), 0, 1),  # an odd side
    (2, 2, 1, (3,), 0, 5),
]


def gather_inputs(random, dtype, counts, regions, side, slices, channels, genes, multiple):
    patches = {True: regions * counts[0], False: regions * counts[1]}
    features = [random(patches[moved], side, side, slices, c, dtype=dtype) for c, moved in zip(*channels, strict=True)]
    level = random(patches[True], side // 2, side // 2, slices, genes, dtype=dtype) if genes else None
    return features, level, random(sum(channels[0]) + genes, dtype=dtype), multiple


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("grid", "side", "slices", "channels", "genes", "shifted", "multiple"), SHIFTED)
def test_gather_shifted(
    run_triton,
    in_float64,
    assert_near,
    random,
    dtype,
    tolerance,
    grid,
    side,
    slices,
    channels,
    genes,
    shifted,
    multiple,
):
    counts = (grid[0] * grid[1], (grid[0] - 1) * (grid[1] - 1))
    inputs = gather_inputs(random, dtype, counts, 2, side, slices, (channels, shifted), genes, multiple)
    features, level, weight, _ = inputs
    options = {"grid": grid, "shifted": shifted, "multiple": multiple}
    out, concatenated = run_triton(gather_norm_silu, features, level, weight, concatenate=True, **options)
    expected = gather_norm_silu_reference(*in_float64((features, level, weight)), **options)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_near(out, expected[0], tolerance)
    assert torch.equal(concatenated.double(), expected[1])


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("patches", "side", "slices", "channels", "genes", "multiple"), UNSHIFTED)
def test_gather_within_patches(
    run_triton, in_float64, assert_near, random, dtype, tolerance, patches, side, slices, channels, genes, multiple
):
    in_place = (False,) * len(channels)
    counts = (patches, patches)
    inputs = gather_inputs(random, dtype, counts, 1, side, slices, (channels, in_place), genes, multiple)
    features, level, weight, _ = inputs
    out, concatenated = run_triton(gather_norm_silu, features, level, weight, multiple=multiple)
    expected, _ = gather_norm_silu_reference(*in_float64((features, level, weight)), multiple=multiple)
    assert concatenated is None
    assert_near(out, expected, tolerance)
    assert not out[..., sum(channels) + genes :].any()


def test_gather_reads_any_strides(run_triton, in_float64, assert_near, random):
    first = random(3, 2, 4, 4, 5).permute(0, 2, 3, 1, 4)  # slices outside the pixels
    second = random(3, 6, 4, 4, 2).permute(0, 2, 3, 4, 1)  # channels not next to each other
    genes = random(3, 2, 2, 2, 12)[..., 3:10]
    weight = random(36)[::2]
    out, _ = run_triton(gather_norm_silu, [first, second], genes, weight)
    assert_near(out, gather_norm_silu_reference(*in_float64(([first, second], genes, weight)))[0], 4e-6)


def test_gather_shifts_like_the_network(random):
    patches = random(2 * 3 * 4, 4, 4, 2, 5)
    weight = torch.ones(5)
    _, moved = gather_norm_silu([patches], None, weight, grid=(3, 4), shifted=(True,), concatenate=True)
    assert torch.equal(moved, shift(patches, 3, 4))


def test_gather_of_nothing(run_triton, random):
    empty = random(0, 4, 4, 2, 3)
    out, concatenated = run_triton(
        gather_norm_silu, [empty], empty[:, :2, :2], random(6), grid=(2, 3), shifted=(True,), concatenate=True
    )
    assert out.shape == concatenated.shape == (0, 4, 4, 2, 6)


@pytest.mark.parametrize(
    ("features", "genes", "weights", "options"),
    [
        ([(2, 4, 4, 1, 3)], None, 4, {}),
        ([(2, 4, 4, 1, 3), (3, 4, 4, 1, 3)], None, 6, {}),
        ([(2, 4, 4, 1, 3)], (2, 4, 4, 1, 2), 5, {}),
        ([(5, 4, 4, 1, 3)], None, 3, {"grid": (2, 3), "shifted": (True,)}),
        ([(6, 4, 4, 1, 3), (6, 4, 4, 1, 3)], None, 6, {"grid": (2, 3), "shifted": (False, True)}),
        ([(6, 4, 4, 1, 3)], None, 3, {"grid": (2, 3), "shifted": ()}),
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
