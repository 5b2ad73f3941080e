"""Cells in AnnData files (.h5ad), in and out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse import csr_array, csr_matrix, issparse

from teramind.errors import InputError
from teramind.files import appears_whole
from teramind.impute.cells import Cells, Labels, join_cells
from teramind.impute.sections import check_alignment, find_sections

if TYPE_CHECKING:
    from anndata import AnnData

POSITIONS = "aligned_spatial"
"""Where ``obsm`` holds (ML, DV, AP) in mm."""

CCF_COLUMNS = ("z_ccf", "y_ccf", "x_ccf")
"""Columns of ``obs`` with the same, as the Allen atlases publish them."""

METADATA = ("species", "organ", "disease_state", "technology", "class", "subclass", "supertype", "cluster")
"""Columns of ``obs`` that describe a cell, in the order in which the expression network reads them."""

NAMES = "obs_names"
"""Under which the cells' metadata keep the names of the rows."""

FORMAT, FORMAT_VERSION = "teramind-cells", 1
UNKNOWN = {"", "nan", "None", "NA", "Unclassified"}


def read_cells(
    path: str | os.PathLike[str],
    *,
    types: str | None = "cluster",
    sections: str | None = "brain_section_label",
    raw_counts: bool = True,
    aligned: bool = True,
) -> Cells:
    """Read and check cells.

    Args:
        path: of an .h5ad file: raw counts in ``X``, genes as ``var_names``, positions in ``obsm["aligned_spatial"]``
            (ML, DV, AP) or ``obs`` columns x_ccf, y_ccf, z_ccf, in mm.
        types: column of ``obs`` with each cell's type; None to read none.
        sections: column of ``obs`` with the name of each cell's slice; None to read none. With it, the slices are
            checked to be flat and to lie over each other.
        raw_counts: refuse values that are not whole numbers.
        aligned: with False, slices are not checked, and a file without that column has none.

    Returns:
        The cells, with those columns of ``METADATA`` that the file has, and the rows' names as ``NAMES``.

    Raises:
        InputError: the file cannot be read, lacks something, or holds positions or values that cannot be.
    """
    path = Path(path)
    data = _open(path)
    if not aligned and sections not in data.obs:
        sections = None
    try:
        _check_version(data)
        cells = Cells(
            positions=_positions(data),
            types=None if types is None else _labels(data, types, "types"),
            counts=_counts(data, raw_counts),
            genes=tuple(map(str, data.var_names)),
            sections=None if sections is None else _sections(data, sections, aligned),
            metadata={name: _labels(data, name, "metadata") for name in METADATA if name in data.obs}
            | {NAMES: data.obs_names.to_numpy(dtype=np.str_)},
        )
        if sections is not None and aligned:
            check_alignment(cells, find_sections(cells))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return cells


def read_slices(
    paths: Sequence[str | os.PathLike[str]],
    *,
    types: str | None = "cluster",
    sections: str | None = "brain_section_label",
    raw_counts: bool = True,
    aligned: bool = True,
) -> Cells:
    """Read cells of several files as one tissue.

    Args:
        paths: of .h5ad files, each with one slice or more.
        types: as for ``read_cells``.
        sections: as for ``read_cells``; with it, the slices of all files are checked against each other as well.
        raw_counts: as for ``read_cells``.
        aligned: as for ``read_cells``.

    Raises:
        InputError: as ``read_cells``, two files name a section alike, or their slices do not lie over each other.
    """
    parts = [read_cells(path, types=types, sections=sections, raw_counts=raw_counts, aligned=aligned) for path in paths]
    home: dict[str, str | os.PathLike[str]] = {}
    for path, part in zip(paths, parts, strict=True):
        for name in [] if part.sections is None else np.unique(part.sections).tolist():
            if name and name in home:
                raise InputError(
                    f"section {name!r} is in {home[name]} and in {path}, and would be taken for one slice;"
                    f" give each its own name in obs[{sections!r}], or leave out one of the files"
                )
            home[name] = path
    if home:  # where slices need not have names, some files may lack them
        parts = [
            part if part.sections is not None else replace(part, sections=np.full(len(part), "")) for part in parts
        ]
    cells = join_cells(parts)
    if sections is not None and aligned and len(parts) > 1:
        check_alignment(cells, find_sections(cells))
    return cells


def write_cells(
    path: str | os.PathLike[str],
    cells: Cells,
    *,
    types: str = "cluster",
    sections: str = "brain_section_label",
    **provenance: Any,
) -> None:
    """Write cells as an .h5ad file, which appears under its name only when whole.

    Args:
        path: the file.
        cells: (n, 3) positions go to ``obsm["spatial"]`` and ``obsm["aligned_spatial"]``, metadata to ``obs``, of these
            ``NAMES`` to its index.
        types: column of ``obs`` for the types, whatever the metadata have under this name.
        sections: column of ``obs`` for the sections.
        provenance: JSON-able facts on how the cells were made, kept as text in ``uns["teramind"]``.
    """
    anndata = _import_anndata()
    import pandas

    path = check_name(path)
    columns = {name: values for name, values in cells.metadata.items() if name != NAMES}
    columns |= {} if cells.types is None else {types: cells.types}
    columns |= {} if cells.sections is None else {sections: cells.sections}
    names = [f"cell_{index}" for index in range(len(cells))]
    if NAMES in cells.metadata:
        kept = [own or name for own, name in zip(cells.metadata[NAMES].tolist(), names, strict=True)]
        names = anndata.utils.make_index_unique(pandas.Index(kept))
    observed = pandas.DataFrame({name: pandas.Categorical(column) for name, column in columns.items()}, index=names)
    data = anndata.AnnData(
        X=None if cells.counts is None else csr_matrix(cells.counts),
        obs=observed,
        var=pandas.DataFrame(index=list(cells.genes)),
        obsm={"spatial": cells.positions, POSITIONS: cells.positions},
        uns={"teramind": json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **provenance})},
    )
    with appears_whole(path) as partial:
        data.write_h5ad(partial, compression="gzip")


def check_name(path: str | os.PathLike[str]) -> Path:
    """The path, if its name is that of a file of cells; an ``InputError`` otherwise."""
    path = Path(path)
    if path.suffix != ".h5ad":
        raise InputError(f"cells are written as .h5ad; {path.name} would be mistaken for another format")
    _import_anndata()
    return path


def _open(path: Path) -> AnnData:
    anndata = _import_anndata()
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise what they like on a broken file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a readable .h5ad file: {reason}") from None


def _import_anndata() -> Any:
    try:
        import anndata
    except ImportError:
        raise InputError("reading and writing .h5ad needs anndata: pip install 'teramind[impute]'") from None
    return anndata


def _positions(data: AnnData) -> np.ndarray:
    """(n, 3) in the order (ML, DV, AP)."""
    if POSITIONS in data.obsm:
        positions = _numbers(data.obsm[POSITIONS], f"obsm[{POSITIONS!r}]")
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise InputError(f"obsm[{POSITIONS!r}] has shape {positions.shape}; it has to be (cells, 3): ML, DV, AP")
        return positions
    if all(name in data.obs for name in CCF_COLUMNS):
        return np.stack([_numbers(data.obs[name], f"obs column {name!r}") for name in CCF_COLUMNS], axis=1)
    raise InputError(
        f"the slices are not aligned: there is neither obsm[{POSITIONS!r}] nor obs columns x_ccf, y_ccf, z_ccf"
        f" (obsm has {_some(data.obsm.keys())}); register them to the common frame first"
    )


def _numbers(values: Any, place: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} does not hold numbers, in mm: {str(error).splitlines()[0]}") from None


def _check_version(data: AnnData) -> None:
    """Refuse a file of a newer teramind; what others wrote there is not looked at."""
    try:
        content = json.loads(data.uns["teramind"])
        version = content["version"] if content["format"] == FORMAT else FORMAT_VERSION
        newer = version > FORMAT_VERSION
    except (KeyError, TypeError, ValueError):
        return
    if newer:
        raise InputError(f"cells of format {version}; this teramind reads up to {FORMAT_VERSION}: update it")


def _sections(data: AnnData, column: str, required: bool) -> Labels:
    sections = _labels(data, column, "sections")
    if required and (lacking := int((sections == "").sum())):
        raise InputError(
            f"{lacking} of {len(sections)} cells name no section in obs column {column!r}; name it, or remove them"
        )
    return sections


def _labels(data: AnnData, column: str, role: str) -> Labels:
    """A column of ``obs`` as texts, "" for what is not known."""
    if column not in data.obs:
        raise InputError(f"obs has no column {column!r} for {role}; it has {_some(data.obs.columns)}")
    texts = data.obs[column].astype(object).where(data.obs[column].notna(), "").astype(str).to_numpy(dtype=np.str_)
    return np.where(np.isin(texts, list(UNKNOWN)), "", texts)


def _counts(data: AnnData, raw: bool) -> csr_array:
    if data.X is None:
        raise InputError("there is no X; it has to hold the raw counts")
    if not data.var_names.is_unique:
        name = data.var_names[data.var_names.duplicated()][0]
        raise InputError(f"gene {name!r} appears twice; make the var_names unique")
    counts = csr_array(cast("Any", data.X) if issparse(data.X) else np.asarray(data.X))
    counts.eliminate_zeros()
    values = counts.data
    if values.dtype.kind not in "biuf":
        raise InputError(f"X holds {values.dtype}, not numbers; it has to hold the raw counts")
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        raise InputError(f"X holds {values[bad][0]}; counts are finite and not negative")
    if raw and not np.array_equal(values, np.rint(values)):
        fraction = values[values != np.rint(values)][0]
        raise InputError(f"X holds {fraction:g}, which is no raw count; put the counts into X, without normalisation")
    return counts.astype(np.float32)


def _some(names: Sequence[Any]) -> str:
    """A few of the names, for a message."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "") if listed else "none"
