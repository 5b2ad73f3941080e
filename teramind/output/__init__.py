"""Writers of finished voxels: OME-Zarr, OME-TIFF, previews."""
