"""From vendor folders to one Zarr store of sparse transcript counts and images."""
