"""Tokens a second of the expression network: with keys and values kept, against reading each row anew.

2,000 genes, prompts of 11 tokens, 60 genes a cell, random weights, one thread. The cell's end is made unlikely and
genes may come in any order, so that every cell is as long. The plain decoder gets fewer cells, with which it is as
fast. "CPU" is tokens per second of the thread's own time: what the machine gives when nothing else runs on it.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch

from teramind.impute.cells import Cells
from teramind.impute.expression import SIZES, ExpressionModel, ExpressionNet
from teramind.impute.gene_order import order_genes
from teramind.impute.generation import GenerationOptions, generate_expression
from teramind.impute.vocabulary import Vocabulary

GENES, LENGTH, TYPES = 2000, 60, 90
LABELS = ("species", "organ", "disease_state", "technology", "class", "subclass", "supertype")
BATCH = {"small": (256, 32), "medium": (32, 4)}  # cached, plain


def random_model(size):
    names = tuple(f"gene{index:04d}" for index in range(GENES))
    labels = dict.fromkeys(LABELS, ("a",)) | {"type": tuple(f"type{index:02d}" for index in range(TYPES))}
    edges = np.linspace(np.zeros(3), np.ones(3), 100, axis=1)
    vocabulary = Vocabulary(names, labels, np.arange(101.0), edges, {}, dict.fromkeys(LABELS, "a"))
    torch.manual_seed(0)
    net = ExpressionNet(SIZES[size], vocabulary).eval()
    return ExpressionModel(net, SIZES[size], vocabulary, order_genes(names, ()))


def tokens_per_second(model, cells, cached, repeats):
    generator = np.random.default_rng(0)
    types = np.array(model.vocabulary.labels["type"])[generator.integers(0, TYPES, cells)]
    asked = Cells(generator.random((cells, 3)), types, metadata=model.vocabulary.describe(types, {}))
    options = GenerationOptions(
        order="stagnation", most_descents=LENGTH, most_genes=LENGTH, end_probability=1.0, top_k=5
    )
    wall = own = 0.0
    for _ in range(repeats):
        start, start_own = time.perf_counter(), time.process_time()
        written = generate_expression(model, asked, options, cached=cached)
        wall = max(wall, written.counts.nnz / (time.perf_counter() - start))
        own = max(own, written.counts.nnz / (time.process_time() - start_own))
    return wall, own, written.counts.nnz / cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"one thread, float32, best of {options.repeats} (plain: of 1); load {os.getloadavg()[0]:.1f}")
    print("          cached                                plain                   ratio")
    print("size      batch  tokens/s     CPU  genes/cell   batch  tokens/s   CPU   wall   CPU")
    for size in options.sizes:
        model = random_model(size)
        with torch.no_grad():
            model.net.value_head[2].bias.fill_(1.0)  # a value of zero would not be stored, and not be counted
        wall, own, length = tokens_per_second(model, BATCH[size][0], True, options.repeats)
        plain, plain_own, _ = tokens_per_second(model, BATCH[size][1], False, 1)
        print(f"{size:8} {BATCH[size][0]:6} {wall:9,.0f} {own:7,.0f} {length:11.1f} {BATCH[size][1]:7}", end="")
        print(f" {plain:9,.0f} {plain_own:5,.0f} {wall / plain:6.1f} {own / plain_own:5.1f}")


if __name__ == "__main__":
    main()
