"""OME-Zarr images: metadata, pyramids, and a writer that streams finished rectangles into whole shards."""

from teramind.ngff.metadata import (
    Channel,
    create_multiscale,
    describe_channels,
    image_channels,
    image_pixel_size,
    image_translation,
    open_levels,
)
from teramind.ngff.pyramid import build_pyramid, level_encoder
from teramind.ngff.writer import MultiscaleWriter, Pending, PendingShard

__all__ = [
    "Channel",
    "MultiscaleWriter",
    "Pending",
    "PendingShard",
    "build_pyramid",
    "create_multiscale",
    "describe_channels",
    "image_channels",
    "image_pixel_size",
    "image_translation",
    "level_encoder",
    "open_levels",
]
