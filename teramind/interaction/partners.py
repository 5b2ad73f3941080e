"""Which genes a gene attends to most, region by region, against a null of shuffled gene labels.

The statistic of a partner is the mean of its entry in the gene's row of the window's attention, over the encoder
patches of a region in which the gene was read. Under the null the labels of the partners mean nothing: they are
shuffled, in each block of patches on its own. Blocks, because neighbouring patches are alike; patches shuffled one by
one would make anything significant. All partners are exchangeable then, so they share one null distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import false_discovery_control
from tqdm import tqdm

from teramind.atlas.layout import BIN_SIZE, ceil_div
from teramind.checks import integer_between
from teramind.engine.denoise import full_float32, on_device
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.interaction.attention import attention_rows, patches_at_once
from teramind.interaction.maps import TILE, MapSource
from teramind.model.network import TeraMind

EVERYWHERE = "everywhere"
"""Name of the region that holds all patches."""
BLOCK_PATCHES = 8
"""Encoder patches along the side of a block, in which labels are shuffled together."""

MOST_PERMUTATIONS = 10_000  # of 500 genes in 8 bytes: 40 MB a region
_WHOLE = 3  # of the four matrices: that of the whole window


class Partner(NamedTuple):
    """A gene that another attends to in a region.

    Attributes:
        region: name.
        gene: whose attention it is.
        partner: what it goes to.
        attention: mean over patches; 1/G if it were uniform.
        enrichment: over the mean of all partners.
        p: chance that shuffled labels give as much or more.
        q: p corrected for the number of partners and regions (Benjamini-Hochberg).
        patches: in which the gene was read.
        blocks: that they lie in.
    """

    region: str
    gene: str
    partner: str
    attention: float
    enrichment: float
    p: float
    q: float
    patches: int
    blocks: int


@dataclass
class RegionSums:
    """What is kept of a region.

    Attributes:
        attention: (G,) summed over patches.
        shuffled: (permutations, G - 1) the same with the partners' labels shuffled.
        patches: how many.
        blocks: how many.
    """

    attention: npt.NDArray[np.float64]
    shuffled: npt.NDArray[np.float64]
    patches: int = 0
    blocks: int = 0

    def update(self, block: npt.NDArray[np.float64], patches: int, gene: int, generator: np.random.Generator) -> None:
        """Take a block: its patches' summed row of attention (G,), and how many they are."""
        others = np.delete(block, gene)
        self.attention += block
        self.shuffled += generator.permuted(np.broadcast_to(others, self.shuffled.shape), axis=1)
        self.patches += patches
        self.blocks += 1


def top_partners(source: MapSource, *, permutations: int = 200, seed: int = 0, progress: bool = True) -> list[Partner]:
    """The partners of the source's only gene, in every region of the atlas and everywhere.

    Args:
        source: of one gene; its region and slices are what is looked at.
        permutations: of the labels; each gives G - 1 values of the null.
        seed: of the permutations.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        For each region, the one that holds all first, its partners by falling attention. Genes that the atlas lacks are
        left out. Regions in which the gene was not read are not there.

    Raises:
        InputError: the source has several genes, or the number of permutations is out of range.
    """
    if len(source.genes) != 1:
        raise InputError(f"partners are told of one gene, not of {', '.join(source.gene_names)}")
    check_permutations(permutations)
    gene, size = source.genes[0], len(source.panel)
    sums: dict[int, RegionSums] = {}
    tiles = list(_tiles(source))
    for window, tile in tqdm(tiles, unit="tile", disable=None if progress else True):
        rows, labels, read = _tile_rows(source, window, tile)
        for place, block in _blocks(read):
            key = [seed, window, tile.y0 // TILE + place[0], tile.x0 // TILE + place[1], *place]
            for region in (-1, *np.unique(labels[block][read[block]]).tolist()):
                chosen = read[block] if region < 0 else read[block] & (labels[block] == region)
                total = sums.setdefault(region, RegionSums(np.zeros(size), np.zeros((permutations, size - 1))))
                generator = np.random.default_rng([*key, region + 1])
                total.update(rows[block][chosen].sum(axis=0, dtype=np.float64), int(chosen.sum()), gene, generator)
    return _table(source, sums)


def check_permutations(number: int) -> None:
    """Whether a null can be made of so many permutations.

    Raises:
        InputError: it cannot.
    """
    integer_between("the number of permutations", number, 1, MOST_PERMUTATIONS)


def _table(source: MapSource, sums: dict[int, RegionSums]) -> list[Partner]:
    """Partners of all regions, their p-values corrected together."""
    names = {-1: EVERYWHERE, **(source.job.atlas.region_names or {})}
    absent = set(source.job.panel.missing)
    gene = source.genes[0]
    rows = []
    for region, total in sorted(sums.items()):
        if region == 0:
            continue  # outside all regions
        means = total.attention / total.patches
        others = np.delete(means, gene)
        null = np.sort(total.shuffled.ravel() / total.patches)
        for place in np.argsort(-means).tolist():
            if place == gene or source.panel[place] in absent:
                continue
            # Sums in another order differ in their last digits.
            above = len(null) - np.searchsorted(null, means[place] * (1 - 1e-9))
            p = float((1 + above) / (1 + len(null)))
            rows.append(
                Partner(
                    names[region], source.gene_names[0], source.panel[place], float(means[place]),
                    float(means[place] / others.mean()), p, p, total.patches, total.blocks,
                )
            )  # fmt: skip
    if not rows:
        return []
    corrected = np.asarray(false_discovery_control([row.p for row in rows]))
    return [row._replace(q=q) for row, q in zip(rows, corrected.tolist(), strict=True)]


def _tiles(source: MapSource) -> Iterator[tuple[int, Rectangle]]:
    """Windows and tiles, in bins, on the patch grid from the region's corner."""
    y0, y1, x0, x1 = source.bins
    for window in range(len(source.job.windows)):
        for y in range(y0, y1, TILE):
            for x in range(x0, x1, TILE):
                yield window, Rectangle(y, min(y + TILE, y1), x, min(x + TILE, x1))


def _tile_rows(
    source: MapSource, window: int, tile: Rectangle
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The encoder patches whose upper left corner lies half a patch above and left of the tile's patches.

    Returns:
        (n, m, G) the gene's row of attention, (n, m) the region's label, (n, m) whether the gene was read.
    """
    bins = source.job.config.patch_bins
    margin = bins // 2
    n, m = (ceil_div(side, bins) for side in tile.shape)
    place = Rectangle(tile.y0 - margin, tile.y0 - margin + n * bins, tile.x0 - margin, tile.x0 - margin + m * bins)
    counts = source.counts(window, place)
    cut = counts.reshape(*counts.shape[:2], n, bins, m, bins).transpose(2, 4, 0, 1, 3, 5)  # (n, m, G, 4, p, p)
    read = np.asarray(cut[:, :, source.genes[0]].any(axis=(2, 3, 4)))
    rows = np.zeros((n, m, len(source.panel)), np.float32)
    rows[read] = _rows(source.net, cut[read], source.genes[0])
    return rows, _patch_labels(source, window, place, bins), read


def _rows(net: TeraMind, patches: npt.NDArray[Any], gene: int) -> npt.NDArray[np.float32]:
    """(N, G, 4, p, p) counts -> (N, G) the gene's row of the window's attention."""
    device = next(net.parameters()).device
    chosen = torch.tensor([gene], device=device)
    out = np.zeros(patches.shape[:2], np.float32)
    at_once = patches_at_once(net, device)
    with on_device(device), full_float32(device):
        for start in range(0, len(patches), at_once):
            batch = torch.from_numpy(patches[start : start + at_once].astype(np.float32)).to(device)
            out[start : start + at_once] = attention_rows(net, batch, chosen)[_WHOLE, :, 0].cpu().numpy()
    return out


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


def _blocks(read: npt.NDArray[np.bool_]) -> Iterator[tuple[tuple[int, int], tuple[slice, slice]]]:
    """Number and place of the blocks of a tile in which the gene was read anywhere."""
    for row, y in enumerate(range(0, read.shape[0], BLOCK_PATCHES)):
        for column, x in enumerate(range(0, read.shape[1], BLOCK_PATCHES)):
            block = slice(y, y + BLOCK_PATCHES), slice(x, x + BLOCK_PATCHES)
            if read[block].any():
                yield (row, column), block
