"""Writing cells: the cache agrees with reading anew, a cell does not depend on its batch, and masks hold."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.expression import ExpressionConfig, ExpressionNet
from teramind.impute.generation import (
    CachedDecoder,
    GenerationOptions,
    PlainDecoder,
    generate_expression,
    trim_reference_row,
    uniform_streams,
)
from teramind.impute.tokens import Prompts


@pytest.fixture(scope="module")
def asked(expression_model, held_out):
    """Cells to write, some of them without a label, so that prompts differ in length."""
    truth, _ = held_out
    cells = truth[::9]
    metadata = expression_model.vocabulary.describe(cells.types, {})
    technology = np.where(np.arange(len(cells)) % 3, metadata["technology"], "")
    types = np.where(np.arange(len(cells)) % 7, cells.types, "")
    return Cells(cells.positions, types, metadata=metadata | {"technology": technology})


def test_the_reference_s_trimming():
    with np.load(Path(__file__).parents[1] / "data" / "mimyr_metrics.npz") as arrays:
        for index, length in enumerate(arrays["aux_dec_len"]):
            row = trim_reference_row(
                arrays["aux_dec_ids"][index, :length],
                arrays["aux_dec_vals"][index, :length],
                int(arrays["aux_dec_token_max"][0]),
                int(arrays["aux_dec_max_violations"][index]),
            )
            np.testing.assert_allclose(row, arrays["aux_dec_row"][index], atol=1e-12)


@pytest.mark.parametrize("config", [ExpressionConfig(width=32), ExpressionConfig(layers=5, width=48, heads=6)])
def test_cached_states_are_those_of_reading_anew(expression_model, asked, config):
    """Random weights, rows of unequal prompts, rows dropped on the way. Logits of about 0.6: 1e-4 is float32 noise."""
    torch.manual_seed(1)
    net = ExpressionNet(config, expression_model.vocabulary).eval()
    prompt = Prompts(expression_model.vocabulary, asked).left_padded(slice(0, 23), expression_model.vocabulary.pad)
    assert not prompt[2].all()
    decoders = CachedDecoder(net, 40), PlainDecoder(net)
    generator = torch.Generator().manual_seed(2)
    rows = 23
    with torch.no_grad():
        states = [decoder.start(*prompt) for decoder in decoders]
        for step in range(20):
            logits = [net.gene_head(state) for state in states]
            torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
            if step == 7:
                kept = torch.arange(1, rows, 2)
                rows = len(kept)
                for decoder in decoders:
                    decoder.keep(kept)
            token = torch.randint(0, 22, (rows,), generator=generator)
            value = torch.randint(0, 5, (rows,), generator=generator)
            states = [decoder.step(token, value) for decoder in decoders]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"order": "stagnation", "most_genes": 9}, {"temperature": 0.7}])
def test_a_cell_is_the_same_alone_in_any_batch_and_without_the_cache(expression_model, asked, options):
    written = [
        generate_expression(expression_model, asked, GenerationOptions(batch=batch, seed=4, **options), cached=cached)
        for batch, cached in ((512, True), (1, True), (37, True), (64, False))
    ]
    for other in written[1:]:
        np.testing.assert_allclose(other.counts.toarray(), written[0].counts.toarray(), atol=1e-4)
    different = generate_expression(expression_model, asked, GenerationOptions(seed=5, **options))
    assert (different.counts != written[0].counts).nnz > 100


def test_streams_belong_to_cells():
    everything = uniform_streams(7, 0, 10, 33)
    assert torch.equal(uniform_streams(7, 4, 3, 20), everything[4:7, :20])
    assert 0 < everything.min() < everything.max() < 1
    assert uniform_streams(8, 0, 300, 300).mean() == pytest.approx(0.5, abs=0.01)


def test_only_the_panel_is_written(expression_model, asked, brain):
    panel = brain.genes[3:15:2]
    everything = generate_expression(expression_model, asked)
    for rule in ("drop", "mask"):
        written = generate_expression(expression_model, asked, GenerationOptions(off_panel=rule), genes=panel)
        assert written.genes == panel
        assert written.counts.nnz > 0
        same = (written.counts != everything.with_genes(panel).counts).nnz == 0
        assert same == (rule == "drop")  # asking for fewer genes says nothing about a cell
    assert set(everything.genes) == set(brain.genes)
    assert (np.diff(everything.counts.indptr) > 0).mean() > 0.9
    with pytest.raises(InputError, match="'unheard'"):
        generate_expression(expression_model, asked, genes=["unheard"])


@pytest.mark.parametrize("order", ["monotone", "stagnation"])
def test_every_cell_ends_and_no_gene_comes_twice(expression_model, asked, order, monkeypatch):
    rows = []
    step = CachedDecoder.step
    monkeypatch.setattr(CachedDecoder, "step", lambda self, *a: (rows.append(a[0]), step(self, *a))[1])
    options = GenerationOptions(order=order, most_descents=1, batch=512)
    written = generate_expression(expression_model, asked, options)
    assert (written.counts.data > 0).all()
    first = torch.stack([row for row in rows if len(row) == len(asked)])  # until the first removal of rows
    for cell in first.T[:200]:
        tokens = cell[cell > 0].tolist()
        assert len(tokens) == len(set(tokens))
        descents = sum(after < before for before, after in pairwise(tokens))
        assert descents <= (0 if order == "monotone" else 2)
    assert (first[-1] == 0).any()


def test_cells_resemble_their_types(expression_model, brain, held_out):
    """The mean profile of each type, against the truth and against that of all cells."""
    truth, _ = held_out
    metadata = expression_model.vocabulary.describe(truth.types, {})
    written = generate_expression(
        expression_model, Cells(truth.positions, truth.types, metadata=metadata), genes=brain.genes
    )
    overall = truth.counts.toarray().mean(axis=0)
    for kind in np.unique(truth.types):
        rows = truth.types == kind
        true, ours = (np.log1p(cells.counts.toarray()[rows].mean(axis=0)) for cells in (truth, written))
        assert np.corrcoef(true, ours)[0, 1] > 0.9
        assert np.abs(true - ours).mean() < 0.6 * np.abs(true - np.log1p(overall)).mean()
    detected = [np.diff(cells.counts.indptr).mean() for cells in (truth, written)]
    assert detected[1] == pytest.approx(detected[0], rel=0.1)


def test_no_cells_and_unknown_conditions(expression_model, asked):
    assert generate_expression(expression_model, asked[:0]).counts.shape == (0, 21)
    vocabulary = expression_model.vocabulary
    described = vocabulary.describe(asked.types[:3], {"disease_state": "healthy"})
    assert described["disease_state"].tolist() == ["healthy"] * 3
    for conditions in ({"disease_state": "tired"}, {"weather": "fine"}, {"type": "type01"}):
        with pytest.raises(InputError, match="not trained with"):
            vocabulary.describe(asked.types[:3], conditions)


@pytest.mark.parametrize(
    "option",
    [{"top_k": 0}, {"temperature": 0.0}, {"end_probability": 0}, {"most_genes": 0}, {"order": "any"}, {"batch": 0}],
)
def test_options_that_cannot_be(option):
    with pytest.raises(InputError, match=next(iter(option))):
        GenerationOptions(**option)


def test_a_model_on_flat_positions_is_refused(expression_model, asked):
    with pytest.raises(InputError, match="in space"):
        generate_expression(expression_model, replace(asked, positions=asked.positions[:, :2]))
