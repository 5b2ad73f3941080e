"""Matching an atlas's genes to a network's gene axis, by name."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from teramind.engine.orthologs import partners
from teramind.errors import InputError

logger = logging.getLogger(__name__)
Missing = Literal["error", "zero"]


@dataclass(frozen=True)
class Panel:
    """Where each of the network's genes is found in the atlas.

    Attributes:
        names: the network's genes, in the order of its gene axis; None where neither side can tell.
        columns: (G,) index into the atlas's genes, -1 for a gene that is not there and reads as zero.
        missing: names that are not in the atlas.
        unused: names of the atlas that the network does not know.
        mapped: genes of the network that stand under another name in the atlas -> that name.
    """

    names: list[str] | None
    columns: NDArray[np.int64]
    missing: list[str]
    unused: list[str]
    mapped: Mapping[str, str] = field(default_factory=dict)

    def select(self, counts: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """(atlas genes, Zg, h, w) -> (G, Zg, h, w) in the network's order."""
        if len(self.columns) == len(counts) and np.array_equal(self.columns, np.arange(len(counts))):
            return counts
        selected = counts[np.maximum(self.columns, 0)]
        selected[self.columns < 0] = 0
        return selected

    def select_entries(self, entries: NDArray[np.int32]) -> NDArray[np.int32]:
        """``select`` of sparse counts: (3, n) bins, the atlas's genes, counts -> (3, m) with the network's genes."""
        order = np.argsort(self.columns, kind="stable")  # the network's genes, those of one gene of the atlas together
        # Where those of each gene of the atlas begin; of genes beyond the last that is used there are none.
        begin = np.searchsorted(self.columns[order], np.arange(self.columns.max(initial=-1) + 3))
        gene = np.minimum(entries[1], len(begin) - 2)
        times = begin[gene + 1] - begin[gene]
        selected = np.repeat(entries, times, axis=1)
        within = np.arange(selected.shape[1]) - np.repeat(np.cumsum(times) - times, times)
        selected[1] = order[np.repeat(begin[gene], times) + within]
        return selected


def match_genes(
    network: Sequence[str] | None,
    size: int,
    atlas: Sequence[str],
    missing: Missing = "error",
    pairs: Collection[tuple[str, str]] | None = None,
) -> Panel:
    """Match by name; without names, equal counts are taken to be in the same order, and that is said.

    Args:
        network: names of the network's genes, or None where the checkpoint has none and none were given.
        size: G, the length of the network's gene axis.
        atlas: names of the atlas's genes.
        missing: "error", or "zero" to let genes that the atlas lacks read as zero.
        pairs: names of one gene in the network and in the atlas, where they differ; see ``orthologs``. Genes that have
            no partner are matched by their own name.

    Raises:
        InputError: names that do not fit the network, genes that are missing, or not one gene that both have.
    """
    if network is None:
        if pairs is not None:
            raise InputError(
                "a table of genes is given, but the checkpoint names none: give its names with --genes FILE"
            )
        if size != len(atlas):
            raise InputError(
                f"the checkpoint names no genes and has {size} of them, the atlas {len(atlas)}: give the names in the "
                "checkpoint's order with --genes FILE"
            )
        logger.warning("the checkpoint names no genes; its %d are taken to be the atlas's, in the same order", size)
        return Panel(None, np.arange(size), [], [])
    names = list(network)
    if len(names) != size:
        raise InputError(f"{len(names)} gene names were given; the network has {size} genes")
    if len(set(names)) != size:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"the gene names repeat {', '.join(twice[:5])}; each has to stand once")
    mapped = {} if pairs is None else partners(pairs, names, atlas)
    place = {name: index for index, name in enumerate(atlas)}
    column = {name: place[mapped.get(name, name)] for name in names if mapped.get(name, name) in place}
    absent = [name for name in names if name not in column]
    if not column:
        raise InputError(
            f"the atlas has none of the network's {size} genes ({', '.join(names[:5])}, ...; the atlas has "
            f"{', '.join(atlas[:5])}, ...): --map-genes FILE matches genes of other names"
        )
    if absent and missing == "error":
        raise InputError(
            f"the atlas lacks {len(absent)} of the network's {size} genes ({', '.join(absent[:10])}"
            f"{', ...' if len(absent) > 10 else ''}); --missing-genes zero reads them as zero"
        )
    used = set(column.values())
    unused = [name for name, index in place.items() if index not in used]
    _list(mapped, absent, unused)
    return Panel(names, np.array([column.get(name, -1) for name in names]), absent, unused, mapped)


def _list(mapped: Mapping[str, str], absent: Sequence[str], unused: Sequence[str]) -> None:
    """Say what was made of which gene."""
    if mapped:
        listed = ", ".join(f"{name} = {theirs}" for name, theirs in mapped.items())
        logger.info("%d genes are matched by the table: %s", len(mapped), listed)
    if absent:
        logger.warning("%d genes are not in the atlas and read as zero: %s", len(absent), ", ".join(absent))
    if unused:
        logger.info("%d genes of the atlas are not used by the network: %s", len(unused), ", ".join(unused))
