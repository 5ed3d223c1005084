"""How far the methods on features are from the numbers of their authors' codes (fixtures/features.md)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import flax.traverse_util
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from reference import relative

from jaxkd import methods, models, teachers
from jaxkd.data.batch import Batch
from jaxkd.methods import Inputs, Method, crd
from jaxkd.models import Outputs
from jaxkd.models.network import AXIS
from jaxkd.models.torch_names import flax_path, to_flax, to_torch, torch_name
from jaxkd.training import Frozen, Task, TrainState, train_step
from jaxkd.training.optimizers import sgd
from jaxkd.training.state import initial_state

FIXTURES = np.load(Path(__file__).parent / "fixtures" / "features.npz")

# Teacher and student of the cases with stand-in features.
PAIRS = {
    "same": ("resnet14", "resnet8"),
    "wider": ("wrn_16_2", "resnet8"),
    "smaller_student_map": ("resnet8x4", "MobileNetV2"),
    "larger_student_map": ("vgg8", "resnet8"),
    "wrn": ("wrn_16_2", "wrn_16_1"),
    "mobile_wrn": ("wrn_16_2", "MobileNetV2"),
}
# Teacher, student and number of classes of the cases with whole networks.
NETWORKS = {"A": ("resnet14", "resnet8", 10), "B": ("wrn_16_2", "resnet8", 100)}


class Names(NamedTuple):
    """How the public code calls a method, and its parameters."""

    method: str
    prefix: str = ""
    theirs: Callable[[str], str] = str


METHODS = {
    "fitnet": Names("fitnet", "fitnet."),
    "at": Names("at"),
    "rkd": Names("rkd"),
    "ofd": Names("ofd", "ofd.", "connectors.{}".format),
    "review": Names("reviewkd", "review."),
    "itrd": Names("itrd", "itrd.", lambda name: name.replace("embed.", "embed.linear.")),
    "pkt": Names("pkt"),
    "sp": Names("sp"),
    "nst": Names("nst"),
    "cc": Names("cc", "cc.", lambda name: re.sub(r"(embed_.)\.", r"\1.linear.", name)),
    "vid": Names("vid", "vid.", lambda name: re.sub(r"(regressor|log_scale)s[._](\d+)", r"\2.\1", name)),
}
SIMKD = Names("simkd", "simkd.")
CRD = Names("crd", "crd.", lambda name: re.sub(r"embed_(s|t)[a-z]*", r"embed_\1.linear", name))
Deviations = dict[str, float]

# Convolutions of float64 take long where the compiler does not optimise, as it does not in tests.
FAST = {"xla_backend_optimization_level": 2}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers that follow from a name, drawn as `[B, C, H, W]` and returned as `[B, H, W, C]`."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    numbers = rng.standard_normal(shape).astype(np.float32).astype(np.float64)
    return numbers.transpose(0, 2, 3, 1) if numbers.ndim == 4 else numbers


def stand_in(side: str, network: str) -> dict[str, np.ndarray]:
    """Features of a network, drawn instead of computed, with the shapes of images of 32x32."""
    drawn = {}
    for index, (name, shape) in enumerate(_shapes(network).items()):
        key = f"feat.{side}.{network}.f{index}"
        if name == "pooled":
            drawn[name] = np.abs(draw(key, shape))
        else:
            drawn[name] = np.maximum(draw(key, shape), 0)
            drawn[f"{name}_preact"] = draw(f"{key}.pre", shape)
    return drawn


@functools.cache
def _shapes(network: str) -> dict[str, tuple[int, ...]]:
    made = models.create(network, 10)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), np.float32)
    outputs, _ = jax.eval_shape(lambda x: made.init_with_output(jax.random.key(0), x), images)
    stages = sorted(name for name in outputs.features if re.fullmatch(r"stage\d", name))
    shapes = {name: outputs.features[name].shape for name in ("stem", *stages)}
    maps = {name: (n, c, h, w) for name, (n, h, w, c) in shapes.items()}
    return maps | {"pooled": outputs.features["pooled"].shape}


def network_variables(network: str, num_classes: int, *, teacher: bool = False) -> dict[str, Any]:
    """A network's variables by the rule, with the network's name as a prefix, in float64."""
    made = models.create(network, num_classes)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(made.init, jax.random.key(0), images)
    names = to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    weights = {n: helpers.deterministic_weight(f"{network}.{n}", w.shape) for n, w in names.items()}
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), to_flax(weights, shapes))
    if teacher:
        flat = flax.traverse_util.flatten_dict(variables)
        for name in names:
            if ".running_" in name:
                flat[flax_path(name, 1)] = FIXTURES[f"teacher_stats/{network}_k{num_classes}/{name}"]
        variables = flax.traverse_util.unflatten_dict(flat)
    return variables


def theirs(names: Names, variables: Mapping[str, Any], mirrored: bool = False) -> dict[str, np.ndarray]:
    """A method's variables, or gradients of them, by the public code's names, in torch's layout."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    return {
        names.theirs(torch_name(path)): _to_torch(path, np.asarray(leaf), mirrored)
        for path, leaf in flat.items()
    }


def _to_torch(path: tuple[str, ...], array: np.ndarray, mirrored: bool) -> np.ndarray:
    """In torch's layout; for a transposed convolution (in, out, height, width), and mirrored."""
    if path[-1] != "kernel":
        return array
    if array.ndim == 2:
        return array.T
    return array.transpose(2, 3, 0, 1)[..., ::-1, ::-1] if mirrored else array.transpose(3, 2, 0, 1)


def _from_torch(path: tuple[str, ...], array: np.ndarray, mirrored: bool) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    if array.ndim == 2:
        return array.T
    return array[..., ::-1, ::-1].transpose(2, 3, 0, 1) if mirrored else array.transpose(2, 3, 1, 0)


def adapter(
    names: Names, shapes: Mapping[str, Any], given: Mapping[str, np.ndarray], mirrored: bool = False
) -> dict[str, Any]:
    """A method's variables by the rule, or as given by the public code's names, in float64."""
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(dict(shapes)).items():
        name = names.theirs(torch_name(path))
        shape = _to_torch(path, np.zeros(leaf.shape), mirrored).shape
        array = given[name] if name in given else helpers.deterministic_weight(names.prefix + name, shape)
        flat[path] = _from_torch(path, array, mirrored).astype(np.float64)
    return flax.traverse_util.unflatten_dict(flat)


def inputs(student: Mapping[str, Any], teacher: Mapping[str, Any], epoch: int = 1) -> Inputs:
    """What a method sees of features alone."""
    size = len(student["pooled"])
    logits = jnp.zeros((size, 10))
    return Inputs(
        student={"main": Outputs(logits, student)},
        teacher={"main": Outputs(logits, teacher)},
        labels=jnp.zeros(size, jnp.int32),
        ids=jnp.arange(size),
        where=jnp.ones(size, bool),
        epoch=jnp.int32(epoch),
        num_epochs=240,
    )


def of_features(terms: Any) -> jax.Array:
    """The loss but for the cross-entropy."""
    return sum(weight * jnp.mean(v) for name, (v, weight) in terms.losses.items() if name != "ce")


def init(method: Method, x: Inputs, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of a method's variables."""
    given = {"constants": constants} if constants else {}

    def make(x: Inputs) -> Any:
        keys = {"params": jax.random.key(0)}
        return method.apply(given, x, rngs=keys, mutable=["params", "batch_stats"])[1]

    return dict(jax.eval_shape(make, x))


def stand_in_case(name: str, pair: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Features of both networks, and which of the student's the numbered gradients are of."""
    teacher, student = PAIRS[pair]
    s, t = stand_in("s", student), stand_in("t", teacher)
    stages = [key for key in s if re.fullmatch(r"stage\d", key)]
    if name == "ofd":
        stages = [f"{stage}_preact" for stage in stages]
        if pair == "smaller_student_map":
            shapes = ((4, 12, 16, 16), (4, 16, 8, 8), (4, 48, 4, 4))
            small = {f"stage{i + 1}": draw(f"feat.s.small.p{i}dev", shape) for i, shape in enumerate(shapes)}
            s, stages = {**small, "pooled": s["pooled"]}, list(small)
        return s, t, ["", *stages]
    if name == "review":
        return s, t, ["", *stages, "pooled"]
    if name == "sp":
        return s, t, [stages[-1]]
    if name == "pkt":
        return s, t, ["pooled"]
    if name == "nst":  # was run from the second stage on
        s, t = ({k: v for k, v in f.items() if k != "stage1"} for f in (s, t))
        moved = [{re.sub(r"\d", lambda n: str(int(n[0]) - 1), k): v for k, v in f.items()} for f in (s, t)]
        return *moved, [f"stage{i}" for i in range(1, len(stages))]
    return s, t, ["", *stages]


def adapters(name: str, pair: str, precision: str = "f64") -> Deviations:
    """Deviations of loss, gradients, adapters' gradients and running statistics with stand-in features."""
    names, key = METHODS[name], f"{name}/{pair}"
    dtype = np.float64 if precision == "f64" else np.float32
    with jax.enable_x64(precision == "f64"):
        if pair == "crop":
            s, t = (
                np.maximum(draw(f"fitnet.crop.dev.{x}", shape), 0)
                for x, shape in (("s", (4, 5, 8, 8)), ("t", (4, 7, 5, 5)))
            )
            s, t = ({"stage1": f, "stage2": f, "pooled": f[:, 0, 0]} for f in (s, t))
            numbered = []
        else:
            s, t, numbered = stand_in_case(name, pair)
        method = methods.create(names.method, weight=1.0, **({"dim": 32} if name == "cc" else {}))
        constants = margins(PAIRS[pair][0]) if name == "ofd" else {}
        shapes = init(method, inputs(s, t, 20), constants)
        stored = {
            f"{i}.log_scale": FIXTURES[f"{key}/log_scale{i}"]
            for i in range(4)
            if f"{key}/log_scale{i}" in FIXTURES
        }
        mirrored = key == "fitnet/smaller_student_map"
        weights = adapter(names, shapes, stored, mirrored)
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
        s, t = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (s, t))
        params, rest = variables.pop("params", {}), variables

        def loss(s: Any, params: Any, t: Any, epoch: int) -> Any:
            terms, after = method.apply(
                {"params": params, **rest, **({"constants": constants} if constants else {})},
                inputs(s, t, epoch), mutable=list(rest),
            )  # fmt: skip
            return of_features(terms), (after, {n: jnp.mean(v) for n, (v, _) in terms.losses.items()})

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, (after, terms)), (of_s, of_params) = jax.device_get(run(s, params, t, 20))
        found = {"value": relative(value, FIXTURES[f"{key}/loss_{precision}"])}
        for term, part in (("correlation", "corr"), ("mutual", "mutual")):
            if f"{key}/loss_{part}_f64" in FIXTURES:
                part_found = relative(terms[f"itrd_{term}"], FIXTURES[f"{key}/loss_{part}_f64"])
                found["value"] = max(found["value"], part_found)
        if f"{key}/loss_epoch5_f64" in FIXTURES:
            early = jax.jit(lambda *a: loss(*a)[0])(s, params, t, 5)
            found["value"] = max(found["value"], relative(early, FIXTURES[f"{key}/loss_epoch5_f64"]))
    gradients = {f"f_s{index}": of_s[feature] for index, feature in enumerate(numbered) if feature}
    gradients |= {"pool_s": of_s["pooled"]} | ({"f_s": of_s["stage2"]} if name == "fitnet" else {})
    own = {
        k.removesuffix("#moments").removeprefix(f"{key}/grad.")
        for k in FIXTURES.files
        if k.startswith(f"{key}/grad.") and not k.endswith("#sample")
    }
    gradients = {n: g.transpose(0, 3, 1, 2) if g.ndim == 4 else g for n, g in gradients.items()}
    features = {n for n in own if n.startswith(("f_s", "pool_s"))}
    assert features - {"f_s0"} <= gradients.keys()
    found["gradient"] = _arrays({n: gradients[n] for n in features & gradients.keys()}, f"{key}/grad.")
    weights = theirs(names, {"params": of_params}, mirrored)
    for missing in own - features - weights.keys():  # ReviewKD's prediction of nothing
        assert not np.any(_whole(f"{key}/grad.{missing}")), missing
    if own - features:
        found["adapters"] = _arrays({n: weights[n] for n in own & weights.keys()}, f"{key}/grad.")
    statistics = theirs(names, {"batch_stats": after.get("batch_stats", {})})
    if statistics:
        found["statistics"] = _arrays(statistics, f"{key}/after.")
    return found


def margins(network: str) -> dict[str, np.ndarray]:
    """OFD's margins for a network with weights by the rule, without a prefix."""
    made = models.from_linen(models.create(network, 10), name=network)
    variables = helpers.deterministic_variables(network, 10)
    teacher = teachers.from_network(made, variables, image_shape=(32, 32, 3))
    return dict(methods.create("ofd").constants(teacher, None, None))


class Pass(NamedTuple):
    """Both networks of a pair on one batch in float64: outputs, statistics after it, and the way back."""

    student: Outputs
    teacher: Outputs
    statistics: dict[str, Any]
    pull_back: Callable[[dict[str, Any]], Any]  # gradients of features to gradients of parameters
    constants: dict[str, Any]


def _networks(pair: str) -> tuple[list[models.Network], list[dict[str, Any]]]:
    *names, num_classes = NETWORKS[pair]
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    networks = [models.from_linen(models.create(n, num_classes, **wide), name=n) for n in names]
    variables = [network_variables(n, num_classes, teacher=n == names[0]) for n in names]
    return networks, variables


@functools.cache
def _pass(pair: str) -> Pass:
    (teacher, student), (of_teacher, of_student) = _networks(pair)
    images = jnp.asarray(draw(f"net.{pair}.x", (4, 3, 32, 32)))
    params = of_student.pop("params")

    def forward(params: Any) -> Any:
        return student.apply({"params": params, **of_student}, images, train=True)

    def pull_back(params: Any, features: Any) -> Any:
        return jax.vjp(lambda params: forward(params)[0].features, params)[1](features)[0]

    outputs, statistics = jax.jit(forward, compiler_options=FAST)(params)
    evaluate = jax.jit(lambda images: teacher.apply(of_teacher, images)[0], compiler_options=FAST)
    made = teachers.from_network(teacher, of_teacher, image_shape=(32, 32, 3))
    constants = dict(methods.create("ofd").constants(made, student, None))
    back = functools.partial(jax.jit(pull_back, compiler_options=FAST), params)
    return Pass(outputs, evaluate(images), dict(statistics), back, constants)


def whole_networks(name: str, pair: str) -> Deviations:
    """Deviations of loss, gradients and running statistics with whole networks."""
    names, key = METHODS[name], f"net/{pair}/{name}"
    with jax.enable_x64(True):
        seen = _pass(pair)
        method = methods.create(names.method, weight=1.0)
        constants = {"constants": seen.constants} if name == "ofd" else {}
        x = inputs(seen.student.features, seen.teacher.features, 20)
        rest = adapter(names, init(method, x, constants.get("constants", {})), {})
        params = rest.pop("params", {})

        def loss(features: Any, params: Any) -> Any:
            terms, after = method.apply(
                {"params": params, **rest, **constants},
                inputs(features, seen.teacher.features, 20),
                mutable=list(rest),
            )
            return of_features(terms), after

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, after), (of_student, of_params) = run(seen.student.features, params)
        gradients = {"student": seen.pull_back(of_student), "method": of_params}
    tensors, listed = _named(names, gradients, {}, {}), list(FIXTURES[f"{key}/grad/names"])
    running = _named(names, {}, seen.statistics, after)
    found = {
        "value": relative(value, FIXTURES[f"{key}/loss_f64"]),
        "gradient": _table(tensors, f"{key}/grad/", [n for n in listed if n.startswith("student")]),
        "statistics": _table(running, f"{key}/running/"),
    }
    if of_adapter := [n for n in listed if n.startswith("adapter")]:
        found["adapters"] = _table(tensors, f"{key}/grad/", of_adapter)
    return found


RECIPES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "fitnet_b100": ("fitnet", 1, {"weight": 100.0}),
    "itrd": ("itrd", 1, {"weight": 1.0}),
    "ofd_b0.001": ("ofd", 1, {"weight": 0.001}),
    "review_b1_ep20": ("review", 20, {"weight": 1.0}),
    "simkd": ("simkd", 1, {}),
    "crd_b0.8": ("crd", 1, {"dimensions": 32}),
    "ce": ("labels", 1, {}),
    "kd_T4": ("kd", 1, {}),
    "lskd_T2": ("lskd", 1, {}),
    "atkd": ("atkd", 1, {}),
    "dkd_a1_b8_T4_ep1": ("dkd", 1, {}),
    "dkd_a1_b8_T4_ep20": ("dkd", 20, {}),
    "atkd_dkd_a1_b8_ep20": ("atkd_dkd", 20, {}),
    "ctkd": ("ctkd", 3, {}),
    "mlkd_T4": ("mlkd", 1, {}),
    "atkd_mlkd": ("atkd_mlkd", 1, {}),
}


def _bank(number: int) -> np.ndarray:
    """A bank of CRD at the start of the recipe."""
    rng = np.random.default_rng(zlib.crc32(f"recipe.A.memory_v{number}".encode()))
    return ((2 * rng.random((40, 32)) - 1) / np.sqrt(32 / 3)).astype(np.float32).astype(np.float64)


# What methods hold at the start, where the rule for weights does not say it.
_HELD: dict[str, dict[str, np.ndarray]] = {
    "ctkd": {"theta": np.ones(())},
    "crd": {
        **{f"{side}_bank": _bank(number) for number, side in ((1, "student"), (2, "teacher"))},
        **{f"{side}_total": -np.ones(()) for side in ("student", "teacher")},
    },
}


@dataclasses.dataclass(frozen=True)
class Channels:
    """A view that lies in three of an image's channels."""

    first: int

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """See `jaxkd.data.Augmentation`."""
        return image[..., self.first : self.first + 3]


def recipe(key: str) -> Deviations:
    """Deviations of three steps of SGD by the training step: losses, parameters, adapters, statistics."""
    name, epoch, options = RECIPES[key]
    names, path = {**METHODS, "simkd": SIMKD, "crd": CRD}.get(name, Names(name)), f"recipe/A/{key}"
    found: Deviations = collections.defaultdict(float)
    listed = list(FIXTURES[f"{path}/step1/names"])
    kinds = {
        "statistics": [n for n in listed if ".running_" in n],
        "gradient": [n for n in listed if n.startswith("student") and ".running_" not in n],
        "adapters": [n for n in listed if n.startswith("adapter") and ".running_" not in n],
    }
    total = 0.0
    for index, state in enumerate(_steps(names, epoch, methods.create(names.method, **options)), start=1):
        before, total = total, float(state.tally.losses["loss"].total) / 8
        expected = FIXTURES[f"{path}/losses_f64"][index - 1]
        found["value"] = max(found["value"], relative(total - before, expected))
        tensors = _named(names, state.params, state.network, state.method)
        for kind, chosen in kinds.items():
            if chosen:
                found[kind] = max(found[kind], _table(tensors, f"{path}/step{index}/", chosen, listed))
        if name == "ctkd":
            theta = state.params["method"]["theta"]
            found["adapters"] = max(found["adapters"], relative(theta, FIXTURES[f"{path}/step{index}/theta"]))
        for tensor in ("fc.bias", "bn1.weight", "bn1.running_mean", "bn1.running_var"):
            kind = "statistics" if "running" in tensor else "gradient"
            expected = FIXTURES[f"{path}/step{index}/{tensor}"]
            found[kind] = max(found[kind], relative(tensors[f"student.{tensor}"], expected))
    if name == "crd":
        memory = state.method["memory"]
        for number, side in ((1, "student"), (2, "teacher")):
            after = FIXTURES[f"{path}/memory_v{number}_after"]
            total = FIXTURES[f"{path}/Z"][number - 1]
            held = max(relative(memory[f"{side}_bank"], after), relative(memory[f"{side}_total"], total))
            found["statistics"] = max(found["statistics"], held)
    return dict(found)


def _contrast(key: jax.Array, ids: jax.Array, *_: Any, **__: Any) -> tuple[jax.Array, jax.Array]:
    """CRD's negatives in the recipe, by the ids of the batch."""
    step = jnp.argmax(jnp.all(jnp.asarray(FIXTURES["recipe/A/crd_index"]) == ids, axis=1))
    index = jnp.asarray(FIXTURES["recipe/A/crd_contrast_index"])[step]
    return index, jnp.ones(index.shape, bool)


def _steps(names: Names, epoch: int, method: Method) -> Iterator[TrainState]:
    """The states after each of three steps with the networks of pair A."""
    with jax.enable_x64(True):
        (teacher, student), (of_teacher, of_student) = _networks("A")
        made = teachers.from_network(teacher, of_teacher, image_shape=(32, 32, 3))
        labels_of_all = types.SimpleNamespace(labels=np.zeros(40, np.int32))
        dataset = types.SimpleNamespace(image_shape=(32, 32, 3), splits={"train": labels_of_all})
        frozen = Frozen(of_teacher, dict(method.constants(made, student, dataset)))
        task = Task(
            student=student.on_axis(AXIS),
            teacher=teacher if method.reads else None,
            method=method,
            optimizer=sgd(optax.constant_schedule(0.05)),
            augmentations=tuple((view, Channels(3 * i)) for i, view in enumerate(method.views)),
            seed=0,
            num_epochs=240,
            steps_per_epoch=3,
        )
        known = of_teacher if method.reads else None
        start = initial_state(task, (32, 32, 3), teacher=known, constants=frozen.constants)
        held = _HELD.get(names.method, {})
        of_method = adapter(names, {"params": start.params["method"], **start.method}, held)
        params = {"student": of_student.pop("params"), "method": of_method.pop("params", {})}
        state: Any = start.replace(  # type: ignore[attr-defined]
            step=jnp.int32(3 * (epoch - 1)),
            params=params,
            network=of_student,
            method=of_method,
            opt_state=task.optimizer.init(params),
        )
        mesh = Mesh(np.array(jax.local_devices()[:1]), (AXIS,))
        mapped = jax.shard_map(
            functools.partial(train_step, task),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        step = jax.jit(mapped, compiler_options=FAST)
        for index in range(3):
            shown = [draw(f"recipe.A.{view}{index}", (8, 3, 32, 32)) for view in ("x", "strong")]
            images = np.concatenate(shown, axis=-1)
            labels = FIXTURES["recipe/A/labels"][index].astype(np.int32)
            ids = FIXTURES["recipe/A/crd_index"][index].astype(np.int32)
            with mock.patch.object(crd, "contrast", _contrast):
                after = jax.device_get(step(state, frozen, Batch(ids, images, labels)))
            # The sums of a run are float32; as they come, each step would be compiled anew.
            state = jax.tree.map(lambda new, old: np.asarray(new, old.dtype), after, state)
            yield state


def _named(names: Names, params: Any, network: Any, method: Any) -> dict[str, np.ndarray]:
    """Everything that a run changes, by the public code's names."""
    student = to_torch({"params": params.get("student", {}), **network})
    of_method = theirs(names, {"params": params.get("method", {}), **method})
    return {
        **{f"student.{n}": a for n, a in student.items()},
        **{f"adapter.{n}": a for n, a in of_method.items()},
    }


def _table(tensors: Mapping[str, np.ndarray], key: str, names: Any = None, all_names: Any = None) -> float:
    """The largest deviation from a table of sums, relative to a tensor's sum of absolute values."""
    if all_names is None:
        all_names = list(FIXTURES[f"{key}names"])
    rows = dict(zip(all_names, FIXTURES[f"{key}table"], strict=True))
    chosen = {n: rows[n] for n in (all_names if names is None else names)}
    largest, found = max(row[1] for row in chosen.values()), 0.0
    for name, row in chosen.items():
        if name not in tensors:
            assert not row[1], name
            continue
        a = np.asarray(tensors[name], np.float64)
        actual = np.array([a.sum(), np.abs(a).sum(), np.sqrt((a * a).sum()), a.ravel()[0]])
        scale = row[1] if row[1] > 1e-12 * largest else largest
        found = max(found, float(np.abs(actual - row).max() / scale))
    return found


def _arrays(arrays: Mapping[str, np.ndarray], key: str) -> float:
    """The largest deviation of arrays, relative to the largest entry of each."""
    largest = max(np.abs(_whole(key + name)).max() for name in arrays)
    return max(_array(array, key + name, largest) for name, array in arrays.items())


def _whole(key: str) -> np.ndarray:
    return FIXTURES[key] if key in FIXTURES else FIXTURES[f"{key}#sample"]


def _array(array: np.ndarray, key: str, largest: float) -> float:
    expected = _whole(key)
    top = np.abs(expected).max()
    scale = top if top > 1e-10 * largest else largest  # what is 0 analytically is stored as noise
    flat = np.asarray(array, np.float64)
    if key in FIXTURES:
        return float(np.abs(flat.reshape(expected.shape) - expected).max() / scale)
    flat = flat.ravel()
    moments, size = FIXTURES[f"{key}#moments"], flat.size
    sample = flat[: 400 * (size // 400) : size // 400]
    actual = np.array([flat.sum(), np.abs(flat).sum(), np.sqrt((flat * flat).sum()), np.abs(flat).max()])
    scales = np.where(moments[1] > 1e-10 * largest * size, moments[[1, 1, 2, 3]], largest * size)
    return float(max(np.abs(sample - expected).max() / scale, (np.abs(actual - moments) / scales).max()))
