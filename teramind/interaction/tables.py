"""Tables as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teramind.files import appears_whole


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns as CSV, replacing an older file; it appears whole."""
    with appears_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({name: written(value) for name, value in row.items()} for row in rows)


def written(value: Any) -> str:
    """A value as it stands in a table; numbers to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned columns for a terminal."""
    lines = [list(rows[0]), *([written(value) for value in row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )
