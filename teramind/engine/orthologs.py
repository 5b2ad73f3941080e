"""Genes of one species by the names of another: tables of pairs, one a line."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from teramind.errors import InputError

PANELS = Path(__file__).parents[1] / "panels"


def read_pairs(
    path: str | os.PathLike[str], network: Collection[str] = (), atlas: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Read a table of two columns, separated by commas or tabs; further columns are left alone.

    The first line is one of heads, unless it pairs a gene of the network with one of the atlas.

    Args:
        path: the file, or the name of a table that comes with the package (``mouse_human_81``).
        network: its genes.
        atlas: its genes.

    Raises:
        InputError: the file cannot be read, or a line has no two names.
    """
    shipped = {table.stem: table for table in PANELS.glob("*.csv")}
    file = Path(path) if Path(path).exists() else shipped.get(str(path), Path(path))
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the table of genes {path} cannot be read ({error}); give a CSV file of two columns, or one of "
            f"{', '.join(shipped)}"
        ) from None
    separator = "\t" if lines and "\t" in lines[0] else ","
    pairs = []
    for number, row in enumerate(csv.reader(lines, delimiter=separator), start=1):
        names = [cell.strip() for cell in row[:2]]
        if not any(names) or (number == 1 and not _is_pair(names, set(network), set(atlas))):
            continue  # genes without a partner in neither species, and heads
        if len(names) != 2:
            raise InputError(f"line {number} of {path} does not hold two names: {separator.join(row)!r}")
        if all(names):
            pairs.append((names[0], names[1]))
    if not pairs:
        raise InputError(f"the table of genes {path} holds no pairs below its heads")
    return pairs


def _is_pair(names: list[str], network: Collection[str], atlas: Collection[str]) -> bool:
    """Whether one name is a gene of the network, and the other of the atlas."""
    if len(names) != 2:
        return False
    first, second = names
    return (first in network and second in atlas) or (second in network and first in atlas)


def partners(pairs: Collection[tuple[str, str]], network: Collection[str], atlas: Collection[str]) -> Mapping[str, str]:
    """Which gene of an atlas stands for each gene of a network.

    Either column may be the network's: the one that shares more names with it.

    Args:
        pairs: of the table; those whose names are in neither panel do not matter.
        network: its genes.
        atlas: its genes.

    Raises:
        InputError: a gene of one has several partners in the other: which of them is meant cannot be told.
    """
    known, there = set(network), set(atlas)
    firsts, seconds = (sum(pair[side] in known for pair in pairs) for side in (0, 1))
    turned = pairs if firsts >= seconds else [(second, first) for first, second in pairs]
    used = sorted({(mine, theirs) for mine, theirs in turned if mine in known and theirs in there})
    for side, whose in ((0, "network"), (1, "atlas")):
        names = [pair[side] for pair in used]
        several = sorted({name for name in names if names.count(name) > 1})
        if several:
            others = ", ".join(pair[1 - side] for pair in used if pair[side] == several[0])
            raise InputError(
                f"the table gives {several[0]} of the {whose} several partners ({others}); leave one of them in it"
            )
    return dict(used)
