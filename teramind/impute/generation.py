"""Writing cells with the expression network: a cache of keys and values, masks, and a random stream for each cell.

A cell's stream depends on the seed and the cell's place in the call alone, so that neither the batch nor what else is
in it changes what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from teramind.checks import integer_between
from teramind.diffusion.noise import philox_words
from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.expression import ExpressionModel, ExpressionNet
from teramind.impute.tokens import MOST_TOKENS, Prompts
from teramind.impute.vocabulary import END, restore

Order = Literal["monotone", "stagnation"]
OffPanel = Literal["drop", "mask"]
COMPACT_EVERY = 16  # steps between removals of finished cells from the batch


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to write cells.

    Raises:
        InputError: for a value outside what is allowed.
    """

    top_k: int | None = None  # draw from the likeliest genes alone; the reference takes 5, None takes all
    temperature: float = 1.0  # of the draws
    end_probability: float = 0.95  # at which a cell ends without a draw
    most_genes: int = 500  # of a cell
    order: Order = "monotone"  # each gene after the last; "stagnation": any new gene, as the reference draws
    off_panel: OffPanel = "drop"  # genes not asked for: written and left out, or never drawn ("mask")
    most_descents: int = 5  # with "stagnation": a cell ends at the next gene that comes before the last
    batch: int = 512  # cells at once
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("most_genes", "batch"):
            integer_between(name, getattr(self, name), 1, 2**31)
        integer_between("most_descents", self.most_descents, 0, 2**31)
        integer_between("seed", self.seed, 0, 2**64 - 1)
        if self.top_k is not None:
            integer_between("top_k", self.top_k, 1, 2**31)
        if not 0 < self.temperature < np.inf:
            raise InputError(f"temperature is {self.temperature}; it has to be > 0")
        if not 0 < self.end_probability <= 1:
            raise InputError(f"end_probability is {self.end_probability}; it has to be above 0 and at most 1")
        for name, kind in (("order", Order), ("off_panel", OffPanel)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}; it has to be one of {', '.join(get_args(kind))}")


class Decoder(Protocol):
    """Gives the network's state at the last token of each row."""

    def start(self, tokens: Tensor, bins: Tensor, real: Tensor) -> Tensor:
        """From prompts (n, length), filled up on the left where not ``real``: states (n, width)."""
        ...

    def step(self, tokens: Tensor, bins: Tensor) -> Tensor:
        """States (n, width) after one more token (n,) in each row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        ...


class CachedDecoder:
    """Keeps the keys and values of all tokens so far, in memory set aside once for the longest row."""

    def __init__(self, net: ExpressionNet, longest: int) -> None:
        self.net, self.longest = net, longest

    def start(self, tokens: Tensor, bins: Tensor, real: Tensor) -> Tensor:
        rows, length = tokens.shape
        self.length = length
        self.hidden = None if bool(real.all()) else ~real  # (n, prompt) what no token may see
        x = self.net.embed(tokens, bins)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        # A token that only fills up sees itself: without that its row of weights would be 0 / 0.
        mask = (causal & real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=x.device)
        self.cache: list[tuple[Tensor, Tensor]] = []
        for block in self.net.stack:
            q, k, v = block.query_key_value(x)
            shape = (rows, q.shape[1], self.longest, q.shape[3])
            self.cache.append((x.new_zeros(shape), x.new_zeros(shape)))
            for kept, new in zip(self.cache[-1], (k, v), strict=True):
                kept[:, :, :length] = new
            x = block.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]))
        return self.net.norm(x[:, -1])

    def step(self, tokens: Tensor, bins: Tensor) -> Tensor:
        x = self.net.embed(tokens[:, None], bins[:, None])
        at, self.length = self.length, self.length + 1
        for block, (keys, values) in zip(self.net.stack, self.cache, strict=True):
            q, k, v = block.query_key_value(x)
            keys[:, :, at], values[:, :, at] = k[:, :, 0], v[:, :, 0]
            scores = q @ keys[:, :, : self.length].transpose(2, 3) * q.shape[3] ** -0.5
            if self.hidden is not None:
                prompt = scores[..., : self.hidden.shape[1]]
                prompt.masked_fill_(self.hidden[:, None, None], -torch.inf)
            x = block.finish(x, scores.softmax(3) @ values[:, :, : self.length])
        return self.net.norm(x[:, 0])

    def keep(self, rows: Tensor) -> None:
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        if self.hidden is not None:
            self.hidden = self.hidden[rows]


class PlainDecoder:
    """Reads each row anew for every token: what the cached decoder has to agree with."""

    def __init__(self, net: ExpressionNet) -> None:
        self.net = net

    def start(self, tokens: Tensor, bins: Tensor, real: Tensor) -> Tensor:
        self.rows = [(row[kept], its[kept]) for row, its, kept in zip(tokens, bins, real, strict=True)]
        return self._states()

    def step(self, tokens: Tensor, bins: Tensor) -> Tensor:
        new = zip(self.rows, tokens[:, None], bins[:, None], strict=True)
        self.rows = [(torch.cat([row, token]), torch.cat([its, bin_])) for (row, its), token, bin_ in new]
        return self._states()

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[index] for index in rows.tolist()]

    def _states(self) -> Tensor:
        """Rows filled up on the right, where the causal mask hides what follows."""
        lengths = torch.tensor([len(row) for row, _ in self.rows])
        tokens, bins = (torch.nn.utils.rnn.pad_sequence(list(part), True) for part in zip(*self.rows, strict=True))
        return self.net(tokens, bins)[torch.arange(len(lengths)), lengths - 1]


@torch.no_grad()
def generate_expression(
    model: ExpressionModel,
    cells: Cells,
    options: GenerationOptions | None = None,
    *,
    genes: Sequence[str] | None = None,
    cached: bool = True,
) -> Cells:
    """Write the expression of cells.

    Args:
        model: trained.
        cells: positions (n, 3), types, and metadata such as ``Vocabulary.describe`` gives.
        options: how.
        genes: the panel: the columns of the result; all that the model knows if None. A cell is still written with all
            genes unless ``options.off_panel`` is "mask": a network that was trained with a gene takes its absence for
            news about the cell, and a mask for the next of the panel's genes being due.
        cached: with False, read each row anew for every token: slow, for comparison.

    Returns:
        The cells with expression in the unit of raw counts (not rounded).

    Raises:
        InputError: a type or a gene that the model does not know.
    """
    options = options or GenerationOptions()
    vocabulary = model.vocabulary
    panel = tuple(vocabulary.genes if genes is None else genes)
    if unknown := sorted(set(panel) - set(vocabulary.genes)):
        raise InputError(f"the expression network does not know gene {unknown[0]!r} and {len(unknown) - 1} others")
    drawn = set(panel if options.off_panel == "mask" else vocabulary.genes)
    allowed = torch.tensor([True] + [name in drawn for name in vocabulary.genes])  # END, then genes
    prompts = Prompts(vocabulary, cells)
    parts = []
    for first in range(0, len(cells), options.batch):
        rows = slice(first, min(first + options.batch, len(cells)))
        parts.append(_write_batch(model, prompts, rows, allowed, options, cached))
    row, token, value = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else (np.zeros(0),) * 3
    counts = csr_array(
        (restore(value), (row.astype(int), token.astype(int) - 1)), shape=(len(cells), len(vocabulary.genes))
    )
    written = Cells(
        cells.positions, cells.types, counts.astype(np.float32), vocabulary.genes, cells.sections, cells.metadata
    )
    return written.with_genes(panel)


def _write_batch(
    model: ExpressionModel,
    prompts: Prompts,
    rows: slice,
    allowed: Tensor,
    options: GenerationOptions,
    cached: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Cell, token and value of everything that is written for the cells ``rows``."""
    device = next(model.net.parameters()).device
    tokens, bins, real = (part.to(device) for part in prompts.left_padded(rows, model.vocabulary.pad))
    steps = min(options.most_genes, int(allowed.sum()) - 1, MOST_TOKENS - tokens.shape[1] - 1)
    decoder: Decoder = CachedDecoder(model.net, tokens.shape[1] + steps) if cached else PlainDecoder(model.net)
    uniform = uniform_streams(options.seed, rows.start, len(tokens), steps).to(device)
    rules = _Rules(allowed.to(device), len(tokens), options)
    cell = torch.arange(rows.start, rows.stop, device=device)
    written: list[tuple[Tensor, Tensor, Tensor]] = []
    state = decoder.start(tokens, bins, real)
    for step in range(steps):
        gene = rules.draw(model.net.gene_head(state), uniform[:, step])
        logits, value = model.net.predict_value(state, gene)
        chosen = logits[:, 1 : len(model.vocabulary.value_edges)].argmax(1) + 1
        going = rules.going
        written.append((cell[going], gene[going], value[going].clamp(min=0)))
        if step % COMPACT_EVERY == COMPACT_EVERY - 1 or not bool(going.any()):
            kept = going.nonzero()[:, 0]
            if not len(kept):
                break
            decoder.keep(kept)
            rules.keep(kept)
            cell, gene, chosen, uniform = cell[kept], gene[kept], chosen[kept], uniform[kept]
        if step + 1 < steps:
            state = decoder.step(gene, chosen)
    columns = (torch.cat(column).cpu().numpy() for column in zip(*written, strict=True))
    return tuple(columns)  # type: ignore[return-value]


class _Rules:
    """Which genes may come next in each row, and the draw among them.

    Attributes:
        going: (n,) rows that have not ended.
    """

    def __init__(self, allowed: Tensor, rows: int, options: GenerationOptions) -> None:
        self.options = options
        self.free = allowed.expand(rows, -1).clone()
        self.last = torch.zeros(rows, dtype=torch.long, device=allowed.device)
        self.descents = torch.zeros_like(self.last)
        self.going = torch.ones(rows, dtype=torch.bool, device=allowed.device)
        self.token = torch.arange(len(allowed), device=allowed.device)

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """A token for each row from logits (n, 1 + genes) and uniform draws (n,); ``END`` where a row has ended."""
        logits = (logits / self.options.temperature).masked_fill(~self.free, -torch.inf)
        if self.options.top_k is not None and self.options.top_k < logits.shape[1]:
            least = logits.topk(self.options.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        steps = logits.double().softmax(1).cumsum(1)
        ends = steps[:, END] >= self.options.end_probability
        gene = (steps <= uniform[:, None] * steps[:, -1:]).sum(1).clamp(max=logits.shape[1] - 1)
        gene = torch.where(ends | ~self.going, END, gene)
        self._follow(gene)
        return torch.where(self.going, gene, END)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.free, self.last, self.descents, self.going = (
            part[rows] for part in (self.free, self.last, self.descents, self.going)
        )

    def _follow(self, gene: Tensor) -> None:
        """Note what was drawn."""
        self.descents += (gene != END) & (gene < self.last)
        self.going = self.going & (gene != END)
        if self.options.order == "monotone":
            self.free &= (self.token > gene[:, None]) | (self.token == END)
        else:
            self.going = self.going & (self.descents <= self.options.most_descents)
            self.free.scatter_(1, gene[:, None], gene[:, None] == END)
        self.last = gene


def uniform_streams(seed: int, first: int, rows: int, steps: int) -> Tensor:
    """(rows, steps) uniform draws of the cells ``first`` and following: those of a cell depend on nothing else."""
    words = philox_words(seed, 0, first, 0, (1, 1, rows, steps))[0, 0]
    return torch.from_numpy((words.astype(np.float64) + 0.5) / 2**32)


def trim_reference_row(
    tokens: NDArray[np.int64], values: NDArray[np.float64], genes: int, most_rises: int
) -> NDArray[np.float64]:
    """What the reference implementation keeps of a row, whose tokens descend where all is well.

    Args:
        tokens: (length,) of a row, without its prompt.
        values: (length,) that belong to them.
        genes: tokens 1 .. genes are genes.
        most_rises: rises from one token to the next that are let pass, counted from the end if the row has an end, else
            from the beginning.

    Returns:
        (genes,) the mean value of each gene in what is kept, 0 for those that are not in it.
    """
    is_gene = (tokens >= 1) & (tokens <= genes)
    ends = np.flatnonzero(tokens == END)
    stop, rises = len(tokens), 0
    if ends.size:
        stop = int(ends[0])
        while stop and not is_gene[stop - 1]:
            stop -= 1
        for index in range(stop - 1, 0, -1):
            rises += int(tokens[index] > tokens[index - 1])
            if rises > most_rises or not is_gene[index - 1]:
                stop = index
                break
    else:
        for index in range(1, len(tokens)):
            rises += int(tokens[index] > tokens[index - 1])
            if rises > most_rises or not (is_gene[index] and is_gene[index - 1]):
                stop = index
                break
    kept = np.flatnonzero(is_gene[:stop])
    sums = np.bincount(tokens[kept], values[kept], minlength=genes + 1)
    return (sums / np.maximum(np.bincount(tokens[kept], minlength=genes + 1), 1))[1:]
