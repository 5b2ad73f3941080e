"""What importing the package does, and from where."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import teramind

CHECKOUT = Path(__file__).parents[1]


def run(code, folder, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_is_quick_and_touches_nothing(tmp_path):
    """At most 0.3 s, best of five: the machine may be busy."""
    code = (
        "import os, sys, time; before = dict(os.environ); start = time.perf_counter(); import teramind; "
        "seconds = time.perf_counter() - start; assert dict(os.environ) == before; "
        "heavy = {'torch', 'zarr', 'numpy', 'triton', 'scipy'} & set(sys.modules); assert not heavy, heavy; "
        "print(seconds)"
    )
    results = [run(code, tmp_path) for _ in range(5)]
    assert all(result.returncode == 0 for result in results), results[0].stderr
    assert min(float(result.stdout) for result in results) < 0.3


@pytest.mark.parametrize("module", ["teramind._core", "teramind.kernels"])
def test_in_a_checkout_the_installed_parts_are_found(module):
    result = run(f"import {module}", CHECKOUT)
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there():
    for name in teramind.__all__:
        assert getattr(teramind, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        teramind.nothing  # noqa: B018


def test_generate_is_both_a_function_and_a_module():
    import teramind.generate as module
    from teramind.generate import generate

    assert callable(module)
    assert callable(teramind.generate)
    assert callable(generate)


def test_the_readme_names_every_command():
    from teramind.cli import COMMANDS

    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert all(f"teramind {verb}" in text or f"teramind.{verb}" in text for verb in COMMANDS)
