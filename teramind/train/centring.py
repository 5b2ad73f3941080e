"""Seams of little trained networks: what a decoder's convolutions make of the mean, made by their centre taps alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from teramind.model.layers import Conv
from teramind.model.network import TeraMind


def centre_taps(net: TeraMind, predict: Callable[[TeraMind], None]) -> None:
    """Move what outer taps make of the most common direction of their input into the centre tap.

    A decoder's features have a large mean, the same in all of a patch, that says how noisy the image is. Training gives
    each of the nine taps a share of it; at a patch's border three are missing, or five, so that the norms there find
    another level and leave noise on the outermost pixels. Inside a patch this changes no output of the mean, and nearly
    none of the rest; on its border the mean then counts for as much as inside.

    Args:
        net: is changed, the 3 x 3 convolutions of its decoder.
        predict: makes the network predict, with timesteps of the whole range.
    """
    layers = [
        module
        for part in (net.output_blocks, net.out)
        for module in part.modules()
        if isinstance(module, Conv) and module.weight.shape[-1] > 1
    ]
    for layer, moment in zip(layers, _moments(layers, lambda: predict(net)), strict=True):
        _, directions = torch.linalg.eigh(moment)  # ascending
        common = directions[:, -1].to(layer.weight)
        with torch.no_grad():
            share = torch.einsum("oizyx,i->ozyx", layer.weight, common)
            moved = torch.einsum("ozyx,i->oizyx", share, common)  # of the weights, what acts along the direction
            centre = layer.weight.shape[-1] // 2
            total = moved.sum((-2, -1))
            layer.weight.sub_(moved)
            layer.weight[..., centre, centre] += total


def _moments(layers: Sequence[nn.Module], predict: Callable[[], None]) -> list[Tensor]:
    """(I, I) each: second moments, about zero, of the means over a patch of each layer's input."""
    moments: dict[nn.Module, Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        means = inputs[0].detach().double().mean((1, 2)).flatten(0, 1)  # (N, H, W, Z, I) -> (N*Z, I)
        moments[layer] = moments.get(layer, 0) + means.T @ means

    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    try:
        predict()
    finally:
        for hook in hooks:
            hook.remove()
    return [moments[layer] for layer in layers]
