"""Kernels and references, one call each: ``pytest bench/kernels --benchmark-only``, on the device there is.

On a GPU the calls are those of a 1024-px tile in bfloat16. On a CPU, where kernels cannot run, the references are
measured on a 128-px tile in float32.
"""

import pytest
import torch

from kernel_cases import bytes_moved, cases

ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE, TILE = ("cuda", torch.bfloat16, 1024) if ON_GPU else ("cpu", torch.float32, 128)


@pytest.mark.parametrize(
    "implementation",
    ["reference", pytest.param("triton", marks=pytest.mark.skipif(not ON_GPU, reason="no GPU: kernels cannot run"))],
)
@pytest.mark.parametrize("case", cases(TILE), ids=lambda case: case.name)
def test_speed(benchmark, case, implementation):
    arguments, options = case.build(DEVICE, DTYPE)

    def call():
        result = case.operation(*arguments, implementation=implementation, **options)
        if ON_GPU:
            torch.cuda.synchronize()
        return result

    benchmark.group = case.name
    with torch.no_grad():
        moved = bytes_moved(arguments, call())
        benchmark(call)
    benchmark.extra_info |= {"bytes": moved, "flops": case.flops, "device": DEVICE, "dtype": str(DTYPE)}
