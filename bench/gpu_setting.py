"""Where ``bench/gpu.py`` measures, how large and how: on a GPU, or in a dry run on a CPU at sizes that show nothing.

A dry run goes through the same code with the references in place of the kernels, so that what cannot run is found
without a GPU. The choice is an environment variable, which every process of a run inherits.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from plain_baseline import TILE
from torch import Tensor

from teramind.kernels.dispatch import Implementation
from teramind.model.config import ModelConfig

DRY_RUN = "TERAMIND_GPU_BENCH_DRY"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Device and sizes.

    Attributes:
        device: as torch calls it.
        kernels: what is measured against the references.
        backend: of torch.compile.
        config: of the network.
        unit: px of a tile of the plain baseline, by which every step is told.
        tile: px, of everything that is not said to be otherwise.
        other_tiles: px, of further steps.
        baseline_side: px of the region that the plain baseline predicts.
        baseline_type: of its autocast, as the authors' on a GPU; convolutions in float16 take a CPU many seconds.
        case_tile: px of the tile whose calls of kernels are measured.
        parity_tile: px of the tile whose calls of kernels are checked.
        copied: float32 values that are copied for the ceiling of bandwidth.
        matrix_side: of the products for the ceilings of matrix units.
        fixtures: arrays of the authors' code that the network is checked against.
        half_fixture: the one for half types; None where half types are not checked.
    """

    device: str
    kernels: Implementation
    backend: str
    config: ModelConfig
    unit: int
    tile: int
    other_tiles: tuple[int, ...]
    baseline_side: int
    baseline_type: str
    case_tile: int
    parity_tile: int
    copied: int
    matrix_side: int
    fixtures: tuple[str, ...]
    half_fixture: str | None


GPU = Setting(
    device="cuda",
    kernels="triton",
    backend="inductor",
    config=ModelConfig(),
    unit=TILE,
    tile=1024,
    other_tiles=(2048, 512),
    baseline_side=512,
    baseline_type="float16",
    case_tile=1024,
    parity_tile=256,
    copied=2**30,
    matrix_side=8192,
    fixtures=("full", "pyramid", "tiny", "dapi_z1", "patch32_z4"),
    half_fixture="full",
)
DRY = Setting(
    device="cpu",
    kernels="reference",
    backend="eager",
    config=ModelConfig(genes=5, base_channels=4, channel_mult=(1, 1, 2, 2), res_blocks=1, embed_channels=8),
    unit=64,
    tile=128,
    other_tiles=(64,),
    baseline_side=64,
    baseline_type="bfloat16",
    case_tile=64,
    parity_tile=64,
    copied=2**10,
    matrix_side=64,
    fixtures=("pyramid",),
    half_fixture=None,
)
SETTING = DRY if os.environ.get(DRY_RUN) else GPU
ON_GPU = SETTING.device == "cuda"


def prepare_process() -> None:
    """What every process that measures or checks needs: no gradients, and float32 that is float32."""
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def prepare_worker() -> None:
    """``prepare_process`` for one of several processes that share the cores: each compiles in a single thread."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    prepare_process()


def milliseconds(work: Callable[[], object], budget: float = 60) -> float:
    """Median time of a call on the device, caches flushed between calls."""
    if not ON_GPU:
        return once(work, 1)
    from triton.testing import do_bench

    return float(do_bench(work, warmup=20, rep=budget, return_mode="median"))


def once(work: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a call that takes so long that caches and gaps do not matter."""
    work()
    times = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def synchronize() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def captured(work: Callable[[], Tensor]) -> Callable[[], object]:
    """A CUDA graph of a call; in a dry run the call."""
    if not ON_GPU:
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, picks algorithms and fills caches outside the graph
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@contextmanager
def searching() -> Iterator[None]:
    """Let cuDNN time its algorithms. The engine does not: what it computes must not depend on what was faster."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


def free_memory() -> None:
    """Give unused memory back and start to watch its peak anew."""
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes() -> float:
    """Of tensors on the device since ``free_memory``."""
    return torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0
