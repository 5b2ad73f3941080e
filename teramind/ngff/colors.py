"""Which colour a stain is shown in."""

from __future__ import annotations

from collections.abc import Sequence

# Blue and yellow add up to nearly white: where nuclei and cytoplasm overlap, neither hides the other.
_KNOWN = {"dapi": "2860FF", "polyt": "FFD400"}
_OTHERS = ("FF2D95", "00E5FF", "7CFF3A", "FF7A00", "B58CFF", "FF4040")


def stain_colors(stains: Sequence[str]) -> list[str]:
    """Return six hexadecimal digits for each stain: the usual ones, and a fixed palette for the rest in their order."""
    unknown = [stain for stain in stains if stain.lower() not in _KNOWN]
    palette = {stain: _OTHERS[number % len(_OTHERS)] for number, stain in enumerate(unknown)}
    return [_KNOWN.get(stain.lower()) or palette[stain] for stain in stains]
