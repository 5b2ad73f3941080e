"""Everything that is measured on a GPU, in under 8 minutes: ``python bench/gpu.py``. Prints one table last.

1. Parity. Every kernel against its reference in float64 on fresh random inputs, with poisoned outputs; the network
   against the CPU in float32. A speed-up over something whose parity is red is refused, and the exit code is 1.
2. What is reachable: the ten heaviest folded convolutions of a 1024-px tile, as cuDNN runs them.
3. Every kernel against its reference, eager and under torch.compile, over the card's measured copy bandwidth or matrix
   rate.
4. The network's step at the published size, replayed as a CUDA graph.

Works from a checkout, installed or not; torch and Triton are all it needs.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
import teramind  # noqa: E402

teramind.__path__.append(str(ROOT))  # in a checkout that is not installed, the kernels stand beside the package

from kernel_cases import Case, bytes_moved, cases, tensors_in  # noqa: E402
from teramind.model.config import ModelConfig  # noqa: E402
from teramind.model.network import TeraMind  # noqa: E402

DEVICE = "cuda"
SECONDS = 8 * 60
TILE = 1024
UNITS = (TILE // 256) ** 2
UNITS_A_BRAIN = 118_404 * 25 * 15  # 256-px tiles x windows x steps
REACHABLE_MS = 4.5  # of convolutions a 256-px unit, for the target of the step to hold on an H200
PATCH = 64
# Relative errors, |out - ref| / |ref|: float32 is far from TF32's 3e-4; half types by their own rounding.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Row(NamedTuple):
    """A line of the table."""

    name: str
    milliseconds: float
    ratios: dict[str, float | None]  # baseline -> how many times faster; None where it was not measured
    share: str  # of a ceiling


class Ceilings(NamedTuple):
    """What the card does at best, measured."""

    copy: float  # bytes/s, read and written
    matmul: dict[torch.dtype, float]  # FLOP/s


# ---- time ------------------------------------------------------------------------------------------------------------


def milliseconds(work: Callable[[], object], budget: float = 60) -> float:
    """Median time of a call on the device, caches flushed between calls."""
    from triton.testing import do_bench

    return do_bench(work, warmup=20, rep=budget, return_mode="median")


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


def measure_ceilings() -> Ceilings:
    source = torch.randn(2**30, device=DEVICE)
    copy = 2 * source.numel() * 4 / milliseconds(source.clone) * 1e3
    side, rates = 8192, {}
    for dtype in (torch.bfloat16, torch.float16):
        a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
        rates[dtype] = 2 * side**3 / milliseconds(lambda a=a, b=b: a @ b) * 1e3
    return Ceilings(copy, rates)


# ---- parity ----------------------------------------------------------------------------------------------------------


def parity_of_kernels() -> dict[str, str]:
    """Operation -> what is wrong with it; nothing where all is well."""
    wrong = {}
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    for case in cases(4 * PATCH):
        for dtype, tolerance in TOLERANCE.items():
            arguments, options = case.build(DEVICE, dtype)
            out = case.operation(*arguments, implementation="triton", **options)
            wide = [widened(value) for value in arguments]
            expected = case.operation(*wide, implementation="reference", **options)
            for error in map(relative_error, tensors_in(out), tensors_in(expected)):
                if not error <= tolerance:  # a NaN is wrong
                    wrong[case.operation.__name__] = f"{case.name}, {dtype}: {error:.1e} > {tolerance:.0e}"
    torch.use_deterministic_algorithms(False)
    return wrong


def widened(value: Any) -> Any:
    """Floating-point tensors in float64."""
    if isinstance(value, list):
        return [widened(part) for part in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def relative_error(out: Tensor, expected: Tensor) -> float:
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm().clamp(min=1e-30))


def parity_of_network() -> dict[str, str]:
    """The network on the GPU in float32 against the CPU, and in half types against that."""
    net = filled(ModelConfig(genes=100, base_channels=32))
    x, genes = region(net.config, "cpu", torch.float32, 2 * PATCH)
    t = torch.tensor([603])
    with torch.no_grad():
        expected = net(x, t, genes)
        wrong = {}
        for dtype, bound in ((torch.float32, 2e-5), (torch.float16, 2e-2), (torch.bfloat16, 2e-1)):
            out = net.to(DEVICE, dtype)(x.to(DEVICE), t.to(DEVICE), genes.to(DEVICE)).float().cpu()
            error = float((out - expected).abs().max() / expected.std())
            print(f"network, {dtype}: largest error {error:.1e} of the standard deviation, bound {bound:.0e}")
            if not error <= bound:
                wrong["network"] = f"{dtype}: {error:.1e} > {bound:.0e} of the standard deviation"
    return wrong


def filled(config: ModelConfig) -> TeraMind:
    """A network whose every weight counts: blocks start as their skip connections."""
    torch.manual_seed(0)
    net = TeraMind(config).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return net


def region(config: ModelConfig, device: str, dtype: torch.dtype, side: int) -> tuple[Tensor, Tensor]:
    """A noisy image and counts of a tile with its rim."""
    padded = side + PATCH
    x = torch.randn(1, config.stains, config.slices, padded, padded, device=device).to(dtype)
    counts = torch.rand(1, config.genes, config.gene_slices, padded // 16, padded // 16, device=device)
    return x, (-2 * counts.log()).floor().to(dtype)  # most bins hold 0 or 1


# ---- convolutions ----------------------------------------------------------------------------------------------------


class Convolutions(TorchDispatchMode):
    """Collects the convolutions of a call: (input channels, output channels, kernel, height, width) -> patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight = args[:2]
            if x.ndim == 4 and weight.shape[-1] > 1:
                self.patches[(x.shape[1], *weight.shape[:1], *weight.shape[2:], *x.shape[2:])] += len(x)
        return func(*args, **(kwargs or {}))


def heaviest_convolutions(ceiling: float, count: int = 10) -> list[Row]:
    """Time of the ten folded convolutions with the most work, channels filled up to multiples of 16."""
    with torch.device("meta"):
        net = TeraMind(ModelConfig()).to(torch.bfloat16).eval()
    with torch.no_grad(), Convolutions() as found:
        net(*meta_step(net.config, TILE))
    work = {shape: 2 * patches * math.prod(shape) for shape, patches in found.patches.items()}
    heaviest = sorted(work, key=work.__getitem__, reverse=True)[:count]
    rows = []
    for shape in heaviest:
        taken = measure_convolution(shape, found.patches[shape])
        inputs, outputs, height, width, side, _ = shape
        name = f"conv {height}x{width}, {inputs} -> {outputs}, {side} px, {found.patches[shape]} patches"
        rows.append(Row(name, taken, {}, f"{work[shape] / taken * 1e3 / ceiling:.0%} of matmul"))
    share = sum(work[shape] for shape in heaviest) / sum(work.values())
    unit = sum(row.milliseconds for row in rows) / UNITS
    verdict = "reachable" if unit <= REACHABLE_MS else "out of reach with these convolutions"
    name = f"all ten, a 256-px unit ({share:.0%} of the folded work)"
    return [*rows, Row(name, unit, {}, f"at most {REACHABLE_MS} ms: {verdict}")]


def measure_convolution(shape: tuple[int, ...], patches: int) -> float:
    """Milliseconds for so many patches, as many at a time as a few GB hold."""
    inputs, outputs = (-(-channels // 16) * 16 for channels in shape[:2])
    kernel, size = shape[2:4], shape[4:]
    batch = min(patches, 2**30 // (max(inputs, outputs) * math.prod(size)))
    x, weight = (
        torch.randn(each, device=DEVICE).to(torch.bfloat16, memory_format=torch.channels_last)
        for each in ((batch, inputs, *size), (outputs, inputs, *kernel))
    )
    padding = 1 if kernel[0] == 3 else 0
    return milliseconds(lambda: torch.nn.functional.conv2d(x, weight, padding=padding)) * patches / batch


def meta_step(config: ModelConfig, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    x, genes = region(config, "meta", torch.bfloat16, tile)
    return x, torch.zeros(1, device="meta"), genes


# ---- kernels ---------------------------------------------------------------------------------------------------------


def measure_kernel(case: Case, ceilings: Ceilings, *, compiled: bool) -> Row:
    arguments, options = case.build(DEVICE, torch.bfloat16)
    moved = bytes_moved(arguments, case.operation(*arguments, implementation="triton", **options))

    def run(implementation: str) -> Callable[[], object]:
        return lambda: case.operation(*arguments, implementation=implementation, **options)

    taken = milliseconds(run("triton"))
    ratios: dict[str, float | None] = {"eager": milliseconds(run("reference")) / taken, "compiled": None}
    if compiled:
        torch.compiler.reset()
        try:
            ratios["compiled"] = milliseconds(torch.compile(run("reference"))) / taken
        except Exception as error:
            print(f"torch.compile: {case.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    share = f"{moved / taken * 1e3 / ceilings.copy:.0%} of copy"
    if not case.is_memory_bound:
        share = f"{case.flops / taken * 1e3 / ceilings.matmul[torch.bfloat16]:.0%} of matmul, {share}"
    return Row(case.name, taken, ratios, share)


# ---- the step --------------------------------------------------------------------------------------------------------


def measure_step(tile: int, dtype: torch.dtype, ceilings: Ceilings) -> Row:
    """One prediction of a tile at the published size, by units of 256 px."""
    units = (tile // 256) ** 2
    net = filled(ModelConfig()).to(DEVICE, dtype)
    x, genes = region(net.config, DEVICE, dtype, tile)
    t = torch.full((1,), 603, device=DEVICE)
    with torch.device("meta"):
        plain = TeraMind(net.config).to(dtype).eval()
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            plain(*meta_step(net.config, tile))
        replay = captured(lambda: net(x, t, genes))
    taken = milliseconds(replay, 1000) / units
    flops = counter.get_total_flops() / units
    hours = UNITS_A_BRAIN * taken / 3.6e6
    share = f"{flops / taken * 1e3 / ceilings.matmul[dtype]:.0%} of matmul; a brain {hours:.0f} h"
    name = f"step of a 256-px unit, tile {tile}, {str(dtype).removeprefix('torch.')}, {flops / 1e9:.0f} GFLOP"
    return Row(name, taken, {}, share)


# ---- report ----------------------------------------------------------------------------------------------------------


def print_table(sections: dict[str, list[Row]], wrong: dict[str, str], operations: dict[str, str]) -> None:
    """``operations`` says which operation's parity a row stands on."""
    print(f"\n{'':<76} {'ms':>9} {'x eager':>8} {'x comp.':>8}")
    for title, rows in sections.items():
        print(title)
        for row in rows:
            is_red = operations.get(row.name, "network" if row.name.startswith("step") else "") in wrong
            ratios = [row.ratios.get(baseline) for baseline in ("eager", "compiled")]
            cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            share = row.share
            if is_red:
                cells, share = ["refused", "refused"], "its parity is red"
            print(f"  {row.name:<74} {row.milliseconds:>9.3f} {cells[0]:>8} {cells[1]:>8}  {share}")
    for name, what in wrong.items():
        print(f"PARITY IS RED: {name}: {what}")


def describe() -> str:
    import triton

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Triton {triton.__version__}, cuDNN {torch.backends.cudnn.version()}, commit {commit or 'unknown'}"
    )


def main() -> int:
    if not torch.cuda.is_available() or torch.version.cuda is None:
        print("There is no NVIDIA GPU here: nothing was measured.", file=sys.stderr)
        return 2
    begin = time.perf_counter()

    def is_late(share: float) -> bool:
        """Whether more than a share of the time is used up."""
        return time.perf_counter() - begin > share * SECONDS

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(describe())
    wrong = parity_of_kernels() | parity_of_network()
    ceilings = measure_ceilings()
    rates = ", ".join(f"{str(dtype)[6:]} matmul {rate / 1e12:.0f} TFLOP/s" for dtype, rate in ceilings.matmul.items())
    print(f"copy {ceilings.copy / 1e12:.2f} TB/s, {rates}")
    convolutions = heaviest_convolutions(ceilings.matmul[torch.bfloat16])
    torch.cuda.empty_cache()
    steps, kernels, operations = [], [], {}
    for tile in (512, 1024, 2048):
        for dtype in (torch.bfloat16, torch.float16):
            if not is_late(0.6):
                steps.append(measure_step(tile, dtype, ceilings))
                torch.cuda.empty_cache()
    for case in cases(TILE):
        if not is_late(0.95):
            operations[case.name] = case.operation.__name__
            kernels.append(measure_kernel(case, ceilings, compiled=not is_late(0.85)))
            torch.cuda.empty_cache()
    print_table({"convolutions": convolutions, "kernels, bfloat16": kernels, "network": steps}, wrong, operations)
    print(f"{time.perf_counter() - begin:.0f} s; what is not in the table was not measured")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
