"""Checkpoints: ours (safetensors that carry all a run needs) and the reference implementation's Lightning files.

Nothing here unpickles: safetensors cannot, and Lightning files are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from teramind.errors import InputError
from teramind.model.config import PATCH_SIZES, Z_KERNELS, ModelConfig
from teramind.model.network import TeraMind
from teramind.tensor_files import save_tensors

FORMAT = "teramind-checkpoint"
FORMAT_VERSION = 1
UPSTREAM_PREFIX = "model."
UPSTREAM_EMA_PREFIX = "ema_model."


def save_checkpoint(path: str | os.PathLike[str], net: TeraMind, **meta: Any) -> None:
    """Write weights, configuration and metadata as one safetensors file; it appears under its name only when whole.

    Args:
        path: the file, ending in ``.safetensors``.
        net: the network; its weights are stored in their type.
        meta: JSON-able facts about the training data that generation checks: ``genes`` (names in the order of the gene
            axis), ``stains``, ``pixel_size`` (um), ``scaling`` ({stain: [low, high]} raw intensities shown as 0 and
            255); and anything else, kept as it is.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"a checkpoint is a .safetensors file; {path.name} would be mistaken for another format")
    for axis, size in (("genes", net.config.genes), ("stains", net.config.stains)):
        if meta.get(axis) is not None and len(meta[axis]) != size:
            raise InputError(f"{len(meta[axis])} names were given for the network's {size} {axis}")
    header = {"format": FORMAT, "version": FORMAT_VERSION, "config": net.config.to_dict(), "meta": meta}
    save_tensors(path, net.state_dict(), header)


def load_checkpoint(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[TeraMind, dict[str, Any]]:
    """Read a checkpoint of either kind.

    Args:
        path: ``.safetensors`` written by ``save_checkpoint``, or a Lightning ``.ckpt`` of the reference implementation
            (its plain weights, as the published results use; moving averages in it are left alone).
        device: where the weights go.

    Returns:
        The network in evaluation mode and float32, whatever its weights are stored in, and its metadata: what was
        given to ``save_checkpoint``, or {} for the reference's, which carry neither gene names nor scaling.

    Raises:
        InputError: for a file that is not a checkpoint, needs unpickling, or does not fit the architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    if path.suffix == ".safetensors":
        config, meta, weights = _read_own(path)
    else:
        weights = _read_upstream(path)
        config, meta = infer_config(weights), {}
    with torch.device("meta"):
        net = TeraMind(config)
    net.to_empty(device="cpu").float()
    try:
        net.load_upstream_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return net.to(device).eval(), meta


def read_header(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration and metadata of one of our checkpoints, without its weights."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from None
    try:
        header = json.loads(metadata["teramind"])
        known = header["format"] == FORMAT
    except (KeyError, TypeError, json.JSONDecodeError):
        known = False
    if not known:
        raise InputError(f"{path} holds tensors but no teramind configuration; write checkpoints with save_checkpoint")
    if header["version"] > FORMAT_VERSION:
        raise InputError(
            f"{path} has checkpoint format {header['version']}; this teramind reads up to {FORMAT_VERSION}: update it"
        )
    return ModelConfig.from_dict(header["config"]), header["meta"]


def checkpoint_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file: outputs record it, and a resumed run compares it."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe(path: str | os.PathLike[str]) -> str:
    """What ``teramind info`` prints of a checkpoint."""
    net, meta = load_checkpoint(path)
    weights = sum(parameter.numel() for parameter in net.parameters())
    lines = [f"checkpoint  {path}", f"weights     {weights:,}"]
    lines += [f"{name:<20} {value}" for name, value in net.config.to_dict().items()]
    for name, value in meta.items():
        names = isinstance(value, list) and len(value) > 12
        lines.append(
            f"{name:<20} {', '.join(map(str, value[:12]))}, ... ({len(value)})" if names else f"{name:<20} {value}"
        )
    if "genes" not in meta:
        lines.append(
            "genes                not named in the file: generation needs --genes FILE or an atlas of that order"
        )
    return "\n".join(lines)


def _read_own(path: Path) -> tuple[ModelConfig, dict[str, Any], dict[str, Tensor]]:
    config, meta = read_header(path)
    return config, meta, safetensors.torch.load_file(path)


def _read_upstream(path: Path) -> dict[str, Tensor]:
    """The plain weights in a Lightning checkpoint, without their prefix."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(_why_unsafe(path)) from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a whole torch file ({reason}); copy or download it again") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state_dict of tensors; a Lightning checkpoint has one")
    plain = {
        name.removeprefix(UPSTREAM_PREFIX): value
        for name, value in state.items()
        if not name.startswith(UPSTREAM_EMA_PREFIX)
    }
    if not plain:
        raise InputError(f"{path} holds no entries named {UPSTREAM_PREFIX}*; its weights cannot be told apart")
    return plain


def _why_unsafe(path: Path) -> str:
    """One sentence on what in the file would have to be unpickled."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is foreign and broken; whatever it raises, the answer is the same
        names = []
    held = (
        f"holds Python objects ({', '.join(sorted(names)[:5])})"
        if names
        else "is not a torch zip file of plain tensors"
    )
    return f"{path} {held}, and unpickling untrusted files runs their code: save its state_dict alone with torch.save"


def infer_config(weights: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration that a state dict's shapes belong to; nothing is read from file or folder names.

    Dropout and the source of attention keys leave no trace in the shapes: they are those of the published models.
    """

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise InputError(f"the weights have no entry {name}: this is not a Tera-MIND network")
        return weights[name].shape

    stains, base = shape("out.2.weight")[:2]
    genes, _, z_kernel = shape("rna_blocks.0.0.down_z.weight")[:3]
    features = shape("rna_blocks.0.0.attn.q.weight")[0]
    gene_slices = next((slices for slices, kernel in Z_KERNELS.items() if kernel == z_kernel), 0)
    patch_size = next((size for size in PATCH_SIZES if gene_slices * (size // 16) ** 2 == features), 0)
    if not patch_size:
        raise InputError(f"no window of gene slices and patch size has {z_kernel} z-taps and {features} gene features")
    blocks = 1 + max(
        (int(match[1]) for name in weights if (match := re.match(r"input_blocks\.(\d+)\.", name))), default=0
    )
    if blocks % 4:
        raise InputError(f"the encoder has {blocks} blocks; four levels of equal depth have a multiple of 4")
    res_blocks = blocks // 4 - 1
    widths = [shape(f"input_blocks.{level * (res_blocks + 1) + 1}.0.out_layers.3.weight")[0] for level in range(4)]
    attention = [
        level for level in range(4) if f"input_blocks.{level * (res_blocks + 1) + 1}.1.attn.q.weight" in weights
    ]
    return ModelConfig(
        patch_size=patch_size,
        genes=genes,
        gene_slices=gene_slices,
        stains=stains,
        base_channels=base,
        channel_mult=tuple(width // base for width in widths),
        res_blocks=res_blocks,
        embed_channels=shape("time_embed.time_embed.0.weight")[0],
        attention_resolution=patch_size >> attention[0] if attention else ModelConfig.attention_resolution,
    )
