"""Anybody's modules as networks: batch norm of the real examples of all devices, dropout, features."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxkd
from jaxkd import data, models
from jaxkd.models import Outputs
from jaxkd.models.network import AXIS
from jaxkd.runs.checkpoint import read_newest

SHAPE = (8, 8, 1)
IMAGES = jax.random.normal(jax.random.key(0), (16, *SHAPE))


class Linen(nn.Module):
    """Convolution, batch norm, dropout, and a collection of its own."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        calls = self.variable("counter", "calls", jnp.zeros, ())
        if train and not self.is_initializing():
            calls.value += 1
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=not train)(x.mean((1, 2))))


class NNX(nnx.Module):
    """The same without the counter."""

    def __init__(self, rngs: nnx.Rngs, rate: float = 0.0) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))


NETWORKS = {"linen": models.from_linen(Linen()), "nnx": models.from_nnx(NNX)}
both = pytest.mark.parametrize("kind", NETWORKS)


def train(network: models.Network, variables: Any, images: jax.Array, where: jax.Array | None = None) -> Any:
    rngs = {"dropout": jax.random.key(1)}
    return jax.jit(lambda v, x, w: network.apply(v, x, train=True, where=w, rngs=rngs))(
        variables, images, where
    )


def statistics(updates: Any) -> list[np.ndarray]:
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    return [np.asarray(leaf) for name, leaf in sorted(flat.items()) if "mean" in name or "var" in name]


@both
def test_batch_norm_is_flaxs_own_where_all_examples_are_real(kind: str) -> None:
    network = NETWORKS[kind]
    variables = network.init(0, SHAPE)
    outputs, updates = train(network, variables, IMAGES)
    if kind == "linen":
        result, expected = Linen().apply(variables, IMAGES, train=True, mutable=["batch_stats", "counter"])
        assert updates["counter"]["calls"] == 1
    else:
        module = NNX(nnx.Rngs(0))
        result, expected = module(IMAGES), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
    np.testing.assert_allclose(outputs.logits, result, atol=1e-5)
    for one, other in zip(statistics(updates), statistics(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@both
def test_batch_norm_does_not_count_padding(kind: str) -> None:
    network = NETWORKS[kind]
    variables = network.init(0, SHAPE)
    where = jnp.arange(16) < 10
    padded, updates = train(network, variables, jnp.where(where[:, None, None, None], IMAGES, 99.0), where)
    alone, expected = train(network, variables, IMAGES[:10])
    np.testing.assert_allclose(padded.logits[:10], alone.logits, atol=1e-5)
    for one, other in zip(statistics(updates), statistics(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@both
def test_batch_norm_is_of_all_devices(kind: str) -> None:
    """The second device holds one real example, and the fourth none."""
    network = NETWORKS[kind].on_axis(AXIS)
    variables = network.init(0, SHAPE)
    where = jnp.array([1] * 5 + [0] * 3 + [1] * 4 + [0] * 4, bool)

    def loss(variables: Any, images: jax.Array, where: jax.Array) -> Any:
        outputs, updates = network.apply(variables, images, train=True, where=where)
        return jnp.sum(jnp.where(where, outputs.logits[:, 0] ** 2, 0)), updates

    mapped = jax.pmap(jax.value_and_grad(loss, has_aux=True), axis_name=AXIS, in_axes=(None, 0, 0))
    (value, updates), gradient = mapped(variables, IMAGES.reshape(4, 4, *SHAPE), where.reshape(4, 4))
    alone = NETWORKS[kind]

    def whole(variables: Any) -> Any:
        outputs, updates = alone.apply(variables, IMAGES, train=True, where=where)
        return jnp.sum(jnp.where(where, outputs.logits[:, 0] ** 2, 0)), updates

    (expected, one_device), slope = jax.jit(jax.value_and_grad(whole, has_aux=True))(variables)
    assert float(value.sum()) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(statistics(updates), statistics(one_device), strict=True):
        np.testing.assert_allclose(one, np.broadcast_to(other, one.shape), atol=1e-5)
    for one, other in zip(jax.tree.leaves(gradient["params"]), jax.tree.leaves(slope["params"]), strict=True):
        np.testing.assert_allclose(one.sum(0), other, atol=2e-4)


@pytest.mark.parametrize(
    "network",
    [models.from_linen(Linen(rate=0.5)), models.from_nnx(lambda rngs: NNX(rngs, rate=0.5), name="dropping")],
    ids=["linen", "nnx"],
)
def test_dropout_is_a_function_of_the_key_and_absent_in_evaluation(network: models.Network) -> None:
    variables = network.init(0, SHAPE)

    def logits(key: int) -> np.ndarray:
        return np.asarray(
            network.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(key)})[0].logits
        )

    np.testing.assert_array_equal(logits(1), logits(1))
    assert (logits(1) != logits(2)).any()
    first, second = (network.apply(variables, IMAGES)[0].logits for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_seeds_have_initial_values_of_their_own_unless_the_module_has_them() -> None:
    for network in NETWORKS.values():
        one, same, other = (jax.tree.leaves(network.init(seed, SHAPE)["params"]) for seed in (0, 0, 1))
        assert all(map(np.array_equal, one, same))
        assert not all(map(np.array_equal, one, other))
    module = NNX(nnx.Rngs(5))
    fixed = models.from_nnx(module)
    np.testing.assert_array_equal(fixed.init(0, SHAPE)["params"]["head-kernel"], module.head.kernel[...])


def test_features_are_taken_by_the_path_of_a_submodule_and_calls_can_be_bridged() -> None:
    class Odd(nn.Module):
        @nn.compact
        def forward(self, x: jax.Array, mode: str) -> dict[str, jax.Array]:
            hidden = nn.Dense(5, name="hidden")(x.reshape(len(x), -1))
            return {"out": nn.Dense(3)(hidden), "mode": jnp.float32(mode == "train")}

    network = models.from_linen(
        Odd(),
        features={"inner": "hidden"},
        call=lambda module, x, train: module.forward(x, "train" if train else "test")["out"],
    )
    variables = network.init(0, SHAPE)
    outputs, _ = network.apply(variables, IMAGES)
    assert outputs.features["inner"].shape == (16, 5)
    plain = models.from_linen(Odd(), call=lambda module, x, _: module.forward(x, "test"))
    with pytest.raises(ValueError, match=r"a network must return logits \[B, K\], .* got dict; bridge it"):
        plain.init(0, SHAPE), plain.apply(variables, IMAGES)


@pytest.mark.parametrize("result", ["logits", "pair", "outputs", "object"])
def test_results_of_every_kind_are_understood(result: str) -> None:
    class Answer:
        def __init__(self, logits: jax.Array) -> None:
            self.logits = logits

    class Any_(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, deterministic: bool = True) -> Any:
            logits = nn.Dense(3)(x.reshape(len(x), -1))
            kinds = {
                "pair": (logits, {"f": x}),
                "outputs": Outputs(logits, {"f": x}),
                "object": Answer(logits),
            }
            return kinds.get(result, logits)

    network = models.from_linen(Any_())
    outputs, _ = network.apply(network.init(0, SHAPE), IMAGES)
    assert outputs.logits.shape == (16, 3)
    assert ("f" in outputs.features) == (result in ("pair", "outputs"))


def test_what_identifies_a_network_is_its_name_attributes_and_shapes() -> None:
    def identity(network: models.Network) -> dict[str, Any]:
        return json.loads(json.dumps(network.describe(network.init(0, SHAPE))))

    plain = identity(models.from_linen(Linen()))
    assert plain == identity(models.from_linen(Linen()))
    assert plain != identity(models.from_linen(Linen(rate=0.1)))
    assert plain != identity(models.from_linen(Linen(), name="other"))
    eight, fourteen = (identity(models.as_network(name, 3)) for name in ("resnet8", "resnet14"))
    assert eight["shapes"] != fourteen["shapes"]
    assert eight.keys() == {"name", "shapes"}


def test_what_a_network_keeps_of_each_device_is_averaged(tmp_path: Path) -> None:
    """A running mean of its own, and a counter, which is none."""

    class Keeping(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            seen = self.variable("seen", "mean", jnp.zeros, ())
            calls = self.variable("seen", "calls", jnp.zeros, (), jnp.int32)
            if train:
                seen.value, calls.value = x.mean(), calls.value + 1
            return nn.Dense(3)(x.reshape(len(x), -1))

    dataset = helpers.tiny_dataset(num_train=16)
    kept = []
    for devices in (1, 2):
        run = tmp_path / str(devices)
        jaxkd.train(
            model=Keeping(),
            data=dataset,
            run=run,
            devices=devices,
            epochs=1,
            batch_size=16,
            say=helpers.silent,
        )
        found, _ = read_newest(run / "checkpoints")
        assert found is not None
        kept.append(found.state["network"]["seen"])
    assert float(kept[0]["mean"]) == pytest.approx(float(kept[1]["mean"]), abs=1e-6)
    assert [int(one["calls"]) for one in kept] == [1, 1]


def test_a_named_batch_norm_is_a_feature_in_training_too() -> None:
    network = models.from_linen(Linen(), features={"stage1": "conv", "stage1_preact": "norm"})
    variables = network.init(0, SHAPE)
    outputs = [network.apply(variables, IMAGES, train=mode, rngs={})[0] for mode in (False, True)]
    assert [sorted(seen.features) for seen in outputs] == [["stage1", "stage1_preact"]] * 2


def test_a_normalisation_is_whole_and_has_the_images_channels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network Linen has mean \(0.5,\) and std None; give both"):
        models.from_linen(Linen(), mean=(0.5,))
    network = models.from_linen(Linen(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    with pytest.raises(ValueError, match="mean and std need one value for each of 1 channels"):
        jaxkd.train(model=network, data=helpers.tiny_dataset(), run=tmp_path / "run", say=helpers.silent)
    assert not (tmp_path / "run").exists()


def test_the_options_of_an_nnx_module_identify_it() -> None:
    def describe(module: Any) -> dict[str, Any]:
        network = models.from_nnx(module)
        return network.describe(network.init(0, SHAPE))

    part = functools.partial(NNX, rate=0.5)
    assert describe(NNX(nnx.Rngs(0))) == describe(NNX(nnx.Rngs(1))) == describe(NNX)
    assert describe(NNX(nnx.Rngs(0), rate=0.5)) == describe(part) != describe(NNX)
    assert models.from_nnx(part).name == "NNX"


def test_an_nnx_module_may_have_a_number_as_variable() -> None:
    class Scaled(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.head = nnx.Linear(64, 3, rngs=rngs)
            self.scale = nnx.Param(jnp.ones(()))
            self.window = np.hanning(8)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.scale * self.head(x.reshape(len(x), -1))

    network = models.from_nnx(Scaled)
    assert network.describe(network.init(0, SHAPE))["module"] == "NNX"


def test_logits_in_bfloat16_become_float32() -> None:
    """A cross-entropy of 4.6 in bfloat16 would be a multiple of 0.03."""

    class Narrow(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            x = x.reshape(len(x), -1)
            return nn.Dense(3, dtype=jnp.bfloat16)(x), {"pooled": x}

    network = models.from_linen(Narrow())
    outputs, _ = network.apply(network.init(0, SHAPE), IMAGES)
    assert outputs.logits.dtype == jnp.float32
    assert set(outputs.features) == {"pooled"}


def test_batch_norm_over_other_axes_is_refused() -> None:
    class Channels(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = nn.BatchNorm(use_running_average=not train, axis=1)(x)
            return nn.Dense(3)(x.reshape(len(x), -1))

    network = models.from_linen(Channels())
    with pytest.raises(ValueError, match="batch norm must have its channels on the last axis, got axis=1"):
        network.apply(network.init(0, SHAPE), IMAGES, train=True)


def test_normalisation_is_the_data_sets_unless_the_network_has_one() -> None:
    dataset = helpers.tiny_dataset()
    own = models.from_linen(Linen(), mean=(0.5,), std=(0.5,))
    assert own.normalized(dataset.mean, dataset.std).mean == (0.5,)
    network = models.from_linen(Linen()).normalized(dataset.mean, dataset.std)
    variables = network.init(0, SHAPE)
    split = dataset.splits["test"]
    assert isinstance(split, data.Split)
    floats = models.normalize(jnp.asarray(split.images), dataset.mean, dataset.std)
    for images in (jnp.asarray(split.images), floats):
        np.testing.assert_allclose(
            network.apply(variables, images)[0].logits, network.apply(variables, floats)[0].logits, atol=1e-6
        )


class Own(nnx.Module):
    """Arrays as attributes, a number as variable, a stream of its own, and `train=`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.factors = jnp.arange(64.0)
        self.number = nnx.Variable(3)
        self.noise = nnx.Rngs(noise=5)
        self.norm = nnx.BatchNorm(1, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = self.norm(x, use_running_average=not train).reshape(len(x), -1)
        return self.head(x * self.factors), {"noise": jax.random.normal(self.noise.noise(), (4,))}


def test_an_nnx_module_is_put_into_training_and_has_new_numbers_in_every_step() -> None:
    network = models.from_nnx(Own)
    variables = network.init(0, SHAPE)
    outputs, seen = [], []
    for key in (1, 2, 1):
        rngs = {"dropout": jax.random.key(key)}
        output, updates = network.apply(variables, IMAGES + 5, train=True, rngs=rngs)
        outputs.append(output)
        seen.append(np.asarray(output.features["noise"]))
    np.testing.assert_array_equal(seen[0], seen[2])
    assert (seen[0] != seen[1]).all()
    assert updates["state"]["norm-mean"] > 0.4
    np.testing.assert_array_equal(updates["state"]["factors"], np.arange(64.0))
    still, _ = network.apply(variables, IMAGES + 5)
    assert (np.asarray(still.logits) != outputs[0].logits).all()


def test_an_nnx_module_survives_its_training(tmp_path: Path) -> None:
    module = NNX(nnx.Rngs(0))
    before = np.asarray(module(IMAGES))
    options: dict[str, Any] = {"data": helpers.tiny_dataset(), "epochs": 1, "batch_size": 16}
    jaxkd.train(model=module, run=tmp_path / "run", say=helpers.silent, **options)
    np.testing.assert_array_equal(module(IMAGES), before)


def test_variables_of_an_nnx_module_are_taken_in_every_form_or_refused() -> None:
    module = NNX(nnx.Rngs(7))
    module.eval()
    expected = module(IMAGES)
    state = nnx.state(module)
    flat = models.from_nnx(module).init(0, SHAPE)
    nested = {
        "params": nnx.to_pure_dict(nnx.state(module, nnx.Param)),
        "state": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)),
    }
    for variables in (state, nested, flat):
        teacher = jaxkd.teachers.from_network(NNX, variables, image_shape=SHAPE)
        np.testing.assert_allclose(teacher.logits(IMAGES, normalized=True), expected, rtol=1e-5, atol=1e-6)
    params = dict(flat["params"])
    kernel = params.pop("head-kernel")
    for wrong, message in (
        ({}, "without conv-bias, without conv-kernel"),
        (params, "do not fit the NNX module: without head-kernel; they must be"),
        ({**params, "head-kernel": kernel[:2]}, r"head-kernel \[2, 3\] where it has \[4, 3\]"),
        ({**params, "head-kernel": kernel, "other": kernel}, "with other, which it does not have"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxkd.teachers.from_network(NNX, {**flat, "params": wrong}, image_shape=SHAPE)


class Tokens(nn.Module):
    """Batch norm over the tokens of the batch, in one axis or in a batch of its own."""

    rows: int = 8
    mask: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        tokens = x.reshape(self.rows * len(x), -1) if self.rows else x.reshape(-1)[:-1, None]
        options = {"mask": jnp.ones(tokens.shape, bool)} if self.mask else {}
        tokens = nn.BatchNorm(use_running_average=not train)(x=tokens, **options)
        return nn.Dense(3)(tokens.reshape(len(x), -1) if self.rows else x.reshape(len(x), -1))


def test_batch_norm_of_several_rows_for_each_example_does_not_count_padding() -> None:
    network = models.from_linen(Tokens())
    variables = network.init(0, SHAPE)
    where = jnp.arange(16) < 12
    poisoned = IMAGES.at[12:].set(jnp.inf)
    found = statistics(train(network, variables, poisoned, where)[1])
    expected = statistics(train(network, variables, IMAGES[:12])[1])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Rematerialized(nn.Module):
    """`Linen` without batch norm, whose convolution is computed again for the gradient."""

    again: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.remat(nn.Conv) if self.again else nn.Conv
        return nn.Dense(3)(nn.relu(conv(4, (3, 3), name="conv")(x)).mean((1, 2)))


def test_features_leave_what_is_computed_again() -> None:
    def gradient(again: bool) -> Any:
        network = models.from_linen(Rematerialized(again), features={"a": "conv", "b": "conv"})
        variables = network.init(0, SHAPE)

        def loss(variables: Any) -> jax.Array:
            outputs, _ = network.apply(variables, IMAGES, train=True)
            return jnp.sum(outputs.features["a"] ** 2) + jnp.sum(outputs.features["b"] * outputs.logits.sum())

        return jax.jit(jax.grad(loss))(variables)

    again, usual = gradient(True), gradient(False)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(again))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), again, usual)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (models.from_linen(Tokens(mask=True)), "batch norm with mask= cannot be trained"),
        (models.from_linen(Tokens(rows=0)), r"batch norm of an array \[1023, 1\] in a batch of 16 examples"),
        (
            models.from_linen(Linen(), features={"a": "convs"}),
            "no submodule convs .* are Dense_0, conv, norm",
        ),
    ],
)
def test_what_batch_norm_and_features_cannot_do_is_told(network: models.Network, message: str) -> None:
    variables = network.init(0, SHAPE)
    with pytest.raises(ValueError, match=message):
        train(network, variables, IMAGES, jnp.ones(16, bool))


class Streams(nn.Module):
    """Dropout from a stream with another name; and something sown where it cannot be kept."""

    sown: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        logits = nn.Dense(3)(
            nn.Dropout(0.5, rng_collection="noise")(x.reshape(len(x), -1), deterministic=not train)
        )
        if self.sown:
            self.sow("losses", "size", jnp.mean(logits))
        return logits


def test_streams_may_have_any_name_and_what_is_sown_has_its_place() -> None:
    network = models.from_linen(Streams())
    variables = network.init(0, SHAPE)
    assert not np.array_equal(
        train(network, variables, IMAGES)[0].logits, network.apply(variables, IMAGES)[0].logits
    )
    with pytest.raises(
        ValueError, match=r'Streams: initial values .* sown goes to the collection "intermediates"'
    ):
        models.from_linen(Streams(sown=True)).init(0, SHAPE)
