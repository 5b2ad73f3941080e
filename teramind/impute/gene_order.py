"""The order in which genes are written down: regulators before what they regulate.

Expression is generated gene by gene, so each gene should follow those that act on it. In a network without loops that
is a topological order; loops are cut at few edges, by a greedy heuristic (Eades, Lin and Smyth 1993). All ties are
broken by degree and name, so that the order depends on the network alone.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from teramind.errors import InputError
from teramind.files import appears_whole

FORMAT, FORMAT_VERSION = "teramind-gene-order", 1

Edge = tuple[str, str]


@dataclass(frozen=True)
class GeneOrder:
    """Genes in the order of emission.

    Attributes:
        genes: all of them, once each.
        broken: regulatory edges whose source comes after its target.
    """

    genes: tuple[str, ...]
    broken: tuple[Edge, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the order, by which models that share it know each other."""
        return hashlib.sha256("\n".join(self.genes).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the order as JSON."""
        content = {"format": FORMAT, "version": FORMAT_VERSION, "genes": self.genes, "broken": self.broken}
        with appears_whole(Path(path)) as partial:
            partial.write_text(json.dumps(content | {"sha256": self.digest}, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GeneOrder:
        """Read what ``save`` wrote; an ``InputError`` for anything else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            order = cls(tuple(content["genes"]), tuple((source, target) for source, target in content["broken"]))
            known = content["format"] == FORMAT and content["version"] <= FORMAT_VERSION
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a readable gene order ({error})") from None
        if not known or content["sha256"] != order.digest:
            raise InputError(f"{path} is no gene order of this version, or was edited; make it again")
        return order


def order_genes(genes: Iterable[str], edges: Iterable[Edge]) -> GeneOrder:
    """Order genes so that regulators come first.

    Strongly connected components are taken in topological order, of those that may come next the one with the gene of
    highest out-degree first, then the smallest name. Within one, sinks go to the end and sources to the front, and
    where there is neither, the gene with most outgoing beyond incoming edges goes to the front. Genes in no edge come
    last, by name.

    Args:
        genes: the vocabulary.
        edges: (source, target); those with other genes, loops on one gene and repetitions are left out.

    Raises:
        InputError: a gene is named twice.
    """
    names = sorted(genes)
    if len(set(names)) < len(names):
        twice = next(name for name, after in pairwise(names) if name == after)
        raise InputError(f"gene {twice!r} is named twice")
    known = set(names)
    kept = sorted({(a, b) for a, b in edges if a in known and b in known and a != b})
    targets: dict[str, set[str]] = {name: set() for name in names}
    sources: dict[str, set[str]] = {name: set() for name in names}
    for source, target in kept:
        targets[source].add(target)
        sources[target].add(source)
    connected = [name for name in names if targets[name] or sources[name]]
    ordered: list[str] = []
    for component in _topological(_components(connected, kept), targets):
        ordered += _within_component(component, targets, sources)
    ordered += [name for name in names if not targets[name] and not sources[name]]
    place = {name: index for index, name in enumerate(ordered)}
    return GeneOrder(tuple(ordered), tuple(edge for edge in kept if place[edge[0]] > place[edge[1]]))


def read_edges(path: str | os.PathLike[str]) -> list[Edge]:
    """Edges of a tab-separated file with the columns source and target (others, such as weight, are not used).

    Raises:
        InputError: the file cannot be read or lacks a column.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
            edges = [(row["source"], row["target"]) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except KeyError as error:
        raise InputError(f"{path} has no column {error}; it needs source and target, separated by tabs") from None
    if not all(source and target for source, target in edges):
        row = next(index for index, edge in enumerate(edges) if not all(edge))
        raise InputError(f"{path}, row {row + 2} lacks a source or a target")
    return edges


def _components(names: Sequence[str], edges: Sequence[Edge]) -> list[list[str]]:
    """Strongly connected components, each sorted by name."""
    if not names:
        return []
    index = {name: position for position, name in enumerate(names)}
    rows, columns = (np.array([index[edge[end]] for edge in edges]) for end in (0, 1))
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(names), len(names)))
    count, label = connected_components(graph, directed=True, connection="strong")
    components: list[list[str]] = [[] for _ in range(count)]
    for name, component in zip(names, label, strict=True):
        components[component].append(name)
    return components


def _topological(components: Sequence[list[str]], targets: Mapping[str, set[str]]) -> Iterable[list[str]]:
    """Components, each after all that have an edge to it (Kahn's algorithm with a heap)."""
    home = {name: index for index, names in enumerate(components) for name in names}
    after = [{home[target] for name in names for target in targets[name]} - {i} for i, names in enumerate(components)]
    waiting = [0] * len(components)
    for following in after:
        for index in following:
            waiting[index] += 1
    key = [(-max(len(targets[name]) for name in names), names[0]) for names in components]
    ready = [(*key[index], index) for index, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    while ready:
        index = heapq.heappop(ready)[-1]
        yield components[index]
        for follower in after[index]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, (*key[follower], follower))


def _within_component(
    names: Sequence[str], targets: Mapping[str, set[str]], sources: Mapping[str, set[str]]
) -> list[str]:
    """An order of a strongly connected component that breaks few edges."""
    rest = set(names)
    outgoing = {name: len(targets[name] & rest) for name in names}  # edges within the rest
    incoming = {name: len(sources[name] & rest) for name in names}
    head: list[str] = []
    tail: list[str] = []

    def leave(name: str, end: list[str]) -> None:
        end.append(name)
        rest.remove(name)
        for target in targets[name] & rest:
            incoming[target] -= 1
        for source in sources[name] & rest:
            outgoing[source] -= 1

    while rest:
        while sinks := [name for name in rest if outgoing[name] == 0]:
            lowest = min(len(targets[name]) for name in sinks)
            leave(max(name for name in sinks if len(targets[name]) == lowest), tail)
        while first := [name for name in rest if incoming[name] == 0]:
            leave(min(first, key=lambda name: (-len(targets[name]), name)), head)
        if rest:
            leave(min(rest, key=lambda name: (incoming[name] - outgoing[name], -len(targets[name]), name)), head)
    return head + tail[::-1]
