"""Half-open ranges as users write them: ``--roi 0:512,1024:2048`` and ``--slices 2:5``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from teramind.errors import InputError


def parse_ranges(text: str, extents: Mapping[str, int]) -> list[tuple[int, int]]:
    """Return the ranges of a text such as ``0:512,1024:2048``, one for each axis.

    Args:
        text: ``start:stop`` for each axis, separated by commas.
        extents: each axis' name and size; ranges must lie within.

    Raises:
        InputError: if the text does not read so, or a range is empty or reaches outside.
    """
    words = text.split(",")
    example = ",".join(f"{axis}0:{axis}1" for axis in extents)
    if len(words) != len(extents) or not all(re.fullmatch(r"\s*\d+:\d+\s*", word) for word in words):
        raise InputError(f"range {text!r} does not read as {example} in whole numbers")
    ranges = []
    for word, (axis, size) in zip(words, extents.items(), strict=True):
        start, stop = (int(number) for number in word.split(":"))
        if not start < stop <= size:
            raise InputError(f"range {word.strip()} along {axis} is empty or reaches outside 0:{size}")
        ranges.append((start, stop))
    return ranges
