from __future__ import annotations

import gzip
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teramind.atlas import tables
from teramind.atlas.panel import choose_genes, read_genes
from teramind.atlas.tables import TranscriptTable, number_column, read_ahead, word_column
from teramind.errors import InputError

ROWS = 1003


def write(path, line_end="\n", last=True):
    lines = ["id,x,gene,note"] + [f"{row},{row / 7!r},Gene{row * row % 13},NA" for row in range(ROWS)]
    text = line_end.join(lines) + (line_end if last else "")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".parquet":
        names = pa.array([f"Gene{row * row % 13}" for row in range(ROWS)])
        pq.write_table(pa.table({"id": np.arange(ROWS), "x": np.arange(ROWS) / 7, "gene": names}), path)
    else:
        path.write_bytes(text.encode())
    return TranscriptTable(path)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
@pytest.mark.parametrize("segment", [1, 777, 64 << 20])
@pytest.mark.parametrize("last", [True, False], ids=["", "no newline at the end"])
def test_every_row_comes_once_and_in_order_wherever_the_file_is_cut(tmp_path, monkeypatch, name, segment, last):
    monkeypatch.setattr(tables, "CSV_SEGMENT_BYTES", segment)
    monkeypatch.setattr(tables, "BATCH_ROWS", 100)
    table = write(tmp_path / name, last=last)
    x, genes, told = [], [], []
    for batch in table.batches(["x"], ["gene"], told.append):
        x.append(number_column(batch, "x"))
        codes, words = word_column(batch, "gene")
        genes += [words[code] for code in codes]
    np.testing.assert_array_equal(np.concatenate(x), np.arange(ROWS) / 7)
    assert genes == [f"Gene{row * row % 13}" for row in range(ROWS)]
    assert sum(told) == table.size


def test_lines_may_end_as_on_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CSV_SEGMENT_BYTES", 500)
    table = write(tmp_path / "t.csv", line_end="\r\n")
    assert table.columns == ["id", "x", "gene", "note"]
    assert sum(batch.num_rows for batch in table.batches(["x"], ["gene"])) == ROWS


def test_missing_values_have_a_place_of_their_own(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [1.5, None, 2.5], "gene": ["Th", "Aqp4", None]}), path)
    (batch,) = TranscriptTable(path).batches(["x"], ["gene"])
    np.testing.assert_array_equal(number_column(batch, "x"), [1.5, np.nan, 2.5])
    codes, words = word_column(batch, "gene")
    assert [*words, None][codes[0]] == "Th"
    assert codes[2] == len(words)


def test_a_gene_called_na_is_no_missing_value(tmp_path):
    table = write(tmp_path / "t.csv")
    codes, words = word_column(next(table.batches(["x"], ["note"])), "note")
    assert words == ["NA"]
    assert not codes.any()


def test_reading_ahead_keeps_order_and_passes_errors_on():
    def items():
        yield from range(5)
        raise RuntimeError("the sixth is broken")

    taken = []
    with pytest.raises(RuntimeError, match="sixth"):
        taken.extend(read_ahead(items()))
    assert list(read_ahead([])) == []
    assert list(read_ahead(iter("abc"))) == ["a", "b", "c"]


def test_reading_ahead_makes_the_next_item_while_the_caller_works_and_no_more():
    made: list[int] = []
    ready = [threading.Event() for _ in range(10)]

    def items():
        for index in range(10):
            made.append(index)
            yield index
            ready[index].set()

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert ready[0].wait(10)  # the second is being made although nobody asked for it
    ahead.close()
    assert made == [0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is empty"), ("\n \n", "is empty"), ("Th\nAqp4\nTh\n", "holds Th more than once")],
    ids=["empty", "blank", "repeated"],
)
def test_a_gene_list_must_name_every_gene_once(tmp_path, text, words):
    path = tmp_path / "genes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_genes(path)


def test_a_list_of_genes_that_are_not_there_is_refused(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("TH\n")
    with pytest.raises(InputError, match=r"none of the 1 genes .*\(Aqp4, Th\); check the names"):
        choose_genes({"a": {"Th"}, "b": {"Aqp4"}}, path)


def test_sections_without_a_common_gene_have_no_intersection():
    with pytest.raises(InputError, match="--genes union"):
        choose_genes({"a": {"Th"}, "b": {"Aqp4"}}, "intersection")
