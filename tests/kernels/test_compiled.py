"""Every kernel compiled ahead of time for an A100 and an H100, with the constants it is launched with."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from kernel_cases import cases  # what is compiled here is what is measured there
from teramind import ModelConfig, TeraMind, kernels
from teramind.kernels import dispatch, launch
from teramind.kernels.dispatch import Verdict

triton = pytest.importorskip("triton", reason="Triton is not installed here")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia.compiler import CUDABackend  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

NORMS = {kernels.adaptive_norm, kernels.gather_norm_silu, kernels.modulated_silu}  # those of a step are compiled below
CASES = [case for case in cases(1024) if case.operation not in NORMS]
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Compiler:
    """Stands in for ``launch.start``: compiles what would be started, once each."""

    def __init__(self, architecture):
        self.target = GPUTarget("cuda", architecture, 32)
        self.kernels = []
        self._known = set()

    def start(self, kernel, grid, plan, **arguments):
        options = {
            "num_warps": plan.num_warps,
            "num_stages": plan.num_stages,
            "enable_fp_fusion": plan.fuse_multiply_add,
        }
        # Triton's own way from arguments to types, constants and alignments, as at a launch.
        backend = CUDABackend(self.target)
        bind = triton.runtime.jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, rest = bind(**arguments, **options, debug=False)
        _, signature, constants, attributes = kernel._pack_args(backend, dict(options), bound, specialization, rest)
        assert all(size > 0 for size in grid)
        source = ASTSource(kernel, signature, constants, attributes)
        if (key := source.hash()) not in self._known:
            self._known.add(key)
            self.kernels.append(triton.compile(source, target=self.target, options=options))


@pytest.fixture(params=[launch.AMPERE, launch.HOPPER], ids=["sm_80", "sm_90"])
def compiler(request, monkeypatch):
    compiler = Compiler(request.param)
    monkeypatch.setattr(dispatch, "can_run", lambda _: Verdict(True))
    monkeypatch.setattr(launch, "start", compiler.start)
    monkeypatch.setattr(launch, "architecture_of", lambda _: request.param)
    return compiler


def compile_case(compiler, case, dtype):
    arguments, options = case.build("meta", dtype)
    if "device" in options:
        options["device"] = "meta"
    case.operation(*arguments, implementation="triton", **options)
    [kernel] = compiler.kernels
    return kernel


def inspected(kernel, tmp_path, option):
    """What Triton's own cuobjdump says of the compiled code."""
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, binary], capture_output=True, text=True, check=True).stdout


def check_fits(kernel, architecture, tmp_path):
    assert kernel.metadata.shared <= SHARED_MEMORY[architecture]
    # Registers that do not fit are spilled to the stack.
    assert re.findall(r"STACK:(\d+)", inspected(kernel, tmp_path, "-res-usage")) == ["0"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_the_chip(compiler, tmp_path, case, dtype):
    kernel = compile_case(compiler, case, dtype)
    check_fits(kernel, compiler.target.arch, tmp_path)
    if dtype == torch.float32:
        assert "tf32" not in kernel.asm["ptx"]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(one, marks=pytest.mark.slow) for one in (torch.float32, torch.float16))]
)
def test_every_launch_of_a_step_fits_the_chip(compiler, tmp_path, dtype):
    """At the published size, whose launches do not depend on the region's."""
    with torch.device("meta"):
        net = TeraMind(ModelConfig()).to(dtype).eval()
    with torch.no_grad():
        net(empty(1, 2, 2, 192, 192, dtype=dtype), empty(1, dtype=torch.int64), empty(1, 229, 4, 12, 12, dtype=dtype))
    assert len(compiler.kernels) == 36
    for kernel in compiler.kernels:
        check_fits(kernel, compiler.target.arch, tmp_path)


def empty(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


# The widest a configuration can ask for, and channels that are no multiples of anything.
EXTREMES = {
    "512 x 512 image keys": lambda dtype: kernels.gene_morph_attention(
        *[empty(2, 16, 16, 8, 256, dtype=dtype)] * 2,
        empty(2, 8, 8, 8, 256, dtype=dtype),
        *[empty(256, dtype=dtype)] * 2,
        implementation="triton",
    ),
    "512 x 128 gene keys": lambda dtype: kernels.gene_morph_attention(
        empty(2, 16, 16, 8, 485, dtype=dtype),
        *[empty(2, 8, 8, 8, 485, dtype=dtype)] * 2,
        *[empty(485, dtype=dtype)] * 2,
        implementation="triton",
    ),
    "512 genes, 61 features": lambda dtype: kernels.gene_gene_attention(
        *[empty(2, 512, 61, dtype=dtype)] * 2, empty(61, dtype=dtype), implementation="triton"
    ),
    "1253 channels": lambda dtype: kernels.gather_norm_silu(
        [empty(2, 8, 8, 2, 512, dtype=dtype)] * 2,
        empty(2, 4, 4, 2, 229, dtype=dtype),
        empty(1253, dtype=dtype),
        concatenate=True,
        implementation="triton",
    ),
    "AdaLN of 4096 channels": lambda dtype: kernels.adaptive_norm(
        empty(2, 4, 4, 2, 4096, dtype=dtype),
        empty(4096, dtype=dtype),
        *[empty(2, 2, 2, 2, 4096, dtype=dtype)] * 2,
        implementation="triton",
    ),
}


# Arguments that are 1 are constants to Triton: other code than for larger ones.
ONES = {
    "adaptive_norm": lambda dtype: kernels.adaptive_norm(
        empty(1, 2, 2, 1, 1, dtype=dtype),
        empty(1, dtype=dtype),
        *[empty(1, 1, 1, 1, 1, dtype=dtype)] * 2,
        implementation="triton",
    ),
    "ddim_update": lambda dtype: kernels.ddim_update(
        *[empty(1, 1, 1, 1, 1, dtype=dtype)] * 2, 0.4, 0.5, state_dtype=torch.float16, implementation="triton"
    ),
    "dense_counts": lambda dtype: kernels.dense_counts(
        empty(3, 1, dtype=torch.int32), (1, 1, 1, 1), dtype=dtype, implementation="triton"
    ),
    "gather_norm_silu": lambda dtype: kernels.gather_norm_silu(
        [empty(2, 2, 2, 2, 1, 1, dtype=dtype)], None, empty(1, dtype=dtype), implementation="triton"
    ),
    "gene_attention_rows": lambda dtype: kernels.gene_attention_rows(
        empty(1, 1, 1, dtype=dtype), empty(1, dtype=dtype), empty(1, dtype=torch.int64), implementation="triton"
    ),
    "gene_gene_attention": lambda dtype: kernels.gene_gene_attention(
        *[empty(1, 1, 1, dtype=dtype)] * 2, empty(1, dtype=dtype), implementation="triton"
    ),
    "gene_morph_attention": lambda dtype: kernels.gene_morph_attention(
        empty(1, 4, 4, 1, 1, dtype=dtype),
        *[empty(1, 2, 2, 1, 1, dtype=dtype)] * 2,
        *[empty(1, dtype=dtype)] * 2,
        implementation="triton",
    ),
    "modulated_silu": lambda dtype: kernels.modulated_silu(
        empty(1, 1, 1, 1, 1, dtype=dtype),
        empty(1, dtype=dtype),
        *[empty(1, 1, dtype=dtype)] * 2,
        implementation="triton",
    ),
    "noise_field": lambda dtype: kernels.noise_field(
        1, 1, 1, 1, (1, 1, 1, 1), device="meta", dtype=dtype, implementation="triton"
    ),
    "philox_words": lambda _: kernels.philox_words(1, 1, 1, 1, (1, 1, 1, 1), device="meta", implementation="triton"),
}


@pytest.mark.parametrize("compiler", [launch.AMPERE], ids=["sm_80"], indirect=True)
def test_the_smallest_inputs_of_every_operation_compile(compiler):
    assert sorted(ONES) == kernels.__all__
    for smallest in ONES.values():
        smallest(torch.bfloat16)
    assert len(compiler.kernels) == len(ONES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_fit_the_chip(compiler, tmp_path, name, dtype):
    EXTREMES[name](dtype)
    [kernel] = compiler.kernels
    check_fits(kernel, compiler.target.arch, tmp_path)


@pytest.mark.parametrize("case", [case for case in CASES if "DDIM" in case.name], ids=lambda case: case.name)
def test_ddim_update_rounds_every_product(compiler, tmp_path, case):
    assert "FFMA" not in inspected(compile_case(compiler, case, torch.bfloat16), tmp_path, "-sass")


@pytest.mark.parametrize("case", [case for case in CASES if case.name == "noise"], ids=lambda case: case.name)
def test_noise_approximates_nothing(compiler, case):
    code = compile_case(compiler, case, torch.float32).asm["ptx"]
    assert "approx" not in code
    assert "sqrt.rn.f32" in code


@pytest.mark.parametrize("compiler", [launch.HOPPER], ids=["sm_90"], indirect=True)
@pytest.mark.parametrize("case", cases(1024), ids=lambda case: case.name)
def test_offsets_are_64_bit(compiler, case):
    """An offset of an address that depends on where the program stands or on an argument is of 64 bits."""
    kernel = compile_case(compiler, case, torch.bfloat16)
    definitions, narrow, arguments = {}, [], set()
    for line in kernel.asm["ttir"].splitlines():
        if "tt.func" in line:
            arguments = set(re.findall(r"(%[\w.]+): ", line))
        if match := re.match(r"\s*(%[\w#.]+)(?::\d+)? = (.*)", line):
            definitions[match[1]] = match[2]
        if pointer := re.search(r"tt\.addptr %[\w#.]+, (%[\w#.]+) : [^)]*?(i32|i64)>? loc", line):
            narrow += [pointer[1]] if pointer[2] == "i32" else []
    assert arguments
    for offset in narrow:
        origins = sources(offset, definitions)
        assert not origins & arguments
        assert not any("get_program_id" in origin for origin in origins)


def sources(value, definitions):
    """What a value is computed from: arguments, loop variables, and operations without operands."""
    definition = definitions.get(value)
    if definition is None:
        return {value}
    operands = re.findall(r"%[\w#.]+", definition.split(" : ")[0])
    return set().union(*(sources(operand, definitions) for operand in operands)) if operands else {definition}
