"""Weights in the form that inference wants, derived from a layer's parameters and kept until these change."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class DerivedWeights:
    """A cache that is neither saved nor copied with its layer.

    A change in place (an optimiser's step, ``load_state_dict``) is seen by the parameters' version counters. One that
    hides from those, through ``parameter.data``, is not: call ``clear`` after it.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[Hashable, Any]] = {}

    def get(self, form: Hashable, parameters: tuple[Tensor, ...], derive: Callable[[], Value]) -> Value:
        """``derive()``, or what it gave when it was last called for this form of the same parameters."""
        if any(parameter.is_inference() for parameter in parameters):
            return derive()  # such tensors do not count their changes
        state = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
        known = self._entries.get(form)
        if known is None or known[0] != state:
            known = self._entries[form] = (state, derive())
        value: Value = known[1]
        return value

    def clear(self) -> None:
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> DerivedWeights:
        return DerivedWeights()

    def __reduce__(self) -> tuple[type[DerivedWeights], tuple[()]]:
        return DerivedWeights, ()


class DerivingLayer(nn.Module):
    """A layer with derived weights: they are dropped where it moves, changes its type or goes into training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.derived = DerivedWeights()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DerivingLayer:
        self.derived.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> DerivingLayer:
        if mode:
            self.derived.clear()
        return super().train(mode)


def keeps_weights() -> bool:
    """Whether derived weights may be kept: no gradients to carry, no autocast to choose types, no graph to trace."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.compiler.is_compiling()
    )
