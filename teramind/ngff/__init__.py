"""OME-Zarr images: metadata, pyramids, and a writer that streams finished rectangles into whole shards."""

from teramind.ngff.metadata import Channel, create_multiscale, image_channels, open_levels, pixel_size, translation
from teramind.ngff.writer import MultiscaleWriter, Pending, PendingShard

__all__ = [
    "Channel",
    "MultiscaleWriter",
    "Pending",
    "PendingShard",
    "create_multiscale",
    "image_channels",
    "open_levels",
    "pixel_size",
    "translation",
]
