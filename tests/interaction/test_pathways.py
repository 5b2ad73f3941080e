import pytest

from teramind import InputError
from teramind.interaction.pathways import choose_pathway, read_pathways


def test_the_pathways_of_the_paper():
    genes = {name: pathway.genes for name, pathway in read_pathways().items()}
    assert genes == {"GLUT": ("Slc17a6", "Slc17a7"), "DOPA": ("Nr4a2", "Th"), "BLOD": ("Cldn5", "Aqp4")}


def test_a_file_adds_and_redefines(tmp_path):
    table = tmp_path / "mine.gmt"
    table.write_text("# mine\nGABA\tinhibition\tGad1\tGad2\tSlc32a1\t\n\nDOPA\t\tTh\n")
    known = read_pathways(table)
    assert known["GABA"].genes == ("Gad1", "Gad2", "Slc32a1")
    assert known["DOPA"].genes == ("Th",)
    assert choose_pathway(None, "GABA", known).description == "inhibition"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("GABA", "line 1 of .* is not a pathway"),
        ("GABA\tonly words", "is not a pathway"),
        ("A\tb\tc\tc", "holds c twice"),
    ],
)
def test_lines_that_are_no_pathway(tmp_path, line, sentence):
    table = tmp_path / "mine.gmt"
    table.write_text(line)
    with pytest.raises(InputError, match=sentence):
        read_pathways(table)


def test_genes_or_a_pathway():
    assert choose_pathway(["Th", "Ddc"], None).name == "Th+Ddc"
    for genes, pathway in ((None, None), (["Th"], "DOPA")):
        with pytest.raises(InputError, match="either --genes or --pathway"):
            choose_pathway(genes, pathway)
    with pytest.raises(InputError, match="no pathway GABA; known are GLUT, DOPA, BLOD"):
        choose_pathway(None, "GABA")
    with pytest.raises(InputError, match="cannot be read"):
        read_pathways("nowhere.gmt")
