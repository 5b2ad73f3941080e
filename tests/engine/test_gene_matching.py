import numpy as np
import pytest

from teramind import InputError
from teramind.atlas.panel import read_genes
from teramind.engine.orthologs import read_pairs
from teramind.engine.panel import Panel, match_genes


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


# ---- other names -----------------------------------------------------------------------------------------------------

PAIRS = [("Th", "TH"), ("Aqp4", "AQP4"), ("Other", "OTHER"), ("Vip", "VIP")]


@pytest.mark.parametrize("turned", [False, True])
def test_a_table_matches_in_either_direction(caplog, turned):
    caplog.set_level("INFO")
    pairs = [pair[::-1] for pair in PAIRS] if turned else PAIRS
    panel = match_genes(["Aqp4", "Th", "Vip", "Gad1"], 4, ["TH", "XIST", "AQP4", "Gad1"], "zero", pairs)
    assert panel.columns.tolist() == [2, 0, -1, 3]
    assert panel.select(counts(4))[:, 0, 0, 0].tolist() == [2, 0, 0, 3]
    assert (panel.missing, panel.unused) == (["Vip"], ["XIST"])
    assert panel.mapped == {"Th": "TH", "Aqp4": "AQP4"}
    for said in (
        "2 genes are matched by the table: Aqp4 = AQP4, Th = TH",
        "read as zero: Vip",
        "not used by the network: XIST",
    ):
        assert said in caplog.text


def test_what_a_table_cannot_say():
    with pytest.raises(InputError, match=r"gives Th of the network several partners \(TH, TH2\)"):
        match_genes(["Th"], 1, ["TH", "TH2"], "zero", [("Th", "TH"), ("Th", "TH2")])
    with pytest.raises(InputError, match=r"gives TH of the atlas several partners \(Th, Th2\)"):
        match_genes(["Th", "Th2"], 2, ["TH"], "zero", [("Th", "TH"), ("Th2", "TH")])
    assert match_genes(["Th"], 1, ["TH"], "zero", [("Th", "TH"), ("Th", "TH2"), ("A", "TH")]).columns.tolist() == [0]
    with pytest.raises(InputError, match=r"none of the network's 1 genes .*--map-genes"):
        match_genes(["Th"], 1, ["TH"], "zero")
    with pytest.raises(InputError, match="the checkpoint names none"):
        match_genes(None, 1, ["TH"], "zero", PAIRS)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_tables_are_read(tmp_path, separator):
    table = tmp_path / "orthologs.csv"
    lines = [["mouse", "human", "score"], ["Th", " TH", "1"], ["Gm1", "", ""], ["", "", ""], ["Vip", "VIP", "1"]]
    table.write_text("\ufeff" + "\r\n".join(separator.join(line) for line in lines))
    assert read_pairs(table) == [("Th", "TH"), ("Vip", "VIP")]


@pytest.mark.parametrize("turned", [False, True])
def test_a_table_without_heads_loses_no_pair(tmp_path, turned):
    pairs = [("TH", "Th"), ("VIP", "Vip")] if turned else [("Th", "TH"), ("Vip", "VIP")]
    table = tmp_path / "orthologs.csv"
    table.write_text("".join(f"{first},{second}\n" for first, second in pairs))
    assert read_pairs(table, ["Gad1", "Th", "Vip"], ["VIP", "TH"]) == pairs
    assert read_pairs(table, ["Gad1", "Vip"], ["VIP", "TH"]) == pairs[1:]  # of no use
    table.write_text("mouse,human\nTh,TH\n")
    assert read_pairs(table, ["Th"], ["TH"]) == [("Th", "TH")]


def test_tables_that_cannot_be_read(tmp_path):
    table = tmp_path / "orthologs.csv"
    for text, sentence in (("mouse,human\n", "holds no pairs"), ("mouse\nTh\n", "line 2 .* does not hold two names")):
        table.write_text(text)
        with pytest.raises(InputError, match=sentence):
            read_pairs(table)
    with pytest.raises(InputError, match=r"nowhere.csv cannot be read .* or one of mouse_human_81"):
        read_pairs("nowhere.csv")


def test_the_published_genes_have_human_names():
    pairs = read_pairs("mouse_human_81")
    assert [mouse for mouse, _ in pairs] == read_genes("human_81")
    panel = match_genes(read_genes("human_81"), 81, [human for _, human in reversed(pairs)], "error", pairs)
    assert panel.columns.tolist() == list(reversed(range(81)))


# In another order, some not there, one read by two of the network's genes, the first or last of the atlas unused.
@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [3, 1], [-1, 2, -1, 0, 1], [1, 3, 1], [-1], [2]])
def test_sparse_counts_are_selected_like_dense_ones(columns):
    generator = np.random.default_rng(0)
    dense = generator.integers(1, 99, (4, 2, 3, 5)).astype(np.uint16) * (generator.random((4, 2, 3, 5)) < 0.4)
    gene, *bins = dense.nonzero()
    entries = np.stack([np.ravel_multi_index(bins, dense.shape[1:]), gene, dense[dense.nonzero()]]).astype(np.int32)
    panel = Panel(None, np.array(columns), [], [])
    for some in (entries, entries[:, :0]):
        bin_, gene, count = panel.select_entries(some)
        selected = np.zeros((len(columns), 30), np.uint16)
        selected[gene, bin_] = count
        expected = panel.select(dense) if some.size else np.zeros_like(selected)
        assert np.array_equal(selected, expected.reshape(len(columns), -1))
