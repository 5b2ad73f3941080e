"""Weights in the form that inference wants, derived from a layer's own and kept until these change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from teramind.errors import InputError

Value = TypeVar("Value")


class DerivedWeights:
    """A cache that is neither saved nor copied with its layer.

    A change in place (an optimiser's step, ``load_state_dict``) is seen by the weight's version counter. One that hides
    from it, through ``weight.data``, is not: call ``clear`` after it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # the threads of several workers share a network
        self._entries: dict[Hashable, tuple[Hashable, Any]] = {}

    def get(self, form: Hashable, weight: Tensor, derive: Callable[[], Value]) -> Value:
        """``derive()``, or what it gave when it was last called for this form of the same weight."""
        state = None if isinstance(weight, GivenUpWeight) else (weight.data_ptr(), weight._version)
        known = self._entries.get(form)
        if known is None or known[0] != state:
            known = self._entries[form] = (state, derive())
        value: Value = known[1]
        return value

    def keep(self, form: Hashable) -> None:
        """Keep one form alone, for a weight that is given up."""
        self._entries = {form: (None, self._entries[form][1])}

    def clear(self) -> None:
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> DerivedWeights:
        return DerivedWeights()

    def __reduce__(self) -> tuple[type[DerivedWeights], tuple[()]]:
        return DerivedWeights, ()


class GivenUpWeight(nn.Parameter):
    """Stands where a weight was: it has its shape and type, and refuses everything else.

    A parameter on torch's meta device would do neither: ``F.linear`` and convolutions of CPU tensors take one without a
    word, and give numbers.
    """

    _DESCRIPTION = tuple(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "requires_grad", "grad_fn"))

    def __new__(cls, weight: Tensor) -> GivenUpWeight:
        nothing = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        return Tensor._make_subclass(cls, nothing, False)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in cls._DESCRIPTION:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        raise InputError(
            "this network has given up its weights (give_up_weights) and can do nothing but predict, without gradients "
            "and as before: load the checkpoint again"
        )


class DerivingLayer(nn.Module):
    """A layer with derived weights: they are dropped where it moves, changes its type or goes into training.

    Attributes:
        gives_up_weight: whether its own weight goes as soon as a form of it has been derived, so that memory does not
            hold both.
    """

    weight: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.derived = DerivedWeights()
        self.gives_up_weight = False

    def form(self, name: Hashable, derive: Callable[[], Value]) -> Value:
        """A form of the weight: what ``derive`` makes of it, or made of it before."""
        with self.derived.lock:
            if not isinstance(self.weight, GivenUpWeight) and self.weight.is_inference():
                return derive()  # such a tensor does not count its changes
            value = self.derived.get(name, self.weight, derive)
            if self.gives_up_weight and not isinstance(self.weight, GivenUpWeight):
                self.derived.keep(name)
                self.weight = GivenUpWeight(self.weight)
            return value

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
