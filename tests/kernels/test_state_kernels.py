"""DDIM update, position noise and dense counts: kernels against their references and against what they stand for."""

import math

import numpy as np
import pytest
import torch

from teramind.diffusion import noise as cpu_noise
from teramind.diffusion.schedule import DDIMSchedule
from teramind.errors import InputError
from teramind.kernels.counts import dense_counts, dense_counts_reference
from teramind.kernels.ddim import ddim_update, to_pixels
from teramind.kernels.noise import noise_field, noise_field_reference, philox_words, philox_words_reference

STEPS = 15


def step_of(schedule, i):
    """abar of a step and of the next."""
    return float(schedule.alphas_cumprod[i]), schedule.following(i)


class TestDDIM:
    @pytest.mark.parametrize("eps_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("state_dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("i", [0, 6, STEPS - 2, STEPS - 1])
    def test_equals_the_schedule_bit_for_bit(self, run_triton, random, i, state_dtype, eps_dtype):
        schedule = DDIMSchedule(STEPS)
        x = random(2, 3, 2, 11, 40, dtype=state_dtype)[..., 2:-2, 3:-3]  # the inside of a tile with its rim
        eps = random(2, 3, 2, 7, 34, dtype=eps_dtype)
        out, finite = run_triton(ddim_update, x, eps, *step_of(schedule, i), state_dtype=state_dtype)
        assert torch.equal(out, schedule.step(x.float(), eps.float(), i).to(state_dtype))
        assert finite.tolist() == [True, True]

    @pytest.mark.parametrize("quantise", ["round", "truncate"])
    @pytest.mark.parametrize("state_dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 2, 1, 5, 1100)])
    def test_last_step_gives_the_denoisers_pixels(self, run_triton, random, shape, state_dtype, quantise):
        schedule = DDIMSchedule(STEPS)
        x, eps = random(*shape) / 2, random(*shape)
        step = step_of(schedule, STEPS - 1)
        out, _ = run_triton(ddim_update, x, eps, *step, state_dtype=state_dtype, quantise=quantise)
        image = schedule.step(x, eps, STEPS - 1).to(state_dtype).float()
        assert torch.equal(out, to_pixels(image, quantise))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 0, 6, 8), (0, 1, 3, 8)])
    def test_one_bad_value_marks_its_tile_alone(self, run_triton, random, bad, place):
        x, eps = random(3, 2, 2, 7, 9), random(3, 2, 2, 7, 9)
        eps[(1, *place)] = bad
        out, finite = run_triton(ddim_update, x, eps, 0.5, 0.6, state_dtype=torch.float32)
        assert finite.tolist() == [True, False, True]
        assert out[::2].isfinite().all()

    def test_of_nothing(self, run_triton):
        empty = torch.zeros(0, 2, 1, 4, 4)
        out, finite = run_triton(ddim_update, empty, empty, 0.5, 0.6, state_dtype=torch.float16)
        assert out.shape == empty.shape
        assert finite.shape == (0,)

    @pytest.mark.parametrize(
        ("arguments", "options"),
        [
            ((0.5, 0.4), {"state_dtype": torch.float16}),
            ((0.5, 0.6), {"state_dtype": torch.bfloat16}),
            ((0.5, 1.0), {"state_dtype": torch.float16, "quantise": "floor"}),
        ],
    )
    def test_refuses_what_makes_no_sense(self, arguments, options):
        x = torch.zeros(1, 1, 1, 2, 2)
        with pytest.raises(InputError):
            ddim_update(x, x, *arguments, **options)


# seed, z0, y0, x0, shape: every word at its end, boxes that start and end within a group of 4 px, one pixel, long rows
BOXES = [
    (0, 0, 0, 0, (2, 2, 3, 37)),
    (2**64 - 1, 2**32 - 2, 2**32 - 5, 2**32 - 11, (2, 2, 5, 11)),
    (12345678901234, 7, 100, 1001, (1, 3, 2, 1030)),
    (2**31, 2**31, 2**31, 2**31 + 3, (1, 1, 1, 1)),
]


class TestNoise:
    @pytest.mark.parametrize("box", BOXES)
    def test_words_equal_those_of_the_cpu(self, run_triton, box):
        words = run_triton(philox_words, *box, device="cpu")
        assert np.array_equal(words.numpy(), cpu_noise.philox_words(*box))
        assert np.array_equal(philox_words_reference(*box, torch.device("cpu")).numpy(), words.numpy())

    @pytest.mark.parametrize("box", BOXES)
    def test_normals_are_within_a_millionth_of_the_cpus(self, run_triton, box):
        field = run_triton(noise_field, *box, device="cpu")
        assert np.abs(field.numpy() - cpu_noise.noise_field(*box)).max() <= 1e-6

    @pytest.mark.parametrize("box", BOXES)
    def test_the_references_normals_are_the_cpus(self, box):
        field = noise_field_reference(*box, torch.float32, torch.device("cpu"))
        # Both are computed in float64; the libraries' functions may differ in its last place, and so the rounding.
        assert np.abs(field.numpy() - cpu_noise.noise_field(*box)).max() <= 5e-7

    def test_a_large_field_stays_within_a_millionth(self, run_triton):
        box = (99, 3, 1000, 2001, (1, 1, 70, 2047))
        field = run_triton(noise_field, *box, device="cpu").numpy()
        assert np.abs(field - cpu_noise.noise_field(*box)).max() <= 1e-6
        assert abs(field.mean()) < 0.016  # 6 standard errors of 143,290 samples
        assert abs(field.std() - 1) < 0.012

    def test_half_precision_is_rounded_once(self, run_triton):
        box = (5, 0, 0, 2, (1, 1, 3, 50))
        full, half = (run_triton(noise_field, *box, device="cpu", dtype=dtype) for dtype in (torch.float32, torch.half))
        assert torch.equal(half, full.half())

    @pytest.mark.parametrize("shape", [(0, 1, 2, 3), (1, 1, 2, 0)])
    def test_of_nothing(self, run_triton, shape):
        for operation in (noise_field, philox_words):
            assert run_triton(operation, 1, 2, 3, 4, shape, device="cpu").shape == shape

    @pytest.mark.parametrize("box", [(2**64, 0, 0, 0, (1, 1, 1, 1)), (0, 0, 0, 2**32 - 1, (1, 1, 1, 2))])
    def test_refuses_what_is_out_of_range(self, box):
        with pytest.raises(InputError):
            noise_field(*box, device="cpu")


class TestDenseCounts:
    @pytest.mark.parametrize("kind", [torch.int32, torch.int64])
    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 3, 5, 9), (229, 4, 8, 12)])
    def test_equals_the_dense_counts(self, run_triton, shape, kind):
        generator = np.random.default_rng(7)
        dense = generator.integers(1, 2**16, shape) * (generator.random(shape) < 0.2)
        gene, *bins = dense.nonzero()
        entries = np.stack([np.ravel_multi_index(bins, shape[1:]), gene, dense[dense.nonzero()]])
        entries = torch.from_numpy(entries[:, generator.permutation(len(gene))].repeat(2, axis=1)).to(kind)[:, ::2]
        out = run_triton(dense_counts, entries, shape)
        assert torch.equal(out, torch.from_numpy(dense).float())
        assert torch.equal(dense_counts_reference(entries, shape, torch.float32), out)

    def test_entries_outside_are_left_out(self, run_triton):
        entries = torch.tensor([[0, 3, -1, 4, 2], [1, 2, 0, 0, -1], [1, 2, 3, 4, 5]])
        out = run_triton(dense_counts, entries, (2, 1, 2, 2), dtype=torch.float16)
        assert out.dtype == torch.float16
        assert out.sum() == out[1, 0, 0, 0] == 1
        assert torch.equal(out, dense_counts_reference(entries, (2, 1, 2, 2), torch.float16))

    def test_of_nothing(self, run_triton):
        out = run_triton(dense_counts, torch.zeros(3, 0, dtype=torch.int32), (2, 1, 4, 2))
        assert torch.equal(out, torch.zeros(2, 1, 4, 2))

    @pytest.mark.parametrize("entries", [torch.zeros(2, 5, dtype=torch.int32), torch.zeros(3, 5)])
    def test_refuses_what_does_not_fit(self, entries):
        with pytest.raises(InputError, match=r"integers \(3, n\)"):
            dense_counts(entries, (2, 1, 4, 2))
