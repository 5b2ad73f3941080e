"""What ``bench/gpu.py`` measures, a section a process: each function yields what it finds as it finds it."""

from __future__ import annotations

import functools
import math
import multiprocessing
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import groupby, product
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu_setting import (
    ON_GPU,
    SETTING,
    captured,
    free_memory,
    milliseconds,
    once,
    peak_gigabytes,
    prepare_worker,
    searching,
    synchronize,
)
from plain_baseline import PlainNetwork
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kernel_cases import Case, bytes_moved, cases, tensors_in
from parity_data import Fixture, relative_error
from teramind.diffusion.sampling import sample
from teramind.model.config import BIN_SIZE, ModelConfig
from teramind.model.network import TeraMind
from teramind.model.policy import POLICIES

DEVICE, UNIT = SETTING.device, SETTING.unit
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
    """Whether an operation, or the network in a type ("network float32"), gives what it should."""

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


# ---- ceilings --------------------------------------------------------------------------------------------------------


def ceilings() -> Iterator[Found]:
    source = torch.randn(SETTING.copied, device=DEVICE)
    yield Ceiling("copy", 2 * source.numel() * 4 / milliseconds(source.clone, 200) * 1e3)
    side = SETTING.matrix_side
    for dtype in HALF:
        a, b = (torch.randn(side, side, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2))
        yield Ceiling(dtype, 2 * side**3 / milliseconds(lambda a=a, b=b: a @ b, 300) * 1e3)


# ---- parity ----------------------------------------------------------------------------------------------------------


def parity() -> Iterator[Found]:
    """The network, then every operation; compiling spreads over processes, and fills Triton's cache for all."""
    checks: list[Callable[[], Parity]] = [
        functools.partial(parity_of_network, name, torch.float32) for name in SETTING.fixtures
    ]
    if SETTING.half_fixture:
        checks += [functools.partial(parity_of_network, SETTING.half_fixture, dtype) for dtype in HALF_RMS]
    checks += [functools.partial(parity_of_case, index) for index in range(len(cases(SETTING.parity_tile)))]
    for operation, found in groupby(in_processes(checks), key=lambda one: one.operation):
        yield Parity(operation, "; ".join(one.wrong for one in found if one.wrong))


def in_processes(tasks: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """What the tasks give, in their order, each run in one of several processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), context, prepare_worker) as pool:
        yield from pool.map(operator.call, tasks)


def parity_of_network(name: str, dtype: torch.dtype) -> Parity:
    """The network on its kernels and on the references, against arrays computed with the authors' code."""
    try:
        wrong = errors_of_network(name, dtype)
    except Exception as error:
        wrong = [f"{name}, {dtype}: {described(error)}"]
    return Parity(network_in(dtype), "; ".join(wrong))


def network_in(dtype: torch.dtype) -> str:
    """What the parity of the network in a type is called."""
    return f"network {str(dtype).removeprefix('torch.')}"


def errors_of_network(name: str, dtype: torch.dtype) -> list[str]:
    """What is not as near as it has to be: the largest error in float32, the RMS error in half types."""
    fixture = Fixture(name)
    net = fixture.network().to(DEVICE, dtype)
    inputs = fixture["x"].to(DEVICE), torch.tensor([603], device=DEVICE), fixture["genes"].to(DEVICE)
    expected = fixture["eps_boundary_t603"]
    wrong = []
    for how in ("", "reference") if dtype == torch.float32 else ("",):
        with mock.patch.dict(os.environ, TERAMIND_KERNELS=how):
            eps = net(*inputs).float().cpu()
        if dtype == torch.float32:
            error, bound = relative_error(eps, expected), ONE_PASS
        else:
            error, bound = float((eps - expected).square().mean().sqrt() / expected.std()), HALF_RMS[dtype]
        wrong += judged(f"{name}, {dtype}, {how or 'kernels'}", error, bound)
    if dtype == torch.float32 and "ddim_final" in fixture.arrays:
        final = sample(net, fixture["ddim_genes"], noise=fixture["ddim_noise"], tile=64)
        wrong += judged(f"{name}, 15 steps", relative_error(final.cpu(), fixture["ddim_final"]), AFTER_DDIM)
    return wrong


def judged(what: str, error: float, bound: float) -> list[str]:
    """Print an error, and give it back where it is too large; a NaN is."""
    print(f"parity, {what}: {error:.1e}", flush=True)
    return [] if error < bound else [f"{what}: {error:.1e} > {bound:.0e}"]


def described(error: Exception) -> str:
    """Kind and beginning of an error."""
    return f"{type(error).__name__}: {str(error)[:300]}"


def parity_of_case(index: int) -> Parity:
    """An operation on fresh random inputs, its outputs poisoned, against its reference in float64."""
    case = cases(SETTING.parity_tile)[index]
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    torch.manual_seed(index)
    wrong: list[str] = []
    try:
        for dtype in TOLERANCE:
            arguments, options = case.build(DEVICE, dtype)
            out = case.operation(*arguments, implementation=SETTING.kernels, **options)
            wide = [widened(value) for value in arguments]
            expected = case.operation(*wide, implementation="reference", **options)
            for one, reference in zip(tensors_in(out), tensors_in(expected), strict=True):
                tolerance = max(TOLERANCE[dtype], TOLERANCE.get(one.dtype, 0))
                if not (error := norm_error(one, reference)) <= tolerance:  # a NaN is wrong
                    wrong.append(f"{case.name}, {dtype}: {error:.1e} > {tolerance:.0e}")
    except Exception as error:
        wrong.append(f"{case.name}: {described(error)}")
    finally:
        torch.use_deterministic_algorithms(False)
    return Parity(case.operation.__name__, "; ".join(wrong))


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
        self.calls: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, doubles = args[0], args[1], args[6]
            if x.ndim == 4 and weight.shape[-1] > 1:
                outputs = weight.shape[1 if doubles else 0]
                shape = Shape(x.shape[1], outputs, weight.shape[-1], *x.shape[2:], doubles)
                self.images[shape] += len(x)
                self.calls[shape] += 1
        return func(*args, **(kwargs or {}))


def convolutions(count: int = 10) -> Iterator[Found]:
    """All folded convolutions of a step as cuDNN runs them, those with the most work one by one, and their sum a unit.

    Beside each of these stand three of half the channels, as slices in pairs would take.
    """
    net = meta_network(torch.bfloat16)
    with Convolutions() as found:
        net(*step_inputs(SETTING.tile, "meta"))
    work = {shape: shape.flops * images for shape, images in found.images.items()}
    units = (SETTING.tile // UNIT) ** 2
    total = fastest = 0.0
    for number, shape in enumerate(sorted(work, key=work.__getitem__, reverse=True)):
        images, calls = found.images[shape], found.calls[shape]
        taken = measure_convolution(shape, images, calls)
        with searching():
            searched = measure_convolution(shape, images, calls)
        total, fastest = total + taken, fastest + min(taken, searched)
        if number < count:
            halves = shape._replace(inputs=shape.inputs // 2, outputs=shape.outputs // 2)
            paired = 3 * measure_convolution(halves, images, calls)
            kind = "transposed conv" if shape.doubles else "conv"
            name = f"{kind} {shape.kernel}x{shape.kernel}, {shape.inputs} -> {shape.outputs}, {shape.height} px"
            note = f"in pairs {paired:.3f} ms, cudnn.benchmark {searched:.3f} ms"
            yield Row(f"{name}, {images} patches", taken, "", flops=work[shape], note=note)
    flops, share = sum(work.values()) / units, sum(sorted(work.values())[-count:]) / sum(work.values())
    yield Row(f"all {len(work)}, a {UNIT}-px unit, cudnn.benchmark", fastest / units, "", flops=flops)
    yield Row(f"all {len(work)}, a {UNIT}-px unit", total / units, "", flops=flops, note=f"{share:.0%} in those above")


def measure_convolution(shape: Shape, images: int, calls: int) -> float:
    """Milliseconds for so many images in so many calls."""
    size = (shape.height, shape.width)
    batch = -(-images // calls)
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
    """A prediction at the published size, by units, against the plain baseline under float16 autocast."""
    tile, baseline, net = SETTING.tile, measure_baseline(), network()
    dtype = SETTING.baseline_type
    yield Row(f"plain baseline, {dtype} autocast, tiles of {UNIT}", baseline, "", flops_of_baseline(), dtype=dtype)
    yield measure_step(net, tile, "bfloat16", baseline)
    yield measure_step(net, tile, "float16", baseline)
    yield measure_step(net, tile, "bfloat16", baseline, how="launched one by one")
    with mock.patch.dict(os.environ, TERAMIND_KERNELS="reference"):
        references = measure_step(net, tile, "bfloat16", baseline, how="references")
    yield references
    with mock.patch.dict(POLICIES, {DEVICE: replace(POLICIES[DEVICE], pairs_slices=True)}):
        yield measure_step(net, tile, "bfloat16", baseline, how="slices in pairs")
    with searching():
        yield measure_step(net, tile, "bfloat16", baseline, how="CUDA graph, cudnn.benchmark")
    for other, dtype in product(SETTING.other_tiles, HALF):
        yield measure_step(net, other, dtype, baseline)
    yield measure_step(net, min((tile, *SETTING.other_tiles)), "float32", baseline)


def measure_baseline() -> float:
    """Milliseconds of a unit; with cuDNN's fastest algorithms, which the network does without."""
    net, side = network(), SETTING.baseline_side
    # Parameters, not what state_dict gives: autocast casts those once, not at each use.
    plain = PlainNetwork(net.config, dict(net.named_parameters()))
    inputs = step_inputs(side)
    with searching(), torch.autocast(DEVICE, getattr(torch, SETTING.baseline_type)):
        return once(lambda: plain.step(*inputs, tile=UNIT)) / (side // UNIT) ** 2


def measure_step(net: TeraMind, tile: int, dtype: str, baseline: float, how: str = "CUDA graph") -> Row:
    free_memory()
    net = net.to(getattr(torch, dtype))
    inputs = step_inputs(tile)

    def work() -> Tensor:
        return net(*inputs)

    finite = bool(work().isfinite().all())
    run = captured(work) if how.startswith("CUDA graph") else work
    units = (tile // UNIT) ** 2
    taken = milliseconds(run, 700) / units
    note = f"{peak_gigabytes():.1f} GB" + ("" if finite else ", NOT FINITE")
    name = f"step of a {UNIT}-px unit, tile {tile}, {dtype}, {how}"
    ratios = {"baseline": baseline / taken}
    operation = network_in(getattr(torch, dtype))
    return Row(name, taken, operation, flops_of_step(tile), dtype=dtype, ratios=ratios, note=note)


@functools.cache
def flops_of_step(tile: int) -> float:
    net = meta_network(torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        net(*step_inputs(tile, "meta"))
    return counter.get_total_flops() / (tile // UNIT) ** 2


def flops_of_baseline() -> float:
    net = meta_network(torch.float32)
    with FlopCounterMode(display=False) as counter:
        PlainNetwork(net.config, net.state_dict()).predict(*step_inputs(UNIT, "meta"))
    return float(counter.get_total_flops())


def meta_network(dtype: torch.dtype) -> TeraMind:
    with torch.device("meta"):
        return TeraMind(SETTING.config).to(dtype).eval()


def network() -> TeraMind:
    """Every weight of it counts: blocks start as their skip connections."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        net = TeraMind(SETTING.config).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return net


def step_inputs(tile: int, device: str = DEVICE, config: ModelConfig = SETTING.config) -> tuple[Tensor, Tensor, Tensor]:
    """A noisy image of a tile with its rim, a timestep, and counts."""
    side = tile + config.patch_size
    x = torch.randn(1, config.stains, config.slices, side, side, device=device)
    bins = (config.genes, config.gene_slices, side // BIN_SIZE, side // BIN_SIZE)
    return x, torch.full((1,), 603, device=device), torch.randint(0, 4, (1, *bins), device=device)


# ---- kernels ---------------------------------------------------------------------------------------------------------


def kernels() -> Iterator[Found]:
    """Every kernel against its reference, in bfloat16."""
    for case in cases(SETTING.case_tile):
        arguments, options = case.build(DEVICE, torch.bfloat16)
        moved = bytes_moved(arguments, case.operation(*arguments, implementation=SETTING.kernels, **options))
        taken = milliseconds(run_of(case, arguments, options, SETTING.kernels))
        ratios = {"eager": milliseconds(run_of(case, arguments, options, "reference")) / taken}
        yield Row(case.name, taken, case.operation.__name__, case.flops, moved, ratios=ratios)
        del arguments, options
        free_memory()


def compiled_kernels() -> Iterator[Found]:
    """References under torch.compile, which compiles in several processes and keeps what it made."""
    indices = range(len(cases(SETTING.case_tile)))
    failures = list(in_processes([functools.partial(compile_case, index) for index in indices]))
    for index, failure in zip(indices, failures, strict=True):
        if failure:
            print(failure, flush=True)
            continue
        name, run = compiled_case(index)
        yield Row(f"{name}, compiled", milliseconds(run), "")
        del run
        free_memory()


def compile_case(index: int) -> str:
    """Compile a reference; what went wrong."""
    try:
        compiled_case(index)[1]()
    except Exception as error:
        return f"torch.compile, {cases(SETTING.case_tile)[index].name}: {described(error)}"
    return ""


def compiled_case(index: int) -> tuple[str, Callable[[], object]]:
    """Name and call of a reference under torch.compile."""
    case = cases(SETTING.case_tile)[index]
    arguments, options = case.build(DEVICE, torch.bfloat16)
    torch.compiler.reset()
    return case.name, torch.compile(run_of(case, arguments, options, "reference"), backend=SETTING.backend)


def run_of(case: Case, arguments: Any, options: Any, implementation: str) -> Callable[[], object]:
    return lambda: case.operation(*arguments, implementation=implementation, **options)


def compiled_step() -> Iterator[Found]:
    """The candidate: torch.compile of the whole network, kernels of its own; it derives its weights at each call."""
    net, inputs = network().to(torch.bfloat16), step_inputs(SETTING.tile)
    run = torch.compile(net, fullgraph=True, backend=SETTING.backend)
    run(*inputs)
    units = (SETTING.tile // UNIT) ** 2
    taken = milliseconds(captured(lambda: run(*inputs)), 700) / units
    name = f"step of a {UNIT}-px unit, tile {SETTING.tile}, bfloat16, torch.compile"
    yield Row(name, taken, "", flops_of_step(SETTING.tile))


def profile() -> Iterator[Found]:
    """Where a step's time goes: printed, the longest first."""
    net, inputs = network().to(torch.bfloat16), step_inputs(SETTING.tile)
    for _ in range(3):
        net(*inputs)
    activity = torch.profiler.ProfilerActivity.CUDA if ON_GPU else torch.profiler.ProfilerActivity.CPU
    synchronize()
    with torch.profiler.profile(activities=[activity]) as profiler:
        net(*inputs)
        synchronize()
    spent = sorted(profiler.key_averages(), key=microseconds, reverse=True)
    total = sum(map(microseconds, spent)) or math.nan
    print(f"one step of a {SETTING.tile}-px tile: {total / 1e3:.1f} ms of kernels")
    for one in spent[:25]:
        print(f"  {microseconds(one) / total:6.1%} {one.count:5d} x  {one.key[:100]}")
    yield from ()


def microseconds(event: Any) -> float:
    return float(event.self_device_time_total if ON_GPU else event.self_cpu_time_total)


SECTIONS: dict[str, Callable[[], Iterator[Found]]] = {
    function.__name__: function
    for function in (ceilings, convolutions, parity, step, kernels, profile, compiled_kernels, compiled_step)
}
