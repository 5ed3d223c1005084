"""Any function can be a teacher: Linen, NNX, plain, an ensemble, one that JAX cannot trace."""

from __future__ import annotations

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
from jaxkd import data, models, teachers

SHAPE = (8, 8, 1)


class LinenHead(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(3)(images.reshape(len(images), -1))


class NnxHead(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dense = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.dense(self.norm(images.reshape(images.shape[0], -1)))


def linen() -> teachers.Teacher:
    module = LinenHead()
    variables = module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return teachers.from_function(module.apply, num_classes=3, variables=variables, image_shape=SHAPE)


def from_nnx() -> teachers.Teacher:
    module = NnxHead(nnx.Rngs(0))
    module.eval()
    graph, state = nnx.split(module)

    def call(state: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(images)

    return teachers.from_function(call, num_classes=3, variables=state, image_shape=SHAPE)


def plain() -> teachers.Teacher:
    weights = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    return teachers.from_function(
        lambda images: images.reshape(len(images), -1) @ weights, num_classes=3, image_shape=SHAPE
    )


def ensemble() -> teachers.Teacher:
    members = [linen(), plain()]
    return teachers.from_function(
        lambda images: sum(member.logits(images) for member in members) / 2,
        num_classes=3,
        image_shape=SHAPE,
        name="ensemble",
    )


def remote() -> teachers.Teacher:
    def call(images: np.ndarray) -> np.ndarray:
        assert isinstance(images, np.ndarray)  # a tracer would not be
        return images.reshape(len(images), -1)[:, :3].astype(np.float64)

    return teachers.from_function(call, num_classes=3, image_shape=SHAPE, name="remote", traceable=False)


class HuggingFaceLike:
    """Returns an object with `.logits`, as the Flax models of Hugging Face do."""

    def __call__(self, images: jax.Array) -> Any:
        class Output:
            logits = images.mean((1, 2)) * jnp.arange(3.0)

        return Output


def with_logits() -> teachers.Teacher:
    return teachers.from_function(HuggingFaceLike(), num_classes=3, image_shape=SHAPE)


def distill(teacher: teachers.Teacher, dataset: data.Dataset, run: Path, **options: Any) -> dict[str, Any]:
    """One epoch of a small student."""
    common: dict[str, Any] = {"student": helpers.Tiny(), "epochs": 1, "batch_size": 16, "devices": 1}
    return jaxkd.distill(teacher=teacher, data=dataset, run=run, say=helpers.silent, **{**common, **options})


@pytest.mark.parametrize("make", [linen, from_nnx, plain, ensemble, remote, with_logits])
def test_any_function_can_teach(make: Any, dataset: data.Dataset, tmp_path: Path) -> None:
    teacher = make()
    images = dataset.splits["test"].images[:4]
    logits = teacher.logits(images)
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(teacher.logits(images / np.float32(255)), logits, rtol=1e-5, atol=1e-6)

    result = distill(teacher, dataset, tmp_path / "run", devices=2)
    assert result["teacher"] == teacher.name
    assert np.isfinite(result["last_ce"])


def test_a_function_equals_the_same_network_from_the_zoo(tmp_path: Path, dataset: data.Dataset) -> None:
    known = teachers.load(helpers.untrained_teacher(tmp_path / "known", dataset))
    network = models.create("resnet8", 3)
    same = teachers.from_function(
        network.apply,
        num_classes=3,
        variables=known.variables,
        image_shape=SHAPE,
        mean=dataset.mean,
        std=dataset.std,
    )
    images = dataset.splits["test"].images
    np.testing.assert_allclose(same.logits(images), known.logits(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        same.features(images)["pooled"], known.features(images)["pooled"], rtol=1e-5, atol=1e-5
    )


def test_a_function_teaches_what_the_same_network_teaches(tmp_path: Path, dataset: data.Dataset) -> None:
    known = teachers.load(helpers.untrained_teacher(tmp_path / "known", dataset))
    same = teachers.from_function(
        models.create("resnet8", 3).apply,
        num_classes=3,
        variables=known.variables,
        image_shape=SHAPE,
        mean=np.array(dataset.mean),
        std=np.array(dataset.std),
    )
    lines = []
    for teacher in (known, same):
        run = tmp_path / f"from-{teacher.name}"
        distill(teacher, dataset, run, log_every=1)
        lines.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))
    for term in ("kd", "ce", "temperature", "correlation"):
        assert lines[0][term] == pytest.approx(lines[1][term], rel=1e-4)


def test_functions_without_variables_differ_by_their_names() -> None:
    def named(name: str, **options: Any) -> str:
        return teachers.from_function(
            lambda *given: given[-1][:, 0, :3, 0], num_classes=3, image_shape=SHAPE, name=name, **options
        ).digest

    assert named("one") == named("one") != named("other")
    assert named("one", variables={}) != named("other", variables={})


def test_logits_of_another_shape_are_refused() -> None:
    listed = teachers.from_function(
        lambda images: [0.0] * len(images), num_classes=3, image_shape=SHAPE, traceable=True
    )
    with pytest.raises(ValueError, match=r"the teacher's logits must be \[4, 3\], got list"):
        listed.logits(np.zeros((4, *SHAPE), np.uint8))
    teacher = teachers.from_function(lambda images: images[:, 0, :2, 0], num_classes=3, image_shape=SHAPE)
    with pytest.raises(ValueError, match=r"the teacher's logits must be \[4, 3\], got \[4, 2\]"):
        teacher.logits(np.zeros((4, *SHAPE), np.uint8))
    with pytest.raises(ValueError, match="teacher function is a function; only"):
        teachers.export_torch(teacher, "weights.safetensors")


def test_an_ensemble_of_loaded_teachers_teaches(tmp_path: Path, dataset: data.Dataset) -> None:
    """Their arrays are made inside the student's trace, and must not stay there."""
    members = [
        teachers.load(helpers.untrained_teacher(tmp_path / name, dataset, model=name))
        for name in ("resnet8", "resnet14")
    ]
    ensemble = teachers.from_function(
        lambda images: sum(member.logits(images, normalized=True) for member in members) / 2,
        num_classes=3,
        image_shape=SHAPE,
        mean=dataset.mean,
        std=dataset.std,
        name="ensemble",
    )
    distill(ensemble, dataset, tmp_path / "run")
    images = dataset.splits["test"].images
    expected = (members[0].logits(images) + members[1].logits(images)) / 2
    np.testing.assert_allclose(ensemble.logits(images), expected, atol=1e-5)


def test_a_function_is_not_saved_and_pixels_are_not_taken_for_normalised(
    tmp_path: Path, dataset: data.Dataset
) -> None:
    function = teachers.from_function(lambda x: x[:, 0, :3, 0], num_classes=3, image_shape=SHAPE)
    with pytest.raises(ValueError, match="a teacher made by from_function cannot be saved"):
        teachers.save(tmp_path / "saved", {}, function.description)
    known = teachers.load(helpers.untrained_teacher(tmp_path / "known", dataset))
    pixels = dataset.splits["test"].images / np.float32(255)
    with pytest.raises(ValueError, match="floats from 0 to 1, which look like pixels / 255"):
        known.logits(pixels)
    assert known.logits(pixels, normalized=True).shape == (19, 3)
