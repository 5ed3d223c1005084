"""SimKD, CAT-KD and parity.CRD against the numbers of their authors' codes (fixtures/features.md)."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import feature_parity as parity
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import relative

import jaxkd
from jaxkd import data, losses, methods, models, teachers
from jaxkd.methods import crd
from jaxkd.methods.simkd import linear_head
from jaxkd.models.torch_names import to_flax, to_torch
from jaxkd.runs import evaluate

FIXTURES = parity.FIXTURES


def arrays(tensors: dict[str, Any], prefix: str) -> float:
    return parity._arrays(tensors, prefix)


@pytest.mark.parametrize("pair", ["same", "wider", "smaller_student_map", "larger_student_map"])
def test_simkd_projects_and_predicts_as_the_source(pair: str, double: None, off: Callable) -> None:
    teacher, student = parity.PAIRS[pair]
    s, t = parity.stand_in("s", student), parity.stand_in("t", teacher)
    last = {side: [f for n, f in seen.items() if n.startswith("stage") and n[-1].isdigit()][-1]
            for side, seen in (("s", s), ("t", t))}  # fmt: skip
    seen_s, seen_t = ({**one, "last": last[side]} for side, one in (("s", s), ("t", t)))
    width = last["t"].shape[-1]
    height, across = (min(last["s"].shape[axis], last["t"].shape[axis]) for axis in (1, 2))
    head = {n: helpers.deterministic_weight(f"simkd.cls.{n}", shape).astype(np.float64)
            for n, shape in (("weight", (10, width)), ("bias", (10,)))}  # fmt: skip
    constants = {"kernel": head["weight"].T, "bias": head["bias"],
                 "average": np.full((height, across), 1 / (height * across))}  # fmt: skip
    method = methods.create("simkd", ce_weight=1.0)
    labels = jnp.asarray(FIXTURES[f"simkd/{pair}/labels"], jnp.int32)
    variables = parity.adapter(
        parity.SIMKD, parity.init(method, parity.inputs(seen_s, seen_t), constants), {}
    )
    params, rest = variables.pop("params"), variables

    def loss(features: Any, params: Any) -> Any:
        x = dataclasses.replace(parity.inputs(features, seen_t), labels=labels)
        terms, after = method.apply(
            {"params": params, **rest, "constants": constants}, x, mutable=["batch_stats"]
        )
        return jnp.mean(terms.losses["simkd"][0]), (jnp.mean(terms.losses["ce"][0]), after)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (ce, after)), (of_s, of_params) = run(seen_s, params)
    off("simkd", "value", relative(value, FIXTURES[f"simkd/{pair}/loss_f64"]), 1e-9)
    off("simkd", "value", relative(ce, FIXTURES[f"simkd/{pair}/loss_ce_f64"]), 1e-9)
    gradient = {"f_s": np.asarray(of_s["last"]).transpose(0, 3, 1, 2)}
    off("simkd", "gradient", arrays(gradient, f"simkd/{pair}/grad."), 1e-9)
    adapters = parity.theirs(parity.SIMKD, {"params": of_params})
    off("simkd", "adapters", arrays(adapters, f"simkd/{pair}/grad."), 1e-9)
    off("simkd", "statistics", arrays(parity.theirs(parity.SIMKD, after), f"simkd/{pair}/after."), 1e-9)
    variables = {"params": params, **after, "constants": constants}
    outputs = parity.inputs(seen_s, seen_t).student["main"]
    logits: Any = method.apply(variables, outputs, method="predict")
    off("simkd", "value", relative(logits, FIXTURES[f"simkd/{pair}/pred_eval"]), 1e-9)


@pytest.mark.parametrize(("name", "width"), [("MobileNetV2", 160), ("ShuffleV2", 464), ("wrn_16_1", 64)])
def test_simkd_projects_a_students_last_stage_as_the_source(name: str, width: int) -> None:
    """Before a convolution that widens it for the classifier."""
    shape = (32, 32, 3)
    student = models.as_network(name, 10)
    outputs = student.output_shapes(jax.eval_shape(lambda: student.init(0, shape)), shape)
    made = methods.create("simkd")
    source = jax.eval_shape(lambda seen: made._source(seen), outputs)
    assert source.shape[-1] == width


def test_simkd_projects_the_last_map_of_a_network_that_names_an_early_stage() -> None:
    features = {"stage1": jnp.zeros((2, 8, 8, 4)), "last": jnp.ones((2, 4, 4, 16))}
    outputs = models.Outputs(jnp.zeros((2, 3)), features)
    assert methods.create("simkd")._source(outputs).shape == (2, 4, 4, 16)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain_r2": {},
    "norm_r2": {"normalize": True},
    "norm_r4": {"normalize": True, "size": 4},
    "binarize_r2": {"binarize": True},
    "top3_r2": {"top": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_class_activation_maps_are_compared_as_in_the_source(
    variant: str, double: None, off: Callable
) -> None:
    key = f"catkd/A/{variant}"
    s, t = (FIXTURES[k].transpose(0, 2, 3, 1) for k in ("catkd/A/plain_r2/cam_s", f"{key}/cam_t"))
    options = VARIANTS[variant]
    value = jnp.mean(losses.class_activation(s, t, **options))
    off("catkd", "value", relative(value, FIXTURES[f"{key}/loss_f64"]), 1e-9)


@pytest.fixture(scope="module")
def converted() -> Any:
    """The maps of the source's student in training mode, and what takes their gradient to the parameters'."""
    with jax.enable_x64(True):
        student = models.create("resnet8", 10, dtype=jnp.float64)
        images = parity.draw("catkd.A.x", (4, 3, 32, 32))
        shapes = jax.eval_shape(
            student.init, jax.random.key(0), jax.ShapeDtypeStruct(images.shape, jnp.float32)
        )
        names = to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
        theirs = {"fc.weight": "conv_test.weight"}  # a convolution of 1x1 without bias
        weights = {
            n: helpers.deterministic_weight(f"catkd.s.{theirs.get(n, n)}", w.shape) for n, w in names.items()
        }
        weights["fc.bias"] = np.zeros(10, np.float32)
        variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), to_flax(weights, shapes))

        def maps(params: Any) -> Any:
            whole = {**variables, "params": params}
            outputs, _ = student.apply(whole, images, train=True, mutable=["batch_stats"])
            return outputs.features["cam"]

        def pull_back(of_maps: Any) -> Any:
            return jax.vjp(maps, variables["params"])[1](of_maps)[0]

        found = jax.jit(maps, compiler_options=parity.FAST)(variables["params"])
        return found, jax.jit(pull_back, compiler_options=parity.FAST)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_class_activation_maps_are_the_sources(
    variant: str, double: None, off: Callable, converted: Any
) -> None:
    key, (maps, pull_back) = f"catkd/A/{variant}", converted
    t = FIXTURES[f"{key}/cam_t"].transpose(0, 2, 3, 1)
    of_maps = jax.grad(lambda s: jnp.mean(losses.class_activation(s, t, **VARIANTS[variant])))(maps)
    gradient = parity.theirs(parity.Names("catkd"), {"params": pull_back(of_maps)})
    gradient["conv_test.weight"] = gradient.pop("fc.weight")
    off("catkd", "gradient", parity._table(gradient, f"{key}/grad_params/"), 1e-9)


def test_class_activation_maps_are_the_last_layer_on_the_last_map() -> None:
    network = models.create("resnet8", 10)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    outputs, variables = network.init_with_output(jax.random.key(0), images)
    made: Any = outputs
    np.testing.assert_allclose(
        made.features["cam"].mean((1, 2)) + variables["params"]["fc"]["bias"], made.logits, atol=1e-5
    )


@pytest.mark.parametrize("case", ["same", "wider"])
def test_crd_takes_two_steps_as_the_source(
    case: str, double: None, off: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores, totals, banks and trained embeddings; the negatives are the fixture's."""
    key, widths = f"crd/{case}", {"same": (64, 64), "wider": (64, 128)}[case]
    banks = [jnp.asarray(FIXTURES[f"{key}/memory_v{number}_init"]) for number in (1, 2)]
    size, dim = banks[0].shape
    method = methods.create("crd", weight=1.0, dimensions=dim)
    layers = {
        f"embed_{name}": {"kernel": np.zeros((width, dim)), "bias": np.zeros(dim)}
        for name, width in zip(("student", "teacher"), widths, strict=True)
    }
    params = parity.adapter(parity.CRD, {"params": layers}, {})["params"]
    velocity = jax.tree.map(np.zeros_like, params)
    memory: Any = {"student_bank": banks[0], "teacher_bank": banks[1]}
    memory |= dict.fromkeys(("student_total", "teacher_total"), -jnp.ones(()))

    def loss(params: Any, memory: Any, s: Any, t: Any, ids: Any) -> Any:
        x = dataclasses.replace(parity.inputs(s, t), ids=ids)
        variables = {"params": params, "memory": memory, "constants": {"labels": jnp.zeros(size, jnp.int32)}}
        terms, after = method.apply(variables, x, mutable=["memory"], rngs={"sample": jax.random.key(0)})
        return jnp.mean(terms.losses["crd"][0]), after["memory"]

    for step in range(2):
        s, t = (
            {"pooled": jnp.asarray(np.maximum(parity.draw(f"crd.{case}.f_{side}{step}", (4, width)), 0))}
            for side, width in zip("st", widths, strict=True)
        )
        index = jnp.asarray(FIXTURES[f"{key}/contrast_index"][step])
        drawn = index, jnp.ones(index.shape, bool)
        monkeypatch.setattr(crd, "contrast", lambda *_, drawn=drawn, **__: drawn)
        ids = jnp.asarray(FIXTURES[f"{key}/index"][step])
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True))
        (value, memory), (of_params, of_s) = run(params, memory, s, t, ids)
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, of_params, params)
        params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
        found = {f"loss.step{step}_f64": np.reshape(value, 1), f"grad.f_s.step{step}": of_s["pooled"]}
        for number, name in ((1, "student"), (2, "teacher")):
            found[f"Z_v{number}.step{step}"] = memory[f"{name}_total"]
            found[f"memory_v{number}.step{step}"] = memory[f"{name}_bank"]
        for kind, tree in (("grad", of_params), ("param", params)):
            named = parity.theirs(parity.CRD, {"params": tree})
            found |= {f"{kind}.{name}.step{step}": leaf for name, leaf in named.items()}
        for name, array in found.items():
            kind = name.partition(".")[0]
            column = {"loss": "value", "grad": "adapters", "param": "adapters"}.get(kind, "statistics")
            # The source stores its temperature in float32.
            off(
                "crd",
                "gradient" if "f_s" in name else column,
                relative(array, FIXTURES[f"{key}/{name}"]),
                1e-7,
            )


def test_negatives_are_of_other_classes_without_replacement_and_of_the_example_alone() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    ids = jnp.array([3, 77, 150, -1])
    of = jnp.asarray(labels)[ids]
    draw: Any = lambda ids, of, step=0: crd.contrast(  # noqa: E731
        jax.random.key(step), ids, of, jnp.asarray(labels), negatives=30, num_classes=5
    )
    index, keep = (np.asarray(array) for array in draw(ids, of))
    assert index.shape == keep.shape == (4, 1 + 30 + 2 * 40)
    for i in range(3):
        chosen = index[i, 1:][keep[i, 1:]]
        assert index[i, 0] == ids[i]
        assert keep[i, 0]
        assert len(chosen) == len(set(chosen)) == 30
        assert not np.any(labels[chosen] == labels[ids[i]])
    alone, _ = draw(ids[1:2], of[1:2])
    np.testing.assert_array_equal(alone[0], index[1])
    other, _ = draw(ids, of, step=1)
    assert np.any(np.asarray(other) != index)
    few = crd.contrast(
        jax.random.key(0), ids[:1], of[:1], jnp.asarray(labels), negatives=10_000, num_classes=5
    )
    assert few[1].sum() == 1 + (labels != labels[3]).sum()


def test_what_crd_and_simkd_cannot_do_is_said() -> None:
    streamed = types.SimpleNamespace(splits={"train": object()}, name="imagenet2012")
    with pytest.raises(ValueError, match="labels of all training examples, but those of imagenet2012"):
        methods.create("crd").constants(None, None, streamed)

    def corner(images: Any) -> Any:
        return images.reshape(len(images), -1)[:, :3]

    teacher = teachers.from_function(corner, num_classes=3, image_shape=(8, 8, 1))
    dataset = types.SimpleNamespace(image_shape=(8, 8, 1))
    student = models.from_linen(models.create("resnet8", 3))
    with pytest.raises(ValueError, match="reads the feature last of both networks, but the teacher has no"):
        methods.create("simkd").constants(teacher, student, dataset)
    with pytest.raises(ValueError, match='maps the feature "pooled" to logits, and function has 0 that'):
        linear_head(teacher, "simkd")
    with pytest.raises(ValueError, match="top must be from 2 to the number of classes, 3, got 1"):
        losses.class_activation(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3)), top=1)
    with pytest.raises(ValueError, match="scores must be"):
        losses.nce(jnp.ones((3, 1)), num_examples=4)


def test_contrast_by_hand() -> None:
    p = np.array([[0.02, 0.01, 0.03], [0.5, 0.1, 0.9]])
    noise = 2 / 50
    expected = -np.log(p[:, 0] / (p[:, 0] + noise)) - np.log(noise / (p[:, 1:] + noise)).sum(1)
    np.testing.assert_allclose(losses.nce(jnp.asarray(p), num_examples=50), expected, rtol=1e-4)
    keep = np.array([[True, True, False]] * 2)
    one = -np.log(p[:, 0] / (p[:, 0] + 0.02)) - np.log(0.02 / (p[:, 1] + 0.02))
    np.testing.assert_allclose(losses.nce(jnp.asarray(p), num_examples=50, where=keep), one, rtol=1e-4)


def test_scores_that_do_not_count_change_no_gradient() -> None:
    """Whatever they hold, and if none counts: an example may have no negative."""
    p = np.random.default_rng(0).uniform(0.01, 0.2, (4, 4)).astype(np.float32)
    keep = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    poisoned = np.where(keep, p, np.nan)
    run = jax.jit(jax.value_and_grad(lambda p: losses.nce(p, num_examples=50, where=keep).sum()))
    (value, gradient), (expected, of_expected) = run(poisoned), run(p)
    assert value == expected
    np.testing.assert_array_equal(gradient, of_expected)
    np.testing.assert_array_equal(np.asarray(gradient)[~keep], 0)
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match="num_examples must be positive"):
        losses.nce(p, num_examples=0)


def test_what_simkd_saves_answers_as_it_was_evaluated(tmp_path: Path, dataset: data.Dataset) -> None:
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    for name in ("simkd", "kd+simkd"):
        run = tmp_path / name
        result = jaxkd.distill(
            teacher=str(teacher),
            data=dataset,
            method=name,
            epochs=1,
            batch_size=16,
            run=run,
            say=helpers.silent,
        )
        saved = teachers.load(run)
        assert saved.description.method["name"] == "simkd"
        assert evaluate(saved, dataset)["ce"] == pytest.approx(result["last_ce"], rel=1e-5)
        assert result["parameters"] > models.describe("resnet8", num_classes=3).parameters
        with pytest.raises(
            ValueError, match="answers through simkd; only the package's models can be exported"
        ):
            teachers.export_torch(saved, tmp_path / "out.safetensors")
