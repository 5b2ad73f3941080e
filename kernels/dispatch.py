"""Which implementation of an operation runs: its Triton kernels, or the plain-torch reference beside them.

Every operation takes ``implementation``:

- ``None``: the kernels where they can run, else the reference; the reason is logged once.
- ``"triton"``: the kernels, or an ``InputError`` that says why they cannot run.
- ``"reference"``: the reference.

The environment variable ``TERAMIND_KERNELS=reference`` forces the reference everywhere.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from teramind.errors import InputError

logger = logging.getLogger(__name__)

Implementation = Literal["triton", "reference"]

ENVIRONMENT = "TERAMIND_KERNELS"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # compute capability; the first with bfloat16 matrix units


class Verdict(NamedTuple):
    """Whether kernels can run, and if not, why: the end of a sentence."""

    ok: bool
    reason: str = ""


YES = Verdict(True)


def use_triton(
    operation: str, implementation: Implementation | None, tensors: Sequence[Tensor], limits: Verdict
) -> bool:
    """Whether ``operation`` runs on its kernels.

    Args:
        operation: name for messages.
        implementation: the caller's choice; see the module.
        tensors: all tensors of the call.
        limits: whether this operation's own limits hold.

    Raises:
        InputError: the kernels were asked for by name and cannot run, or the choice is none.
    """
    if implementation == "reference" or (implementation is None and torch.compiler.is_compiling()):
        return False  # torch.compile makes kernels of its own from the references
    if implementation not in (None, "triton"):
        raise InputError(f"implementation is {implementation!r}; it has to be None, 'triton' or 'reference'")
    verdict = _not_forbidden()
    if verdict.ok:
        verdict = can_run(tensors)
    if verdict.ok:
        verdict = limits
    if implementation == "triton" and not verdict.ok:
        raise InputError(f"{operation} cannot run on its Triton kernels: {verdict.reason}")
    if not verdict.ok:
        # Nobody who has no GPU wants to read so of every operation of every run.
        expected = tensors[0].device.type == "cpu"
        _log_once(operation, verdict.reason, logging.DEBUG if expected else logging.INFO)
    return verdict.ok


def can_run(tensors: Sequence[Tensor]) -> Verdict:
    """Whether Triton kernels can take these tensors at all; on a CPU that is soon said."""
    runs_here = _runs_on(tensors[0].device)
    if not runs_here.ok:
        return runs_here
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return Verdict(False, f"the tensors are on several devices ({', '.join(sorted(map(str, devices)))})")
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            return Verdict(False, f"they do not compute in {tensor.dtype}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return Verdict(False, "they have no backward pass, and a gradient is asked for")
    return YES


@functools.cache
def _runs_on(device: torch.device) -> Verdict:
    if importlib.util.find_spec("triton") is None:
        return Verdict(False, "triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":  # Triton's own variable, which it reads once: NumPy runs the kernels
        return YES
    if device.type != "cuda" or torch.version.cuda is None:
        return Verdict(False, f"the tensors are on {device}, not on an NVIDIA GPU")
    capability = capability_of(device)
    if capability < OLDEST:
        needed = ".".join(map(str, OLDEST))
        return Verdict(False, f"{device} has compute capability {capability[0]}.{capability[1]}; they need {needed}")
    return YES


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def _not_forbidden() -> Verdict:
    value = os.environ.get(ENVIRONMENT)
    if not value:
        return YES
    if value != "reference":
        raise InputError(f"{ENVIRONMENT} is {value!r}; it has to be 'reference' or unset")
    return Verdict(False, f"{ENVIRONMENT}=reference forbids it")


@functools.cache
def _log_once(operation: str, reason: str, level: int) -> None:
    logger.log(level, "%s runs on its plain-torch reference: %s", operation, reason)
