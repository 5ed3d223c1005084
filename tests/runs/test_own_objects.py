"""Runs with users' objects: they run the code as it is now, are told apart, and are checked before a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import helpers
import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from flax import nnx
from helpers import silent

import jaxkd
from jaxkd import losses, methods, models


class Student(nn.Module):
    activation: Callable[[Any], Any] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = self.activation(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(3, name="head")(hidden), {"hidden": hidden}


class OfNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, activation: Callable[[Any], Any] = nnx.relu) -> None:
        self.activation = activation
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(self.head(x.reshape(len(x), -1)))


class Noisy:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.clip(image + self.scale * jax.random.normal(key, image.shape), 0, 255).astype(jnp.uint8)


def train(run: Path, **options: Any) -> Any:
    common = {"data": helpers.tiny_dataset(), "model": Student(), "epochs": 1, "batch_size": 16, "devices": 1}
    return jaxkd.train(run=run, **{"say": silent, **common, **options})


def distill(run: Path, **options: Any) -> Any:
    dataset = helpers.tiny_dataset()
    common = {"data": dataset, "teacher": helpers.tiny_teacher(dataset), "student": Student(), "method": "kd"}
    rest = {"epochs": 1, "batch_size": 16, "devices": 1, "say": silent}
    return jaxkd.distill(run=run, **{**common, **rest, **options})


# What the functions below read, as a notebook's cells do.
SCALE = 1.0


def test_a_run_computes_what_its_functions_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal objects share programs, unless a function or a value that they read has changed."""

    def soft(x: methods.Inputs) -> jax.Array:
        return SCALE * losses.kd(x.student_logits, x.teacher_logits, temperature=4.0)

    def loss(run: str) -> float:
        method = methods.from_function(soft, name="soft")
        return distill(tmp_path / run, method=method)["losses"]["soft"]

    assert loss("first") > 0
    monkeypatch.setattr(f"{__name__}.SCALE", 0.0)
    assert loss("second") == 0.0


def test_equal_objects_share_their_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "first", model=Student())

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was made again")

    monkeypatch.setattr("jaxkd.training.mapped._map", fail)
    train(tmp_path / "second", model=Student())
    with pytest.raises(AssertionError, match="made again"):
        train(tmp_path / "other", model=Student(activation=nn.tanh))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"augmentation": Noisy(1.0)}, {"augmentation": Noisy(90.0)}, r"scale=1.0.*scale=90.0"),
        (
            {"model": functools.partial(OfNNX, activation=nnx.relu)},
            {"model": functools.partial(OfNNX, activation=nnx.tanh)},
            r"student\.options",
        ),
        ({"model": OfNNX(nnx.Rngs(0))}, {"model": OfNNX(nnx.Rngs(1))}, "student_values"),
        (
            {"model": models.from_linen(Student(), features={"a": "hidden"})},
            {"model": models.from_linen(Student(), features={"a": "head"})},
            r"student\.features",
        ),
        (
            {"model": models.from_linen(Student(), mean=(0.5,), std=(0.5,))},
            {"model": models.from_linen(Student(), mean=(0.0,), std=(1.0,))},
            r"student_mean \(there \[0.5\], here \[0.0\]\), student_std",
        ),
    ],
)
def test_another_object_in_the_same_folder_is_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    train(tmp_path / "run", **first)
    train(tmp_path / "run", **first)
    with pytest.raises(ValueError, match=f"holds another run; different: .*{message}"):
        train(tmp_path / "run", **second)


def test_changed_code_of_the_same_name_is_told(tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> str:
        said: list[str] = []
        train(tmp_path / name, say=said.append, **options)
        return "\n".join(said)

    def noisy(scale: int) -> Any:
        return lambda key, image: image ^ jnp.uint8(scale)

    run("closure", augmentation=noisy(1))
    assert "the code of your" not in run("closure", augmentation=noisy(1))
    assert "the code of your augmentation of view main has changed" in run("closure", augmentation=noisy(9))
    run("attribute", model=Student(activation=lambda x: x))
    assert "the code of your student has changed" in run("attribute", model=Student(activation=lambda x: -x))
    run("call", model=models.from_linen(Student(), call=lambda module, x, train: module(x)))
    changed = models.from_linen(Student(), call=lambda module, x, train: module(2 * x))
    assert "the code of your student has changed" in run("call", model=changed)
    for name, made in {"one": optax.sgd, "by part": lambda rate: {"student": optax.sgd(rate)}}.items():
        run(name, optimizer=made(0.1))
        assert "the code of your" not in run(name, optimizer=made(0.1))
        assert "the code of your optimizer, as jax" in run(name, optimizer=made(0.2))


@flax.struct.dataclass
class Raw:
    """A metric that gives what it should not."""

    total: Any

    def compute(self) -> Any:
        return {"": self.total}

    def describe(self) -> Any:
        return {"mean": self.total}


@flax.struct.dataclass
class NoJson(Raw):
    def compute(self) -> Any:
        return {"": float(self.total)}


@flax.struct.dataclass
class Counts(NoJson):
    """One that describes itself without a mean."""

    def describe(self) -> Any:
        return {"total": float(self.total)}


def with_metric(x: methods.Inputs, metric: Any) -> methods.Terms:
    ce = methods.cross_entropy(x.student_logits, x.labels)
    return methods.Terms({"ce": (ce, 1.0)}, {"own": metric(jnp.sum(x.where, dtype=jnp.float32))})


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x.student_logits[:, :1], ValueError, r"term own .* \[B\], or be a scalar, got \[B, 1\]"),
        (lambda x: None, TypeError, "function of method own must return values .* got None"),
        (lambda x: (x.student_logits[:, 0], 0.5), TypeError, r"to \(values, weight\), or Terms, got \("),
        (lambda x: {"a": (x.student_logits[:, 0], "b")}, TypeError, "must return values"),
        (lambda x: with_metric(x, lambda total: total), TypeError, r"metric own .* compute\(\) and describe"),
        (lambda x: with_metric(x, Raw), TypeError, r"metric own: compute\(\) must give numbers of Python"),
        (lambda x: with_metric(x, NoJson), TypeError, r"metric own: describe\(\) must be ready for JSON"),
    ],
)
def test_what_a_method_returns_is_checked_before_a_step(
    tmp_path: Path, function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        distill(tmp_path / "run", method=methods.from_function(function, name="own"))


def test_a_metric_describes_itself_as_it_likes(tmp_path: Path) -> None:
    method = methods.from_function(lambda x: with_metric(x, Counts), name="own")
    assert distill(tmp_path / "run", method=method)["metrics"]["own"] == {"total": 40.0}
    jaxkd.report(tmp_path / "run", tmp_path / "report")


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one for each example, \[4\], or a scalar, got \[4, 1\]"):
        jaxkd.metrics.Mean.of(jnp.ones((4, 1)), jnp.ones(4, bool))


class Masked(nn.Module):
    """A network that keeps an infinite value."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = self.variable("buffers", "mask", lambda: jnp.array([0.0, -jnp.inf, 0.0]))
        logits = nn.Dense(3)(x.reshape(len(x), -1))
        return logits + jnp.exp(mask.value)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_network_may_keep_infinite_values(tmp_path: Path, devices: int) -> None:
    """The last batch leaves three of four devices without an example."""
    result = train(tmp_path / "run", model=Masked(), devices=devices, batch_size=36)
    assert result["last_ce"] < 2


sgd = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        ({"student": sgd, "method": sgd, "hidden": sgd}, ValueError, "no parameter begins with hidden"),
        ({"student": sgd, "method": sgd, "studnet/head": sgd}, ValueError, "begins with studnet/head"),
        ({"student": sgd, "method": sgd, "method/thta": sgd}, ValueError, "begins with method/thta"),
        (optax.contrib.schedule_free_sgd(0.1), ValueError, "schedule-free"),
        (optax.contrib.reduce_on_plateau(), TypeError, "must be called as update.* 'value'"),
    ],
)
def test_an_optimizer_that_cannot_do_its_work_is_refused(
    tmp_path: Path, optimizer: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        distill(tmp_path / "run", method="ctkd", optimizer=optimizer)


def test_a_method_without_parameters_needs_no_optimizer_for_them(tmp_path: Path) -> None:
    frozen = {"student": sgd, "method": sgd, "student/head": optax.set_to_zero()}
    distill(tmp_path / "run", optimizer=frozen)


def test_own_objects_train_from_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the step has no teacher."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {
        "method": methods.from_function(lambda x: losses.kd(x.student_logits, x.teacher_logits), name="kd2")
    }
    live = distill(tmp_path / "live", **options)
    cached = distill(tmp_path / "cached", cache="fill", **options)
    assert cached["losses"]["kd2"] == pytest.approx(live["losses"]["kd2"], rel=1e-3)
