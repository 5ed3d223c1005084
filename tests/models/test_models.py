"""Every architecture against the counts and shapes of the authors' torch models, by abstract evaluation."""

from __future__ import annotations

import functools
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import cli, models
from jaxkd.models.torch_names import to_flax, to_torch

# Parameters, values of running statistics, millions of multiply-adds, and the shapes of stem, stages and
# pooled features at 100 classes and 32x32 pixels, counted in the authors' models.
_NARROW = ((32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (64,))
_WIDE = ((32, 32, 32), (32, 32, 64), (16, 16, 128), (8, 8, 256), (256,))
_WRN_2 = ((32, 32, 16), (32, 32, 32), (16, 16, 64), (8, 8, 128), (128,))
_VGG = ((32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (4, 4, 512), (512,))
MODELS: dict[str, tuple[int, int, float, tuple]] = {
    "resnet8": (83_892, 672, 12.51, _NARROW),
    "resnet14": (181_108, 1_120, 26.66, _NARROW),
    "resnet20": (278_324, 1_568, 40.82, _NARROW),
    "resnet32": (472_756, 2_464, 69.13, _NARROW),
    "resnet44": (667_188, 3_360, 97.44, _NARROW),
    "resnet56": (861_620, 4_256, 125.75, _NARROW),
    "resnet110": (1_736_564, 8_288, 253.16, _NARROW),
    "resnet8x4": (1_233_540, 2_752, 177.07, _WIDE),
    "resnet32x4": (7_433_860, 9_920, 1083.04, _WIDE),
    "ResNet50": (
        23_705_252,
        53_120,
        1298.01,
        ((32, 32, 64), (32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048), (2048,)),
    ),
    "wrn_16_1": (180_916, 928, 26.66, _NARROW),
    "wrn_16_2": (703_284, 1_824, 101.12, _WRN_2),
    "wrn_40_1": (569_780, 2_720, 83.29, _NARROW),
    "wrn_40_2": (2_255_156, 5_408, 327.61, _WRN_2),
    "vgg8": (3_965_028, 2_944, 96.19, _VGG),
    "vgg11": (9_277_284, 5_504, 209.44, _VGG),
    "vgg13": (9_462_180, 5_888, 284.94, _VGG),
    "vgg16": (14_774_436, 8_448, 398.18, _VGG),
    "vgg19": (20_086_692, 11_008, 511.43, _VGG),
    "MobileNetV2": (
        812_836,
        18_368,
        6.52,
        ((16, 16, 16), (16, 16, 12), (8, 8, 16), (4, 4, 48), (2, 2, 160), (1280,)),
    ),
    "ShuffleV1": (949_258, 23_736, 38.69, ((32, 32, 24), (16, 16, 240), (8, 8, 480), (4, 4, 960), (960,))),
    "ShuffleV2": (1_355_528, 16_180, 44.50, ((32, 32, 24), (16, 16, 116), (8, 8, 232), (4, 4, 464), (1024,))),
}
# Torchvision's parameters, and thousand millions of multiply-adds, at 1000 classes.
IMAGENET = {
    "imagenet_resnet18": (11_689_512, 1.81),
    "imagenet_resnet34": (21_797_672, 3.66),
    "imagenet_resnet50": (25_557_032, 4.09),
}
ONE_OF_EACH_FAMILY = ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


@functools.cache
def traced(name: str, num_classes: int = 100, image_shape: tuple[int, int, int] = (32, 32, 3)) -> Any:
    """Outputs and variables, as shapes and types."""
    network = models.create(name, num_classes)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(network.init_with_output, jax.random.key(0), images)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_tables_name_every_model() -> None:
    assert set(MODELS) | set(IMAGENET) == set(models.names())


@pytest.mark.parametrize("name", MODELS)
def test_counts_and_shapes_are_those_of_the_torch_models(name: str) -> None:
    parameters, statistics, mega_macs, (stem, *stages, pooled) = MODELS[name]
    summary = models.describe(name)
    assert (summary.parameters, summary.statistics) == (parameters, statistics)
    assert round(summary.macs / 1e6, 2) == mega_macs
    expected = {"stem": stem}
    for index, shape in enumerate(stages, start=1):
        expected |= {f"stage{index}": shape, f"stage{index}_preact": shape}
    assert list(summary.features.items()) == list({**expected, "pooled": pooled}.items())


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_networks_have_torchvisions_parameters(name: str) -> None:
    parameters, giga_macs = IMAGENET[name]
    summary = models.describe(name, 1000, (224, 224, 3))
    assert summary.parameters == parameters
    assert round(summary.macs / 1e9, 2) == giga_macs
    assert summary.features["stem"] == (112, 112, 64)
    assert summary.features["stage4"][:2] == (7, 7)
    weights = to_torch(helpers.deterministic_variables(name))
    assert {"layer4.1.bn2.running_var", "layer2.0.downsample.0.weight", "fc.bias"} <= set(weights)


@pytest.mark.parametrize("name", [*MODELS, *IMAGENET])
def test_names_go_to_torch_and_back_to_the_bit(name: str) -> None:
    _, variables = traced(name)
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), variables)
    weights = to_torch(values)
    assert len(weights) == len(jax.tree.leaves(values))  # no two have one name
    jax.tree.map(np.testing.assert_array_equal, to_flax(weights, variables), values)


@pytest.mark.parametrize("name", [*MODELS, *IMAGENET])
def test_bfloat16_keeps_parameters_statistics_pooled_features_and_logits_in_float32(name: str) -> None:
    network = models.create(name, 10, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    outputs, updates = jax.eval_shape(
        functools.partial(network.apply, train=True, mutable=["batch_stats"]), variables, images
    )
    maps = {key: value.dtype for key, value in outputs.features.items() if key not in ("pooled", "cam")}
    assert set(maps.values()) == {jnp.dtype("bfloat16")}
    rest = (variables, updates, outputs.logits, outputs.features["pooled"])
    assert {leaf.dtype for leaf in jax.tree.leaves(rest)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", [*MODELS, *IMAGENET])
def test_digits_and_other_sizes_fit(name: str) -> None:
    for shape in ((8, 8, 1), (33, 47, 3)):
        outputs, _ = traced(name, 10, shape)
        assert outputs.logits.shape == (1, 10)
        assert all(0 not in value.shape for value in outputs.features.values())


def test_vgg_pools_once_more_at_64() -> None:
    assert traced("vgg8", 10, (64, 64, 3))[0].features["stage4"].shape == (1, 4, 4, 512)


def test_images_that_are_too_small_or_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7x7 are too small for VGG, which needs 8x8 or more; enlarge"):
        traced("vgg8", 10, (7, 7, 1))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\], got \[32, 32, 3\]"):
        models.create("resnet8").init(jax.random.key(0), jnp.zeros((32, 32, 3)))


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_masked_examples_change_nothing(name: str) -> None:
    """Whatever stands in their place, to the bit; that batch norm's statistics are right is tested apart."""
    network = models.create(name, 5)
    variables = models.initialize(network, seed=0, image_shape=(8, 8, 3))
    where = np.array([True, False, True, True])
    train = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 3)).astype(np.float32)
    outputs, updates = jax.device_get(train(variables, images, where=where))
    images[1] = 100.0
    others, other_updates = jax.device_get(train(variables, images, where=where))
    np.testing.assert_array_equal(outputs.logits[where], others.logits[where])
    jax.tree.map(np.testing.assert_array_equal, updates, other_updates)


def test_option_a_has_no_parameters_and_pads_channels_on_both_sides() -> None:
    network = models.create("resnet20", 10, shortcut="A")
    images = jax.random.normal(jax.random.key(0), (1, 9, 9, 3))
    variables = models.initialize(network, seed=0, image_shape=(9, 9, 3))
    assert count(variables["params"]) == 269_722  # He et al. give 0.27 M
    # With the last scale of the first block of stage 2 at zero, the block is its shortcut.
    variables["params"]["layer2_0"]["bn2"]["scale"] *= 0
    outputs, state = jax.jit(functools.partial(network.apply, capture_intermediates=True))(variables, images)
    block = state["intermediates"]["layer2_0"]["__call__"][0]
    stage1 = outputs.features["stage1"]
    np.testing.assert_array_equal(block[..., 8:24], stage1[:, ::2, ::2])
    assert not block[..., :8].any()
    assert not block[..., 24:].any()
    with pytest.raises(ValueError, match=r'shortcut must be "A" .* or "B" .*, got \'C\''):
        models.create("resnet20", shortcut="C")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("resnet-56", "resnet56"), ("wrn-40-2", "wrn_40_2"), ("mobilenetv2", "MobileNetV2"),
     ("ShuffleNetV1", "ShuffleV1"), ("resnet50", "ResNet50"), ("resnet18", "imagenet_resnet18"),
     ("vgg8_bn", "vgg8")],
)  # fmt: skip
def test_near_misses_get_a_hint(wrong: str, meant: str) -> None:
    with pytest.raises(
        ValueError, match=rf'unknown model "{wrong}"; did you mean "{meant}"\? Accepted: resnet8'
    ):
        models.create(wrong)


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match=r'unknown model "transformer"; accepted: resnet8, .*ShuffleV2'):
        models.create("transformer")
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        models.create("resnet8", 1)
    with pytest.raises(ValueError, match="vgg8 has no option shortcut; accepted: axis_name, param_dtype"):
        models.create("vgg8", shortcut="A")


def test_the_command_lists_networks_and_their_features(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["models", "wrn_16_2", "--image-shape", "8", "8", "1", "--num-classes", "10"])
    output = capsys.readouterr().out
    assert "| wrn_16_2 |      10 | 8x8x1 |" in output
    assert "| stage3_preact       | 2x2x128 |" in output
    cli.main(["models", "imagenet_resnet18"])
    assert "|    1000 | 224x224x3 | 11,689,512 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["models", "wrn-16-2"])
    assert 'did you mean "wrn_16_2"?' in capsys.readouterr().err
