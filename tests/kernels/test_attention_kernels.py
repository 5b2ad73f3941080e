"""The attention kernels against their references in float64."""

import pytest
import torch

from teramind.errors import InputError
from teramind.kernels.gene_attention import (
    gene_attention_rows,
    gene_attention_rows_reference,
    gene_gene_attention,
    gene_gene_attention_reference,
)
from teramind.kernels.window_attention import gene_morph_attention, gene_morph_attention_reference

# float32: twice what was measured, TF32 would be 3e-4. float16: one rounding each of the weighted keys, the weights and
# the result. bfloat16 is for devices: Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
PRECISIONS = [
    pytest.param(torch.float32, 4e-6, id="float32"),
    pytest.param(torch.float16, 3e-3, id="float16"),
    pytest.param(torch.bfloat16, 2.4e-2, id="bfloat16"),
]


def skip_where_not_computed(run_triton, dtype):
    if run_triton.place == "interpreter" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter has no matrix product of bfloat16")


# patches, height, width, slices, channels, keys at full resolution
WINDOWS = [
    (1, 4, 4, 1, 1, False),
    (2, 8, 12, 3, 21, False),
    (2, 8, 4, 2, 21, True),
    (1, 16, 16, 2, 100, False),  # 128 queries x 32 keys
    (1, 8, 8, 2, 512, False),  # 32 x 8
    (1, 16, 16, 1, 33, True),  # 64 x 64
]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("patches", "height", "width", "slices", "channels", "full"), WINDOWS)
def test_gene_morph_attention(
    run_triton, in_float64, assert_near, random, dtype, tolerance, patches, height, width, slices, channels, full
):
    skip_where_not_computed(run_triton, dtype)
    factor = 1 if full else 2
    query = random(patches, height, width, slices, channels, dtype=dtype)
    key = random(patches, height // factor, width // factor, slices, channels, dtype=dtype)
    value = random(patches, height // 2, width // 2, slices, channels, dtype=dtype)
    norms = [random(channels, dtype=dtype) for _ in range(2)]
    # Weights that large make a softmax with structure; with those near 1 it is nearly flat.
    norms = [norm * channels**0.25 for norm in norms]
    out = run_triton(gene_morph_attention, query, key, value, *norms)
    assert out.dtype == dtype
    assert_near(out, gene_morph_attention_reference(*in_float64((query, key, value, *norms))), tolerance)


def test_gene_morph_attention_reads_any_strides(run_triton, in_float64, assert_near, random):
    query = random(2, 5, 2, 4, 8).permute(0, 3, 4, 2, 1)
    shift, key, value = random(2, 2, 4, 2, 15).chunk(3, dim=-1)
    inputs = (query, key, value, shift[0, 0, 0, 0], torch.ones(5))
    out = run_triton(gene_morph_attention, *inputs)
    assert_near(out, gene_morph_attention_reference(*in_float64(inputs)), 4e-6)


def test_gene_morph_attention_of_nothing(run_triton):
    empty = torch.zeros(0, 4, 4, 2, 3)
    half = empty[:, :2, :2]
    assert run_triton(gene_morph_attention, empty, half, half, torch.ones(3), torch.ones(3)).shape == empty.shape


def test_gene_morph_attention_refuses_what_does_not_fit():
    x = torch.zeros(1, 6, 8, 1, 3)
    with pytest.raises(InputError, match="do not fit together"):
        gene_morph_attention(x, x, x[:, :3, :4], torch.ones(3), torch.ones(3))
    x = torch.zeros(1, 4, 4, 1, 3)
    with pytest.raises(InputError, match="of one type"):
        gene_morph_attention(x, x.half(), x[:, :2, :2], torch.ones(3), torch.ones(3))


# patches, genes, features: from one bin of a small patch to the widest token, more genes than a block of queries
TOKENS = [(1, 1, 4), (2, 37, 21), (1, 229, 64), (1, 500, 4), (1, 17, 1024)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("patches", "genes", "features"), TOKENS)
def test_gene_gene_attention(run_triton, in_float64, assert_near, random, dtype, tolerance, patches, genes, features):
    skip_where_not_computed(run_triton, dtype)
    query, value = random(2, patches, genes, features, dtype=dtype)
    weight = random(features, dtype=dtype) * features**0.25
    out = run_triton(gene_gene_attention, query, value, weight)
    assert out.dtype == dtype
    assert_near(out, gene_gene_attention_reference(*in_float64((query, value, weight))), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("patches", "genes", "features"), TOKENS)
@pytest.mark.parametrize("selected", [1, 19])
def test_gene_attention_rows(
    run_triton, in_float64, assert_near, random, dtype, tolerance, patches, genes, features, selected
):
    skip_where_not_computed(run_triton, dtype)
    query, weight = random(patches, genes, features, dtype=dtype), random(features, dtype=dtype) * features**0.25
    rows = (torch.arange(selected) * 31 + genes - 1) % genes  # in any order, with repetitions
    out = run_triton(gene_attention_rows, query, weight, rows)
    assert out.dtype == torch.float32
    assert_near(out, gene_attention_rows_reference(*in_float64((query, weight)), rows), tolerance)
    assert_near(out.sum(dim=-1), torch.ones(patches, selected).double(), 1e-5)


def test_gene_gene_attention_reads_any_strides(run_triton, in_float64, assert_near, random):
    query, value = random(3, 9, 14)[:, 1:].chunk(2, dim=-1)
    inputs = (query, value.transpose(1, 2).contiguous().transpose(1, 2), torch.ones(7))
    out = run_triton(gene_gene_attention, *inputs)
    assert_near(out, gene_gene_attention_reference(*in_float64(inputs)), 4e-6)
    rows = torch.arange(8)[1::3]
    out = run_triton(gene_attention_rows, query, torch.ones(14)[::2], rows)
    assert_near(out, gene_attention_rows_reference(query.double(), torch.ones(7).double(), rows), 4e-6)


def test_gene_gene_attention_of_nothing(run_triton):
    empty = torch.zeros(0, 5, 4)
    assert run_triton(gene_gene_attention, empty, empty, torch.ones(4)).shape == (0, 5, 4)
    rows = torch.zeros(0, dtype=torch.int64)
    assert run_triton(gene_attention_rows, torch.zeros(2, 5, 4), torch.ones(4), rows).shape == (2, 0, 5)


def test_more_genes_than_fit_are_refused_by_name(run_triton):
    tokens = torch.zeros(1, 513, 4)
    with pytest.raises(InputError, match="513 genes are more than their 512"):
        run_triton(gene_gene_attention, tokens, tokens, torch.ones(4))
