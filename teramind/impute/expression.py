"""What cells express: a transformer that writes a cell gene by gene, regulators first.

The next gene is predicted from the genes before it; its value from the same state and the gene chosen, so that a value
belongs to its gene. There is no encoding of positions in a row: the order of genes is fixed, and the causal mask tells
what came before.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.gene_order import GeneOrder, order_genes
from teramind.impute.model_files import read_tensors, write_tensors
from teramind.impute.tokens import JITTER, Batch, TokenisedCells, sampling_weights
from teramind.impute.training import TrainingOptions, describe, train
from teramind.impute.vocabulary import Vocabulary

KIND = "expression"


@dataclass(frozen=True, kw_only=True)
class ExpressionConfig:
    """Shape of the network."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            if not 1 <= getattr(self, name) <= 4096:
                raise InputError(f"ExpressionConfig.{name} is {getattr(self, name)}; it has to be from 1 to 4096")
        if self.width % self.heads:
            raise InputError(f"{self.heads} heads do not divide a width of {self.width}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; it has to be at least 0 and below 1")


SIZES = {
    "small": ExpressionConfig(),
    "medium": ExpressionConfig(layers=12, width=384, heads=12),
}
"""The paper's models of 0.25 M and 23 M weights."""


class Block(nn.Module):
    """Attention over the tokens before, then a perceptron; each on normalised inputs, added to them."""

    def __init__(self, config: ExpressionConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm_attention, self.norm_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.from_attention = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """X (n, length, width) -> the same shape; every token sees itself and those before it."""
        q, k, v = self.query_key_value(x)  # n, heads, length, width / heads
        dropout = self.dropout if self.training else 0.0
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout))

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens (n, length, width): each (n, heads, length, width / heads)."""
        qkv = self.to_qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """All after the attention, whose result is (n, heads, length, width / heads)."""
        x = x + self._drop(self.from_attention(attended.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.expand(self.norm_perceptron(x)), approximate="tanh")
        return x + self._drop(self.contract(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class ExpressionNet(nn.Module):
    """The transformer and its three heads."""

    def __init__(self, config: ExpressionConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        width, bins = config.width, vocabulary.bins + 1
        self.dropout = config.dropout
        self.tokens, self.bins = nn.Embedding(vocabulary.size, width), nn.Embedding(bins, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.norm_value = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gene_head = nn.Linear(width, 1 + len(vocabulary.genes), bias=False)
        self.bin_head = nn.Linear(width, bins, bias=False)
        self.value_head = nn.Sequential(nn.Linear(bins, width), nn.ReLU(), nn.Linear(width, 1))

    @property
    def stack(self) -> list[Block]:
        """The blocks, in their order."""
        return cast("list[Block]", list(self.blocks))

    def forward(self, tokens: Tensor, bins: Tensor) -> Tensor:
        """Tokens and bins (n, length) -> states (n, length, width)."""
        x = self.embed(tokens, bins)
        for block in self.stack:
            x = block(x)
        return self.norm(x)  # n, length, width

    def embed(self, tokens: Tensor, bins: Tensor) -> Tensor:
        """(n, length) -> (n, length, width)."""
        return F.dropout(self.tokens(tokens) + self.bins(bins), self.dropout, self.training)

    def predict_value(self, state: Tensor, gene: Tensor) -> tuple[Tensor, Tensor]:
        """From states (n, width) and the genes (n,) chosen there: logits of bins (n, bins + 1), values (n,)."""
        logits = self.bin_head(self.norm_value(state + self.tokens(gene)))
        return logits, self.value_head(logits)[:, 0]


@dataclass(frozen=True)
class Losses:
    """Of a batch, in nats and squared transformed values."""

    gene: Tensor
    bin: Tensor
    value: Tensor


def expression_losses(net: ExpressionNet, batch: Batch) -> Losses:
    """Cross-entropies of the next gene and of its bin, and the squared error of its value.

    Only what the network has to write counts: not the prompt, nor what fills up a row; and no value for the end.
    Genes that a cell's panel lacks are not taken for absent (``next_gene_nll``).
    """
    states = net(batch.tokens[:, :-1], batch.bins[:, :-1])
    place = torch.arange(1, batch.tokens.shape[1])
    written = (place >= batch.prompt[:, None]) & (place < batch.lengths[:, None])
    state, target = states[written], batch.tokens[:, 1:][written]
    if batch.offered is None:
        gene = F.cross_entropy(net.gene_head(state), target)
    else:
        before, offered = batch.tokens[:, :-1][written], batch.offered[written.nonzero()[:, 0]]
        gene = next_gene_nll(net.gene_head(state), before, target, offered).mean()
    valued = batch.bins[:, 1:][written] > 0
    logits, value = net.predict_value(state[valued], target[valued])
    return Losses(
        gene,
        F.cross_entropy(logits, batch.bins[:, 1:][written][valued]),
        F.mse_loss(value, batch.values[:, 1:][written][valued]),
    )


def next_gene_nll(logits: Tensor, before: Tensor, target: Tensor, offered: Tensor) -> Tensor:
    """Negative log-likelihood of the next gene that a panel could show, whatever lies between that it could not.

    Genes come in order, the end last. The softmax over them says of each gene how likely it is expressed once all genes
    before it have been passed: its share of what is left from there on. The genes of the panel up to the next one were
    passed, and that one was not; what was passed of other genes is unknown and leaves no trace. Thus nothing is learned
    on genes outside the panel, and those within it are not taken to follow each other more closely than they do. With
    all genes offered it is the cross-entropy.

    Args:
        logits: (n, 1 + genes), the end first.
        before: (n,) the tokens before; those of a prompt are no genes.
        target: (n,) the next tokens, after the ones before in the order of genes.
        offered: (n, 1 + genes) which tokens the cell's panel measured; the end always.

    Returns:
        (n,).
    """
    end = logits.shape[1] - 1  # place of the end, when it is moved behind the genes
    x, offered = logits.roll(-1, 1), offered.roll(-1, 1)
    left = x.flip(1).logcumsumexp(1).flip(1)  # n, 1 + genes; of each gene and all after it
    passing = F.pad(left[:, 1:] - left[:, :-1], (0, 1))
    start = torch.where(before <= end, before, 0)[:, None]  # place after the token before; 0 after a prompt
    place, goal = torch.arange(end + 1, device=x.device), ((target - 1) % (end + 1))[:, None]
    elsewhere = x.masked_fill(~offered & (place < start), -torch.inf).logsumexp(1)  # or before: never the next
    passed = (offered & (place >= start) & (place < goal)) * passing
    at_goal = left.gather(1, goal) - x.gather(1, goal)
    return elsewhere - left.gather(1, start)[:, 0] - passed.sum(1) + at_goal[:, 0]


class ExpressionModel:
    """A trained network with its vocabulary.

    Attributes:
        order: the order of genes that the vocabulary follows.
        training: how it was trained.
    """

    def __init__(
        self,
        net: ExpressionNet,
        config: ExpressionConfig,
        vocabulary: Vocabulary,
        order: GeneOrder,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.net, self.config, self.vocabulary, self.order = net, config, vocabulary, order
        self.training = dict(training or {})

    @torch.no_grad()
    def losses(self, cells: Cells, batch: int = 64) -> dict[str, float]:
        """Mean losses over cells that it may never have seen."""
        data = TokenisedCells(self.vocabulary, cells)
        totals = dict.fromkeys(("gene", "bin", "value"), 0.0)
        for rows in np.array_split(np.arange(len(data)), -(-len(data) // batch)):
            found = expression_losses(self.net, data.batch(rows))
            for name in totals:
                totals[name] += float(getattr(found, name)) * len(rows) / len(data)
        return totals

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a .safetensors file."""
        order = {"broken": self.order.broken, "sha256": self.order.digest}
        header = {"config": asdict(self.config), "vocabulary": self.vocabulary.to_dict(), "order": order}
        write_tensors(path, KIND, self.net.state_dict(), header | {"training": self.training})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExpressionModel:
        """Read what ``save`` wrote; an ``InputError`` for anything else."""
        tensors, header = read_tensors(path, KIND)
        config, vocabulary = ExpressionConfig(**header["config"]), Vocabulary.from_dict(header["vocabulary"])
        order = GeneOrder(vocabulary.genes, tuple((a, b) for a, b in header["order"]["broken"]))
        if order.digest != header["order"]["sha256"]:
            raise InputError(f"{path}: the genes are not those that the network was trained with")
        net = ExpressionNet(config, vocabulary)
        net.load_state_dict(tensors)
        return cls(net.eval(), config, vocabulary, order, header["training"])


def train_expression(
    cells: Cells,
    options: TrainingOptions,
    *,
    config: ExpressionConfig | None = None,
    order: GeneOrder | None = None,
    start: ExpressionModel | None = None,
    state: Path | None = None,
    resume: bool = False,
) -> ExpressionModel:
    """Learn what cells express, given their labels and where they are.

    Args:
        cells: with types, expression (raw counts) and any of the metadata.
        options: how to train.
        config: shape of a new network; small if None.
        order: of the genes; by name if None.
        start: a model to go on from (fine-tuning); vocabulary and bins are kept. Genes and labels that it does not
            know are left out.
        state: file for the state of training.
        resume: go on from that file if it is there.

    Raises:
        InputError: cells without types or expression, types that ``start`` does not know, or ``config`` or ``order``
            beside ``start``.
    """
    if start is not None and (config is not None or order is not None):
        raise InputError("a model to start from has its own configuration and gene order; give neither beside it")
    if start is None:
        model = _new_model(cells, config or SIZES["small"], order or order_genes(cells.genes, ()), options.seed)
    else:
        model = copy.deepcopy(start)
        model.vocabulary = model.vocabulary.tuned_to(cells)
    data = TokenisedCells(model.vocabulary, cells)
    steps = sampling_weights(cells[data.rows]).cumsum()

    def loss(generator: torch.Generator) -> Tensor:
        uniform = torch.rand(options.batch, generator=generator, dtype=torch.float64).numpy()
        rows = np.searchsorted(steps, uniform * steps[-1], side="right").clip(max=len(steps) - 1)
        jitter = torch.randint(-JITTER, JITTER + 1, (options.batch, 3), generator=generator).numpy()
        found = expression_losses(model.net, data.batch(rows, jitter=jitter))
        return found.gene + found.bin + found.value

    losses = train(model.net, loss, options, state, resume=resume)
    model.training = describe(losses, options)
    return model


def _new_model(cells: Cells, config: ExpressionConfig, order: GeneOrder, seed: int) -> ExpressionModel:
    vocabulary = Vocabulary.of(cells, order.genes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ExpressionModel(ExpressionNet(config, vocabulary), config, vocabulary, order)
