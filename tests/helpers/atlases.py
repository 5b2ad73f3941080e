"""An atlas from dense arrays, in one call."""

import numpy as np
from scipy.sparse import csr_array

from teramind.atlas.images import SHARD
from teramind.atlas.writer import STRIP_BINS, AtlasWriter


def write_atlas(path, counts, images=None, regions=None, **metadata):
    """Write an atlas; its path.

    Args:
        path: of the store.
        counts: (slices, bin rows, bin columns, genes).
        images: (stains, slices, h, w); None for an atlas without.
        regions: (slices, bin rows, bin columns) labels, and the names of these; None for an atlas without.
        metadata: what ``AtlasWriter`` needs beside the path.
    """
    with AtlasWriter(path, **metadata) as writer:
        for z, plane in enumerate(counts):
            for row in range(0, len(plane), STRIP_BINS):
                strip = plane[row : row + STRIP_BINS].astype(np.uint16)
                writer.append_counts(z, csr_array(strip.reshape(-1, strip.shape[-1])))
        for stain, planes in enumerate([] if images is None else images):
            for z, plane in enumerate(planes):
                for y in range(0, plane.shape[0], SHARD):
                    for x in range(0, plane.shape[1], SHARD):
                        writer.write_image(z, stain, y, x, plane[y : y + SHARD, x : x + SHARD])
        if regions is not None:
            writer.write_regions(*regions)
    return path
