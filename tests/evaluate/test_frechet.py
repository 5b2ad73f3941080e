import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from teramind.errors import InputError
from teramind.evaluate.metrics.encoders import InceptionEncoder, TextureEncoder, as_channels
from teramind.evaluate.metrics.frechet import FrechetDistance, Moments, frechet_distance


def moments(features):
    taken = Moments(features.shape[1])
    taken.update(features)
    return taken


def test_distance_is_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 7)) @ rng.normal(size=(7, 7)), 1 + rng.normal(size=(150, 7))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_are_no_trouble():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 40))
    assert frechet_distance(moments(a), moments(a)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moments(a), moments(a + 2)) == pytest.approx(4 * 40)
    assert np.isnan(frechet_distance(moments(a), moments(a[:1])))


def test_far_features_keep_their_precision():
    """Sums of float32 features around 1e3 lose a spread of 1e-1 in float32."""
    rng = np.random.default_rng(0)
    a = (1000 + 0.1 * rng.normal(size=(5000, 3))).astype(np.float32)
    np.testing.assert_allclose(moments(a).covariance, np.cov(a.astype(np.float64).T), rtol=1e-5, atol=1e-7)


def test_parts_merge_to_the_whole_and_survive_storage():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(31, 4)), rng.normal(size=(18, 4))
    parts = moments(a)
    parts.merge(Moments.from_state(moments(b).state()))
    whole = moments(np.concatenate([a, b]))
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.covariance, whole.covariance)
    with pytest.raises(InputError, match="5 features cannot be joined with 4"):
        parts.merge(Moments(5))


def textures(blur, seed, count=40, side=TextureEncoder.side, gain=60.0):
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.normal(size=(count, 2, side, side)), (0, 0, blur, blur))
    return (128 + gain * fields / fields.std()).clip(0, 255).astype(np.uint8)


def test_texture_distance_orders_textures():
    distance = {}
    for blur in (2.0, 2.5, 4.0):
        distances = [FrechetDistance(TextureEncoder()) for _ in range(2)]
        for number, one in enumerate(distances):
            one.update(textures(2.0, seed=number, count=20), truth=True)
            one.update(textures(blur, seed=10 + number, count=20))
        distances[0].merge(distances[1])
        distance[blur] = distances[0].compute()
    assert distance[2.0] < distance[2.5] / 3 < distance[4.0] / 9


def test_texture_distance_sees_the_relation_of_stains():
    same = textures(2.0, seed=0)
    same[:, 1] = same[:, 0]
    apart = textures(2.0, seed=0)
    near = FrechetDistance(TextureEncoder())
    near.update(same[:20], truth=True)
    near.update(same[20:])
    far = FrechetDistance(TextureEncoder())
    far.update(same[:20], truth=True)
    far.update(apart[20:])
    assert far.compute() > 10 * near.compute()


def test_nothing_taken_has_no_distance():
    distance = FrechetDistance(TextureEncoder())
    distance.update(np.zeros((0, 1, 128, 128), np.uint8))
    assert np.isnan(distance.compute())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 9, 3, stride=18)

    def forward(self, x):
        return self.conv(x) * 2


class Layers(nn.Module):
    """The names of NVIDIA's file, around almost nothing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        for name in ("conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed", "mixed_1", "mixed_2", "mixed_3",
                     "mixed_4", "mixed_5"):  # fmt: skip
            setattr(self, name, nn.Identity())
        self.mixed_6 = Block()

    def forward(self, x):
        return self.mixed_6(self.conv(x)).mean(dim=(2, 3))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt"
    network = Detector().eval()
    torch.jit.script(network).save(str(path))
    return network, path


def test_inception_features_are_those_of_the_reference(detector):
    network, path = detector
    images = textures(3.0, seed=0, count=3, side=InceptionEncoder.side)
    stacked = torch.from_numpy(np.concatenate([np.zeros_like(images[:, :1]), images], axis=1)).float()
    resized = torch.nn.functional.interpolate(stacked, (299, 299), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.inference_mode():
        x = resized / 127.5 - 1
        pooled, spatial = network.layers(x), network.layers.mixed_6.conv(network.layers.conv(x))
    np.testing.assert_allclose(InceptionEncoder(path)(images), pooled, atol=1e-6)
    features = InceptionEncoder(path, spatial=True)(images)
    assert features.shape == (3, 7 * 17 * 17)
    np.testing.assert_allclose(features, spatial[:, :7].flatten(1), atol=1e-6)


def test_stains_become_channels():
    stain = np.full((2, 1, 4, 4), 9, np.uint8)
    assert (as_channels(stain) == 9).all()
    assert as_channels(stain).shape == (2, 3, 4, 4)
    assert as_channels(np.repeat(stain, 2, axis=1))[:, 0].max() == 0
    with pytest.raises(InputError, match="4 stains"):
        as_channels(np.repeat(stain, 4, axis=1))


def test_a_wrong_file_of_weights_is_said(tmp_path):
    with pytest.raises(InputError, match="does not download"):
        InceptionEncoder(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(InputError, match="is not the TorchScript file"):
        InceptionEncoder(tmp_path / "text.pt")
    torch.jit.script(nn.Conv2d(1, 1, 1)).save(str(tmp_path / "conv.pt"))
    with pytest.raises(InputError, match="is not the TorchScript file"):
        InceptionEncoder(tmp_path / "conv.pt")
