import logging
import subprocess
import sys

import pytest
import torch

from teramind.errors import InputError
from teramind.kernels import dispatch
from teramind.kernels.dispatch import Verdict, use_triton
from teramind.kernels.modulation import modulated_silu

X = torch.ones(2, 3, 3, 1, 4)
ARGUMENTS = (X, torch.ones(4), torch.ones(2, 4), torch.ones(2, 4))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("TERAMIND_KERNELS", raising=False)
    dispatch._log_once.cache_clear()
    runs_on = dispatch._runs_on
    runs_on.cache_clear()
    yield
    runs_on.cache_clear()


@pytest.fixture
def _anywhere(monkeypatch):
    """As if the kernels could run on every tensor."""
    monkeypatch.setattr(dispatch, "can_run", lambda _: Verdict(True))


def test_import_is_free():
    code = (
        "import sys, teramind.kernels, teramind.kernels.dispatch\n"
        "import torch\n"
        "sys.exit('triton' in sys.modules or torch.cuda.is_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_operations_are_found_from_the_package():
    import teramind.kernels as package

    assert all(callable(getattr(package, name)) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_without_triton_the_references_run():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, teramind.kernels as kernels\n"
        "for name in kernels.__all__: getattr(kernels, name)\n"
        "kernels.noise_field(1, 0, 0, 0, (1, 1, 2, 5), device='cpu')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_automatic_choice_falls_back_and_says_why_once(caplog):
    with caplog.at_level(logging.DEBUG, logger="teramind.kernels.dispatch"):
        for _ in range(3):
            modulated_silu(*ARGUMENTS)
    assert [record.getMessage() for record in caplog.records] == [
        "modulated_silu runs on its plain-torch reference: the tensors are on cpu, not on an NVIDIA GPU"
    ]


def test_explicit_choice_fails_loudly():
    with pytest.raises(InputError, match="modulated_silu cannot run on its Triton kernels: the tensors are on cpu"):
        modulated_silu(*ARGUMENTS, implementation="triton")


def test_explicit_reference_says_nothing(caplog):
    with caplog.at_level(logging.INFO):
        modulated_silu(*ARGUMENTS, implementation="reference")
    assert not caplog.records


@pytest.mark.usefixtures("_anywhere")
def test_environment_forces_the_reference(monkeypatch):
    assert use_triton("op", None, ARGUMENTS, Verdict(True))
    monkeypatch.setenv("TERAMIND_KERNELS", "reference")
    assert not use_triton("op", None, ARGUMENTS, Verdict(True))
    with pytest.raises(InputError, match="TERAMIND_KERNELS=reference forbids it"):
        use_triton("op", "triton", ARGUMENTS, Verdict(True))


def test_unknown_choices_are_refused(monkeypatch):
    with pytest.raises(InputError, match="implementation is 'cuda'"):
        modulated_silu(*ARGUMENTS, implementation="cuda")
    monkeypatch.setenv("TERAMIND_KERNELS", "triton")
    with pytest.raises(InputError, match="TERAMIND_KERNELS is 'triton'"):
        modulated_silu(*ARGUMENTS)


@pytest.mark.usefixtures("_anywhere")
def test_limits_of_an_operation_count():
    assert not use_triton("op", None, ARGUMENTS, Verdict(False, "too wide"))
    with pytest.raises(InputError, match="op cannot run on its Triton kernels: too wide"):
        use_triton("op", "triton", ARGUMENTS, Verdict(False, "too wide"))


@pytest.mark.parametrize(
    ("capability", "version", "tensors", "reason"),
    [
        ((8, 0), "13.0", (X,), ""),
        ((7, 5), "13.0", (X,), "cuda:1 has compute capability 7.5; they need 8.0"),
        ((9, 0), None, (X,), "the tensors are on cuda:1, not on an NVIDIA GPU"),
        ((9, 0), "13.0", (X.double(),), "they do not compute in torch.float64"),
        ((9, 0), "13.0", (X.clone().requires_grad_(),), "they have no backward pass"),
        ((9, 0), "13.0", (X, X.to("meta")), "on several devices"),
    ],
)
def test_verdict_on_tensors(monkeypatch, capability, version, tensors, reason):
    runs_on = dispatch._runs_on
    monkeypatch.setattr(dispatch, "_runs_on", lambda _: runs_on(torch.device("cuda:1")))
    monkeypatch.setattr(dispatch, "capability_of", lambda _: capability)
    monkeypatch.setattr(torch.version, "cuda", version)
    verdict = dispatch.can_run(tensors)
    assert verdict.ok == (not reason)
    assert reason in verdict.reason


def test_the_interpreter_starts_from_poisoned_memory(interpreter):
    assert interpreter.submit(torch.empty, 3).result().isnan().all()
