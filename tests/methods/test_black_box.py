"""MEKD: both stages against the numbers of the authors' code, and end to end."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from feature_parity import FIXTURES, draw
from reference import relative

import jaxkd
from jaxkd import data, methods, models
from jaxkd.methods.black_box import Generated, as_pixels, from_pixels
from jaxkd.models import Outputs
from jaxkd.models.dcgan import Discriminator, Generator
from jaxkd.models.torch_names import torch_name
from jaxkd.runs import Stopped
from jaxkd.runs import generator as stage
from jaxkd.runs.generator import Game, load_generator, train_generator
from jaxkd.runs.report import report

LOSSES = np.load(Path(__file__).parents[1] / "fixtures" / "losses.npz")
GENERATOR, DISCRIMINATOR = Generator((32, 32, 3)), Discriminator(dropout=0.0)


def by_rule(module: Any, example: Any, prefix: str) -> dict[str, Any]:
    """A network's variables by the rule of features.md; vectors of maps come in torch's order."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        order = (3, 2, 0, 1) if len(leaf.shape) == 4 else range(len(leaf.shape))[::-1]
        shape = tuple(leaf.shape[axis] for axis in order)
        weight = helpers.deterministic_weight(prefix + torch_name(path), shape).astype(np.float64)
        flat[path] = _to_flax(path, weight)
    return flax.traverse_util.unflatten_dict(flat)


def _to_flax(path: tuple[str, ...], weight: np.ndarray) -> np.ndarray:
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0)
    if path[1] == "l1_0":  # its outputs are a map (C, H, W)
        weight = np.moveaxis(weight.reshape(128, 8, 8, -1), 0, 2).reshape(128 * 64, -1)
        return weight.T if path[-1] == "kernel" else weight[:, 0]
    if path[1] == "adv_layer_0" and weight.ndim == 2:  # its inputs are one
        return weight.reshape(1, 128, 2, 2).transpose(2, 3, 1, 0).reshape(-1, 1)
    return weight


def table(gradient: Any) -> np.ndarray:
    """Sum, sum of absolute values, and root of the sum of squares of each tensor, by the code's name."""
    flat = flax.traverse_util.flatten_dict({"params": gradient})
    return {
        torch_name(path): [leaf.sum(), np.abs(leaf).sum(), np.sqrt((leaf**2).sum())]
        for path, leaf in jax.tree.map(np.asarray, flat).items()
    }


def of_gradients(gradient: Any, key: str) -> float:
    """How far the sums of each tensor's gradient are off, relative to the sum of absolute values."""
    names, expected = FIXTURES[f"{key}/names"], FIXTURES[f"{key}/table"]
    found = table(gradient)
    assert set(names) == found.keys()
    # Before a batch norm a bias has no gradient: what is there is rounding.
    return max(
        float(np.abs(found[name] - row[:3]).max() / max(row[1], 1e-4))
        for name, row in zip(names, expected, strict=True)
    )


def test_the_networks_are_those_of_the_source(double: None, off: Callable) -> None:
    made = by_rule(GENERATOR, jnp.zeros((1, 10)), "mekd.g.")
    z = draw("mekd.z", (4, 10))
    for train, key in ((False, "eval_images"), (True, "train_images")):
        images, after = GENERATOR.apply(made, z, train=train, mutable=["batch_stats"])
        flat = np.asarray(images).transpose(0, 3, 1, 2).ravel()
        sample = flat[:: len(flat) // 400][:400]
        off("mekd", "value", relative(sample, FIXTURES[f"mekd/generator/{key}#sample"]), 1e-9)
    stats = flax.traverse_util.flatten_dict({"batch_stats": after["batch_stats"]})
    for path, leaf in stats.items():
        expected = FIXTURES[f"mekd/generator/after.{torch_name(path)}"]
        off("mekd", "statistics", relative(leaf, expected), 1e-9)


def test_the_first_stage_is_that_of_the_source(double: None, off: Callable) -> None:
    made, judge = (
        by_rule(GENERATOR, jnp.zeros((1, 10)), "mekd.g."),
        by_rule(DISCRIMINATOR, jnp.zeros((1, 32, 32, 3)), "mekd.d."),
    )
    z, z2 = draw("mekd.z", (4, 10)), draw("mekd.z2", (4, 10))
    real, key = np.tanh(draw("mekd.real", (4, 3, 32, 32))), jax.random.key(0)
    fake, after = jax.jit(functools.partial(GENERATOR.apply, train=True, mutable=["batch_stats"]))(made, z)
    stats = {"batch_stats": judge["batch_stats"]}
    game = Game(GENERATOR, DISCRIMINATOR, 10, optax.adam(2e-4), 0.5, "probability")
    run = jax.jit(jax.value_and_grad(game.discriminator_loss, has_aux=True))
    (loss, _), gradient = run(judge["params"], stats, real, fake, key)
    off("mekd", "value", relative(loss, FIXTURES["mekd/step1/loss_d_f64"]), 1e-9)
    off("mekd", "gradient", of_gradients(gradient, "mekd/step1/grad_d"), 1e-8)
    for response, theirs in (("probability", "_softmax"), ("logit", "_rawmax"), ("index", "_released")):
        game = Game(GENERATOR, DISCRIMINATOR, 10, optax.adam(2e-4), 0.5, response)
        answer = lambda _: FIXTURES["mekd/step1/teacher_logits"]  # noqa: E731
        run = jax.jit(jax.value_and_grad(game.generator_loss, has_aux=True), static_argnums=4)
        (loss, (_, parts)), gradient = run(made["params"], after, judge, z2, answer, key)
        suffix = "" if response == "index" else theirs
        off("mekd", "value", relative(loss, FIXTURES[f"mekd/step1/loss_g{suffix}_f64"]), 1e-9)
        off("mekd", "value", relative(parts["response"], FIXTURES[f"mekd/step1/loss_g_im{theirs}_f64"]), 1e-9)
        off("mekd", "gradient", of_gradients(gradient, f"mekd/step1/grad_g{theirs}"), 1e-8)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_second_stage_is_that_of_the_source(
    distance: str, hard: bool, double: None, off: Callable
) -> None:
    made = by_rule(GENERATOR, jnp.zeros((1, 10)), "mekd.g.")
    method = methods.create(
        "mekd", generator=Generated("rule", GENERATOR, 10, made), distance=distance, hard=hard
    )
    t = LOSSES["b8_k10/z_t"]

    def loss(s: Any) -> Any:
        inputs = methods.Inputs(
            student={"generated": Outputs(s, {})},
            teacher={"generated": Outputs(jnp.asarray(t), {})},
            labels=jnp.zeros(8, jnp.int32),
            ids=jnp.arange(8),
            where=jnp.ones(8, bool),
            epoch=jnp.int32(1),
            num_epochs=2,
        )
        variables = {"constants": {"generator": made, "image": jnp.zeros((32, 32, 3))}}
        terms: Any = method.apply(variables, inputs)
        return sum(weight * jnp.mean(values) for values, weight in terms.losses.values())

    key = f"mekd/step2_{distance.upper()}_{'hard' if hard else 'soft'}"
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(LOSSES["b8_k10/z_s"]))
    off("mekd", "value", relative(value, FIXTURES[f"{key}/loss_f64"]), 1e-9)
    off("mekd", "gradient", relative(gradient, FIXTURES[f"{key}/grad"]), 1e-9)


def test_a_generator_stops_and_resumes_to_the_same_bits(
    dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    options: dict[str, Any] = {
        "teacher": str(teacher), "data": dataset, "epochs": 3, "fraction": 0.5, "width": 8, "batch_size": 8,
        "say": said.append,
    }  # fmt: skip
    train_generator(out=tmp_path / "whole", **options)
    write = stage.Record.write

    def stop(record: Any, kind: str, step: int, epoch: int, **values: float) -> None:
        write(record, kind, step, epoch, **values)
        if epoch == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(stage.Record, "write", stop)
    with pytest.raises(Stopped, match="stopped by SIGINT after step 4 of 9"):
        train_generator(out=tmp_path / "cut", **options)
    monkeypatch.setattr(stage.Record, "write", write)
    with pytest.raises(ValueError, match="has 4 of 9 steps; repeat the command that started it"):
        load_generator(tmp_path / "cut")
    with pytest.raises(ValueError, match=r"holds another run; .*weight"):
        train_generator(out=tmp_path / "cut", weight=0.0, **options)
    train_generator(out=tmp_path / "cut", **options)
    assert any("resuming at step 4" in line for line in said)
    one, other = (load_generator(tmp_path / name) for name in ("whole", "cut"))
    assert jax.tree.all(jax.tree.map(np.array_equal, one.variables, other.variables))
    assert train_generator(out=tmp_path / "cut", **options) == tmp_path / "cut"
    assert "is done already" in said[-1]

    method = methods.create("mekd", generator=str(tmp_path / "cut"))
    result = jaxkd.distill(
        teacher=str(teacher),
        student=models.from_linen(helpers.Tiny()),
        data=dataset,
        method=method,
        epochs=1,
        batch_size=16,
        run=tmp_path / "student",
        say=helpers.silent,
    )
    assert result["losses"].keys() == {"loss", "accuracy", "image", "kl"}
    assert 0 <= result["metrics"]["agreement"]["mean"] <= 100
    table = report([tmp_path / "cut", tmp_path / "student"], tmp_path / "report")
    assert "mekd" in table
    assert "cut" not in table
    with pytest.raises(ValueError, match="mekd needs the generator of its first stage"):
        jaxkd.distill(
            teacher=str(teacher), data=dataset, method="mekd", run=tmp_path / "none", say=helpers.silent
        )
    with pytest.raises(ValueError, match="holds no generator"):
        load_generator(tmp_path / "student")
    with pytest.raises(ValueError, match="height and width of generated images are multiples of 4"):
        Generator((10, 8, 1))


def test_pixels_go_there_and_back() -> None:
    pixels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(as_pixels(from_pixels(pixels)), pixels)
