"""The whole network on the kernels, in Triton's interpreter, against arrays computed with the authors' code."""

import pytest

import interpreted

# Two independent float32 implementations differ by 1.2e-5 of the standard deviation at the published size.
ONE_PASS = 2e-5
OF_THE_NETWORK = {
    "adaptive_norm_kernel",
    "gather_norm_silu_kernel",
    "gene_gene_attention_kernel",
    "gene_morph_attention_kernel",
    "modulated_silu_kernel",
}


# Patches of 32 and 64 px; 1, 2 and 4 slices; rows and columns of encoder patches; all at once, one by one, or in bands.
@pytest.mark.parametrize(
    ("name", "rows", "columns", "patch_batch"),
    [
        ("pyramid", 2, 2, None),
        ("patch32_z4", 2, 2, None),
        ("dapi_z1", 2, 3, 1),
        pytest.param("tiny", 2, 2, None, marks=pytest.mark.slow),
        pytest.param("tiny", 3, 3, 3, marks=pytest.mark.slow),
    ],
)
def test_parity(interpreter, parity, deviation, name, rows, columns, patch_batch):
    eps, launched = interpreter.submit(interpreted.predict, name, 603, rows, columns, patch_batch).result()
    assert launched == OF_THE_NETWORK
    size = parity(name).config.patch_size
    expected = parity(name)["eps_boundary_t603"][..., : (rows - 1) * size, : (columns - 1) * size]
    assert deviation(eps, expected) < ONE_PASS


def test_gene_attention(interpreter, parity, deviation):
    attention, launched = interpreter.submit(interpreted.gene_attention, "tiny").result()
    assert launched == {"gene_attention_rows_kernel"}
    assert deviation(attention, parity("tiny")["gene_attention"]) < ONE_PASS
