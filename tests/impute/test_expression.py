"""Tokens, losses and the expression network, against slow and obvious versions of themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from teramind.errors import InputError
from teramind.impute.cells import Cells, join_cells
from teramind.impute.expression import (
    SIZES,
    ExpressionConfig,
    ExpressionModel,
    ExpressionNet,
    expression_losses,
    next_gene_nll,
    train_expression,
)
from teramind.impute.gene_order import order_genes
from teramind.impute.generation import generate_expression
from teramind.impute.tokens import Prompts, TokenisedCells, sampling_weights
from teramind.impute.training import TrainingOptions
from teramind.impute.vocabulary import Vocabulary, restore, transform

GENES = ("c", "a", "b")  # an order of emission that is not the order of the columns


@pytest.fixture
def few():
    """Four cells with gaps in their labels."""
    counts = csr_array(np.array([[0, 2, 1], [5, 0, 0], [0, 0, 0], [1, 2, 40]], dtype=np.float32))
    positions = np.array([[0.0, 0, 0], [1, 2, 3], [0.5, 1, 1.5], [0.25, 2, 3]])
    metadata = {
        "technology": np.array(["merfish", "", "merfish", "merfish"]),
        "class": np.array(["x", "x", "y", ""]),
    }
    return Cells(positions, np.array(["t1", "t2", "", "t1"]), counts, ("a", "b", "c"), metadata=metadata)


@pytest.fixture
def vocabulary(few):
    return Vocabulary.of(few, GENES)


def test_tokens_of_the_vocabulary(vocabulary, few):
    assert vocabulary.labels == {"technology": ("merfish",), "class": ("x", "y"), "type": ("t1", "t2")}
    assert vocabulary.special == (9, 10, 11, 12, 13)
    assert vocabulary.size == 14
    np.testing.assert_array_equal(vocabulary.label_tokens(few), [[4, 5, 7], [-1, 5, 8], [4, 6, -1], [4, -1, 7]])
    assert vocabulary.ancestors == {"t1": {"class": "x"}, "t2": {"class": "x"}}
    assert vocabulary.usual == {"technology": "merfish", "class": "x", "type": "t1"}
    again = Vocabulary.from_dict(vocabulary.to_dict())
    np.testing.assert_array_equal(again.label_tokens(few), vocabulary.label_tokens(few))
    np.testing.assert_array_equal(again.value_edges, vocabulary.value_edges)


def test_every_value_has_a_bin_of_its_own_and_none_is_bin_zero(vocabulary):
    values = transform(np.array([1, 2, 5, 40]))
    np.testing.assert_array_equal(vocabulary.value_bins(values), [1, 2, 3, 4])
    np.testing.assert_array_equal(vocabulary.value_bins(transform(np.array([0.1, 999]))), [1, 4])
    np.testing.assert_array_equal(
        vocabulary.coordinate_bins(np.array([[0.0, 0, 0], [1, 2, 3], [-7, 1, 99]]))[:, 0], [1, 99, 1]
    )


def test_many_values_share_bins_evenly():
    counts = csr_array(np.random.default_rng(0).gamma(2, 9, (900, 3)))
    cells = Cells(np.random.default_rng(1).random((900, 3)), np.array(["a"] * 900), counts, ("a", "b", "c"))
    vocabulary = Vocabulary.of(cells, GENES)
    held = np.bincount(vocabulary.value_bins(transform(counts.data)), minlength=101)
    assert held[0] == 0
    assert held[1:].max() < 2 * held[1:].min()


def test_rows_of_tokens_and_back(vocabulary, few):
    data = TokenisedCells(vocabulary, few)
    np.testing.assert_array_equal(data.rows, [0, 1, 3])  # the third expresses nothing
    batch = data.batch(np.array([2, 0, 1]))
    expected = [
        [4, 7, 9, 10, 11, 12, 1, 2, 3, 0],
        [4, 5, 7, 9, 10, 11, 12, 1, 3, 0],
        [5, 8, 9, 10, 11, 12, 2, 0, 13, 13],
    ]
    assert batch.tokens.tolist() == expected
    assert batch.prompt.tolist() == [6, 7, 6]
    assert batch.lengths.tolist() == [10, 10, 8]
    counts = few.with_genes(GENES).counts.toarray()
    for row, cell in enumerate((3, 0, 1)):
        back = np.zeros(3)
        genes = batch.tokens[row, batch.prompt[row] : batch.lengths[row] - 1] - 1
        back[genes.numpy()] = restore(batch.values[row, batch.prompt[row] : batch.lengths[row] - 1].numpy())
        np.testing.assert_allclose(back, counts[cell], rtol=1e-5)
    assert (batch.bins[batch.tokens <= 0] == 0).all()
    moved = data.batch(np.array([1]), jitter=np.array([[-200, 5, 1]]))
    assert moved.bins[0, 2:5].tolist() == [1, 100, 100]


def test_prompts_filled_up_on_the_left(vocabulary, few):
    tokens, bins, real = Prompts(vocabulary, few).left_padded(slice(1, 4), vocabulary.pad)
    assert tokens.tolist() == [[5, 8, 9, 10, 11, 12], [4, 6, 9, 10, 11, 12], [4, 7, 9, 10, 11, 12]]
    assert real.all()
    tokens, bins, real = Prompts(vocabulary, few).left_padded(slice(0, 2), vocabulary.pad)
    assert tokens.tolist() == [[4, 5, 7, 9, 10, 11, 12], [13, 5, 8, 9, 10, 11, 12]]
    assert real.tolist() == [[True] * 7, [False] + [True] * 6]
    assert bins[1].tolist() == [0, 0, 0, 99, 99, 99, 0]


def test_losses_a_token_at_a_time(vocabulary, few):
    torch.manual_seed(0)
    net = ExpressionNet(ExpressionConfig(width=8, heads=2), vocabulary).eval()
    batch = TokenisedCells(vocabulary, few).batch(np.arange(3))
    gene, bins, value = [], [], []
    for row in range(3):
        length, prompt = int(batch.lengths[row]), int(batch.prompt[row])
        states = net(batch.tokens[row : row + 1, :length], batch.bins[row : row + 1, :length])[0]
        for place in range(prompt, length):
            state, target = states[place - 1], batch.tokens[row, place]
            gene.append(F.cross_entropy(net.gene_head(state), target))
            if target:
                logits, predicted = net.predict_value(state[None], target[None])
                bins.append(F.cross_entropy(logits[0], batch.bins[row, place]))
                value.append((predicted[0] - batch.values[row, place]) ** 2)
    losses = expression_losses(net, batch)
    for found, expected in ((losses.gene, gene), (losses.bin, bins), (losses.value, value)):
        torch.testing.assert_close(found, torch.stack(expected).mean())


def test_what_fills_up_a_row_changes_nothing(vocabulary, few):
    net = ExpressionNet(ExpressionConfig(width=8, heads=2), vocabulary).eval()
    batch = TokenisedCells(vocabulary, few).batch(np.arange(3))
    other = replace(batch, tokens=torch.where(batch.tokens == vocabulary.pad, 3, batch.tokens))
    for name in ("gene", "bin", "value"):
        torch.testing.assert_close(
            getattr(expression_losses(net, batch), name), getattr(expression_losses(net, other), name)
        )


@pytest.mark.parametrize(("size", "genes", "weights"), [("small", 950, 0.249e6), ("medium", 2000, 23.0e6)])
def test_the_paper_s_sizes(size, genes, weights):
    names = tuple(f"g{index}" for index in range(genes))
    labels = {"type": tuple(f"t{index}" for index in range(106))}
    vocabulary = Vocabulary(names, labels, np.arange(101.0), np.zeros((3, 100)), {}, {})
    with torch.device("meta"):
        net = ExpressionNet(SIZES[size], vocabulary)
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(weights, rel=0.03)


def test_rare_types_and_sparse_places_are_shown_more_often():
    positions = np.zeros((100, 3))
    positions[-5:] = [9, 9, 9]
    cells = Cells(positions, np.where(np.arange(100) % 10, "often", "rare"))
    weights = sampling_weights(cells)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] == pytest.approx(3 * weights[1])
    assert weights[-1] > 5 * weights[1]


def test_training_finds_what_types_express(expression_model, brain, held_out):
    truth, _ = held_out
    losses = expression_model.losses(truth)
    shuffled = expression_model.losses(replace(truth, types=np.random.default_rng(0).permutation(truth.types)))
    assert losses["gene"] < shuffled["gene"] - 0.15
    assert losses["value"] < shuffled["value"] - 0.05
    assert expression_model.order.genes != tuple(sorted(brain.genes))


def test_fine_tuning_on_a_smaller_panel(expression_model, brain, slices):
    """Cells with other columns, fewer genes, and a technology that was never seen; the vocabulary stays."""
    target = slices[2].with_genes([*brain.genes[::2], "unheard"])
    target = replace(target, metadata={"technology": np.full(len(target), "panelB")})
    tuned = train_expression(target, TrainingOptions(steps=40, batch=64, learning_rate=3e-3), start=expression_model)
    assert tuned.vocabulary is not None
    assert tuned.vocabulary.genes == expression_model.vocabulary.genes
    assert tuned.losses(target)["gene"] < expression_model.losses(target)["gene"]
    with pytest.raises(InputError, match="own configuration"):
        train_expression(target, TrainingOptions(), start=expression_model, config=SIZES["small"])
    with pytest.raises(InputError, match="'glia'"):
        train_expression(replace(target, types=np.full(len(target), "glia")), TrainingOptions(), start=expression_model)


def test_each_cell_keeps_its_panel(few):
    other = replace(few.with_genes(("c", "a")), metadata={})
    assert other.panels is None
    both = join_cells([few, other])
    measured = both.panels[both.panel]
    assert both.genes == ("a", "b", "c")
    assert measured.tolist() == [[True] * 3] * 4 + [[True, False, True]] * 4
    chosen = both[[5, 0]].with_genes(("b", "z", "a"))
    assert chosen.panels[chosen.panel].tolist() == [[False, False, True], [True, False, True]]
    assert join_cells([few, few]).panels is None
    vocabulary = Vocabulary.of(few, GENES)
    batch = TokenisedCells(vocabulary, both[[0, 1, 4]]).batch(np.array([2, 0]))
    assert batch.offered.tolist() == [[True, True, True, False], [True] * 4]  # the end, c, a, b
    with pytest.raises(InputError, match="do not fit"):
        replace(few, panels=np.ones((1, 2), dtype=bool), panel=np.zeros(4, dtype=int))


def test_the_next_gene_of_a_panel():
    """Four genes; by passing through all that may lie between."""
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offered = torch.tensor([[True, True, False, False, True]])  # the end, genes 1 and 4

    def odds(before, gene):
        """Of a gene, or the end, next among those after ``before``, by the softmax."""
        after = [*range(before + 1, 5), 0]
        return logits[0, after].softmax(0)[after.index(gene)]

    def reached(before, gene):
        """Of ``gene`` being the next that the panel shows: hidden genes 2 and 3 in between, or not."""
        if before >= 4 or gene == 1:
            return odds(before, gene)
        hidden = [g for g in (2, 3) if g > before]
        return odds(before, gene) + sum(odds(before, g) * reached(g, gene) for g in hidden)

    prompt, end = 7, 0
    for before, target, start in ((1, 4, 1), (1, end, 1), (4, end, 4), (prompt, 1, 0), (prompt, 4, 0)):
        tokens = (torch.tensor([number]) for number in (before, target))
        earlier = logits[0, 1:][[g not in (2, 3) for g in range(1, 5)]][: int(start >= 1) + int(start >= 4)]
        left = logits[0, [*range(start + 1, 5), 0]]
        never = torch.cat([earlier, left]).logsumexp(0) - left.logsumexp(0)
        torch.testing.assert_close(
            next_gene_nll(logits, *tokens, offered)[0], never - reached(start, target).log(), rtol=1e-9, atol=1e-9
        )
    everything = torch.ones(1, 5, dtype=torch.bool)
    for target in (3, 4, 0):
        found = next_gene_nll(logits, torch.tensor([2]), torch.tensor([target]), everything)[0]
        torch.testing.assert_close(found, F.cross_entropy(logits, torch.tensor([target])))


def test_genes_that_a_panel_lacks_are_not_forgotten(expression_model, brain, slices, held_out):
    """Tuned on slices without a third of the genes, alone and joined with one that has them all."""
    kept = [gene for index, gene in enumerate(brain.genes) if index % 3]
    lacking = [gene for gene in brain.genes if gene not in kept]
    smaller = join_cells([slices[2], slices[4]]).with_genes(kept)
    truth = held_out[0][::3]
    expected = truth.with_genes(lacking).counts.sum() / len(truth)
    for target in (smaller, join_cells([smaller, slices[1]])):
        options = TrainingOptions(steps=60, batch=64, learning_rate=1.5e-3)
        written = generate_expression(train_expression(target, options, start=expression_model), truth)
        assert written.counts.sum() / len(truth) == pytest.approx(truth.counts.sum() / len(truth), rel=0.35)
        found = written.with_genes(lacking).counts
        assert found.sum() / len(truth) > 0.4 * expected
        assert (found.sum(axis=0) > 0).all()
        means = [part.mean(axis=0) for part in (found.toarray(), truth.with_genes(lacking).counts.toarray())]
        assert np.corrcoef(*means)[0, 1] > 0.5


def test_a_saved_model_is_the_same(tmp_path, expression_model, held_out):
    path = tmp_path / "expression.safetensors"
    expression_model.save(path)
    again = ExpressionModel.load(path)
    few = held_out[0][:50]
    assert again.losses(few) == expression_model.losses(few)
    assert again.order == expression_model.order
    assert again.vocabulary.to_dict() == expression_model.vocabulary.to_dict()


def test_what_cannot_be_learned(few):
    with pytest.raises(InputError, match="lacks 'a'"):
        Vocabulary.of(few, ("b", "c"))
    with pytest.raises(InputError, match="names 'z'"):
        Vocabulary.of(few, ("a", "b", "c", "z"))
    with pytest.raises(InputError, match="no cell expresses"):
        Vocabulary.of(few[[2]], GENES)
    with pytest.raises(InputError, match="needs cell types"):
        Vocabulary.of(replace(few, types=None), GENES)
    with pytest.raises(InputError, match="heads"):
        ExpressionConfig(width=10, heads=3)
    assert order_genes(few.genes, ()).genes == ("a", "b", "c")
