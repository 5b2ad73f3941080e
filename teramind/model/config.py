"""The shape of a Tera-MIND network: a frozen, validated description that travels inside every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from teramind.errors import InputError

BIN_SIZE = 16  # px a transcript bin spans; the published models and the reference code know no other
GENE_LEVEL_CHANNELS = (128, 64, 32)  # channels of gene levels 1, 2, 3 (level 0 has one per gene)
PATCH_SIZES = (32, 64, 128)
Z_KERNELS = {1: 1, 4: 3, 8: 5, 16: 9}  # gene slices of a window -> z-taps of the convolution over gene slices
ATTENTION_KEYS = ("gene", "image")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configuration of a network; see ``TeraMind``.

    Raises:
        InputError: for a value outside what the architecture allows, naming it and what is allowed.
    """

    patch_size: int = 64  # P, px: side of a patch, 32, 64 or 128
    genes: int = 229  # G: genes of the panel
    gene_slices: int = 4  # Zg: gene slices in a window, 1, 4, 8 or 16
    stains: int = 2  # S: image channels
    base_channels: int = 64  # C: channels at full resolution
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)  # channels of the four levels in multiples of C
    res_blocks: int = 2  # residual blocks of an encoder level (a decoder level has one more)
    embed_channels: int = 512  # E: width of the time embedding
    attention_resolution: int = 16  # px: side of the feature maps that have attention blocks
    dropout: float = 0.1  # in training, before the second convolution of a residual block
    attention_keys: Literal["gene", "image"] = "gene"  # source of the keys: "gene" as released, "image" as in eq. 2

    def __post_init__(self) -> None:
        if isinstance(self.channel_mult, list):  # from JSON
            object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        self._require(self.patch_size in PATCH_SIZES, "patch_size", f"one of {PATCH_SIZES}")
        self._require(self.gene_slices in Z_KERNELS, "gene_slices", f"one of {tuple(Z_KERNELS)}")
        for name in ("genes", "stains", "res_blocks", "embed_channels", "attention_resolution"):
            self._require(_is_positive_int(getattr(self, name)), name, "a positive integer")
        even = _is_positive_int(self.base_channels) and self.base_channels % 2 == 0
        self._require(even, "base_channels", "a positive even integer")
        four = isinstance(self.channel_mult, tuple) and len(self.channel_mult) == 4
        four = four and all(map(_is_positive_int, self.channel_mult))
        # The last norm and convolution, as published, are of C channels: those of the level at full resolution.
        self._require(four and self.channel_mult[0] == 1, "channel_mult", "four positive integers, the first of them 1")
        is_number = isinstance(self.dropout, int | float)
        self._require(is_number and 0 <= self.dropout < 1, "dropout", "at least 0 and below 1")
        self._require(self.attention_keys in ATTENTION_KEYS, "attention_keys", f"one of {ATTENTION_KEYS}")

    def _require(self, valid: bool, name: str, allowed: str) -> None:
        if not valid:
            raise InputError(f"ModelConfig.{name} is {getattr(self, name)!r}; it has to be {allowed}")

    @property
    def slices(self) -> int:
        """Z: image slices that a window of gene slices produces."""
        return -(-self.gene_slices // 2)

    @property
    def z_kernel(self) -> int:
        """Taps along z of the convolution that turns Zg gene slices into Z."""
        return Z_KERNELS[self.gene_slices]

    @property
    def patch_bins(self) -> int:
        """Transcript bins along the side of a patch."""
        return self.patch_size // BIN_SIZE

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the four UNet levels, full resolution first."""
        return tuple(self.base_channels * multiple for multiple in self.channel_mult)

    def gene_channels(self, level: int) -> int:
        """Channels of the gene level that UNet level ``level`` reads."""
        return (self.genes, *GENE_LEVEL_CHANNELS)[3 - level]

    def has_attention(self, level: int) -> bool:
        """Whether the residual blocks of this UNet level are followed by attention blocks."""
        return self.patch_size >> level == self.attention_resolution

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return asdict(self) | {"channel_mult": list(self.channel_mult)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``; an unknown field is an ``InputError``."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"unknown model configuration field(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
