"""The contract: every method, registered or of a kind that may be, in everything that a run does with it.

A method must not count padding, must compute on two devices what it computes on one, must go on after a stop
with the same bits, and must train with and without a cache.  Methods that are not registered stand here for
what a method may need: a memory, running statistics, adapters, two views, constants, a prediction of its own.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Tiny, tiny_teacher

import jaxkd
from jaxkd import data, losses, methods, models
from jaxkd.data.batch import Batch
from jaxkd.data.order import batches
from jaxkd.devices import replicate, share
from jaxkd.methods import Histogram, Inputs, Mean, Method, Terms
from jaxkd.methods.black_box import Generated
from jaxkd.metrics import numbers
from jaxkd.models import Outputs
from jaxkd.models.dcgan import Generator
from jaxkd.models.layers import BatchNorm
from jaxkd.models.network import AXIS
from jaxkd.runs import Stopped
from jaxkd.runs.checkpoint import read_newest
from jaxkd.training import Frozen, Task, TrainState, initial_state
from jaxkd.training.mapped import mapped_train_step
from jaxkd.training.optimizers import sgd

BATCH = 16  # of 40 images: the third batch of an epoch holds 8 examples, and one of two devices none


class Memory(Method):
    """Pulls an example towards the row that was stored of it, and away from the mean of all rows."""

    reads: ClassVar = ("pooled",)

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        bank = self.variable("memory", "rows", jnp.zeros, (40, 6))
        whole = x.gather()
        mine = whole.student["main"].features["pooled"]
        loss = jnp.sum((mine - bank.value[whole.ids]) ** 2, -1) - jnp.sum(mine * bank.value.mean(0), -1)
        if not self.is_initializing():
            rows = 0.5 * bank.value[whole.ids] + 0.5 * jax.lax.stop_gradient(mine)
            bank.value = bank.value.at[jnp.where(whole.where, whole.ids, 40)].set(rows, mode="drop")
        masked = jnp.sum(jnp.where(whole.where, loss, 0)) / jnp.maximum(jnp.sum(whole.where), 1)
        drawn = jax.random.uniform(self.make_rng("sample"))  # the same on all devices
        return Terms({"memory": (masked + 0.1 * drawn, 1.0)}, {"drawn": Mean.of(drawn, x.where)})


class Statistics(Method):
    """Keeps a running mean of the teacher's logits, each device of its own examples."""

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        mean = self.variable("statistics", "mean", jnp.zeros, (3,))
        count = jnp.sum(x.where)
        own = jnp.sum(jnp.where(x.where[:, None], x.teacher_logits, 0), 0) / jnp.maximum(count, 1)
        loss = jnp.sum((x.student_logits - x.teacher_logits + mean.value) ** 2, -1)
        if not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * own
        return Terms({"kd": (loss, 1.0)})


class Adapter(Method):
    """FitNet's kind: a convolution and batch norm over the devices, trained with the student."""

    reads: ClassVar = ("logits", "stage1")

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        student, teacher = x.student["main"].features["stage1"], x.teacher["main"].features["stage1"]
        adapted = nn.Conv(teacher.shape[-1], (1, 1))(student)
        adapted = BatchNorm(use_running_average=False, axis_name=x.axis_name)(adapted, x.where)
        return Terms({"hint": (jnp.mean((adapted - teacher) ** 2, (1, 2, 3)), 1.0)})


class TwoViews(Method):
    """A consistency of two views, besides KD on the first."""

    views: ClassVar = ("main", "other")

    def __call__(self, x: Inputs) -> Terms:
        one, two = x.student["main"].logits, x.student["other"].logits
        kd = losses.kd(one, x.teacher_logits) + losses.kd(two, x.teacher["other"].logits)
        return Terms({"kd": (kd, 1.0), "consistency": (jnp.mean((one - two) ** 2, -1), 0.5)})


class Head(Method):
    """SimKD's kind: the prediction goes through a projector and the teacher's own classifier."""

    reads: ClassVar = ("pooled",)

    def constants(self, teacher: Any, student: Any, dataset: Any) -> dict[str, Any]:
        return dict(teacher.variables["params"]["Dense_0"])

    def setup(self) -> None:
        self.projector = nn.Dense(9)

    def __call__(self, x: Inputs) -> Terms:
        pooled = self.projector(x.student["main"].features["pooled"])
        distance = jnp.mean((pooled - x.teacher["main"].features["pooled"]) ** 2, -1)
        return Terms({"distance": (distance, 1.0)})

    def predict(self, student: Outputs) -> jax.Array:
        pooled = self.projector(student.features["pooled"])
        kernel, bias = (self.get_variable("constants", name) for name in ("kernel", "bias"))
        return pooled @ kernel + bias


def plain(x: Inputs) -> Any:
    """A function that returns every kind of value and metric."""
    tau = 2.0 + x.epoch / x.num_epochs
    distance = losses.kd(x.student_logits, x.teacher_logits, temperature=lambda *_: tau)
    scalar = jnp.sum(jnp.where(x.gather().where, 1.0, 0.0)) / 100
    return Terms(
        {"kd": (distance, 1.0), "penalty": (scalar, jnp.float32(0.5))},
        {
            "tau": Mean.of(tau, x.where),
            "temperature": Histogram.of(tau, x.where),
            "spread": Histogram.of(jnp.abs(x.student_logits[:, 0]) + 0.2, x.where),
        },
    )


OWN = {
    "memory": Memory(),
    "statistics": Statistics(),
    "adapter": Adapter(),
    "two views": TwoViews(),
    "head": Head(),
    "sum": methods.create("kd+dist"),
    "function": methods.from_function(plain, name="plain"),
}
GENERATOR = Generator((8, 8, 1), 8)
GENERATED = Generated("of the test", GENERATOR, 3, GENERATOR.init(jax.random.key(5), jnp.zeros((1, 3))))
OPTIONS: dict[str, Any] = {"mekd": {"generator": GENERATED}, "gdkd": {"top_k": 2}}  # of three classes
ALL = {**{name: methods.create(name, **OPTIONS.get(name, {})) for name in methods.names()}, **OWN}
# What a micro-batch gives depends on the others: a loss or a norm over the whole batch, or a state.
OF_BATCH = {"dist", "skd", "mlkd", "atkd_mlkd", "sum", "memory", "statistics", "adapter"}
OF_BATCH |= {"fitnet", "ofd", "reviewkd", "rkd", "pkt", "sp", "cc", "itrd", "crd", "simkd"}
OF_BATCH |= {"methods of the batch"}

# One optimiser, augmentation and length for all: so the steps below and the runs share compiled programs.
OPTIMIZER = sgd(optax.constant_schedule(0.05))
FLIP = data.CropFlip(padding=0, flip=True)
EPOCHS = 2


# One of each kind: what they see, learn, hold and answer; the others are the same code with another loss.
KINDS = {"kd", "ctkd", "simkd", "crd", "mekd", "labels", "statistics", "adapter", "two views"}
KINDS |= {"sum", "function"}


def added(names: Collection[str]) -> Method:
    """Methods as one, which is compiled once; each has its own terms, parameters and state in it."""
    return methods.Sum(tuple(ALL[name] for name in names))


OTHERS = [name for name in methods.names() if name not in KINDS]
LOGITS = [name for name in OTHERS if name not in OF_BATCH and ALL[name].reads == ("logits",)]
FEATURES = [name for name in OTHERS if name not in OF_BATCH and name not in LOGITS]
ADDED = {
    "logit methods": added(LOGITS),
    "feature methods": added(FEATURES),
    "methods of the batch": added([name for name in OTHERS if name in OF_BATCH]),
    "kinds": added(["kd", "ctkd", "simkd", "crd"]),
}
ALL |= ADDED
TOGETHER = {"logit methods", "feature methods", "methods of the batch"}


def each(names: Collection[str], quick: Collection[str]) -> pytest.MarkDecorator:
    """pytest runs all properties of a method before those of the next, so that they share programs."""
    marked = [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked, scope="module")


# What is in a sum is there alone only as a slow test.
every_method = each([name for name in ALL if name != "kinds"], KINDS | TOGETHER)


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return dataclasses.replace(helpers.tiny_dataset(), augmentation=FLIP)


def test_every_registered_method_is_under_contract() -> None:
    assert set(methods.names()) <= ALL.keys()
    together = {part for name in TOGETHER for part in ALL[name].methods}
    assert all(name in KINDS or ALL[name] in together for name in methods.names())


def task(dataset: data.Dataset, method: Method, **changes: Any) -> Task:
    dtype = changes.pop("dtype", jnp.float32)
    # RandAugment's code takes longer to compile than all the rest: it is for the runs below.
    plain = "main", "strong"
    views = {view: FLIP if view in plain else method.augmentation(view, FLIP) for view in method.views}
    student = models.from_linen(Tiny(dtype=dtype)).normalized(dataset.mean, dataset.std).on_axis(AXIS)
    return Task(
        student=student,
        teacher=tiny_teacher(dataset).frozen[0] if method.reads else None,
        method=method,
        optimizer=OPTIMIZER,
        augmentations=tuple(views.items()),
        seed=0,
        num_epochs=EPOCHS,
        steps_per_epoch=3,
        **{"average": True, **changes},
    )


def begin(made: Task, dataset: data.Dataset) -> tuple[TrainState, Frozen, Any]:
    """The state at step 0, what is frozen, and the training images."""
    # All numbers of devices and micro-batches begin alike.
    start, frozen = beginning(dataclasses.replace(made, accumulate=1), dataset)
    train = dataset.splits["train"]
    return start, frozen, (train.images, train.labels)


STARTS: dict[Task, tuple[TrainState, Frozen]] = {}


def beginning(made: Task, dataset: data.Dataset) -> tuple[TrainState, Frozen]:
    if made in STARTS:
        return STARTS[made]
    teacher = tiny_teacher(dataset)
    constants = dict(made.method.constants(teacher, made.student, dataset))
    variables = teacher.frozen[1] if made.teacher is not None else None
    start = initial_state(made, dataset.image_shape, teacher=variables, constants=constants)
    STARTS[made] = jax.device_get(start), Frozen(variables, constants)
    return STARTS[made]


def steps(made: Task, dataset: data.Dataset, order: np.ndarray, num_devices: int = 1) -> TrainState:
    """The state after updates with the batches `order` `[S, B]`."""
    devices = jax.local_devices()[:num_devices]
    state, frozen, resident = replicate(begin(made, dataset), devices)
    step = mapped_train_step(made, devices)
    for ids in order:
        state = step(state, frozen, resident, Batch(share(ids[None], num_devices)))
    return jax.device_get(state)


def first_epoch() -> np.ndarray:
    return batches(data.epoch_order(40, seed=0, epoch=1), BATCH)


def assert_close(actual: Any, expected: Any, atol: float = 2e-5) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for path, leaf in jax.tree_util.tree_leaves_with_path(actual):
        other = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
        np.testing.assert_allclose(leaf, other, atol=atol, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


def learned(state: TrainState) -> Any:
    return state.params, state.network, state.method


@pytest.fixture(scope="module")
def whole(name: str, dataset: data.Dataset) -> TrainState:
    """The state of a method after one epoch on two devices, as the runs below have them."""
    return steps(task(dataset, ALL[name]), dataset, first_epoch(), num_devices=2)


@every_method
def test_an_update_is_that_of_all_real_examples_and_of_nothing_else(name: str, dataset: data.Dataset) -> None:
    """Padding never counts, and two devices compute what one does."""
    made, ids = task(dataset, ALL[name]), first_epoch()[:1, :12]
    nobody = np.full_like(ids[:, :4], -1)
    two = steps(made, dataset, np.concatenate([ids, nobody], axis=1), num_devices=2)
    if name in OF_BATCH | {"kd"}:
        other = steps(made, dataset, ids)
    else:  # the same program again, with the other device's places empty
        other = steps(made, dataset, np.concatenate([nobody, ids], axis=1), num_devices=2)
    assert_close(learned(two), learned(other))
    assert_close(two.tally, other.tally, atol=1e-3)


@every_method
def test_everything_that_learns_moves_and_what_is_frozen_does_not(
    name: str, dataset: data.Dataset, whole: TrainState
) -> None:
    start, _, _ = begin(task(dataset, ALL[name]), dataset)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), learned(start), learned(whole))
    still = [path for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if not leaf]
    # A bias before batch norm has no gradient, and SimKD's kind never trains the student's own head.
    without_head = ("head", "memory", "simkd")
    allowed = "['student']['Dense_0']" if name in without_head else "-"
    assert all(
        allowed in jax.tree_util.keystr(path) or "bias" in jax.tree_util.keystr(path) for path in still
    )


@every_method
def test_metrics_of_every_kind_are_of_all_examples(name: str, whole: TrainState) -> None:
    tally = whole.tally
    shown = numbers(tally.all)
    assert all(np.isfinite(value) for value in shown.values())
    assert {"loss", "accuracy"} < tally.losses.keys()
    for metric in tally.metrics.values():
        assert json.loads(json.dumps(metric.describe()))["mean"] == pytest.approx(metric.compute()[""])
        assert str(metric)
        if isinstance(metric, Histogram):
            assert metric.counts.sum() == 40
            assert metric.quantile(0.05) <= metric.quantile(0.95)
    if name == "function":
        assert shown["tau"] == pytest.approx(2.0 + 1 / EPOCHS)
        assert shown["penalty"] == pytest.approx((16 * 16 + 16 * 16 + 8 * 8) / 40 / 100)


@each(
    [name for name in ALL if name != "kinds"],
    # The methods of the batch have finite losses and counts to show, as CRD does.
    (KINDS - {"simkd", "adapter", "sum", "kd", "labels"}) | {"logit methods", "feature methods"},
)
def test_micro_batches_add_up(name: str, dataset: data.Dataset, whole: TrainState) -> None:
    """To the same update, unless the method sees the batch as a whole."""
    cut = steps(task(dataset, ALL[name], accumulate=2), dataset, first_epoch())
    assert int(cut.tally.nonfinite_step) == -1
    if name not in OF_BATCH:
        assert_close(learned(cut), learned(whole))
    counts = {float(metric.count) for metric in cut.tally.losses.values()}
    assert counts == {40.0}


@each(ALL, TOGETHER | {"kinds", "mekd"})
def test_activations_of_sixteen_bits_leave_everything_else_alone(name: str, dataset: data.Dataset) -> None:
    state = steps(task(dataset, ALL[name], dtype=jnp.bfloat16), dataset, first_epoch())
    assert int(state.tally.nonfinite_step) == -1
    assert all(np.isfinite(value) for value in numbers(state.tally.all).values())
    for leaf in jax.tree.leaves((learned(state), state.opt_state)):
        assert leaf.dtype in (np.float32, np.int32)


def start_run(folder: Path, dataset: data.Dataset, name: str, **options: Any) -> Any:
    return jaxkd.distill(
        teacher=tiny_teacher(dataset),
        student=models.from_linen(Tiny()),
        method=ALL[name],
        data=dataset,
        run=folder,
        **{"epochs": EPOCHS, "batch_size": BATCH, "log_every": 1, "devices": 2, "say": helpers.silent,
           "optimizer": OPTIMIZER, **options},
    )  # fmt: skip


# The others hold, save and read what one of these does.
@each(
    [name for name in ALL if name not in ADDED],
    (KINDS - {"adapter", "two views", "sum", "labels"}) | {"mlkd"},
)
def test_runs_stop_resume_and_take_logits_from_a_cache(
    name: str, dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    live = start_run(tmp_path / "whole", dataset, name)

    def stop(_: Any, step: int) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped by SIGINT after step 4 of 6"):
        start_run(tmp_path / "cut", dataset, name, on_log=stop)
    start_run(tmp_path / "cut", dataset, name)
    one, other = (read_newest(tmp_path / run / "checkpoints")[0] for run in ("whole", "cut"))
    assert one is not None
    assert other is not None
    assert (one.step, one.about.identity) == (other.step, other.about.identity)
    assert jax.tree.all(jax.tree.map(np.array_equal, one.state, other.state))

    method = ALL[name]
    if method.reads and set(method.reads) <= {"logits", "pooled"} and method.views == ("main",):
        # In float32: a few steps can make much of what float16 rounds off (ITRD: 5 % of the loss).
        monkeypatch.setattr("jaxkd.cache.store.DEFAULT_DTYPE", "float32")
        cached = start_run(tmp_path / "cached", dataset, name, cache="fill")
        assert cached["losses"]["loss"] == pytest.approx(live["losses"]["loss"], rel=5e-3)
        assert cached["metrics"].keys() == live["metrics"].keys()
    else:
        with pytest.raises(ValueError, match=r"--cache fill cannot be used: the method (reads|has)"):
            start_run(tmp_path / "cached", dataset, name, cache="fill")


def test_a_prediction_of_a_methods_own_is_what_is_evaluated(dataset: data.Dataset, tmp_path: Path) -> None:
    result = start_run(tmp_path / "head", dataset, "head", epochs=8, optimizer=optax.adam(1e-2))
    state = read_newest(tmp_path / "head" / "checkpoints")[0].state
    test, teacher = dataset.splits["test"], tiny_teacher(dataset)
    network = models.from_linen(Tiny()).normalized(dataset.mean, dataset.std)
    student, _ = network.apply({"params": state["params"]["student"]}, jnp.asarray(test.images))
    constants = ALL["head"].constants(teacher, network, dataset)
    variables = {"params": state["params"]["method"], "constants": constants}
    logits = ALL["head"].apply(variables, student, method="predict")
    assert result["last_accuracy"] == pytest.approx(100 * float((logits.argmax(-1) == test.labels).mean()))
    assert result["last_ce"] == pytest.approx(
        float(methods.cross_entropy(logits, test.labels).mean()), rel=1e-5
    )
    own = methods.cross_entropy(student.logits, test.labels).mean()
    assert result["last_ce"] != pytest.approx(float(own), rel=1e-3)


def test_names_that_are_taken_are_refused(dataset: data.Dataset) -> None:
    def twice(x: Inputs) -> Terms:
        return Terms({"loss": (x.student_logits[:, 0], 1.0)})

    made = task(dataset, methods.from_function(twice, name="twice"))
    with pytest.raises(ValueError, match="two terms or metrics the name loss; rename one"):
        initial_state(made, dataset.image_shape, teacher=tiny_teacher(dataset).frozen[1])
    made = task(dataset, methods.from_function(lambda x: Terms({}), name="nothing"))
    with pytest.raises(ValueError, match="returns no term: there is nothing to learn"):
        initial_state(made, dataset.image_shape, teacher=tiny_teacher(dataset).frozen[1])
    with pytest.raises(ValueError, match="two terms have the same name: kd"):
        Terms({"kd": (jnp.ones(2), 1.0)}) + Terms({"kd": (jnp.ones(2), 1.0)})


def test_a_method_that_reads_needs_a_teacher(dataset: data.Dataset) -> None:
    with pytest.raises(ValueError, match="the method reads logits from a teacher, but there is none"):
        dataclasses.replace(task(dataset, methods.create("labels")), method=methods.create("kd"))
