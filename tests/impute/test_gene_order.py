import itertools
import json

import numpy as np
import pytest

from teramind.errors import InputError
from teramind.impute.gene_order import GeneOrder, order_genes, read_edges

EDGES = [tuple(edge) for edge in ["AB", "BC", "CA", "CB", "CD", "ED", "EF", "FE", "DG", "EA", "HG", "HI"]]


def test_golden():
    order = order_genes("ABCDEFGHIJ", EDGES)
    assert " ".join(order.genes) == "E F C A B H D G I J"
    assert set(order.broken) == {("B", "C"), ("F", "E")}


def test_the_order_of_the_input_does_not_matter():
    generator = np.random.default_rng(0)
    expected = order_genes("ABCDEFGHIJ", EDGES)
    for _ in range(5):
        edges = [EDGES[index] for index in generator.permutation(len(EDGES))]
        assert order_genes(generator.permutation(list("ABCDEFGHIJ")).tolist(), [*edges, *edges[:3]]) == expected


def random_edges(genes, count, generator):
    return [tuple(generator.choice(genes, 2).tolist()) for _ in range(count)]


def test_without_loops_no_edge_is_broken():
    generator = np.random.default_rng(1)
    genes = [f"g{index:03d}" for index in range(101)]
    rank = dict(zip(genes, generator.permutation(101), strict=True))
    edges = [edge for edge in random_edges(genes, 400, generator) if rank[edge[0]] < rank[edge[1]]]
    order = order_genes(genes, edges)
    assert order.broken == ()
    assert sorted(order.genes) == genes


@pytest.mark.parametrize("seed", range(5))
def test_few_edges_are_broken_and_only_within_loops(seed):
    """Against the best of all orders of seven genes, and half of the edges as the bound that any order can meet."""
    generator = np.random.default_rng(seed)
    genes = list("ABCDEFG")
    edges = {edge for edge in random_edges(genes, 18, generator) if edge[0] != edge[1]}
    order = order_genes(genes, edges)
    place = {name: index for index, name in enumerate(order.genes)}
    assert {edge for edge in edges if place[edge[0]] > place[edge[1]]} == set(order.broken)
    best = min(
        sum(trial.index(a) > trial.index(b) for a, b in edges) for trial in map(list, itertools.permutations(genes))
    )
    assert best <= len(order.broken) <= best + 2
    assert len(order.broken) <= len(edges) / 2


def test_foreign_genes_and_loops_on_one_gene_are_left_out():
    order = order_genes(["b", "a", "c"], [("a", "a"), ("x", "a"), ("c", "y"), ("c", "a")])
    assert order.genes == ("c", "a", "b")
    assert order_genes([], []).genes == ()
    with pytest.raises(InputError, match="'a' is named twice"):
        order_genes(["a", "b", "a"], [])


def test_files(tmp_path):
    path = tmp_path / "gene_order.json"
    order = order_genes("ABCDEFGHIJ", EDGES)
    order.save(path)
    assert GeneOrder.load(path) == order
    content = json.loads(path.read_text())
    content["genes"] = content["genes"][::-1]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="edited"):
        GeneOrder.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="not a readable"):
        GeneOrder.load(path)


def test_edges_from_a_table(tmp_path):
    path = tmp_path / "grn_edges.tsv"
    path.write_text("source\ttarget\tweight\nPax6\tNeurod1\t0.5\nSox2\tPax6\t1\n")
    assert read_edges(path) == [("Pax6", "Neurod1"), ("Sox2", "Pax6")]
    path.write_text("from\ttarget\na\tb\n")
    with pytest.raises(InputError, match="no column 'source'"):
        read_edges(path)
    path.write_text("source\ttarget\na\n")
    with pytest.raises(InputError, match="row 2 lacks"):
        read_edges(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_edges(tmp_path / "absent.tsv")
