"""The maps against the definition, the definition against the authors' arrays."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from teramind import InputError
from teramind.interaction.attention import QUANTITIES, attention_rows, interaction_maps
from teramind.model.patches import cut, join

# Float32 sums in another order than the definition's; the parity bound of one pass of the network is 2e-5.
SAME = 2e-6
PARITY = 2e-5


def patches_of(genes, bins):
    """(1, G, 4, n*p, m*p) -> (N, G, 4, p, p)."""
    return cut(genes, bins).permute(0, 4, 3, 1, 2).float().contiguous()


@pytest.mark.parametrize("rows", [[3], [4, 0, 2], None])
def test_rows_are_those_of_the_authors(parity, deviation, rows):
    fixture = parity("tiny")
    net, genes = fixture.network(), fixture["genes"]
    rows = list(range(net.config.genes)) if rows is None else rows
    attention = attention_rows(net, patches_of(genes, net.config.patch_bins), torch.tensor(rows))
    assert deviation(attention, fixture["gene_attention"][:, :, rows]) < PARITY


def defined_maps(net, counts, genes):
    """Straight from the definition, with whole matrices, of one region (G, 4, h, w)."""
    region = torch.from_numpy(counts.astype(np.float32))[None]
    bins = net.config.patch_bins
    rows, columns = counts.shape[2] // bins, counts.shape[3] // bins
    with torch.no_grad():
        lower, between, upper, whole = net.gene_attention(region)[..., genes, :][..., genes]
    patches = patches_of(region, bins)[:, genes].flatten(3)
    maps = []
    for first, second in ((lower, between), (between, upper), (whole, whole)):
        maps.append(torch.stack([first @ patches[:, :, 1], second @ patches[:, :, 2]], dim=2))
    maps.append(patches[:, :, 1:3])
    joined = [
        join(one.unflatten(3, (bins, bins)).permute(0, 3, 4, 2, 1), rows, columns)[0] for one in maps
    ]  # (K, 2, h, w) each
    return torch.stack(joined).numpy()


@pytest.mark.parametrize(("patch_size", "sides"), [(32, (3, 5)), (64, (1, 3)), (128, (2, 1))])
@pytest.mark.parametrize("genes", [[1], [4, 0, 2]])
@pytest.mark.parametrize("patches", [1, 4, None])
def test_maps_follow_the_definition(make_network, patch_size, sides, genes, patches):
    net = make_network(patch_size=patch_size)
    shape = (net.config.genes, 4, *(side * net.config.patch_bins for side in sides))
    counts = np.random.default_rng(1).poisson(0.3, shape).astype(np.uint16)
    counts[genes, :, : net.config.patch_bins, : net.config.patch_bins] = 0  # a patch that is not computed
    maps = interaction_maps(net, counts, genes, patches=patches)
    expected = defined_maps(net, counts, genes)
    assert maps.shape == (len(QUANTITIES), len(genes), 2, *shape[2:])
    assert np.array_equal(maps[3], counts[genes][:, 1:3])
    assert np.abs(maps - expected).max() < SAME * expected.std()


def test_attention_does_not_know_which_gene_is_which(make_network):
    """The projection is shared by all genes: other labels on the same counts give the same numbers."""
    net = make_network()
    counts = torch.from_numpy(np.random.default_rng(2).poisson(0.7, (6, net.config.genes, 4, 2, 2))).float()
    order = torch.tensor([2, 0, 4, 1, 3])
    everything = torch.arange(net.config.genes)
    before = attention_rows(net, counts, everything)
    after = attention_rows(net, counts[:, order], everything)
    torch.testing.assert_close(after, before[:, :, order][..., order])


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(one.numel() for one in made if isinstance(one, torch.Tensor))])
        return result


def test_no_other_rows_are_formed(make_network):
    """With 120 genes, of which 2 are asked, the largest tensor is the counts; a matrix a patch is 7 times that."""
    net, patches = make_network(genes=120), 6
    counts = np.random.default_rng(4).poisson(0.5, (120, 4, 2, 2 * patches)).astype(np.uint16)
    with Largest() as rows:
        interaction_maps(net, counts, [3, 70])
    with Largest() as whole, torch.no_grad():
        net.gene_attention(torch.from_numpy(counts.astype(np.float32))[None])
    assert rows.elements <= counts.size
    assert whole.elements >= patches * 120**2 >= 5 * rows.elements


def test_another_number_of_slices_is_one_sentence(make_network):
    net = make_network(gene_slices=8)
    with pytest.raises(InputError, match="gene_slices=4; this one has 8"):
        interaction_maps(net, np.zeros((5, 8, 4, 4)), [0])


@pytest.mark.parametrize(
    ("shape", "genes", "sentence"),
    [
        ((5, 4, 5, 4), [0], "whole patches of 2 bins"),
        ((4, 4, 4, 4), [0], r"takes \(5, 4\)"),
        ((5, 4, 4, 4), [], "are not different indices"),
        ((5, 4, 4, 4), [1, 1], "are not different indices"),
        ((5, 4, 4, 4), [5], "from 0 to 4"),
    ],
)
def test_what_does_not_fit_is_said(make_network, shape, genes, sentence):
    with pytest.raises(InputError, match=sentence):
        interaction_maps(make_network(), np.zeros(shape, np.uint16), genes)
