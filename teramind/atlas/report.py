"""What became of every row of the transcript tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from teramind.atlas.panel import shortened

LOW_QUALITY = "low quality"
CONTROL = "control"
UNNAMED = "without a gene"
OUTSIDE = "outside the image"
UNKNOWN_GENE = "gene not in the panel"
REASONS = (LOW_QUALITY, CONTROL, UNNAMED, OUTSIDE, UNKNOWN_GENE)
"""Why a row is dropped; a row that meets several is counted under the first."""

NO_SLICE = "no such plane"


class IngestReport:
    """Rows read, kept and dropped, slice by slice.

    Attributes:
        slices: names of the slices.
        read: (slices,) rows of each slice.
        dropped: reason -> (slices,) rows.
        without_slice: rows on a plane that is no slice of the atlas.
        notes: what else a user should know, a sentence each.
    """

    def __init__(self, slices: Sequence[str]) -> None:
        self.slices = list(slices)
        self.read: npt.NDArray[np.int64] = np.zeros(len(slices), dtype=np.int64)
        self.dropped: dict[str, npt.NDArray[np.int64]] = {reason: np.zeros_like(self.read) for reason in REASONS}
        self.without_slice = 0
        self.notes: list[str] = []

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """(slices,) rows counted into the atlas."""
        kept: npt.NDArray[np.int64] = self.read - np.sum(list(self.dropped.values()), axis=0)
        return kept

    def add_rows(
        self,
        slices: int | npt.NDArray[np.intp],
        kept: npt.NDArray[np.bool_],
        dropped: Mapping[str, npt.NDArray[np.bool_]],
    ) -> None:
        """Count the rows of a block; those neither kept nor dropped for a reason given lie outside.

        Args:
            slices: the slice of all rows, or of each.
            kept: (n,) which were kept.
            dropped: reason -> (n,) which were dropped for it; no row under two.
        """
        self.read += self._by_slice(slices, np.ones_like(kept))
        outside = ~kept
        for reason, rows in dropped.items():
            if rows.any():
                self.dropped[reason] += self._by_slice(slices, rows)
                outside &= ~rows
        if outside.any():
            self.dropped[OUTSIDE] += self._by_slice(slices, outside)

    def add_dropped_before(self, slice_index: int, dropped: Mapping[str, int]) -> None:
        """Count rows of a slice that its reader left out."""
        for reason, rows in dropped.items():
            self.dropped[reason][slice_index] += rows
            self.read[slice_index] += rows

    def _by_slice(self, slices: int | npt.NDArray[np.intp], rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        if isinstance(slices, int):
            counts = np.zeros(len(self.slices), dtype=np.int64)
            counts[slices] = np.count_nonzero(rows)
            return counts
        return np.bincount(slices[rows], minlength=len(self.slices))

    def note_empty_slices(self) -> None:
        """Say which slices hold no transcript."""
        empty = [name for name, rows in zip(self.slices, self.kept, strict=True) if rows == 0]
        if empty:
            self.notes.append(f"no transcripts were kept in {shortened(empty)}")

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for metadata."""
        return {
            "rows_read": int(self.read.sum()) + self.without_slice,
            "rows_kept": int(self.kept.sum()),
            "rows_dropped": {reason: int(rows.sum()) for reason, rows in self.dropped.items()}
            | {NO_SLICE: self.without_slice},
            "slices": [
                {
                    "name": name,
                    "read": int(self.read[index]),
                    "kept": int(self.kept[index]),
                    "dropped": {reason: int(rows[index]) for reason, rows in self.dropped.items()},
                }
                for index, name in enumerate(self.slices)
            ],
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """The report as a table for people: a line a slice, a column for every reason that occurred."""
        reasons = [reason for reason in REASONS if self.dropped[reason].any()]
        rows = [["slice", "read", "kept", *reasons]]
        for index, name in enumerate(self.slices):
            numbers = [self.read[index], self.kept[index], *(self.dropped[reason][index] for reason in reasons)]
            rows.append([name, *(f"{number:,}" for number in numbers)])
        if len(self.slices) > 1:
            totals = [self.read.sum(), self.kept.sum(), *(self.dropped[reason].sum() for reason in reasons)]
            rows.append(["all", *(f"{number:,}" for number in totals)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            row[0].ljust(widths[0])
            + "".join(f"  {word.rjust(width)}" for word, width in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]
        if self.without_slice:
            lines.append(f"{self.without_slice:,} rows more are on a plane that is no slice of the atlas")
        return "\n".join([*lines, *self.notes]) + "\n"
