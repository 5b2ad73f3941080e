"""What ``bench/gpu.py`` measures, a section a process: each function yields what it finds as it finds it."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
from plain_baseline import TILE as UNIT
from plain_baseline import PlainNetwork
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kernel_cases import Case, bytes_moved, cases, tensors_in
from parity_data import Fixture, relative_error
from teramind.diffusion.sampling import sample
from teramind.model.config import ModelConfig
from teramind.model.network import TeraMind

DEVICE = "cuda"
TILE = 1024  # px, of everything that is not said to be otherwise
PATCH = 64
HALF = ("bfloat16", "float16")
# Relative errors of operations, |out - ref| / |ref|: float32 is far from TF32's 3e-4; half types by their own rounding.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ONE_PASS, AFTER_DDIM = 2e-5, 2e-4  # of the standard deviation, against the authors' code, in float32
HALF_RMS = {torch.float16: 2.5e-3, torch.bfloat16: 2.4e-2}  # twice what was measured on a CPU


class Ceiling(NamedTuple):
    """What the card does at best, measured: bytes/s read and written, or FLOP/s of a type."""

    name: str  # "copy", "bfloat16", "float16"
    rate: float


class Parity(NamedTuple):
    """Whether an operation, or "network", gives what it should."""

    operation: str
    wrong: str  # what is wrong with it; nothing where all is well


class Row(NamedTuple):
    """A line of the table. Ratios are how many times faster than a baseline it is, as far as measured."""

    name: str
    milliseconds: float
    operation: str  # whose parity it stands on; nothing for what is no part of teramind
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = "bfloat16"
    ratios: dict[str, float] = {}  # noqa: RUF012 - never changed
    note: str = ""


Found = Ceiling | Parity | Row


# ---- time ------------------------------------------------------------------------------------------------------------


def milliseconds(work: Callable[[], object], budget: float = 60) -> float:
    """Median time of a call on the device, caches flushed between calls."""
    from triton.testing import do_bench

    return float(do_bench(work, warmup=20, rep=budget, return_mode="median"))


def once(work: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a call that takes so long that caches and gaps do not matter."""
    work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def captured(work: Callable[[], Tensor]) -> Callable[[], None]:
    """A CUDA graph of a call."""
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


def ceilings() -> Iterator[Found]:
    source = torch.randn(2**30, device=DEVICE)
    yield Ceiling("copy", 2 * source.numel() * 4 / milliseconds(source.clone, 200) * 1e3)
    side = 8192
    for dtype in HALF:
        a, b = (torch.randn(side, side, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2))
        yield Ceiling(dtype, 2 * side**3 / milliseconds(lambda a=a, b=b: a @ b, 300) * 1e3)


# ---- parity ----------------------------------------------------------------------------------------------------------


def parity() -> Iterator[Found]:
    """The network first, then every operation; compiling spreads over processes, and fills Triton's cache for all."""
    yield from parity_of_network()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=context) as pool:
        wrong: dict[str, str] = {}
        for operation, what in pool.map(parity_of_case, range(len(cases(4 * PATCH)))):
            wrong[operation] = wrong.get(operation) or what
    yield from (Parity(operation, what) for operation, what in wrong.items())


def parity_of_network() -> Iterator[Found]:
    wrong = []
    for name in ("pyramid", "tiny", "dapi_z1", "patch32_z4", "full"):
        fixture = Fixture(name)
        net = fixture.network().to(DEVICE)
        inputs = fixture["x"].to(DEVICE), torch.tensor([603], device=DEVICE), fixture["genes"].to(DEVICE)
        expected = fixture["eps_boundary_t603"]
        errors = {}
        for forced in ("", "reference"):
            os.environ["TERAMIND_KERNELS"] = forced
            errors[forced or "kernels"] = relative_error(net(*inputs).cpu(), expected)
        os.environ["TERAMIND_KERNELS"] = ""
        print(f"parity, {name}: " + ", ".join(f"{how} {error:.1e}" for how, error in errors.items()), flush=True)
        wrong += [f"{name}, {how}: {error:.1e} > {ONE_PASS}" for how, error in errors.items() if not error < ONE_PASS]
        if "ddim_final" in fixture.arrays:
            final = sample(net, fixture["ddim_genes"], noise=fixture["ddim_noise"], tile=64)
            error = relative_error(final.cpu(), fixture["ddim_final"])
            print(f"parity, {name}, 15 steps: {error:.1e}", flush=True)
            wrong += [f"{name}, 15 steps: {error:.1e} > {AFTER_DDIM}"] * (not error < AFTER_DDIM)
    for dtype, bound in HALF_RMS.items():  # of the last one, at the published size
        deviation = net.to(dtype)(*inputs).float().cpu() - expected
        error = float(deviation.square().mean().sqrt() / expected.std())
        print(f"parity, full, {dtype}: {error:.1e} RMS", flush=True)
        wrong += [f"full, {dtype}: {error:.1e} RMS > {bound}"] * (not error < bound)
    yield Parity("network", "; ".join(wrong))


@torch.no_grad()
def parity_of_case(index: int) -> tuple[str, str]:
    """Operation, and what is wrong with it: fresh random inputs, poisoned outputs, a reference in float64."""
    case = cases(4 * PATCH)[index]
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    torch.manual_seed(index)
    wrong = ""
    try:
        for dtype, tolerance in TOLERANCE.items():
            arguments, options = case.build(DEVICE, dtype)
            out = case.operation(*arguments, implementation="triton", **options)
            wide = [widened(value) for value in arguments]
            expected = case.operation(*wide, implementation="reference", **options)
            for error in map(norm_error, tensors_in(out), tensors_in(expected)):
                if not error <= tolerance:  # a NaN is wrong
                    wrong = wrong or f"{case.name}, {dtype}: {error:.1e} > {tolerance:.0e}"
    except Exception as error:
        wrong = f"{case.name}: {type(error).__name__}: {str(error)[:300]}"
    return case.operation.__name__, wrong


def widened(value: Any) -> Any:
    """Floating-point tensors in float64."""
    if isinstance(value, list):
        return [widened(part) for part in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def norm_error(out: Tensor, expected: Tensor) -> float:
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm().clamp(min=1e-30))


# ---- convolutions ----------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """A convolution of an image (inputs, height, width)."""

    inputs: int
    outputs: int
    kernel: int
    height: int
    width: int
    doubles: bool  # transposed, stride 2

    @property
    def flops(self) -> int:
        """Of one image."""
        return 2 * self.inputs * self.outputs * self.kernel**2 * self.height * self.width


class Convolutions(TorchDispatchMode):
    """Collects the convolutions of a call, and how many images went through each."""

    def __init__(self) -> None:
        super().__init__()
        self.images: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, doubles = args[0], args[1], args[6]
            if x.ndim == 4 and weight.shape[-1] > 1:
                outputs = weight.shape[1 if doubles else 0]
                self.images[Shape(x.shape[1], outputs, weight.shape[-1], *x.shape[2:], doubles)] += len(x)
        return func(*args, **(kwargs or {}))


def convolutions(count: int = 10) -> Iterator[Found]:
    """The folded convolutions with the most work in a step, as cuDNN runs them, and their sum a 256-px unit."""
    net = meta_network(torch.bfloat16)
    with Convolutions() as found:
        net(*meta_step(net.config, TILE))
    work = {shape: shape.flops * images for shape, images in found.images.items()}
    heaviest = sorted(work, key=work.__getitem__, reverse=True)[:count]
    total = 0.0
    for shape in heaviest:
        taken = measure_convolution(shape, found.images[shape])
        total += taken
        kind = "transposed conv" if shape.doubles else "conv"
        name = f"{kind} {shape.kernel}x{shape.kernel}, {shape.inputs} -> {shape.outputs}, {shape.height} px"
        yield Row(f"{name}, {found.images[shape]} patches", taken, "", flops=work[shape])
    flops, units = sum(work[shape] for shape in heaviest), (TILE // UNIT) ** 2
    share = f"{flops / sum(work.values()):.0%} of the convolutions' work"
    yield Row("these together, a 256-px unit", total / units, "", flops=flops / units, note=share)


def measure_convolution(shape: Shape, images: int) -> float:
    """Milliseconds for so many images, as many at a time as a few GB hold."""
    size = (shape.height, shape.width)
    batch = min(images, 2**30 // (max(shape.inputs, shape.outputs) * math.prod(size)))
    channels = (shape.inputs, shape.outputs) if shape.doubles else (shape.outputs, shape.inputs)
    x, weight = (
        torch.randn(each, device=DEVICE).to(torch.bfloat16, memory_format=torch.channels_last)
        for each in ((batch, shape.inputs, *size), (*channels, shape.kernel, shape.kernel))
    )
    if shape.doubles:
        run = functools.partial(torch.nn.functional.conv_transpose2d, x, weight, stride=2, padding=1)
    else:
        run = functools.partial(torch.nn.functional.conv2d, x, weight, padding=shape.kernel // 2)
    return milliseconds(run) * images / batch


# ---- the step --------------------------------------------------------------------------------------------------------


def step() -> Iterator[Found]:
    """A prediction at the published size, by units of 256 px, against the plain baseline under float16 autocast."""
    baseline, net = measure_baseline(512), network()
    yield Row(
        "plain baseline, float16 autocast, tiles of 256", baseline, "", flops=flops_of_baseline(), dtype="float16"
    )
    yield measure_step(net, TILE, "bfloat16", baseline)
    yield measure_step(net, TILE, "float16", baseline)
    yield measure_step(net, TILE, "bfloat16", baseline, how="launched one by one")
    os.environ["TERAMIND_KERNELS"] = "reference"
    yield measure_step(net, TILE, "bfloat16", baseline, how="references")
    os.environ["TERAMIND_KERNELS"] = ""
    for tile in (2048, 512):
        for dtype in HALF:
            yield measure_step(net, tile, dtype, baseline)
    yield measure_step(net, 512, "float32", baseline)


def measure_baseline(side: int) -> float:
    net = network()
    x, genes = region(net.config, side)
    t = torch.full((1,), 603, device=DEVICE)
    plain = PlainNetwork(net.config, net.state_dict())
    with torch.autocast(DEVICE, torch.float16):
        return once(lambda: plain.step(x, t, genes)) / (side // UNIT) ** 2


def measure_step(net: TeraMind, tile: int, dtype: str, baseline: float, how: str = "CUDA graph") -> Row:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    net = net.to(getattr(torch, dtype))
    x, genes = region(net.config, tile)
    t = torch.full((1,), 603, device=DEVICE)

    def work() -> Tensor:
        return net(x, t, genes)

    finite = bool(work().isfinite().all())
    run = captured(work) if how == "CUDA graph" else work
    units = (tile // UNIT) ** 2
    taken = milliseconds(run, 700) / units
    note = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" + ("" if finite else ", NOT FINITE")
    name = f"step of a 256-px unit, tile {tile}, {dtype}, {how}"
    ratios = {"baseline": baseline / taken}
    return Row(name, taken, "network", flops_of_step(tile), dtype=dtype, ratios=ratios, note=note)


@functools.cache
def flops_of_step(tile: int) -> float:
    net = meta_network(torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        net(*meta_step(net.config, tile))
    return counter.get_total_flops() / (tile // UNIT) ** 2


def flops_of_baseline() -> float:
    net = meta_network(torch.float32)
    with FlopCounterMode(display=False) as counter:
        PlainNetwork(net.config, net.state_dict()).predict(*meta_step(net.config, UNIT))
    return float(counter.get_total_flops())


def meta_network(dtype: torch.dtype) -> TeraMind:
    with torch.device("meta"):
        return TeraMind(ModelConfig()).to(dtype).eval()


def meta_step(config: ModelConfig, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    x, genes = region(config, tile, "meta")
    return x, torch.zeros(1, device="meta"), genes


def network() -> TeraMind:
    """The published size, every weight of which counts: blocks start as their skip connections."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        net = TeraMind(ModelConfig()).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return net


def region(config: ModelConfig, side: int, device: str = DEVICE) -> tuple[Tensor, Tensor]:
    """A noisy image and counts of a tile with its rim."""
    padded = side + PATCH
    x = torch.randn(1, config.stains, config.slices, padded, padded, device=device)
    counts = torch.rand(1, config.genes, config.gene_slices, padded // 16, padded // 16, device=device)
    return x, (-2 * counts.log()).floor()  # most bins hold 0 or 1


# ---- kernels ---------------------------------------------------------------------------------------------------------


def kernels() -> Iterator[Found]:
    """Every kernel against its reference, in bfloat16."""
    for case in cases(TILE):
        arguments, options = case.build(DEVICE, torch.bfloat16)
        moved = bytes_moved(arguments, case.operation(*arguments, implementation="triton", **options))
        taken = milliseconds(run_of(case, arguments, options, "triton"))
        ratios = {"eager": milliseconds(run_of(case, arguments, options, "reference")) / taken}
        yield Row(case.name, taken, case.operation.__name__, case.flops, moved, ratios=ratios)
        del arguments, options
        torch.cuda.empty_cache()


def compiled_kernels() -> Iterator[Found]:
    """References under torch.compile."""
    for case in cases(TILE):
        arguments, options = case.build(DEVICE, torch.bfloat16)
        torch.compiler.reset()
        try:
            run = torch.compile(run_of(case, arguments, options, "reference"))
            yield Row(f"{case.name}, compiled", milliseconds(run), "")
        except Exception as error:
            print(f"torch.compile, {case.name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
        del arguments, options
        torch.cuda.empty_cache()


def run_of(case: Case, arguments: Any, options: Any, implementation: str) -> Callable[[], object]:
    return lambda: case.operation(*arguments, implementation=implementation, **options)


def compiled_step() -> Iterator[Found]:
    """The candidate: torch.compile of the whole network, kernels of its own; it derives its weights at each call."""
    net = network().to(torch.bfloat16)
    x, genes = region(net.config, TILE)
    t = torch.full((1,), 603, device=DEVICE)
    run = torch.compile(net, fullgraph=True)
    run(x, t, genes)
    units = (TILE // UNIT) ** 2
    taken = milliseconds(captured(lambda: run(x, t, genes)), 700) / units
    yield Row(f"step of a 256-px unit, tile {TILE}, bfloat16, torch.compile", taken, "", flops_of_step(TILE))


def profile() -> Iterator[Found]:
    """Where a step's time goes: printed, the longest first."""
    net = network().to(torch.bfloat16)
    x, genes = region(net.config, TILE)
    t = torch.full((1,), 603, device=DEVICE)
    for _ in range(3):
        net(x, t, genes)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        net(x, t, genes)
        torch.cuda.synchronize()
    spent = sorted(profiler.key_averages(), key=lambda one: one.self_device_time_total, reverse=True)
    total = sum(one.self_device_time_total for one in spent)
    print(f"one step of a {TILE}-px tile: {total / 1e3:.1f} ms of kernels")
    for one in spent[:25]:
        print(f"  {one.self_device_time_total / total:6.1%} {one.count:5d} x  {one.key[:100]}")
    yield from ()


SECTIONS: dict[str, Callable[[], Iterator[Found]]] = {
    function.__name__: function
    for function in (ceilings, convolutions, parity, step, kernels, profile, compiled_kernels, compiled_step)
}
