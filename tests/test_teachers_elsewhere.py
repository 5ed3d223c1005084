"""Teachers of timm, torchvision, the Hub, Flax and NNX checkpoints and Keras; other image sizes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx

import jaxkd
from jaxkd import data, models, teachers
from jaxkd.cache.compute import cache_key
from jaxkd.teachers import hub

NORMALISATION = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def timm_config(architecture: str, side: int, num_classes: int) -> dict[str, Any]:
    """What timm writes beside its weights (fields that matter, and some that do not)."""
    about = {
        "tag": "a1_in1k",
        "input_size": [3, side, side],
        "crop_pct": 0.95,
        "classifier": "fc",
        **NORMALISATION,
    }
    return {"architecture": architecture, "num_classes": num_classes, "pretrained_cfg": about}


# timm and torchvision


def torchvision_shapes(num_classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a ResNet-18's state_dict, as torchvision and timm have them."""

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{leaf}", (width,)
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1.weight", (width, before, 3, 3)
            yield from norm(f"{name}.bn1", width)
            yield f"{name}.conv2.weight", (width, width, 3, 3)
            yield from norm(f"{name}.bn2", width)
            if before != width:
                yield f"{name}.downsample.0.weight", (width, before, 1, 1)
                yield from norm(f"{name}.downsample.1", width)
            before = width
    yield from (("fc.weight", (num_classes, 512)), ("fc.bias", (num_classes,)))


def test_timm_weights_are_read_with_the_normalisation_that_lies_beside_them(tmp_path: Path) -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in torchvision_shapes(4)}
    weights["fc.bias"] = np.arange(4, dtype=np.float32)
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(timm_config("resnet18", 224, 4)))
    about = teachers.described_in(tmp_path / "model.safetensors")
    assert about is not None
    assert (about.model, about.num_classes, about.image_shape) == ("imagenet_resnet18", 4, (224, 224, 3))
    assert (about.mean, about.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    variables = teachers.import_torch(tmp_path / "model.safetensors", model=about.model, num_classes=4)
    assert variables["params"]["fc"]["bias"].tolist() == [0, 1, 2, 3]
    config.write_text(json.dumps(timm_config("vit_tiny", 224, 4)))
    about = teachers.described_in(tmp_path / "model.safetensors")
    assert about is not None
    with pytest.raises(ValueError, match=r'unknown model "vit_tiny"; accepted: resnet8'):
        teachers.import_torch(tmp_path / "model.safetensors", model=about.model, num_classes=4)
    config.write_text(json.dumps({"pretrained_cfg": {"mean": [0.5]}}))
    with pytest.raises(ValueError, match=r"config\.json does not say input_size, mean, std and num_classes"):
        teachers.described_in(tmp_path / "model.safetensors")
    (tmp_path / "mine.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert teachers.described_in(tmp_path / "mine.safetensors") is None  # timm gives no file that name
    config.write_text("{}")
    assert teachers.described_in(tmp_path / "model.safetensors") is None


# The Hugging Face Hub, from the client's cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's cache folder, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "ARCHITECTURES", {"resnet18": "resnet8"})  # small
    return tmp_path / "hub"


def publish(cache: Path, repository: str, files: dict[str, bytes], commit: str = "a" * 40) -> None:
    """Lays files as the client keeps them after a download."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name, contents in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


def test_weights_on_the_hub_are_a_teacher(cache: Path, tmp_path: Path) -> None:
    teacher = teachers.load("digits-resnet20")
    teachers.export_torch(teacher, tmp_path / "exported.safetensors")
    publish(cache, "me/digits", {"model.safetensors": (tmp_path / "exported.safetensors").read_bytes()})
    found = teachers.load("hf:me/digits")
    assert (found.name, found.digest, found.description) == ("digits", teacher.digest, teacher.description)

    variables = helpers.deterministic_variables("resnet8", 5)
    weights = safetensors.numpy.save(models.torch_names.to_torch(variables))
    config = json.dumps(timm_config("resnet18", 16, 5)).encode()
    publish(cache, "timm/resnet18.a1_in1k", {"model.safetensors": weights, "config.json": config})
    found = teachers.load("hf:timm/resnet18.a1_in1k")
    assert (found.name, found.description.image_shape) == ("resnet18.a1_in1k", (16, 16, 3))
    assert found.description.mean == (0.4, 0.5, 0.6)
    assert found.description.source == "hf:timm/resnet18.a1_in1k at aaaaaaaaaaaa"
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


def test_what_is_not_in_the_cache_is_told(cache: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"hf:me/absent: model\.safetensors was not found .*; pytorch"
    ):
        teachers.load("hf:me/absent")
    with pytest.raises(ValueError, match="must be hf:OWNER/NAME"):
        teachers.load("hf:absent")
    publish(cache, "me/bare", {"model.safetensors": safetensors.numpy.save({"w": np.zeros(2, np.float32)})})
    with pytest.raises(ValueError, match=r"does not say what it is; import it: jaxkd import hf:me/bare"):
        teachers.load("hf:me/bare")


def test_the_hub_without_its_client_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(ImportError, match=r"huggingface_hub; type: pip install 'jaxkd-distillation\[hub\]'"):
        hub.local("hf:me/digits")


# Checkpoints of Flax and NNX


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Plain(nn.Module):
    """`Normed` with its batch norm as a part of the parameters alone."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.Conv(4, (3, 3))(x).mean((1, 2)))


class Cell(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.norm(self.conv(x)).mean((1, 2))))


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)


def train_state(seed: int = 0) -> dict[str, Any]:
    """What a Flax program saves: its state, the optimiser's moments among it."""
    variables = jax.tree.map(lambda x: x + 0.1, Normed().init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1))))
    moments = optax.adam(0.1).init(variables["params"])
    return {"step": jnp.int32(7), **variables, "opt_state": moments}


def save(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def test_a_flax_checkpoint_becomes_a_teacher(tmp_path: Path) -> None:
    state = train_state()
    wanted = Normed().apply({name: state[name] for name in ("params", "batch_stats")}, IMAGES / 255.0)
    (tmp_path / "state.msgpack").write_bytes(flax.serialization.to_bytes(state))
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        manager.save(3, args=ocp.args.StandardSave(train_state(seed=1)))
        manager.save(20, args=ocp.args.StandardSave(state))
    for path in (save(tmp_path / "orbax", state), tmp_path / "steps", tmp_path / "state.msgpack"):
        teacher = teachers.from_checkpoint(path, Normed(), image_shape=(8, 8, 1))
        np.testing.assert_allclose(teacher.logits(IMAGES), wanted, rtol=1e-5)
    assert (teacher.name, teacher.num_classes) == ("Normed", 3)
    teachers.save(tmp_path / "teacher", teacher.variables, teacher.description)
    again = teachers.load(tmp_path / "teacher", network=Normed())
    assert again.digest == teacher.digest


def test_an_nnx_checkpoint_becomes_a_teacher(tmp_path: Path) -> None:
    cell = Cell(nnx.Rngs(3))
    path = save(tmp_path / "nnx", nnx.to_pure_dict(nnx.state(cell, nnx.Any(nnx.Param, nnx.BatchStat))))
    cell.eval()
    teacher = teachers.from_checkpoint(path, Cell, image_shape=(8, 8, 1), mean=(0.0,), std=(1.0,))
    np.testing.assert_allclose(teacher.logits(IMAGES), cell(IMAGES / 255.0), rtol=1e-5)


def test_networks_by_name_come_from_checkpoints_too(tmp_path: Path) -> None:
    network = models.create("resnet8", 3)
    variables = models.initialize(network, seed=4, image_shape=(8, 8, 1))
    path = save(tmp_path / "mine", {"ema": variables, "raw": jax.tree.map(jnp.zeros_like, variables)})
    with pytest.raises(ValueError, match=r'lie under each of "ema", "raw"; choose one with prefix='):
        teachers.from_checkpoint(path, "resnet8", num_classes=3, image_shape=(8, 8, 1))
    teacher = teachers.from_checkpoint(path, "resnet8", num_classes=3, image_shape=(8, 8, 1), prefix="ema")
    assert (teacher.description.own, teacher.forward) == (False, None)
    jax.tree.map(np.testing.assert_array_equal, teacher.variables, variables)
    npz = helpers.write_npz(tmp_path / "d.npz", helpers.tiny_dataset())
    options = ["--model", "resnet8", "--data", npz, "--prefix", "ema", "--out", tmp_path / "teacher"]
    code, output, _ = helpers.call_jaxkd("import", path, *options)
    assert code == 0, output
    assert "on all 19 test images" in output


def test_a_checkpoint_in_another_precision_is_a_teacher_of_the_networks(tmp_path: Path) -> None:
    narrow = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), {n: train_state()[n] for n in ("params", "batch_stats")}
    )
    teacher = teachers.from_checkpoint(save(tmp_path / "narrow", narrow), Normed(), image_shape=(8, 8, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(teacher.variables)} == {np.dtype("float32")}
    teachers.save(tmp_path / "teacher", teacher.variables, teacher.description)
    assert teachers.load(tmp_path / "teacher", network=Normed()).digest == teacher.digest
    broken = {**narrow, "params": jax.tree.map(lambda x: x * jnp.nan, narrow["params"])}
    whole = jax.tree.map(lambda x: (100 * x).astype(jnp.int8), narrow)
    for tree, message in (
        (broken, "values that are not finite in float32"),
        (whole, "is of type int8; weights"),
    ):
        path = save(tmp_path / message[:8], tree)
        with pytest.raises(ValueError, match=message):
            teachers.from_checkpoint(path, Normed(), image_shape=(8, 8, 1))


def test_a_checkpoint_of_a_network_with_options_is_imported(tmp_path: Path) -> None:
    network = models.create("resnet8", 3, shortcut="A")
    path = save(tmp_path / "mine", models.initialize(network, seed=4, image_shape=(8, 8, 1)))
    npz = helpers.write_npz(tmp_path / "d.npz", helpers.tiny_dataset())
    options = ["--model", "resnet8", "--data", npz, "--shortcut", "A", "--out", tmp_path / "teacher"]
    code, _, errors = helpers.call_jaxkd("import", path, *options)
    assert code == 0, errors
    teacher = teachers.load(tmp_path / "teacher")
    assert teacher.description.model_options == {"shortcut": "A"}
    assert teacher.logits(IMAGES).shape == (2, 3)
    code, _, errors = helpers.call_jaxkd("import", path, *options, "--rename", "a=b")
    assert "--rename is for the names in a PyTorch file" in errors


def test_own_networks_differ_by_more_than_their_variables(tmp_path: Path) -> None:
    class Bent(nn.Module):
        power: int = 1

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3)(x.reshape(len(x), -1) ** self.power)

    dataset = helpers.tiny_dataset()
    variables = Bent().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    one, other = (
        teachers.from_network(
            Bent(power), variables, image_shape=(8, 8, 1), mean=np.array([0.0]), std=np.array([1.0])
        )
        for power in (1, 2)
    )
    assert one.digest == other.digest
    assert one.description.mean == (0.0,)
    assert cache_key(one, dataset, dataset.augmentation) != cache_key(other, dataset, dataset.augmentation)
    common = {
        "student": helpers.Tiny(),
        "data": dataset,
        "epochs": 1,
        "batch_size": 16,
        "say": helpers.silent,
    }
    jaxkd.distill(teacher=one, run=tmp_path / "run", **common)
    with pytest.raises(ValueError, match="holds another run; different: teacher_module"):
        jaxkd.distill(teacher=other, run=tmp_path / "run", **common)


def test_floats_that_are_no_normalised_pixels_are_refused() -> None:
    variables = Normed().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    teacher = teachers.from_network(Normed(), variables, image_shape=(8, 8, 1), mean=(0.5,), std=(0.25,))
    with pytest.raises(
        ValueError, match=r"images are floats up to 2.*, and normalised pixels are at most 2; pass"
    ):
        teacher.logits(IMAGES.astype(np.float32))
    normalised = (IMAGES / 255 - 0.5) / 0.25
    expected = teacher.logits(normalised)
    # Under `jit`, too, where nothing could be seen.
    for images in (normalised, IMAGES / 255.0):
        with pytest.raises(ValueError, match=r"inside of a traced function.*normalized=True"):
            jax.jit(teacher.logits)(images.astype(np.float32))
    confirmed = jax.jit(lambda images: teacher.logits(images, normalized=True))(normalised.astype(np.float32))
    np.testing.assert_allclose(confirmed, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(teacher.logits)(IMAGES), expected, rtol=1e-5)


def test_checkpoints_that_do_not_fit_say_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        teachers.from_checkpoint(tmp_path / "absent", Normed(), image_shape=(8, 8, 1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no checkpoint")
    for name, message in (("empty", "no Orbax checkpoint"), ("text", "no Flax msgpack file")):
        with pytest.raises(ValueError, match=message):
            teachers.from_checkpoint(tmp_path / name, Normed(), image_shape=(8, 8, 1))
    state = train_state()
    path = save(tmp_path / "moments", {"opt_state": state["opt_state"][0]._asdict(), "step": state["step"]})
    with pytest.raises(
        ValueError, match=r'lies under "opt_state/.*" alone, where an optimizer keeps its mom'
    ):
        teachers.from_checkpoint(path, Plain(), image_shape=(8, 8, 1))
    moments = teachers.from_checkpoint(path, Plain(), image_shape=(8, 8, 1), prefix="opt_state/mu")
    assert not jax.tree.leaves(moments.variables)[0].any()
    path = save(tmp_path / "other", {"params": {"w": np.zeros(2)}})
    with pytest.raises(
        ValueError, match=r"as Normed: the network's variables are not in the checkpoint; wanted"
    ):
        teachers.from_checkpoint(path, Normed(), image_shape=(8, 8, 1))


# Keras


def test_a_keras_model_becomes_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(),
         layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )  # fmt: skip
    teacher = teachers.from_keras(model, mean=(0.5,), std=(0.25,), name="keras")
    assert (teacher.name, teacher.num_classes, teacher.description.image_shape) == ("keras", 3, (8, 8, 1))
    wanted = np.asarray(model((IMAGES / 255.0 - 0.5) / 0.25, training=False))
    np.testing.assert_allclose(teacher.logits(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    model.layers[-1].activation = keras.activations.get("softmax")
    with pytest.raises(ValueError, match="ends in a softmax"):
        teachers.from_keras(model)


# Another size and another normalisation than the student's


def test_a_teacher_sees_images_of_its_own_size(tmp_path: Path) -> None:
    teacher = teachers.load(helpers.untrained_teacher(tmp_path / "t", helpers.tiny_dataset())).at_size(12)
    pixels = jax.image.resize(jnp.asarray(IMAGES / 255.0, jnp.float32), (2, 12, 12, 1), "bilinear")
    about = teacher.description
    wanted = teachers.load(tmp_path / "t").logits((pixels - about.mean[0]) / about.std[0], normalized=True)
    np.testing.assert_allclose(teacher.logits(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    assert teacher.digest != teachers.load(tmp_path / "t").digest != teacher.at_size(13).digest
    with pytest.raises(ValueError, match="at least 1, got 0"):
        teacher.at_size(0)
    # What is saved is the network, not what resizes its images.
    teachers.save(tmp_path / "again", teacher.variables, teacher.description)
    assert teachers.load(tmp_path / "again").description == teachers.load(tmp_path / "t").description


def test_teacher_and_student_may_differ_in_size_and_normalisation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = helpers.tiny_dataset()
    larger = data.from_examples(
        {"train": [{"image": np.zeros((16, 16, 1), np.uint8), "label": i} for i in range(3)]},
        mean=(0.7,), std=(0.1,), num_classes=3,
    )  # fmt: skip
    folder = helpers.untrained_teacher(tmp_path / "teacher", larger)
    options = {"data": dataset, "epochs": 1, "method": "kd", "devices": 1, "say": helpers.silent}
    student = helpers.Tiny()
    with caplog.at_level(logging.WARNING, "jaxkd"):
        jaxkd.distill(teacher=str(folder), student=student, run=tmp_path / "as-is", **options)
    assert (
        "was trained on images of 16x16 and sees those of tiny unchanged, 8x8; --teacher-size 16"
        in caplog.text
    )
    resized = tmp_path / "resized"
    result = jaxkd.distill(teacher=str(folder), student=student, teacher_size=16, run=resized, **options)
    assert result["teacher"] == "teacher"
    identity = json.loads((resized / "config.json").read_text())["identity"]
    assert identity["teacher_digest"] == teachers.load(folder).at_size(16).digest
    assert (identity["teacher_mean"], identity["teacher_std"]) == ([0.7], [0.1])
    saved = teachers.load(resized / "model", network=student).description
    assert (saved.image_shape, saved.mean) == ((8, 8, 1), dataset.mean)
