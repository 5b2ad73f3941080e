import pytest

from teramind import InputError, ModelConfig


def test_published_defaults():
    config = ModelConfig()
    assert (config.patch_size, config.genes, config.slices) == (64, 229, 2)
    assert config.level_channels == (64, 128, 256, 512)
    assert [config.has_attention(level) for level in range(4)] == [False, False, True, False]


@pytest.mark.parametrize(("gene_slices", "slices", "z_kernel"), [(1, 1, 1), (4, 2, 3), (8, 4, 5), (16, 8, 9)])
def test_slices(gene_slices, slices, z_kernel):
    config = ModelConfig(gene_slices=gene_slices)
    assert (config.slices, config.z_kernel) == (slices, z_kernel)


@pytest.mark.parametrize(
    "field",
    [
        {"patch_size": 48},
        {"gene_slices": 2},
        {"genes": 0},
        {"stains": True},
        {"base_channels": 7},
        {"channel_mult": (1, 2)},
        {"channel_mult": (2, 2, 4, 8)},
        {"res_blocks": 1.5},
        {"dropout": 1.0},
        {"attention_keys": "both"},
    ],
)
def test_a_bad_value_is_named(field):
    [(name, value)] = field.items()
    with pytest.raises(InputError, match=rf"{name} is .*{str(value)[:3].strip('(')}"):
        ModelConfig(**field)


def test_round_trip_and_unknown_field():
    config = ModelConfig(channel_mult=(1, 2, 2, 4))
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="chanel_mult"):
        ModelConfig.from_dict({"chanel_mult": [1]})
