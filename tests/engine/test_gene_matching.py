import numpy as np
import pytest

from teramind import InputError
from teramind.engine.panel import match_genes


def counts(genes):
    return np.arange(genes, dtype=np.uint16)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint16)


def test_genes_are_matched_by_name():
    panel = match_genes(["c", "a"], 2, ["a", "b", "c"])
    assert panel.select(counts(3))[:, 0, 0, 0].tolist() == [2, 0]
    assert panel.unused == ["b"]


def test_missing_genes_are_an_error_or_zero():
    with pytest.raises(InputError, match=r"lacks 1 of the network.s 2 genes \(x\); --missing-genes zero"):
        match_genes(["b", "x"], 2, ["a", "b"])
    panel = match_genes(["b", "x"], 2, ["a", "b"], missing="zero")
    assert panel.select(counts(2))[:, 0, 0, 0].tolist() == [1, 0]
    assert panel.missing == ["x"]


def test_without_names_equal_counts_are_taken_in_order_and_said(caplog):
    panel = match_genes(None, 3, ["a", "b", "c"])
    assert panel.select(counts(3))[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert "names no genes" in caplog.text
    with pytest.raises(InputError, match="has 2 of them, the atlas 3"):
        match_genes(None, 2, ["a", "b", "c"])


def test_names_that_cannot_be():
    with pytest.raises(InputError, match="3 gene names were given; the network has 2"):
        match_genes(["a", "b", "c"], 2, ["a"])
    with pytest.raises(InputError, match="repeat a"):
        match_genes(["a", "a"], 2, ["a"])
