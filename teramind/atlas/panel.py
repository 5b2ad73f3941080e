"""Which genes an atlas holds: those of its slices, or a list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from teramind.errors import InputError

UNION, INTERSECTION = "union", "intersection"

# Shown of a long list of names.
NAMES_SHOWN = 5


def published_panels() -> dict[str, Path]:
    """The gene lists that come with the package, in the order of the published checkpoints' gene axis."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "panels").glob("*.txt"))}


def read_genes(path: str | Path) -> list[str]:
    """Read gene names from a text file, one a line, in order; or a list of ``published_panels`` by its name.

    Raises:
        InputError: if the file cannot be read, is empty or holds a name twice.
    """
    panels = published_panels()
    file = Path(path) if Path(path).exists() else panels.get(str(path), Path(path))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the gene list {path} cannot be read ({error}); give a text file, one name a line, or a published list: "
            f"{', '.join(panels)}"
        ) from error
    genes = [line.strip() for line in lines if line.strip()]
    if not genes:
        raise InputError(f"the gene list {path} is empty; give one name a line")
    repeated = sorted({gene for gene in genes if genes.count(gene) > 1})
    if repeated:
        raise InputError(f"the gene list {path} holds {shortened(repeated)} more than once; give every gene once")
    return genes


def choose_genes(seen: Mapping[str, set[str]], genes: str | Path | None) -> list[str]:
    """The genes of an atlas, in the order of its gene axis.

    Args:
        seen: the genes found in each section, by the section's name; controls left out.
        genes: ``"union"`` or ``"intersection"`` of the sections (sorted by name), a file of names (its order), or
            None where all sections hold the same.

    Raises:
        InputError: if the sections differ and ``genes`` is None, or no gene is left.
    """
    everywhere, anywhere = set.intersection(*seen.values()), set.union(*seen.values())
    if genes is None and everywhere != anywhere:
        lacking = {name: anywhere - found for name, found in seen.items() if anywhere - found}
        words = "; ".join(f"{name} has no {shortened(sorted(missing))}" for name, missing in list(lacking.items())[:3])
        raise InputError(
            f"the genes differ between slices ({words}): choose with --genes union, intersection or a file"
        )
    if genes is None or genes == UNION:
        chosen = sorted(anywhere)
    elif genes == INTERSECTION:
        chosen = sorted(everywhere)
    else:
        chosen = read_genes(genes)
        if not anywhere.intersection(chosen):
            raise InputError(
                f"none of the {len(chosen)} genes of {genes} is among the {len(anywhere)} of the transcripts "
                f"({shortened(sorted(anywhere))}); check the names"
            )
    if not chosen:
        raise InputError(f"no gene is left of {', '.join(seen)}; check the gene names or use --genes union")
    return chosen


def name_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern for names, ignoring case; it must match from a name's beginning.

    Raises:
        InputError: if it is not a regular expression.
    """
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise InputError(f"the name pattern {pattern!r} is not a regular expression ({error})") from error


def shortened(names: Sequence[str]) -> str:
    """A few of the names, and how many more there are."""
    words = ", ".join(names[:NAMES_SHOWN])
    return words if len(names) <= NAMES_SHOWN else f"{words} and {len(names) - NAMES_SHOWN} more"
