"""Training goes on exactly where it stopped, and files say what they are."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from teramind.errors import ComputationError, InputError
from teramind.impute.model_files import read_tensors, write_tensors
from teramind.impute.training import TrainingOptions, train


class KilledError(Exception):
    pass


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 7), nn.Dropout(0.3), nn.SiLU(), nn.LayerNorm(7), nn.Linear(7, 1))


def run(options, state=None, resume=False, stop=None):
    net, calls = small_net(), []

    def loss(generator):
        calls.append(1)
        if stop is not None and len(calls) > stop:
            raise KilledError
        x = torch.randn(options.batch, 3, generator=generator)
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    losses = train(net, loss, options, state, resume=resume)
    return losses, net.state_dict(), len(calls)


@pytest.mark.parametrize("stop", [1, 7, 12, 18])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, stop):
    options = TrainingOptions(steps=19, batch=13, save_every=5)
    expected, weights, _ = run(options)
    state = tmp_path / "state.safetensors"
    with pytest.raises(KilledError):
        run(options, state, stop=stop)
    torch.manual_seed(99)  # whatever happened to the global generator in between
    losses, again, calls = run(options, state, resume=True)
    assert losses == expected
    assert calls == 19 - stop // 5 * 5
    for name, value in weights.items():
        assert torch.equal(again[name], value)


def test_a_finished_run_is_not_trained_again(tmp_path):
    options = TrainingOptions(steps=6, batch=5)
    state = tmp_path / "state.safetensors"
    expected = run(options, state)
    losses, weights, calls = run(options, state, resume=True)
    assert calls == 0
    assert losses == expected[0]
    assert all(torch.equal(weights[name], value) for name, value in expected[1].items())


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    options = TrainingOptions(steps=3, batch=5)
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    torch.manual_seed(5)
    train(net, lambda generator: net(torch.randn(5, 3, generator=generator)).square().mean(), options)
    assert torch.equal(torch.rand(3), expected)


def test_other_options_or_networks_are_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    run(TrainingOptions(steps=5, batch=5), state)
    with pytest.raises(InputError, match="batch 5"):
        run(TrainingOptions(steps=5, batch=6), state, resume=True)
    other = nn.Linear(2, 2)
    with pytest.raises(InputError, match="another shape"):
        train(other, lambda _: other.weight.sum(), TrainingOptions(steps=5, batch=5), state, resume=True)


def test_a_state_that_lacks_something_is_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    options = TrainingOptions(steps=5, batch=5)
    run(options, state)
    tensors, header = read_tensors(state, "training")
    del tensors["losses"]
    write_tensors(state, "training", tensors, {"options": header["options"]})
    with pytest.raises(InputError, match="lacks the tensor 'losses'"):
        run(options, state, resume=True)


def test_a_loss_that_is_no_number_stops():
    net = small_net()
    with pytest.raises(ComputationError, match="nan at step 0"):
        train(net, lambda _: net[0].weight.sum() * float("nan"), TrainingOptions(steps=5))


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("batch", 1.5), ("learning_rate", -1), ("average", 1.0), ("seed", -1)]
)
def test_options_that_cannot_be(name, value):
    with pytest.raises(InputError, match=name):
        TrainingOptions(**{name: value})


def test_files_are_checked(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, "types", {"a": torch.arange(3)}, {"more": 1})
    tensors, header = read_tensors(path, "types")
    assert torch.equal(tensors["a"], torch.arange(3))
    assert header == {"format": "teramind-impute", "version": 1, "kind": "types", "more": 1}
    with pytest.raises(InputError, match="holds types, not expression"):
        read_tensors(path, "expression")
    with pytest.raises(InputError, match="no file"):
        read_tensors(tmp_path / "absent.safetensors", "types")
    with pytest.raises(InputError, match="safetensors"):
        write_tensors(tmp_path / "model.pt", "types", {}, {})
    newer = {"format": "teramind-impute", "version": 99, "kind": "types"}
    safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata={"teramind": json.dumps(newer)})
    with pytest.raises(InputError, match="format 99"):
        read_tensors(path, "types")
    for header in ([1], {"format": "teramind-impute", "kind": "types"}):
        safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata={"teramind": json.dumps(header)})
        with pytest.raises(InputError, match="no model"):
            read_tensors(path, "types")
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match="no model"):
        read_tensors(path, "types")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="not a whole"):
        read_tensors(path, "types")
