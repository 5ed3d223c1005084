"""Methods on features: equal to their authors' codes, and for networks that those codes do not know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import feature_parity as parity
import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, losses, methods, models, teachers
from jaxkd.methods.review import nearest
from jaxkd.models import Outputs
from jaxkd.models.resnet import Bottleneck, ResNet

STORED = {tuple(key.split("/")[:2]) for key in parity.FIXTURES.files if key.split("/")[0] in parity.METHODS}
CASES = sorted(STORED - {("ofd", "margin_table")})
WHOLE = sorted(
    {
        (name, pair)
        for kind, pair, name, *_ in (f"{key}//".split("/") for key in parity.FIXTURES.files)
        if kind == "net" and name in parity.METHODS
    }
)


def tolerance(name: str, precision: str) -> float:
    """Of fixtures/features.md; gradients of float32 are not measured there."""
    if precision == "f64":
        return 1e-7 if name in ("rkd", "pkt", "sp") else 1e-9
    return 5e-4 if name == "pkt" else 2e-5


@pytest.mark.parametrize(("name", "pair"), CASES)
def test_adapters_are_the_authors(name: str, pair: str, off: Callable) -> None:
    """Loss, gradients of features and adapters, running statistics, with stand-in features."""
    for column, found in parity.adapters(name, pair).items():
        off(parity.METHODS[name].method, column, found, tolerance(name, "f64"))


@pytest.mark.parametrize("name", parity.METHODS)
def test_adapters_are_the_authors_in_single_precision(name: str) -> None:
    found = parity.adapters(name, "same", "f32")
    assert found["value"] < tolerance(name, "f32")
    assert max(found.values()) < 1e-3, found


@pytest.mark.parametrize(
    ("name", "pair"),
    [pytest.param(*case, marks=pytest.mark.slow if case[1] == "A" else ()) for case in WHOLE],
)
def test_whole_networks_are_the_authors(name: str, pair: str, off: Callable) -> None:
    """The gradients of all parameters, and the statistics after a pass."""
    for column, found in parity.whole_networks(name, pair).items():
        off(parity.METHODS[name].method, column, found, tolerance(name, "f64"))


# The others take the same code with other numbers or another loss; the adapters above hold FitNet's.
QUICK_RECIPES = {"simkd", "crd_b0.8", "atkd", "ctkd"}


@pytest.mark.parametrize(
    "key",
    [pytest.param(key, marks=() if key in QUICK_RECIPES else pytest.mark.slow) for key in parity.RECIPES],
)
def test_training_steps_are_the_authors(key: str, off: Callable) -> None:
    """Three steps of SGD of student and adapters."""
    # The authors have a constant of the adaptive temperature, and CRD's temperature, in float32; our
    # weight in a warm-up is float32.
    limit = 1e-7 if key.startswith(("atkd", "crd", "dkd_a1_b8_T4_ep1")) else 1e-9
    name = parity.RECIPES[key][0]
    for column, found in parity.recipe(key).items():
        # The run's own sums are float32.
        own = column == "value"
        column = "steps, losses" if own else f"steps, {'student' if column == 'gradient' else column}"
        off(parity.METHODS.get(name, parity.Names(name)).method, column, found, 1e-6 if own else limit)


def test_every_fixture_has_a_test() -> None:
    assert {name for name, _ in CASES} == parity.METHODS.keys()
    stored = {key.split("/")[2] for key in parity.FIXTURES.files if key.startswith("recipe/A/")}
    inputs = {"labels", "teacher_logits", "x_check", "crd_index", "crd_contrast_index"}
    assert stored - inputs == parity.RECIPES.keys()


# --- networks of all kinds ---


@functools.cache
def features(network: str) -> dict[str, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    made = models.create(network, 10)
    outputs, _ = jax.eval_shape(lambda x: made.init_with_output(jax.random.key(0), x), images)
    return dict(outputs.features)


def shapes_of(name: str, student: str, teacher: str) -> dict[str, Any]:
    """The parameters of a method for two networks, without running anything."""
    s, t = features(student), features(teacher)
    margins = {stage: np.zeros(f.shape[-1], np.float32) for stage, f in t.items()} if name == "ofd" else {}
    x = jax.eval_shape(parity.inputs, s, t)
    return parity.init(methods.create(name), x, margins).get("params", {})


# The public code's table: student, teacher, and from the shallowest stage on the widths of the student's
# stages, the widths of the predictions, and their sizes.
TABLE = [
    ("resnet8x4", "resnet32x4", (64, 128, 256, 256), (64, 128, 256, 256), (32, 16, 8, 1)),
    ("resnet8x4", "wrn_40_2", (64, 128, 256, 256), (32, 64, 128, 128), (32, 16, 8, 1)),
    ("resnet20", "resnet56", (16, 32, 64, 64), (16, 32, 64, 64), (32, 16, 8, 1)),
    ("vgg8", "ResNet50", (128, 256, 512, 512, 512), (256, 512, 1024, 2048, 2048), (32, 16, 8, 4, 1)),
    ("vgg8", "vgg13", (128, 256, 512, 512, 512), (128, 256, 512, 512, 512), (16, 8, 4, 4, 1)),
    ("MobileNetV2", "ResNet50", (12, 16, 48, 160, 1280), (256, 512, 1024, 2048, 2048), (32, 16, 8, 4, 1)),
    ("MobileNetV2", "wrn_40_2", (12, 16, 48, 160, 1280), (32, 64, 128, 128), (32, 16, 8, 1)),
    ("MobileNetV2", "vgg13", (12, 16, 48, 160, 1280), (128, 256, 512, 512, 512), (16, 8, 4, 4, 1)),
    ("ShuffleV1", "wrn_40_2", (240, 480, 960, 960), (32, 64, 128, 128), (32, 16, 8, 1)),
    ("ShuffleV1", "resnet32x4", (240, 480, 960, 960), (64, 128, 256, 256), (32, 16, 8, 1)),
    ("ShuffleV2", "resnet32x4", (116, 232, 464, 1024), (64, 128, 256, 256), (32, 16, 8, 1)),
    ("wrn_16_2", "wrn_40_2", (32, 64, 128, 128), (32, 64, 128, 128), (32, 16, 8, 1)),
    ("wrn_40_1", "resnet32x4", (16, 32, 64, 64), (64, 128, 256, 256), (32, 16, 8, 1)),
]


@pytest.mark.parametrize(("student", "teacher", "widths", "predicted", "sizes"), TABLE)
def test_reviewkd_has_the_public_table_by_rule(
    student: str, teacher: str, widths: tuple, predicted: tuple, sizes: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(prediction: jax.Array, target: jax.Array) -> jax.Array:
        assert prediction.shape == target.shape
        seen.append(prediction.shape[1])
        return jnp.zeros(len(prediction))

    monkeypatch.setattr(losses, "hcl", record)
    params = shapes_of("reviewkd", student, teacher)
    fusions = [params[f"abfs_{depth}"] for depth in reversed(range(len(params)))]
    assert tuple(fusion["conv1_0"]["kernel"].shape[2] for fusion in fusions) == widths
    outs = tuple(fusion["conv2_0"]["kernel"].shape[3] for fusion in fusions if "conv2_0" in fusion)
    assert outs == predicted
    assert tuple(reversed(seen)) == sizes
    assert fusions[0]["conv1_0"]["kernel"].shape[3] == min(512, widths[-1])


KINDS = [
    ("resnet8", "ResNet50"),
    ("vgg8", "wrn_40_2"),
    ("MobileNetV2", "vgg13"),
    ("ShuffleV2", "resnet8x4"),
    ("wrn_16_1", "ShuffleV1"),
]


@pytest.mark.parametrize("name", ["at", "nst", "vid", "ofd", "reviewkd", "rkd", "pkt", "sp", "cc", "itrd"])
def test_any_two_networks_go_together(name: str) -> None:
    for student, teacher in KINDS:
        shapes_of(name, student, teacher)


def test_fitnet_names_the_sizes_that_do_not_fit() -> None:
    s, t = ({"stage2": np.ones((2, n, n, 3)), "pooled": np.ones((2, 3))} for n in (5, 16))
    with pytest.raises(
        ValueError, match="stage2 is 5x5 in the student and 16x16 in the teacher; choose another"
    ):
        methods.create("fitnet").init(jax.random.key(0), parity.inputs(s, t))


def test_missing_features_are_named() -> None:
    vector, one, two = jnp.ones((2, 3)), jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 2, 3))
    whole = {"pooled": vector, "stage1": one, "stage2": two}
    for name, student, teacher, message in (
        (
            "fitnet",
            {"stage1": one},
            whole,
            "the feature stage2 of both networks, but the student has stage1;",
        ),
        ("at", whole, {"pooled": vector}, "the feature stage1 of both networks, but the teacher has pooled;"),
        ("rkd", whole, {}, "the feature pooled of both networks, but the teacher has no features;"),
        ("sp", {"stage1": vector}, whole, r"the student's feature stage1 must be \[B, H, W, C\], got shape"),
        ("ofd", whole, whole, "ofd has no margin for the teacher's stage1"),
    ):
        outputs = [{"main": Outputs(vector, seen)} for seen in (student, teacher)]
        x: Any = parity.inputs(whole, whole)
        with pytest.raises(ValueError, match=message):
            methods.create(name).init(jax.random.key(0), x.replace(student=outputs[0], teacher=outputs[1]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("at", {"weight": -1.0}, "weight must be at least 0 and finite, got -1"),
        ("sp", {"weight": 0.0, "ce_weight": 0.0}, "both 0: there is nothing to learn"),
        ("at", {"power": 0.5}, "power must be at least 1 and finite, got 0.5"),
        ("vid", {"variance": float("inf")}, "variance must be at least 0.001 and finite, got inf"),
        ("itrd", {"alpha": 0.0}, "alpha must be at least 0.5"),
        ("reviewkd", {"warmup_epochs": -1}, "warmup_epochs must be at least 0"),
        ("rkd", {"temperature": 4.0}, "method rkd has no option temperature; it has weight"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.create(name, **options)


# --- OFD's margins ---


BOTTLENECKS = ResNet(Bottleneck, (1, 2), stem=4, widths=(2, 4), num_classes=3)


@pytest.mark.parametrize("network", ["resnet14", "wrn_16_1", "vgg11", "MobileNetV2", BOTTLENECKS])
def test_the_named_batch_norm_makes_the_pre_activation(network: Any) -> None:
    """A bias that is larger by 1 makes the stage's pre-activation feature larger by 1."""
    made = models.create(network, 3) if isinstance(network, str) else network
    variables = models.initialize(made, seed=0, image_shape=(8, 8, 3))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, 3)), jnp.float32)
    run = jax.jit(made.apply)
    before = run(variables, images).features
    stages = [name.removesuffix("_preact") for name in before if name.endswith("_preact")]
    assert set(made.preact_norms) == set(stages)
    for stage, path in made.preact_norms.items():
        changed: Any = jax.tree.map(lambda leaf: leaf, variables)
        norm = changed["params"]
        for name in path:
            norm = norm[name]
        norm["bias"] = norm["bias"] + 1
        moved = run(changed, images).features[f"{stage}_preact"] - before[f"{stage}_preact"]
        np.testing.assert_allclose(moved, 1.0, atol=1e-4)


def test_margins_are_aligned_with_the_deepest_stages() -> None:
    """A VGG has four stages, a ResNet three: the public code takes the margins of the first three."""
    margins = parity.margins("vgg8")
    network = models.create("vgg8", 10)
    variables = helpers.deterministic_variables("vgg8", 10)["params"]
    assert list(margins) == ["stage1", "stage2", "stage3", "stage4"]
    for stage, (norm,) in network.preact_norms.items():
        expected = losses.ofd_margin(variables[norm]["scale"], variables[norm]["bias"])
        np.testing.assert_array_equal(margins[stage], expected)
    params = shapes_of("ofd", "resnet8", "vgg8")
    widths = [params[f"connectors_{i}_0"]["kernel"].shape[2:] for i in range(3)]
    assert widths == [(16, 256), (32, 512), (64, 512)]


def test_constants_come_of_the_teachers_in_the_zoo() -> None:
    teacher, dataset = teachers.load("digits-resnet20"), data.load("digits")
    student = models.as_network("resnet8", dataset.num_classes)
    made = {
        name: dict(methods.create(name).constants(teacher, student, dataset))
        for name in methods.names()
        if name != "mekd"  # which needs a generator
    }
    assert {name for name, constants in made.items() if constants} == {"ofd", "simkd", "crd"}
    assert {stage: margin.shape for stage, margin in made["ofd"].items()} == {
        "stage1": (16,), "stage2": (32,), "stage3": (64,)
    }  # fmt: skip


def test_what_is_asked_outside_of_flax_may_make_modules() -> None:
    class Mine(methods.Method):
        def augmentation(self, view: str, main: Any) -> Any:
            return nn.Dense(3)

        def constants(self, teacher: Any, student: Any, dataset: Any) -> Any:
            return {"kernel": nn.Dense(2).init(jax.random.key(0), np.ones((1, 3)))["params"]["kernel"]}

    assert Mine().constants(None, None, None)["kernel"].shape == (3, 2)
    assert Mine().augmentation("other", None).features == 3


def test_a_teacher_without_known_batch_norms_is_refused() -> None:
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> Any:
            return nn.Dense(3)(x.mean((1, 2)))

    for module in (Own(), models.create("ShuffleV2", 3)):
        network = models.from_linen(module, name="mine")
        variables = network.init(0, (8, 8, 3))
        teacher = teachers.from_network(network, variables, image_shape=(8, 8, 3))
        with pytest.raises(ValueError, match="none are known for the teacher mine; use a ResNet"):
            methods.create("ofd").constants(teacher, network, None)


def test_nearest_follows_torchs_rule() -> None:
    x = jnp.arange(12.0).reshape(1, 4, 3, 1)
    for size in ((8, 3), (2, 3), (6, 2)):
        rows, columns = (np.arange(m) * n // m for m, n in zip(size, (4, 3), strict=True))
        np.testing.assert_array_equal(nearest(x, size), x[:, rows][:, :, columns])
