"""Images of other types than uint8, whose pyramid is built from their finest level."""

import itertools

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import ome_zarr_models.v05
import pytest
import zarr

from teramind import InputError
from teramind.ngff import (
    Channel,
    build_pyramid,
    create_multiscale,
    describe_channels,
    image_channels,
    level_encoder,
    open_levels,
)

SHAPE = (2, 3, 45, 37)


def write_image(path, values, dtype, chunk=8, shard=16):
    group = create_multiscale(
        path, shape=values.shape, pixel_size=(1, 2, 2), channels=[Channel("a"), Channel("b", active=False)],
        name="values", chunk=chunk, shard=shard, dtype=dtype,
    )  # fmt: skip
    encoder = level_encoder(group)
    for c, z in np.ndindex(values.shape[:2]):
        for row, y in enumerate(range(0, values.shape[2], shard)):
            for column, x in enumerate(range(0, values.shape[3], shard)):
                encoder.write((c, z, row, column), values[c, z, y : y + shard, x : x + shard])
    return group


def means(plane):
    binned = np.empty((-(-plane.shape[0] // 2), -(-plane.shape[1] // 2)))
    for y, x in np.ndindex(binned.shape):
        binned[y, x] = plane[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(np.float64).mean()
    return np.floor(binned + 0.5) if np.issubdtype(plane.dtype, np.integer) else binned


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("shard", [8, 16])
def test_every_level_is_the_mean_of_the_one_below(tmp_path, dtype, shard):
    generator = np.random.default_rng(0)
    values = (generator.standard_normal(SHAPE) * 300).astype(dtype)
    values[0, 1] = 0  # not stored
    group = write_image(tmp_path / "image.ome.zarr", values, dtype, shard=shard)
    build_pyramid(group)
    build_pyramid(group)  # as after a crash
    levels = [np.asarray(level) for level in open_levels(group)]
    assert np.array_equal(levels[0], values)
    assert [level.shape[2:] for level in levels] == [(45, 37), (23, 19), (12, 10), (6, 5)]
    for below, level in itertools.pairwise(levels):
        for c, z in np.ndindex(SHAPE[:2]):
            np.testing.assert_allclose(level[c, z], means(below[c, z]), rtol=1e-6, atol=1e-5)


def test_others_open_them(tmp_path):
    values = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    group = write_image(tmp_path / "image.ome.zarr", values, "float32")
    build_pyramid(group)
    describe_channels(group, [Channel("x", "00FF00", -3, 3, -2, 2), Channel("y", active=False)])
    ome_zarr_models.v05.Image.from_zarr(zarr.open_group(tmp_path / "image.ome.zarr", mode="r"))
    [node] = ome_zarr.reader.Reader(ome_zarr.io.parse_url(tmp_path / "image.ome.zarr"))()
    assert node.metadata["channel_names"] == ["x", "y"]
    assert node.metadata["visible"] == [True, False]
    assert node.metadata["contrast_limits"][0] == [-2, 2]
    assert np.array_equal(np.asarray(node.data[0]), values)
    assert [channel.active for channel in image_channels(group)] == [True, False]


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(InputError, match="float16 cannot be written; choose one of uint8, int16, float32"):
        write_image(tmp_path / "image.ome.zarr", np.zeros(SHAPE), "float16")
    group = write_image(tmp_path / "image.ome.zarr", np.zeros(SHAPE, np.float32), "float32")
    with pytest.raises(InputError, match="1 channels are described for an image of 2"):
        describe_channels(group, [Channel("x")])
