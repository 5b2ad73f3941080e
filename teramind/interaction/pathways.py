"""Named sets of genes, from a table that a user can extend, and the genes of a network by their names."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teramind.errors import InputError

TABLE = Path(__file__).with_name("pathways.gmt")
"""The pathways of the paper."""


@dataclass(frozen=True)
class Pathway:
    """Genes that are looked at together.

    Attributes:
        name: short.
        genes: names, each once.
        description: for a person; may be empty.
    """

    name: str
    genes: tuple[str, ...]
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.genes or not all(self.genes):
            raise InputError(f"the pathway {self.name!r} has no genes: give at least one")
        if len(set(self.genes)) != len(self.genes):
            twice = next(gene for gene in self.genes if self.genes.count(gene) > 1)
            raise InputError(f"the pathway {self.name!r} holds {twice} twice: give every gene once")


def read_pathways(path: str | os.PathLike[str] | None = None) -> dict[str, Pathway]:
    """The pathways of the paper, and those of a file, which may redefine them.

    The file is a GMT table of gene sets: a line each, its fields separated by tabs: name, description, genes. Format:
    https://software.broadinstitute.org/cancer/software/gsea/wiki/index.php/Data_formats.

    Raises:
        InputError: the file cannot be read, or a line has no genes.
    """
    pathways = _read(TABLE)
    return pathways if path is None else pathways | _read(Path(path))


def choose_pathway(
    genes: Sequence[str] | None, pathway: str | None, pathways: Mapping[str, Pathway] | None = None
) -> Pathway:
    """The genes that are asked for, by their names or by that of their pathway.

    Raises:
        InputError: both or neither are given, or there is no such pathway.
    """
    if (genes is None) == (pathway is None):
        raise InputError("the maps are of genes or of a pathway: give either --genes or --pathway")
    if pathway is None:
        return Pathway("+".join(genes or ()), tuple(genes or ()))
    known = read_pathways() if pathways is None else pathways
    if pathway not in known:
        raise InputError(f"there is no pathway {pathway}; known are {', '.join(known)}; --pathways FILE adds others")
    return known[pathway]


def gene_indices(wanted: Sequence[str], panel: Sequence[str]) -> list[int]:
    """Where genes stand in a panel.

    Raises:
        InputError: some are not in it; similar names are offered.
    """
    places = {name: index for index, name in enumerate(panel)}
    missing = [name for name in wanted if name not in places]
    if missing:
        folded = {name.casefold(): name for name in panel}
        close = difflib.get_close_matches(missing[0].casefold(), folded, n=3)
        hint = f"; similar are {', '.join(folded[name] for name in close)}" if close else ""
        raise InputError(f"the panel of {len(panel)} genes lacks {', '.join(missing)}{hint}")
    return [places[name] for name in wanted]


def _read(path: Path) -> dict[str, Pathway]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the table of pathways {path} cannot be read ({error}); give a GMT file") from None
    pathways = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = (field.strip() for field in line.split("\t"))
        genes = tuple(gene for gene in rest[1:] if gene)
        if not genes:
            raise InputError(
                f"line {number} of {path} is not a pathway: it takes a name, a description and genes, separated by tabs"
            )
        pathways[name] = Pathway(name, genes, rest[0])
    return pathways
