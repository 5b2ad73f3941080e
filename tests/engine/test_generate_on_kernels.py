"""The engine on the kernels, in Triton's interpreter: its voxels are those of the references."""

import numpy as np
import zarr

import interpreted
from teramind import generate


def test_two_steps(interpreter, tmp_path, checkpoint_path, write_atlas):
    atlas = write_atlas(tmp_path / "small.zarr", slices=3, height=30, width=40)
    options = {"steps": 2, "tile": 64, "slices": "1:2", "state_dtype": "float32"}
    future = interpreter.submit(interpreted.generated, atlas, checkpoint_path, tmp_path / "kernels", **options)
    voxels, launched = future.result()
    assert "ddim_update_kernel" in launched
    assert "gather_norm_silu_kernel" in launched
    generate(atlas, checkpoint_path, tmp_path / "references", **options)
    expected = np.asarray(zarr.open_group(tmp_path / "references", mode="r")["0"])
    difference = np.abs(voxels.astype(int) - expected)
    assert difference.max() <= 1  # the last bit of float32 may round the other way
    assert (difference > 0).mean() < 1e-3
    assert expected.std() > 20
