"""Which genes a gene attends to most, region by region, and whether that is more than their abundance explains.

The statistic of a partner is the mean of its entry in the gene's row of the window's attention, over the encoder
patches of a region in which the gene was read. It is judged by two nulls, see ``teramind.interaction.nulls``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import false_discovery_control
from tqdm import tqdm

from teramind.atlas.layout import BIN_SIZE, ceil_div
from teramind.checks import integer_between
from teramind.engine.denoise import full_float32, on_device
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.interaction.maps import TILE, MapSource
from teramind.interaction.nulls import BlockRows, RegionSums, Row
from teramind.kernels import gene_attention_rows
from teramind.model.layers import parts
from teramind.model.network import TeraMind

EVERYWHERE = "everywhere"
"""Name of the region that holds all patches."""
BLOCK_PATCHES = 8
"""Encoder patches along the side of a block: in it labels are shuffled together, and the gene is placed elsewhere."""
AREA_BLOCKS = (4, 2, 1)
"""Blocks along the side of an area; the first of these that gives enough areas."""
ENOUGH_AREAS = 12
PLACEMENTS = 8
"""Other patches that the gene of a patch is placed in."""

MOST_PERMUTATIONS = 10_000  # of 500 genes in 8 bytes: 40 MB a region
_Mask = npt.NDArray[np.bool_]


class Partner(NamedTuple):
    """A gene that another attends to in a region.

    Attributes:
        region: name.
        gene: whose attention it is.
        partner: what it goes to.
        attention: mean over patches; 1/G if it were uniform.
        enrichment: over the mean of all partners that the atlas has.
        expected: the attention if the gene were placed in other patches nearby: what the abundance of both explains.
        p: chance of as much attention beyond the expected one, or more, for genes that have nothing to do with each
            other; 1 where there is but one area.
        q: p corrected for the number of partners and regions (Benjamini-Hochberg).
        p_shuffled: chance that shuffled gene labels give as much attention or more: small for any abundant gene.
        q_shuffled: the same, corrected.
        patches: in which the gene was read, in all windows.
        blocks: that they lie in.
        areas: that these lie in, and that p is drawn from.
    """

    region: str
    gene: str
    partner: str
    attention: float
    enrichment: float
    expected: float
    p: float
    q: float
    p_shuffled: float
    q_shuffled: float
    patches: int
    blocks: int
    areas: int


def top_partners(source: MapSource, *, permutations: int = 200, seed: int = 0, progress: bool = True) -> list[Partner]:
    """The partners of the source's only gene, in every region of the atlas and everywhere.

    Args:
        source: of one gene; its region and slices are what is looked at.
        permutations: of the labels; each gives a value of the null for every partner.
        seed: of the permutations and placements.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        For each region, the one that holds all first, its partners by falling attention. Genes that the atlas lacks are
        left out. Regions in which the gene was not read are not there.

    Raises:
        InputError: the source has several genes, or the number of permutations or the seed is out of range.
    """
    if len(source.genes) != 1:
        raise InputError(f"partners are told of one gene, not of {', '.join(source.gene_names)}")
    check_permutations(permutations, seed)
    gene, absent = source.genes[0], set(source.job.panel.missing)
    partners = [place for place, name in enumerate(source.panel) if place != gene and name not in absent]
    if not partners:
        return []
    sums: dict[int, RegionSums] = {}
    side = _area_side(source)
    tiles = list(_tiles(source))
    for window, tile in tqdm(tiles, unit="tile", disable=None if progress else True):
        for region, rows in _tile_blocks(source, window, tile, side, seed):
            total = sums.setdefault(region, RegionSums.empty(len(partners), permutations))
            chosen = replace(rows, attention=rows.attention[partners], placed=rows.placed[partners])
            total.update(chosen, np.random.default_rng([seed, *rows.block, region + 1]))
    return _table(source, partners, sums)


def check_permutations(number: int, seed: int = 0) -> None:
    """Whether a null can be made of so many permutations, with this seed.

    Raises:
        InputError: it cannot.
    """
    integer_between("the number of permutations", number, 1, MOST_PERMUTATIONS)
    integer_between("the seed of the permutations", seed, 0, 2**63 - 1)


def _table(source: MapSource, partners: Sequence[int], sums: Mapping[int, RegionSums]) -> list[Partner]:
    """Partners of all regions, their p-values corrected together."""
    names = {-1: EVERYWHERE, **(source.job.atlas.region_names or {})}
    rows = []
    for region, total in sorted(sums.items()):
        if region == 0:
            continue  # outside all regions
        means, expected = total.attention / total.patches, total.placed / total.patches
        placed, shuffled = total.p_placed().tolist(), total.p_shuffled().tolist()
        rows += [
            Partner(
                names[region], source.gene_names[0], source.panel[partners[place]], float(means[place]),
                float(means[place] / means.mean()), float(expected[place]), placed[place], placed[place],
                shuffled[place], shuffled[place], total.patches, len(total.blocks), len(total.areas),
            )
            for place in np.argsort(-means).tolist()
        ]  # fmt: skip
    if not rows:
        return []
    corrected = [false_discovery_control([getattr(row, p) for row in rows]).tolist() for p in ("p", "p_shuffled")]
    return [row._replace(q=q, q_shuffled=other) for row, q, other in zip(rows, *corrected, strict=True)]


def _area_side(source: MapSource) -> int:
    """Of an area, in patches."""
    bins = source.job.config.patch_bins
    sides = [blocks * BLOCK_PATCHES for blocks in AREA_BLOCKS]
    whole = source.bins.shape
    enough = (side for side in sides if math.prod(ceil_div(edge, side * bins) for edge in whole) >= ENOUGH_AREAS)
    return next(enough, sides[-1])


def _tiles(source: MapSource) -> Iterator[tuple[int, Rectangle]]:
    """Windows and tiles, in bins, on the patch grid from the region's corner."""
    y0, y1, x0, x1 = source.bins
    for window in range(len(source.job.windows)):
        for y in range(y0, y1, TILE):
            for x in range(x0, x1, TILE):
                yield window, Rectangle(y, min(y + TILE, y1), x, min(x + TILE, x1))


def _tile_blocks(
    source: MapSource, window: int, tile: Rectangle, side: int, seed: int
) -> Iterator[tuple[int, BlockRows]]:
    """Region (-1 for all) and rows (G,) of each block of a tile in which the gene was read."""
    bins, gene = source.job.config.patch_bins, source.genes[0]
    place = _encoder_patches(source, tile)
    counts = source.counts(window, place)
    n, m = (edge // bins for edge in place.shape)
    cut = counts.reshape(*counts.shape[:2], n, bins, m, bins).transpose(2, 4, 0, 1, 3, 5)  # (n, m, G, 4, p, p)
    read = np.asarray(cut[:, :, gene].any(axis=(2, 3, 4)))
    labels = _patch_labels(source, window, place, bins)
    corner = (tile.y0 - source.bins.y0) // bins, (tile.x0 - source.bins.x0) // bins
    for first, block in _blocks(read):
        start = corner[0] + first[0], corner[1] + first[1]
        patches, label = cut[block].reshape(-1, *cut.shape[2:]), labels[block].ravel()
        of_block = _BlockQueries(source.net, patches, gene, np.random.default_rng([seed, *start]))
        for region in (-1, *np.unique(label[of_block.read]).tolist()):
            attention, placed, count = of_block.rows(np.full(label.shape, True) if region < 0 else label == region)
            yield region, BlockRows(start, (start[0] // side, start[1] // side), attention, placed, count)


def _encoder_patches(source: MapSource, tile: Rectangle) -> Rectangle:
    """In bins: the encoder's patches lie half a patch above and left of the grid, and are one more than its patches.

    A tile has those whose upper left corner lies so off one of its own patches; the region's last has one more.
    """
    bins = source.job.config.patch_bins
    margin = bins // 2
    n = ceil_div(tile.y1 - tile.y0, bins) + (tile.y1 == source.bins.y1)
    m = ceil_div(tile.x1 - tile.x0, bins) + (tile.x1 == source.bins.x1)
    y, x = tile.y0 - margin, tile.x0 - margin
    return Rectangle(y, y + n * bins, x, x + m * bins)


class _BlockQueries:
    """The queries of a block's patches, from which rows follow for the gene in its own patch and in another's place.

    Attributes:
        read: (N,) patches in which the gene was read.
    """

    def __init__(self, net: TeraMind, patches: npt.NDArray[Any], gene: int, generator: np.random.Generator) -> None:
        """Project counts (N, G, 4, p, p)."""
        self.read: _Mask = np.asarray(patches[:, gene].any(axis=(1, 2, 3)))
        self._live: _Mask = np.asarray(patches.any(axis=(1, 2, 3, 4)))
        self._gene, self._generator = gene, generator
        [block] = parts(net.rna_blocks[0])
        self._attention = block.attn
        device = next(net.parameters()).device
        self._rows = torch.tensor([gene], device=device)
        self._known: dict[bytes, tuple[Row, Row, int]] = {}
        # Of live patches alone; (N, G, F) in their places would be mostly nothing at the tissue's edge.
        self._place = np.cumsum(self._live) - 1
        with torch.no_grad(), on_device(device), full_float32(device):
            tokens = torch.from_numpy(patches[self._live].astype(np.float32)).to(device).flatten(2)
            self._queries = F.linear(tokens, self._attention.q.weight, self._attention.q.bias)

    def rows(self, inside: _Mask) -> tuple[Row, Row, int]:
        """(G,) attention summed over the patches inside with the gene, (G,) the same placed elsewhere; their number."""
        chosen, others = np.flatnonzero(self.read & inside), np.flatnonzero(self._live & inside)
        key = others.tobytes()
        if key not in self._known:
            attention = self._moved(chosen, chosen)
            placed = [
                self._moved(chosen, others[(np.searchsorted(others, chosen) + step) % len(others)])
                for step in self._steps(len(others))
            ]
            self._known[key] = attention, np.mean(placed, axis=0) if placed else attention, len(chosen)
        return self._known[key]

    def _steps(self, places: int) -> npt.NDArray[np.int64]:
        """How far along the block's patches the gene is moved."""
        return self._generator.permutation(places - 1)[:PLACEMENTS] + 1

    @torch.no_grad()
    def _moved(self, of: npt.NDArray[np.int64], to: npt.NDArray[np.int64]) -> Row:
        """(G,) sum of the gene's rows, with its own counts of some patches among the other genes' of others."""
        device = self._queries.device
        source, target = (torch.from_numpy(self._place[patches]).to(device) for patches in (of, to))
        with on_device(device), full_float32(device):
            queries = self._queries[target]
            queries[:, self._gene] = self._queries[source, self._gene]
            rows = gene_attention_rows(queries, self._attention.q_norm.weight, self._rows)  # (N, 1, G)
        return np.asarray(rows[:, 0].double().sum(dim=0).cpu().numpy(), dtype=np.float64)


def _patch_labels(source: MapSource, window: int, place: Rectangle, bins: int) -> npt.NDArray[np.int64]:
    """The most frequent region of each patch's bins, over the slices that the window shows; 0 for none."""
    atlas = source.job.atlas
    n, m = (side // bins for side in place.shape)
    if atlas.region_names is None:
        return np.zeros((n, m), np.int64)
    start = source.job.windows[window].image_start
    labels = atlas.region_window(start, start + 2, *(side * BIN_SIZE for side in place))
    cut = labels.reshape(2, n, bins, m, bins).transpose(1, 3, 0, 2, 4).reshape(n * m, -1)
    most = [np.bincount(patch[patch > 0]).argmax() if (patch > 0).any() else 0 for patch in cut]
    return np.array(most, np.int64).reshape(n, m)


def _blocks(read: _Mask) -> Iterator[tuple[tuple[int, int], tuple[slice, slice]]]:
    """First patch and place of the blocks of a tile in which the gene was read anywhere."""
    for y in range(0, read.shape[0], BLOCK_PATCHES):
        for x in range(0, read.shape[1], BLOCK_PATCHES):
            block = slice(y, y + BLOCK_PATCHES), slice(x, x + BLOCK_PATCHES)
            if read[block].any():
                yield (y, x), block
