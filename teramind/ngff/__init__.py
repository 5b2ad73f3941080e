"""OME-Zarr images: metadata, pyramids, and a writer that streams finished rectangles into whole shards."""

from teramind.ngff.metadata import (
    Channel,
    create_multiscale,
    image_channels,
    image_pixel_size,
    image_translation,
    open_levels,
)
from teramind.ngff.writer import MultiscaleWriter, Pending, PendingShard

__all__ = [
    "Channel",
    "MultiscaleWriter",
    "Pending",
    "PendingShard",
    "create_multiscale",
    "image_channels",
    "image_pixel_size",
    "image_translation",
    "open_levels",
]
