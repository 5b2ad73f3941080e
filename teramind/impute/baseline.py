"""The rule-based baseline of the paper: copy the closest slice, vote on types, copy the nearest cell's expression."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from teramind.errors import InputError
from teramind.impute.cells import Cells, Labels
from teramind.impute.planes import Plane
from teramind.impute.regions import Disc

VOTERS = 20  # nearest reference cells that decide on a type


def closest_slice(reference: Cells, plane: Plane, count: int | None = None, seed: int = 0) -> np.ndarray:
    """Positions of the measured slice closest to a plane, moved onto it.

    Args:
        reference: measured cells with sections.
        plane: the target.
        count: cells to give: a random part without replacement, or with it if the slice has fewer; all if None.
        seed: of that choice.

    Returns:
        (cells, 3) positions on the plane.

    Raises:
        InputError: the reference has no cells or no sections.
    """
    if reference.sections is None or not len(reference):
        raise InputError("the closest slice needs reference cells that say which section they come from")
    codes = np.unique(reference.sections, return_inverse=True)[1]
    offsets = plane.offsets(reference.positions)
    mean = np.bincount(codes, offsets) / np.bincount(codes)
    closest = reference.positions[codes == np.argmin(np.abs(mean))]
    moved = plane.project(closest)
    if count is None or count == len(moved):
        return moved
    generator = np.random.default_rng(seed)
    return moved[generator.choice(len(moved), count, replace=count > len(moved))]


def uniform_disc(disc: Disc, plane: Plane, count: int, seed: int = 0) -> np.ndarray:
    """Positions spread evenly over a disc: the baseline for a hole that no slice covers.

    Returns:
        (count, 3) positions on the plane.
    """
    generator = np.random.default_rng(seed)
    radius = disc.radius * np.sqrt(generator.random(count))
    angle = 2 * np.pi * generator.random(count)
    within = np.asarray(disc.centre) + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return plane.lift(within)


def vote_types(reference: Cells, positions: np.ndarray, voters: int = VOTERS) -> Labels:
    """The type of most of the nearest reference cells; of types with as many, the first by name.

    Args:
        reference: measured cells with types, of all slices together; those without one do not vote.
        positions: (n, 3) where to predict.
        voters: how many cells vote.
    """
    types = reference.require_types("voting on types")
    known = types != ""
    if not known.any():
        raise InputError("no reference cell has a type; give labelled cells")
    names, codes = np.unique(types[known], return_inverse=True)
    nearest = cKDTree(reference.positions[known]).query(positions, np.arange(1, min(voters, len(codes)) + 1))[1]
    votes = np.zeros((len(positions), len(names)), dtype=np.int32)
    np.add.at(votes, (np.arange(len(positions))[:, None], codes[nearest]), 1)
    return names[votes.argmax(axis=1)]


def copy_expression(reference: Cells, positions: np.ndarray, types: Labels) -> csr_array:
    """Expression of the nearest reference cell of the same type; none for a type that the reference lacks.

    Args:
        reference: measured cells with types and expression.
        positions: (n, 3) of the predicted cells.
        types: (n,) of the predicted cells.

    Returns:
        (n, G) in the reference's genes.
    """
    known = reference.require_types("copying expression")
    counts = reference.require_counts("copying expression")
    source = np.full(len(positions), -1)
    for name in np.unique(types):
        rows, wanted = np.flatnonzero(known == name), types == name
        if rows.size:
            source[wanted] = rows[cKDTree(reference.positions[rows]).query(positions[wanted])[1]]
    found = np.flatnonzero(source >= 0)
    chosen = csr_array((np.ones(len(found)), (found, source[found])), shape=(len(positions), len(reference)))
    return csr_array(chosen.astype(counts.dtype) @ counts)


def predict(reference: Cells, plane: Plane, count: int | None = None, seed: int = 0) -> Cells:
    """All three stages: cells on a plane from the measured ones.

    Arguments and errors are those of ``closest_slice``; the reference needs types and expression as well.
    """
    positions = closest_slice(reference, plane, count, seed)
    types = vote_types(reference, positions)
    counts = copy_expression(reference, positions, types)
    return Cells(positions, types, counts, reference.genes)
